"""A month of every era of TLC's files is loaded exactly: no row is lost and no value shifted.

The files come from `local.trip_files.writing`, whose table of layouts is not the product's.
"""

import csv
import datetime as dt
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from flows.tlc.clean import Tally
from flows.tlc.errors import SchemaMismatch, TripDataError
from flows.tlc.matching import Shape
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth
from local.trip_files.damages import Damage, with_damage
from local.trip_files.layouts import FIRST_FILE
from local.trip_files.made_up_trips import Quirk
from local.trip_files.writing import write_month
from tests.real_files import DATA, needs_real_files

HEADS = sorted(DATA.glob("heads-100/*.csv"))


def months(first: str, last: str) -> Iterator[tuple[int, int]]:
    """Yield the year and number of every month from `first` to `last`, both included."""
    (year, month), end = map(int, first.split("-")), tuple(map(int, last.split("-")))
    while (year, month) <= end:
        yield year, month
        year, month = year + month // 12, month % 12 + 1


PUBLISHED = [
    (color, year, month, ".parquet" if form == "parquet" else ".csv")
    for (color, form), first in FIRST_FILE.items()
    for year, month in months(first, "2026-06" if form == "parquet" else "2021-07")
    # every month around a change of the columns, and one month of each other year
    if month in (1, 2, 3, 4, 6, 7, 8, 9)
    and (month in (1, 7) or year in (2010, 2013, 2014, 2016, 2019, 2023, 2025, 2026))
]


def read(trip_month: TripMonth, ending: Ending, content: bytes) -> tuple[pa.Table, Tally, Shape]:
    """Read a file's content. Return the trips, the counts and the shape."""
    chunks = (
        parquet_chunks(trip_month, io.BytesIO(content))
        if ending == ".parquet"
        else csv_chunks(trip_month, ending, iter([content]))
    )
    tally = Tally()
    trips = []
    for chunk in chunks:
        tally.add(chunk)
        trips.append(chunk.trips)
    assert chunk.shape
    return pa.concat_tables(trips), tally, chunk.shape


@pytest.mark.parametrize(("color", "year", "month", "ending"), PUBLISHED)
def test_a_month_of_every_era_is_loaded_without_losing_a_row(
    color: str, year: int, month: int, ending: Ending, tmp_path: Path
) -> None:
    path = tmp_path / f"trips{ending}"
    written = write_month(path, color, year, month, rows=120)
    trips, tally, shape = read(TripMonth(color, year, month), ending, path.read_bytes())
    assert tally.source_rows == written.rows
    assert tally.quarantined.total() == written.counts.get("ragged_rows", 0)
    # Postgres receives only these columns.
    assert shape.filled <= set(trips.column_names)
    assert {name for name in trips.column_names if trips[name].null_count < trips.num_rows} <= shape.filled


