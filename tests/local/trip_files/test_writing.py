"""Generated trip files have the format of real ones, and exactly the requested quirks, faults and editions."""

import csv
import gzip
import hashlib
import re
import zlib
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from local.trip_files.damages import with_damage
from local.trip_files.editions import expected_changes, rows_of_edition
from local.trip_files.layouts import (
    COLORS,
    CSV_LAYOUTS,
    FIRST_FILE,
    PARQUET_NAMES,
    PARQUET_TYPES,
    WRITERS,
    Color,
    parquet_layout,
)
from local.trip_files.made_up_trips import ALL_QUIRKS, NO_QUIRKS, Quirk
from local.trip_files.writing import BadRows, write_month
from tests.real_files import DATA, needs_real_files

HEADS = sorted(DATA.glob("heads-*/*.csv"))
OFFICIAL = sorted(DATA.glob("official/*.parquet"))
MONEY = ["fare_amount", "extra", "mta_tax", "tip_amount", "tolls_amount", "improvement_surcharge"]


def month_of(path: Path) -> tuple[Any, int, int]:
    color, year, month = re.match(r"(\w+)_tripdata_(\d{4})-(\d\d)", path.name).groups()  # type: ignore[union-attr]
    return color, int(year), int(month)


def eras() -> list[tuple[Any, int, int]]:
    """Return the first two months of every row in the tables of layouts."""
    sinces = {(layout.color, layout.since) for layout in CSV_LAYOUTS}
    sinces |= {(color, since) for color, since, _ in PARQUET_NAMES}
    sinces |= {(color, row[2]) for row in PARQUET_TYPES for color in row[0].split()}
    sinces |= {(color, writer.since) for color in COLORS for writer in WRITERS}
    months = {(color, int(since[:4]), int(since[5:])) for color, since in sinces}
    return sorted(months | {(color, year, month % 12 + 1) for color, year, month in months})


def write(path: Path, color: Color, year: int, month: int, **options: Any) -> Any:
    options.setdefault("rows", 1000)
    return write_month(path, color, year, month, **options)


def table(path: Path, color: Color, year: int, month: int, **options: Any) -> Any:
    write(path / "month.parquet", color, year, month, **options)
    return pq.read_table(path / "month.parquet")


