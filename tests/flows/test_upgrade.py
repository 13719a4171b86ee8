"""A column added to the canonical schema: older months stay readable everywhere, and it can be told which ones carry it."""

from collections.abc import Iterator
from typing import Any

import pyarrow.dataset as ds
import pytest
from google.cloud import bigquery
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import SCHEMA_VERSION, TRIP_COLUMNS, Column, arrow_schema
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs, postgres_block
from tests.stores import Stores, stores
from tests.tlc.published import parquet_file, table

OLD, NEW, LATE = (TripMonth("green", 2023, month) for month in (1, 2, 3))
ROWS = 50
FEES = [n / 4 for n in range(ROWS)]


@pytest.fixture(scope="module")
def made(ours: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores of this module's own: their tables get a column that nobody else's have."""
    with stores(tmp_path_factory.mktemp("upgrade"), "upgrade_tests") as made:
        GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=GcpCredentials()).save("upgrade-lake")
        postgres_block(made.postgres_url).save("upgrade-postgres")
        yield made


def into_the_lake(runs: Runs, month: TripMonth) -> Any:
    return runs.lake(month, block_name="upgrade-lake")


def into_the_warehouse(runs: Runs, month: TripMonth, **how: Any) -> Any:
    return runs.warehouse(month, block_name="upgrade-lake", **how)


def into_postgres(runs: Runs, month: TripMonth) -> Any:
    return runs.postgres(month, block_name="upgrade-postgres")


def in_warehouse(made: Stores, query: str) -> list[tuple[Any, ...]]:
    rows = bigquery.Client().query_and_wait(query.replace("FROM ", f"FROM {made.dataset}."))
    return [tuple(row.values()) for row in rows]


def test_a_new_column_is_null_in_the_months_of_before_and_versions_tell_them_apart(
    made: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(made)
    for month in (OLD, LATE):
        made.site.put(f"{month.stem}.parquet", parquet_file(table(ROWS, month)))
        into_the_lake(runs, month)
    into_the_warehouse(runs, OLD)
    into_postgres(runs, OLD)

    gained = Column("pool_fee", "number", "US$, of a version to come")
    monkeypatch.setitem(TRIP_COLUMNS, "green", (*TRIP_COLUMNS["green"], gained))
    monkeypatch.setattr("flows.tlc.manifest.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    made.site.put(f"{NEW.stem}.parquet", parquet_file(table(ROWS, NEW, pool_fee=FEES)))
    into_the_lake(runs, NEW)
    into_the_warehouse(runs, NEW)
    into_postgres(runs, NEW)

    # both months, in every store
    values = [(OLD.file_month, None)] * ROWS + [(NEW.file_month, fee) for fee in FEES]
    question = "SELECT file_month, pool_fee FROM green ORDER BY file_month, row_number"
    assert in_warehouse(made, question) == values
    assert made.query(question) == values
    tables = [made.in_lake(month) for month in (OLD, NEW)]
    assert ["pool_fee" in trips.column_names for trips in tables] == [False, True]
    lake = ds.dataset([ds.dataset(t) for t in tables], schema=arrow_schema("green")).to_table()
    assert list(zip(lake["file_month"].to_pylist(), lake["pool_fee"].to_pylist(), strict=True)) == values
    assert into_the_warehouse(runs, OLD).status == "unchanged"

    # which of them carry it
    question = f"SELECT file_month FROM loads WHERE color = 'green' AND schema_version > {SCHEMA_VERSION}"
    assert in_warehouse(made, question) == made.query(question) == [(NEW.file_month,)]
    versions = {month: made.manifest(month)["schema_version"] for month in (OLD, NEW)}
    assert versions == {OLD: SCHEMA_VERSION, NEW: SCHEMA_VERSION + 1}

    # a month of before that is met again is made again, without a byte from the web
    with pytest.raises(SchemaMismatch, match=r"pool_fee: absent.*Load the month into the lake again"):
        into_the_warehouse(runs, LATE)
    made.site.forget_requests()
    for month in (OLD, LATE):
        outcome = into_the_lake(runs, month)
        assert (outcome.status, outcome.inserted, outcome.updated, outcome.removed) == ("replaced", 0, 0, 0)
        assert [request.method for request in made.requests(month)] == ["HEAD"]
        into_the_warehouse(runs, month, via="load_job" if month is OLD else "dataframe")
    outcome = into_postgres(runs, OLD)
    assert (outcome.inserted, outcome.updated, outcome.removed) == (0, 0, 0)
    assert made.query(question + " ORDER BY 1") == [(OLD.file_month,), (NEW.file_month,)]
    assert in_warehouse(made, question + " ORDER BY 1") == [(m.file_month,) for m in (OLD, NEW, LATE)]
    assert into_the_lake(runs, OLD).status == "unchanged"