@pytest.mark.parametrize(
    ("damage", "ending", "message"),
    [
        ("html", ".parquet", "it is an HTML or XML page"),
        ("html", ".csv.gz", "it is an HTML or XML page"),
        ("lfs_pointer", ".csv.gz", "it is a Git LFS pointer"),
        ("truncated", ".parquet", "is truncated, or something was appended to it"),
        ("truncated", ".csv.gz", "the gzip data is truncated"),
        ("conflict_markers", ".csv", "row 150 is a merge-conflict marker"),
        ("conflict_markers", ".csv.gz", "row 150 is a merge-conflict marker"),
        ("excel_dates", ".csv", "300 of 300 rows .*Dates without seconds come from a spreadsheet"),
        ("excel_dates", ".csv.gz", "300 of 300 rows .*Dates without seconds come from a spreadsheet"),
    ],
)
def test_the_error_for_a_damaged_file_names_the_damage(
    damage: Damage, ending: Ending, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"trips{ending}"
    write_month(path, "green", 2021, 1, rows=300)
    content, month = with_damage(path.read_bytes(), ending, damage), TripMonth("green", 2021, 1)

    def load() -> None:
        recognise(month, ending, content[:1024], path.name)
        recognise_end(month, ending, content[-8:], path.name)
        read(month, ending, content)[1].check(month)

    with pytest.raises(TripDataError, match=message):
        load()


def test_gzip_with_several_members_gives_the_same_values(tmp_path: Path) -> None:
    path = tmp_path / "trips.csv.gz"
    write_month(path, "green", 2021, 1, rows=300)
    content, month = path.read_bytes(), TripMonth("green", 2021, 1)
    parted = with_damage(content, ".csv.gz", "gzip_members")
    assert read(month, ".csv.gz", parted)[0].equals(read(month, ".csv.gz", content)[0])


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_extreme_values_are_loaded_unchanged(ending: Ending, tmp_path: Path) -> None:
    path = tmp_path / f"trips{ending}"
    extremes: frozenset[Quirk] = frozenset({"extreme_fares", "huge_distances", "crowds", "zero_passengers"})
    written = write_month(path, "green", 2021, 1, rows=30_000, quirks=extremes)
    trips, tally, _ = read(TripMonth("green", 2021, 1), ending, path.read_bytes())
    assert (tally.loaded, tally.quarantined.total()) == (written.rows, 0)
    fares, distances = trips["fare_amount"].to_pylist(), trips["trip_distance"].to_pylist()
    assert (min(fares), max(fares), max(distances)) == (-500, 4003, 293_931.12)
    assert {0, 7, 8, 9} <= set(trips["passenger_count"].to_pylist())


YELLOW_2009 = (
    "vendor_name,Trip_Pickup_DateTime,Trip_Dropoff_DateTime,Passenger_Count,Trip_Distance,Start_Lon,Start_Lat,Rate_Code,"
    "store_and_forward,End_Lon,End_Lat,Payment_Type,Fare_Amt,surcharge,mta_tax,Tip_Amt,Tolls_Amt,Total_Amt\n\r\n"
)
YELLOW_2016 = (
    "VendorID,tpep_pickup_datetime,tpep_dropoff_datetime,passenger_count,trip_distance,RatecodeID,store_and_fwd_flag,"
    "PULocationID,DOLocationID,payment_type,fare_amount,extra,mta_tax,tip_amount,tolls_amount,improvement_surcharge,"
    "total_amount\r\n"
)
FHV_2018 = (
    '"Pickup_DateTime","DropOff_datetime","PUlocationID","DOlocationID","SR_Flag","Dispatching_base_number",'
    '"Dispatching_base_num"\r\n'
)


def test_words_of_old_yellow_files_become_tlcs_codes_or_stay_as_text() -> None:
    trip = "{},2009-01-04 02:52:00,2009-01-04 03:02:00,1,2.6299999999999999,-73.99,40.72,,{},-73.99,40.69,{},8.9,0.5,,0,0,9.4"
    cases = [
        ("VTS", "", "CASH"),
        ("CMT", "0", " Credit "),
        ("DDS", "1", "No Charge"),
        ("vts", "", "Barter"),
        ("", "2", ""),
    ]
    content = YELLOW_2009 + "".join(trip.format(v, s, p) + "\r\n" for v, s, p in cases)
    trips, tally, shape = read(TripMonth("yellow", 2009, 1), ".csv", content.encode())
    assert (tally.loaded, shape.era.name) == (5, "yellow csv since 2009-01")
    assert {"vendor_text", "payment_text"} <= shape.filled
    assert trips["VendorID"].to_pylist() == [2, 1, None, 2, None]
    assert trips["vendor_text"].to_pylist() == [None, None, "DDS", None, None]
    assert trips["payment_type"].to_pylist() == [2, 1, 3, None, None]
    assert trips["payment_text"].to_pylist() == [None, None, None, "Barter", None]
    assert trips["store_and_fwd_flag"].to_pylist() == [None, "N", "Y", None, "2"]
    assert trips["pickup_longitude"].to_pylist() == [-73.99] * 5
    assert trips["trip_distance"][0].as_py() == float("2.6299999999999999")
    assert trips["extra"].to_pylist() == [0.5] * 5


def test_a_word_in_a_code_column_of_a_newer_era_is_quarantined() -> None:
    header = YELLOW_2016.replace("total_amount", "total_amount,congestion_surcharge")
    trip = "CMT,2019-01-04 02:52:00,2019-01-04 03:02:00,1,2,1,N,1,2,1,8.9,0.5,0.5,0,0,0.3,9.4,0\r\n"
    _, tally, _ = read(TripMonth("yellow", 2019, 1), ".csv", (header + trip).encode())
    assert tally.quarantined == {"VendorID: not a whole number": 1}


def test_two_unnamed_empty_fields_do_not_shift_columns() -> None:
    trip = "1,2016-07-10 06:56:05,2016-07-10 06:59:53,1,.50,1,N,263,236,1,4.5,1,0.5,2.7,0,0.3,9"
    content = YELLOW_2016 + f"{trip},,\r\n" * 3
    trips, tally, _ = read(TripMonth("yellow", 2016, 7), ".csv", content.encode())
    assert tally.loaded == 3
    assert trips["total_amount"].to_pylist() == [9.0] * 3
    assert trips["tpep_pickup_datetime"][0].as_py() == dt.datetime(2016, 7, 10, 6, 56, 5)
    unpadded, tally, _ = read(TripMonth("yellow", 2016, 7), ".csv", (YELLOW_2016 + f"{trip}\r\n").encode())
    assert unpadded["total_amount"].to_pylist() == [9.0]


def test_an_unnamed_field_with_a_value_stops_the_month() -> None:
    trip = "1,2016-07-10 06:56:05,2016-07-10 06:59:53,1,.50,1,N,263,236,1,4.5,1,0.5,2.7,0,0.3,9"
    content = YELLOW_2016 + f"{trip},,\r\n{trip},,7\r\n"
    with pytest.raises(SchemaMismatch, match=r"field 19.* has '7' in row 2.*shifted.*Nothing was loaded"):
        read(TripMonth("yellow", 2016, 7), ".csv", content.encode())


def test_of_the_two_base_numbers_of_2018_the_empty_one_must_stay_empty() -> None:
    trip = '"2018-01-30 21:06:50","2018-01-30 21:15:34","56","129","","B02884","{}"\r\n'
    trips, tally, _ = read(TripMonth("fhv", 2018, 1), ".csv", (FHV_2018 + trip.format("")).encode())
    assert tally.loaded == 1
    assert trips["dispatching_base_num"].to_pylist() == ["B02884"]
    with pytest.raises(SchemaMismatch, match=r"Dispatching_base_num is empty in all files known so far, but has 'B1'"):
        read(TripMonth("fhv", 2018, 1), ".csv", (FHV_2018 + trip.format("B1")).encode())


@needs_real_files
@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
def test_every_value_of_a_real_legacy_file_is_in_the_column_of_its_header(path: Path) -> None:
    color, _, month = path.stem.split("_")
    trip_month = TripMonth(color, *map(int, month.split("-")))
    rows = [row for row in csv.reader(path.read_text(encoding="utf-8").splitlines()) if row]
    trips, tally, shape = read(trip_month, ".csv", path.read_bytes())
    assert tally.loaded == tally.source_rows == len(rows) - 1
    for name, column in zip(shape.published, shape.canonical, strict=True):
        position = rows[0].index(name)
        published = [row[position].strip() for row in rows[1:]]
        values = trips[column.name].to_pylist()
        if column.kind == "number":
            total = math.fsum(float(text) for text in published if text)
            assert math.fsum(v for v in values if v is not None) == pytest.approx(total, abs=1e-9), name
        elif column.kind == "datetime":
            assert [str(v) for v in values] == published, name
        elif not shape.coded(column):
            assert ["" if v is None else str(v) for v in values] == published, name
