"""Real files of TLC and of its mirror are loaded exactly: every row, every value, every cent."""

import csv
import datetime as dt
import gzip
import io
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.tlc.errors import UnreadableFile
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.schema import TRIP_COLUMNS
from flows.tlc.sources import ENDINGS, Ending
from flows.tlc.trips import TripMonth
from tests.real_files import DATA, needs_real_files
from tests.tlc.published import Read, read_csv, read_parquet

pytestmark = needs_real_files

# Row counts that other programs measured.
OFFICIAL = {
    "green_tripdata_2020-04.parquet": 35_644,
    "green_tripdata_2020-08.parquet": 81_063,
    "green_tripdata_2021-01.parquet": 76_518,
    "green_tripdata_2022-01.parquet": 62_495,
    "green_tripdata_2023-01.parquet": 68_211,
    "green_tripdata_2023-02.parquet": 64_809,
    "green_tripdata_2023-06.parquet": 65_550,
    "green_tripdata_2024-03.parquet": 57_457,
    "green_tripdata_2025-01.parquet": 48_326,
}
CSVS = {
    "mirror/green_tripdata_2020-10.csv.gz": 95_120,
    "samples-2020-04/fhv_tripdata_2020-04.csv": 1000,
    "samples-2020-04/fhvhv_tripdata_2020-04.csv": 1000,
    "samples-2020-04/green_tripdata_2020-04.csv": 1000,
    "samples-2020-04/yellow_tripdata_2020-04.csv": 1000,
}


def month_of(path: Path) -> TripMonth:
    color, _, month = path.name.partition(".")[0].split("_")
    year, number = month.split("-")
    return TripMonth(color, int(year), int(number))


def ending_of(path: Path) -> Ending:
    return next(ending for ending in ENDINGS if path.name.endswith(ending))


def read(path: Path, part: bytes | None = None) -> Read:
    """Read a real file, or a part of it."""
    data, month, ending = part or path.read_bytes(), month_of(path), ending_of(path)
    recognise(month, ending, data[:1024], path.name)
    recognise_end(month, ending, data[-8:], path.name)
    return read_parquet(data, month) if ending == ".parquet" else read_csv(data, month, ending)


def total(amounts: list[float | None]) -> int:
    """Return a sum of money or miles in thousandths. No amount has more decimals, so this only removes float noise."""
    return round(1000 * math.fsum(amount for amount in amounts if amount is not None))


@pytest.mark.parametrize(("name", "rows"), OFFICIAL.items(), ids=OFFICIAL)
def test_every_row_and_value_of_an_official_file_is_loaded(name: str, rows: int) -> None:
    path = DATA / "official" / name
    got = read(path)
    got.tally.check(month_of(path))
    assert (got.tally.source_rows, got.tally.loaded, got.rejects) == (rows, rows, [])
    assert got.values("row_number") == list(range(1, rows + 1))
    published = pq.read_table(path)
    for published_name in published.column_names:
        [column] = [c for c in TRIP_COLUMNS["green"] if c.name.lower() == published_name.lower()]
        in_file, loaded = published[published_name], got.trips[column.name]
        if in_file.null_count == rows:
            assert loaded.null_count == rows
            continue
        assert loaded.cast(in_file.type).equals(in_file), published_name  # cast back to the published type
        if column.kind == "number":
            assert total(loaded.to_pylist()) == total(in_file.to_pylist())
    absent = {c.name for c in TRIP_COLUMNS["green"]} - set(published.column_names)
    assert all(got.trips[name].null_count == rows for name in absent)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), CSVS.items(), ids=CSVS)
def test_every_row_and_value_of_a_real_csv_is_loaded(name: str, rows: int) -> None:
    path = DATA / name
    got = read(path)
    got.tally.check(month_of(path))
    assert (got.tally.source_rows, got.tally.loaded, got.rejects) == (rows, rows, [])
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    header, *lines = csv.reader(io.StringIO(text))
    kinds = {column.name.lower(): column for column in TRIP_COLUMNS[month_of(path).color]}
    for published_name, texts in zip(header, zip(*lines, strict=True), strict=True):
        column = kinds[published_name.lower()]
        loaded = got.values(column.name)
        assert loaded == [_PYTHON[column.kind](text) if text else None for text in texts], published_name
        if column.kind == "number":
            assert total(loaded) == round(1000 * sum(Decimal(text) for text in texts if text))


_PYTHON = {"integer": int, "number": float, "datetime": dt.datetime.fromisoformat, "text": str}


HEADS = sorted(DATA.glob("heads-*/*.csv"))


@pytest.mark.parametrize("path", HEADS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_complete_line_of_a_truncated_csv_is_read(path: Path) -> None:
    data = path.read_bytes()
    recognise(month_of(path), ".csv", data[:1024], path.name)
    data = data[: data.rindex(b"\n") + 1]  # the last line may be incomplete
    whole = [line for line in data.splitlines()[1:] if line]
    got = read_csv(data, month_of(path))
    assert (got.tally.source_rows, got.tally.loaded, got.rejects) == (len(whole), len(whole), [])
    assert len(whole) > (50 if path.parent.name == "heads-100" else 2)


def test_a_real_file_with_conflict_markers_is_refused() -> None:
    [path] = (DATA / "broken").glob("conflict-markers_*.csv")
    with pytest.raises(UnreadableFile, match="it begins with merge-conflict markers: get the original file"):
        recognise(TripMonth("fhv", 2020, 1), ".csv", path.read_bytes(), path.name)


def test_every_row_of_a_real_file_that_excel_saved_is_quarantined() -> None:
    [path] = (DATA / "broken").glob("conflict-markers_*.csv")
    header, *rest = path.read_bytes().partition(b"\n")[2].split(b"\n")
    trips = [line for line in rest if line.startswith(b"B0")]
    got = read_csv(b"\n".join([header, *trips, b""]), TripMonth("fhv", 2020, 1))
    reasons = Counter(reject["reason"] for reject in got.rejects)
    assert reasons == {"pickup_datetime: not a datetime": len(trips)}
    assert [reject["original"] for reject in got.rejects] == [line.decode().strip() for line in trips]
