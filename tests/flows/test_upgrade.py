"""Stores of an older version, and a column that is added to the canonical schema, cause no unnecessary reload."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from google.cloud import bigquery
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.stores import Target
from flows.tasks.survey import list_months as list_months_task
from flows.tlc.errors import SchemaMismatch
from flows.tlc.manifest import LOADS_COLUMNS, Changes
from flows.tlc.schema import KINDS, SCHEMA_VERSION, TRIP_COLUMNS, Column, arrow_schema
from flows.tlc.trips import TripMonth
from tests.flows.conftest import CREDENTIALS, Runs, lake_of, postgres_block, warehouse_of
from tests.stores import Stores, same, stores
from tests.tlc.published import parquet_file, table

OLD, NEW, LATE = (TripMonth("green", 2023, month) for month in (1, 2, 3))
ROWS = 50
FEES = [n / 4 for n in range(ROWS)]


@pytest.fixture(scope="module")
def made(ours: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Create stores for this module, because its tests add a column to the tables."""
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


def test_a_new_canonical_column_is_null_in_older_months_and_the_schema_version_shows_which(
    made: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(made)
    for month in (OLD, LATE):
        made.site.put(f"{month.stem}.parquet", parquet_file(table(ROWS, month)))
        into_the_lake(runs, month)
    into_the_warehouse(runs, OLD)
    into_postgres(runs, OLD)

    gained = Column("pool_fee", "number", "US$, of a future version")
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

    # which months have the column
    question = f"SELECT file_month FROM loads WHERE color = 'green' AND schema_version > {SCHEMA_VERSION}"
    assert in_warehouse(made, question) == made.query(question) == [(NEW.file_month,)]
    versions = {month: made.manifest(month)["schema_version"] for month in (OLD, NEW)}
    assert versions == {OLD: SCHEMA_VERSION, NEW: SCHEMA_VERSION + 1}

    # an older month that is loaded again is converted from the raw file, without a download
    with pytest.raises(SchemaMismatch, match=r"pool_fee: absent.*Load the month into the lake again"):
        into_the_warehouse(runs, LATE)
    made.site.forget_requests()
    for month in (OLD, LATE):
        outcome = into_the_lake(runs, month)
        assert (outcome.status, outcome.changes) == ("replaced", Changes())
        assert [request.method for request in made.requests(month)] == ["HEAD"]
        into_the_warehouse(runs, month, via="load_job" if month is OLD else "dataframe")
    outcome = into_postgres(runs, OLD)
    assert outcome.changes == Changes()
    assert made.query(question + " ORDER BY 1") == [(OLD.file_month,), (NEW.file_month,)]
    assert in_warehouse(made, question + " ORDER BY 1") == [(m.file_month,) for m in (OLD, NEW, LATE)]
    assert into_the_lake(runs, OLD).status == "unchanged"


# The fields of a manifest that an older version did not write. It did not write histories either.
NEWER = {"verified", "repeated", "known_rows", "pinned", "withdrawn_at", "started_by"}
OLDER_COLUMNS = [column for column in LOADS_COLUMNS if column.name not in NEWER]


def as_an_older_version_wrote_it(made: Stores, month: TripMonth) -> None:
    """Remove from every store what an older version did not write about a month."""
    facts = made.manifest(month)
    older = {name: fact for name, fact in facts.items() if name not in NEWER - {"known_rows"}}
    made.blob(month.manifest_key).upload_from_string(json.dumps(older))
    raw = made.blob(month.raw_key(".parquet"))
    raw.reload()
    raw.metadata = {name: text for name, text in raw.metadata.items() if name != "verified"}
    raw.patch()
    for name in NEWER:
        made.query(f"ALTER TABLE loads DROP COLUMN {name}")
    made.query("DROP TABLE loads_history")
    for key in made.objects(month.history_key("")):
        made.blob(key).delete()
    warehouse = warehouse_of(CREDENTIALS, made.dataset).bigquery
    warehouse.drop("loads_history")
    rows = warehouse.query(f"SELECT * FROM {made.dataset}.loads")
    schema = pa.schema([(column.name, KINDS[column.kind].arrow) for column in OLDER_COLUMNS])
    older_rows = [{name: row[name] for name in schema.names} for row in rows]
    warehouse.drop("loads")
    warehouse.replace_table("loads", OLDER_COLUMNS, pa.Table.from_pylist(older_rows, schema), "")


def test_a_raw_file_that_an_older_version_did_not_complete_is_replaced(made: Stores) -> None:
    """It wrote the digest after the bytes."""
    month, runs = TripMonth("yellow", 2023, 5), Runs(made)
    raw = made.blob(month.raw_key(".parquet"))
    raw.metadata = {
        "url": f"{made.site.url}/trip-data/{month.stem}.parquet",
        "etag": "",
        "upload": "of a run that died",
    }
    raw.upload_from_string(b"bytes whose digest is unknown")
    assert lake_of("upgrade-lake").editions(month) == []
    assert into_the_lake(runs, month).status == "loaded"
    published = made.site.file(f"{month.stem}.parquet").read_bytes()
    assert raw.download_as_bytes() == published
    assert [edition.sha256 for edition in lake_of("upgrade-lake").editions(month)] == [
        hashlib.sha256(published).hexdigest()
    ]


def test_stores_that_an_older_version_wrote_are_read_and_updated_without_a_reload(made: Stores) -> None:
    month, runs = TripMonth("yellow", 2023, 4), Runs(made)
    name = f"{month.stem}.parquet"
    into_the_lake(runs, month), into_the_warehouse(runs, month), into_postgres(runs, month)
    as_an_older_version_wrote_it(made, month)
    before, objects = made.in_postgres(month), made.objects_of(month)
    made.site.forget_requests()
    outcomes = [into(runs, month) for into in (into_the_lake, into_the_warehouse, into_postgres)]
    assert [outcome.status for outcome in outcomes] == ["unchanged"] * 3
    assert {request.method for request in made.requests(month)} == {"HEAD"}
    assert made.objects_of(month) == objects
    assert same(made.in_postgres(month), before)
    catalogued = list_months_task.fn(Target("database", database_block="upgrade-postgres"), ["yellow"])
    assert catalogued[month].manifest.loaded == before.num_rows

    made.site.republish(name, 2)
    outcomes = [into(runs, month) for into in (into_the_lake, into_the_warehouse, into_postgres)]
    assert [outcome.status for outcome in outcomes] == ["replaced"] * 3
    assert all(outcome.changes.updated for outcome in outcomes)
    assert same(made.in_warehouse(month), made.in_lake(month))
    question = "SELECT verified FROM loads WHERE color = 'yellow'"
    assert in_warehouse(made, question) == made.query(question) == [(made.manifest(month)["verified"],)]
    assert made.manifest(month)["verified"] == "md5"
    question = "SELECT count(*) FROM loads_history WHERE color = 'yellow'"
    assert in_warehouse(made, question) == made.query(question) == [(2,)]
    assert len(made.objects(month.history_key(""))) == 2
