"""No cent is lost: each money column has the same total in the lake as in the file, which this test reads with other code."""

import csv
import gzip
import io
import math
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from google.cloud import storage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.stores.lake import Lake
from flows.tlc.schema import TRIP_COLUMNS
from flows.tlc.sources import ENDINGS
from flows.tlc.trips import TripMonth
from local.trip_files.writing import BadRows, write_month
from tests.flows.conftest import by_hand
from tests.real_files import DATA, needs_real_files
from tests.stores import Stores
from tests.tlc.test_every_era import PUBLISHED
from tests.tlc.test_real_files import ending_of, month_of

WHOLE = [
    path
    for folder in ("official", "mirror", "samples-2020-04")
    for path in sorted((DATA / folder).glob("*_tripdata_*"))
    if path.name.endswith(ENDINGS)
]
MONEY = {
    color: {column.name.lower(): column.name for column in columns if column.unit == "US$"}
    for color, columns in TRIP_COLUMNS.items()
}
# The names in yellow files of 2009 to 2014.
OLDER = {
    "fare_amt": "fare_amount",
    "surcharge": "extra",
    "tip_amt": "tip_amount",
    "tolls_amt": "tolls_amount",
    "total_amt": "total_amount",
}


def total(amounts: Iterable[float | None]) -> int:
    """Return the sum in thousandths of a dollar. Each amount is rounded first, which removes float noise."""
    return round(1000 * math.fsum(amount for amount in amounts if amount is not None))


def published(path: Path, color: str, less: Iterable[int] = ()) -> dict[str, int]:
    """Return the total of each money column of a file, without the rows `less`."""
    if path.name.endswith(".parquet"):
        trips = pq.read_table(path)
        keep = [row for row in range(trips.num_rows) if row + 1 not in less]
        sums = {
            name: total(
                None if amount is None else float(amount) for amount in trips.column(name).take(keep).to_pylist()
            )
            for name in trips.column_names
            if named(name) in MONEY[color]
        }
    else:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
        header, *rows = (row for row in csv.reader(io.StringIO(text)) if row)
        kept = [row for number, row in enumerate(rows, 1) if number not in less]
        sums = {
            name: round(1000 * sum(Decimal(row[place]) for row in kept if row[place]))
            for place, name in enumerate(header)
            if named(name) in MONEY[color]
        }
    return {named(name): amount for name, amount in sums.items()}


def named(name: str) -> str:
    plain = name.strip().lower()
    return OLDER.get(plain, plain)


def in_lake(path: Path, month: TripMonth, bucket: str) -> dict[str, int]:
    """Load a file into the lake and return the total of each money column of the month's object."""
    lake = Lake(GcsBucket(bucket=bucket, bucket_folder="sums", gcp_credentials=GcpCredentials()))
    template = path.parent.as_uri() + "/{color}_tripdata_{year}-{month:02d}" + ending_of(path)
    manifest = by_hand(lake, month, template, run_id="sums").manifest
    with storage.Client().bucket(bucket).blob(f"sums/{manifest.key}").open("rb") as file:
        trips = pq.read_table(file)
    assert trips.num_rows == manifest.loaded
    return {plain: total(trips[name].to_pylist()) for plain, name in MONEY[month.color].items()}


@needs_real_files
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_the_totals_of_a_real_file_are_the_same_in_the_lake(path: Path, ours: Stores) -> None:
    month = month_of(path)
    expected = published(path, month.color)
    assert in_lake(path, month, ours.bucket) == dict.fromkeys(MONEY[month.color], 0) | expected
    assert expected.get("total_amount", 1) > 0


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from(PUBLISHED),
    rows=st.integers(100, 700),
    seed=st.integers(0, 999),
    faults=st.lists(st.sampled_from(["unconvertible", "too_many_fields", "too_few_fields"]), max_size=1),
)
def test_the_totals_in_the_lake_are_those_of_the_valid_rows(
    shape: tuple[str, int, int, str], rows: int, seed: int, faults: list[str], ours: Stores, tmp_path: Path
) -> None:
    color, year, number, ending = shape
    month = TripMonth(color, year, number)
    path = tmp_path / f"{month.stem}{ending}"
    # In most Parquet files the column types allow no value that cannot be converted.
    wanted = BadRows(**dict.fromkeys(faults, 1)) if ending == ".csv" else BadRows()
    written = write_month(path, color, year, number, rows=rows, seed=seed, bad_rows=wanted)
    sums = published(path, color, written.bad_row_numbers)
    assert in_lake(path, month, ours.bucket) == dict.fromkeys(MONEY[color], 0) | sums