def lines(path: Path) -> list[list[str]]:
    """Return the data rows of a CSV, without blank lines."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [row for row in csv.reader(content.decode().splitlines()) if row][1:]


def opening(content: bytes) -> tuple[bytes, bytes, int]:
    """Return the header with its line ends, the line end of the first row, and the number of its fields."""
    match = re.match(rb"([^\r\n]*(?:\r?\n)+)([^\r\n]+)(\r?\n)", content)
    assert match
    return match[1], match[3], match[2].count(b",") + 1


@needs_real_files
@pytest.mark.parametrize("real", HEADS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_csv_begins_with_the_same_bytes_as_the_real_file(real: Path, tmp_path: Path) -> None:
    write(tmp_path / "month.csv", *month_of(real), rows=50)
    assert opening((tmp_path / "month.csv").read_bytes()) == opening(real.read_bytes())


@needs_real_files
@pytest.mark.parametrize("real", OFFICIAL, ids=lambda path: path.stem)
def test_a_parquet_footer_equals_that_of_the_real_file(real: Path, tmp_path: Path) -> None:
    write(tmp_path / "month.parquet", *month_of(real))
    made, real_file = pq.ParquetFile(tmp_path / "month.parquet"), pq.ParquetFile(real)
    assert made.schema_arrow.equals(real_file.schema_arrow)
    assert made.schema.equals(real_file.schema)
    assert made.metadata.format_version == real_file.metadata.format_version
    assert made.metadata.num_row_groups == real_file.metadata.num_row_groups
    assert made.metadata.metadata.keys() == real_file.metadata.metadata.keys()
    assert made.metadata.metadata.get(b"pandas") == real_file.metadata.metadata.get(b"pandas")
    for at in range(real_file.metadata.num_columns):
        ours, theirs = made.metadata.row_group(0).column(at), real_file.metadata.row_group(0).column(at)
        assert (ours.compression, ours.is_stats_set) == (theirs.compression, theirs.is_stats_set)
        assert ours.has_dictionary_page == theirs.has_dictionary_page


@needs_real_files
def test_every_official_month_has_its_published_columns() -> None:
    with (DATA / "published-months.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            color, year, month = month_of(Path(row["file"]))
            assert parquet_layout(color, f"{year}-{month:02d}").schema().names == row["columns"].split(), row["file"]


@pytest.mark.parametrize(("color", "year", "month"), eras())
def test_the_same_arguments_make_the_same_bytes_in_every_era(
    color: Color, year: int, month: int, tmp_path: Path
) -> None:
    for file_format, ending, last in (("parquet", "parquet", "9999-12"), ("csv", "csv.gz", "2021-07")):
        if FIRST_FILE.get((color, file_format), "never") <= f"{year}-{month:02d}" <= last:
            paths = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
            one, two = (write(path, color, year, month, rows=150) for path in paths)
            assert one == two
            assert one.rows == 150
            assert len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) == 1


def test_another_seed_makes_other_trips(tmp_path: Path) -> None:
    assert not table(tmp_path, "green", 2021, 1).equals(table(tmp_path, "green", 2021, 1, seed=1))


@pytest.mark.parametrize(("color", "month"), [("yellow", 1), ("green", 1), ("green", 7)])
def test_csv_and_parquet_of_a_month_have_the_same_trips(color: Color, month: int, tmp_path: Path) -> None:
    official = table(tmp_path, color, 2021, month, rows=3000, quirks=ALL_QUIRKS - {"vendor_six"})
    write(tmp_path / "month.csv.gz", color, 2021, month, rows=3000)
    names = gzip.decompress((tmp_path / "month.csv.gz").read_bytes()).decode().partition("\r\n")[0].split(",")
    rows = lines(tmp_path / "month.csv.gz")
    for at, name in enumerate(names):
        values = official[name].to_pylist()
        for row, value in zip(rows, values, strict=True):
            if row[0] == "" and name in ("VendorID", "payment_type"):
                assert row[at] == ""  # blank in a dispatch block, where the official file has a vendor
            elif row[at] == "":
                assert value is None
            else:
                assert type(value)(row[at]) == value if not hasattr(value, "year") else row[at] == str(value)


def test_parts_of_a_fare_add_up_to_its_total(tmp_path: Path) -> None:
    for color, year in (("yellow", 2025), ("yellow", 2012), ("green", 2021)):
        trips = table(tmp_path, color, year, 3)  # type: ignore[arg-type]
        fees = {"congestion_surcharge", "airport_fee", "Airport_fee", "cbd_congestion_fee", *MONEY}
        parts = sum(pc.fill_null(trips[name], 0).to_numpy() for name in trips.column_names if name in fees)
        assert np.abs(parts - trips["total_amount"].to_numpy()).max() < 0.005


def test_trips_are_spread_over_days_and_hours_as_in_a_city(tmp_path: Path) -> None:
    pickups = table(tmp_path, "yellow", 2021, 3, rows=20_000, quirks=NO_QUIRKS)["tpep_pickup_datetime"].to_numpy()
    days, per_day = np.unique(pickups.astype("M8[D]"), return_counts=True)
    assert (days[0], days[-1], len(days)) == (np.datetime64("2021-03-01"), np.datetime64("2021-03-31"), 31)
    assert per_day.max() < 2 * per_day.min()
    per_hour = np.bincount(pickups.astype("M8[h]").astype(int) % 24)
    assert per_hour[18] > 5 * per_hour[4]


def test_a_month_compresses_like_a_real_one(tmp_path: Path) -> None:
    write(tmp_path / "month.csv.gz", "yellow", 2021, 1, rows=100_000)
    assert 15 < (tmp_path / "month.csv.gz").stat().st_size / 100_000 < 28


@pytest.mark.parametrize("quirk", sorted(ALL_QUIRKS))
def test_each_quirk_can_be_used_alone_and_omitted(quirk: Quirk, tmp_path: Path) -> None:
    where: dict[str, tuple[Any, int, int]] = dict.fromkeys(ALL_QUIRKS, ("green", 2021, 1))
    where |= {"ragged_rows": ("yellow", 2010, 2), "single_space": ("fhvhv", 2021, 1)}
    where |= {"blank_zones": ("fhv", 2019, 1), "trailing_blanks": ("fhv", 2019, 1)}
    path = tmp_path / ("month.csv" if quirk == "ragged_rows" else "month.parquet")
    alone = write(path, *where[quirk], quirks=frozenset({quirk}))
    assert [name for name, count in alone.counts.items() if count] == [quirk]
    assert not write(path, *where[quirk], quirks=ALL_QUIRKS - {quirk}).counts.get(quirk)


def test_the_dispatch_block_is_at_the_end_and_its_meter_columns_are_null(tmp_path: Path) -> None:
    written = write(tmp_path / "month.parquet", "green", 2021, 1)
    trips = pq.read_table(tmp_path / "month.parquet").to_pandas()
    meter = ["store_and_fwd_flag", "RatecodeID", "passenger_count", "payment_type", "trip_type", "congestion_surcharge"]
    block = trips[meter].isna()
    assert block.all(axis=1).equals(block.any(axis=1))
    assert block.all(axis=1).sum() == written.counts["dispatch_block"] == 471
    assert block.tail(471).all(axis=None)
    assert trips["VendorID"].notna().all()
    assert (trips.tail(471)["lpep_pickup_datetime"].dt.second == 0).mean() > 0.9


def test_refunds_negate_the_trip_above_and_identical_trips_repeat_it(tmp_path: Path) -> None:
    for quirk, sign in (("refunds", -1), ("identical_trips", 1)):
        written = write(tmp_path / "month.parquet", "green", 2021, 1, rows=5000, quirks=frozenset({quirk}))
        rows = pq.read_table(tmp_path / "month.parquet").drop_columns(["payment_type"]).to_pylist()
        money = [*MONEY, "total_amount", "congestion_surcharge"]
        twins = [
            row
            for above, row in pairwise(rows)
            if row == above | {name: above[name] and sign * above[name] for name in money}
        ]
        assert len(twins) == written.counts[quirk] > 0


def test_trips_of_other_months_range_from_2008_to_four_months_ahead(tmp_path: Path) -> None:
    pickups = table(tmp_path, "green", 2021, 1, rows=50_000)["lpep_pickup_datetime"].to_numpy().astype("M8[D]")
    strays = {str(day) for day in pickups if not str(day).startswith("2021-01")}
    assert {"2008-12-31", "2009-01-01", "2020-12-31", "2021-02-01", "2021-05-01"} <= strays


def test_vendor_six_has_the_months_number_as_minute_and_occurs_only_in_parquet(tmp_path: Path) -> None:
    trips = table(tmp_path, "green", 2021, 2, rows=20_000).to_pandas()
    six = trips[trips.VendorID == 6]
    assert len(six) > 5
    assert (six.lpep_pickup_datetime.dt.minute == 2).all()
    assert (six.lpep_dropoff_datetime.dt.minute == 2).all()
    write(tmp_path / "month.csv", "green", 2021, 2, rows=20_000)
    assert {row[0] for row in lines(tmp_path / "month.csv")} == {"", "1", "2"}


def test_passengers_zones_codes_and_distances_have_the_range_of_real_ones(tmp_path: Path) -> None:
    written = write(tmp_path / "month.parquet", "yellow", 2021, 1, rows=50_000)
    trips = pq.read_table(tmp_path / "month.parquet")
    passengers = Counter(trips["passenger_count"].to_pylist())
    assert set(passengers) == {None, *range(10)}
    assert passengers[0] == written.counts["zero_passengers"]
    assert {264, 265} <= set(trips["DOLocationID"].to_pylist())
    assert 99 in trips["RatecodeID"].to_pylist()
    assert pc.max(trips["trip_distance"]).as_py() == 293931.12
    assert pc.min(trips["total_amount"]).as_py() < 0


def test_fares_range_from_minus_500_to_4003_dollars_and_totals_follow(tmp_path: Path) -> None:
    alone: Any = frozenset({"extreme_fares"})
    written, trips = (
        make(tmp_path / "month.parquet", "green", 2021, 1, rows=50_000, quirks=alone)
        for make in (write, lambda path, *_, **__: pq.read_table(path))
    )
    fares = trips["fare_amount"].to_pylist()
    assert (min(fares), max(fares)) == (-500, 4003)
    assert sum(fare in (-500, 4003) for fare in fares) == written.counts["extreme_fares"] == 5
    assert pc.min(trips["total_amount"]).as_py() < -490


def test_dates_saved_by_excel_have_no_seconds_and_nothing_else_changes(tmp_path: Path) -> None:
    write(tmp_path / "month.csv", "fhv", 2020, 1)
    valid = (tmp_path / "month.csv").read_bytes()
    saved = with_damage(valid, ".csv", "excel_dates")
    before, after = (list(csv.reader(content.decode().splitlines())) for content in (valid, saved))
    for was, now in zip(before[1:], after[1:], strict=True):
        assert (was[0], was[3:]) == (now[0], now[3:])
        for text, short in zip(was[1:3], now[1:3], strict=True):
            assert re.fullmatch(r"\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d\d", short)
            assert datetime.strptime(short, "%m/%d/%Y %H:%M") == datetime.fromisoformat(text).replace(second=0)


def test_conflict_markers_enclose_the_same_rows_twice(tmp_path: Path) -> None:
    write(tmp_path / "month.csv", "green", 2021, 1)
    valid = (tmp_path / "month.csv").read_bytes()
    lines, spoiled = (c.splitlines() for c in (valid, with_damage(valid, ".csv", "conflict_markers")))
    [begin, middle, end] = [n for n, line in enumerate(spoiled) if line[:7] in (b"<<<<<<<", b"=======", b">>>>>>>")]
    assert begin > 100
    assert spoiled[begin + 1 : middle] == spoiled[middle + 1 : end]
    assert spoiled[:begin] + spoiled[middle + 1 : end] + spoiled[end + 1 :] == lines


def test_gzip_with_several_members_has_the_same_text(tmp_path: Path) -> None:
    write(tmp_path / "month.csv.gz", "green", 2021, 1)
    valid = (tmp_path / "month.csv.gz").read_bytes()
    parted = with_damage(valid, ".csv.gz", "gzip_members")
    assert gzip.decompress(parted) == gzip.decompress(valid)
    first = zlib.decompressobj(wbits=31)
    assert 0 < len(first.decompress(parted)) < len(gzip.decompress(valid))
    assert first.unused_data.startswith(b"\x1f\x8b")


def test_other_damages_are_a_page_a_pointer_and_half_a_file() -> None:
    page, pointer, half = (
        with_damage(b"PAR1....PAR1", ".parquet", kind) for kind in ("html", "lfs_pointer", "truncated")
    )
    assert page.startswith(b"<!DOCTYPE html>")
    assert pointer.startswith(b"version https://git-lfs")
    assert 120 < len(pointer) < 140
    assert half == b"PAR1.."
    for ending, kind in ((".parquet", "excel_dates"), (".csv", "gzip_members")):
        with pytest.raises(ValueError, match=f"a {ending} file cannot have {kind}"):
            with_damage(b"", ending, kind)


def test_without_the_quirk_null_typed_columns_are_doubles_with_nulls(tmp_path: Path) -> None:
    published, typed = (
        table(tmp_path, "green", 2021, 1, quirks=quirks) for quirks in (ALL_QUIRKS, ALL_QUIRKS - {"null_typed_columns"})
    )
    assert (str(published["ehail_fee"].type), str(typed["ehail_fee"].type)) == ("null", "double")
    assert typed["ehail_fee"].null_count == len(typed)


def test_old_eras_have_words_and_float_noise(tmp_path: Path) -> None:
    write(tmp_path / "month.csv", "yellow", 2009, 1)
    rows = lines(tmp_path / "month.csv")
    assert {row[0] for row in rows} == {"CMT", "VTS", "DDS"}
    assert {"CASH", "Cash", "Credit", "CREDIT"} <= {row[11] for row in rows}
    assert any(re.fullmatch(r"\d\.\d{16}", row[4]) for row in rows)
    write(tmp_path / "month.csv", "yellow", 2016, 8)
    assert all(row[17:] == ["", ""] for row in lines(tmp_path / "month.csv"))
    assert any(re.fullmatch(r"\.\d\d", row[4]) for row in lines(tmp_path / "month.csv"))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 3), (2, 3), (2, 4), (1, 1), (3, 1)])
@pytest.mark.parametrize(
    ("color", "ending"), [("yellow", "csv"), ("green", "parquet"), ("fhv", "csv.gz"), ("fhvhv", "csv")]
)
def test_editions_differ_by_exactly_the_expected_changes(
    color: Color, ending: str, old: int, new: int, tmp_path: Path
) -> None:
    found = []
    for edition in (old, new):
        path = tmp_path / f"{edition}.{ending}"
        assert write(path, color, 2020, 3, rows=2501, edition=edition).rows == rows_of_edition(2501, edition)
        found.append(pq.read_table(path).to_pylist() if ending == "parquet" else lines(path))
    before, after = found
    expected = expected_changes(2501, old, new)
    assert (expected.inserted, expected.removed) == (max(0, len(after) - len(before)), max(0, len(before) - len(after)))
    assert expected.updated == sum(one != two for one, two in zip(before, after, strict=False))
    assert (expected.updated > 20) == (old != new)


def test_bad_rows_are_of_the_requested_kinds_and_at_the_reported_positions(tmp_path: Path) -> None:
    bad_rows = BadRows(unconvertible=4, too_many_fields=3, too_few_fields=2)
    for color, year, month in (("yellow", 2021, 1), ("green", 2013, 8), ("fhv", 2017, 8)):
        valid, faulty = tmp_path / "valid.csv", tmp_path / "faulty.csv"
        write(valid, color, year, month, quirks=NO_QUIRKS)  # type: ignore[arg-type]
        written = write(faulty, color, year, month, quirks=NO_QUIRKS, bad_rows=bad_rows)  # type: ignore[arg-type]
        before, after = lines(valid), lines(faulty)
        assert len(before) == len(after)
        assert (
            tuple(at for at, rows in enumerate(zip(before, after, strict=True), 1) if rows[0] != rows[1])
            == written.bad_row_numbers
        )
        widths = Counter(np.sign(len(after[row - 1]) - len(before[0])) for row in written.bad_row_numbers)
        assert widths == {0: 4, 1: 3, -1: 2}


def test_a_bad_parquet_value_is_a_fractional_code_or_an_invalid_time(tmp_path: Path) -> None:
    bad_rows = BadRows(unconvertible=3)
    write(tmp_path / "month.parquet", "green", 2021, 1, bad_rows=bad_rows)
    assert pq.read_table(tmp_path / "month.parquet")["RatecodeID"].to_pylist().count(1.5) == 3
    write(tmp_path / "month.parquet", "yellow", 2009, 1, bad_rows=bad_rows)
    assert pq.read_table(tmp_path / "month.parquet")["Trip_Pickup_DateTime"].to_pylist().count("not a time") == 3


@pytest.mark.parametrize(
    ("name", "color", "year", "month", "options", "message"),
    [
        ("month.csv", "green", 2013, 7, {}, "the first is 2013-08"),
        ("month.parquet", "green", 2013, 8, {}, "the first is 2014-01"),
        ("month.json", "green", 2021, 1, {}, "ends in one of"),
        ("month.csv", "green", 2021, 1, {"rows": 0}, "count from 1"),
        ("month.csv", "green", 2021, 1, {"edition": 2, "bad_rows": BadRows(1)}, "first edition"),
        ("month.csv", "green", 2021, 1, {"rows": 9, "bad_rows": BadRows(5)}, "do not fit"),
        ("month.parquet", "green", 2021, 1, {"bad_rows": BadRows(too_few_fields=1)}, "cannot have rows"),
        ("month.parquet", "green", 2024, 1, {"bad_rows": BadRows(1)}, "typed so tightly"),
    ],
)
def test_files_that_tlc_cannot_have_published_are_refused(
    name: str, color: Color, year: int, month: int, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / name, color, year, month, **options)


def test_a_month_of_many_batches_keeps_its_order_and_row_groups(tmp_path: Path) -> None:
    trips = table(tmp_path, "green", 2024, 3, rows=140_001, quirks=ALL_QUIRKS - {"other_months", "dispatch_block"})
    hours = trips["lpep_pickup_datetime"].to_numpy().astype("M8[h]").astype(int)
    assert len(trips) == 140_001
    # Vendor 6 keeps its hour and copies repeat the row above, so the times go back less than two hours.
    assert (np.diff(hours) >= -1).all()
    assert pq.ParquetFile(tmp_path / "month.parquet").num_row_groups == 1
