"""Every published trip is in the lake, the warehouse and the database, with the same rows, values and types."""

from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pytest
from google.cloud import bigquery, storage
from prefect_gcp.cloud_storage import GcsBucket

from flows.connectors import bigquery as connector
from flows.etl_gcs_bq import etl_gcs_bq
from flows.stores.warehouse import Warehouse
from flows.tlc.errors import Gone
from flows.tlc.manifest import Outcome
from flows.tlc.schema import KINDS, columns
from flows.tlc.trips import TripMonth
from local.trip_files.editions import expected_changes
from tests.flows.conftest import CREDENTIALS, LAKE, Runs, warehouse_of
from tests.stores import Stores, as_published, same, with_passengers


@pytest.fixture(scope="module", params=["official", "mirror"])
def everywhere(request: pytest.FixtureRequest, ours: Stores) -> tuple[TripMonth, str]:
    """Return a month that is loaded into every store, and its source. No test changes the month."""
    month, source = {
        "official": (TripMonth("green", 2023, 5), ours.official),
        "mirror": (TripMonth("yellow", 2021, 7), ours.mirror),
    }[request.param]
    runs = Runs(ours)
    runs.lake(month, source=source)
    runs.warehouse(month)
    runs.warehouse(month, via="dataframe", dataset="frames")
    runs.postgres(month, source=source)
    return month, source


def published(ours: Stores, month: TripMonth, source: str):
    return as_published(ours.site.file(source.rpartition("/")[2].format(**vars(month))), month)


def test_every_published_trip_is_in_the_lake(everywhere: tuple[TripMonth, str], ours: Stores) -> None:
    month, source = everywhere
    expected = published(ours, month, source)
    assert expected.num_rows == ours.site.rows_of(month.color, month.year, month.month)
    assert same(ours.in_lake(month), expected)


def test_the_warehouse_has_the_lakes_trips_with_both_load_methods(
    everywhere: tuple[TripMonth, str], ours: Stores
) -> None:
    month, _ = everywhere
    lake = ours.in_lake(month)
    assert same(ours.in_warehouse(month), lake)
    assert same(ours.in_warehouse(month, "frames"), lake)


def test_postgres_has_every_trip_with_passengers(everywhere: tuple[TripMonth, str], ours: Stores) -> None:
    month, source = everywhere
    expected = with_passengers(published(ours, month, source))
    assert 0 < expected.num_rows < ours.in_lake(month).num_rows
    assert same(ours.in_postgres(month), expected)


def test_the_warehouses_tables_have_the_canonical_types_with_both_load_methods(
    everywhere: tuple[TripMonth, str], ours: Stores
) -> None:
    month, _ = everywhere
    legacy = {"INTEGER": "INT64", "FLOAT": "FLOAT64"}
    for dataset in (ours.dataset, "frames"):
        table = bigquery.Client().get_table(f"{dataset}.{month.color}")
        found = [(field.name, legacy.get(field.field_type, field.field_type)) for field in table.schema]
        assert found == [(column.name, KINDS[column.kind].bigquery) for column in columns(month.color)]
        assert (table.time_partitioning.type_, table.time_partitioning.field) == ("MONTH", "file_month")


def test_postgres_has_the_canonical_types_and_the_key(everywhere: tuple[TripMonth, str], ours: Stores) -> None:
    month, _ = everywhere
    found = ours.query(
        "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        month.color,
    )
    long = {"timestamp": "timestamp without time zone"}
    wanted = [(c.postgres_name, KINDS[c.kind].postgres) for c in columns(month.color)]
    assert found == [(name, long.get(kind, kind)) for name, kind in wanted]
    key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = %s::regclass"
    for table in (month.color, month.postgres_partition):
        assert ours.query(key, table) == [("PRIMARY KEY (file_month, row_number)",)]


def test_row_numbers_count_the_files_rows_from_one_without_a_gap(
    everywhere: tuple[TripMonth, str], ours: Stores
) -> None:
    month, _ = everywhere
    for trips in (ours.in_lake(month), ours.in_warehouse(month)):
        assert trips["row_number"].to_pylist() == list(range(1, trips.num_rows + 1))
        assert pc.unique(trips["file_month"]).to_pylist() == [month.file_month]


def test_every_row_is_accounted_for_in_the_manifest_and_in_loads(
    everywhere: tuple[TripMonth, str], ours: Stores
) -> None:
    month, source = everywhere
    rows = ours.site.rows_of(month.color, month.year, month.month)
    manifest, loads = ours.manifest(month), ours.loads(month)
    assert (manifest["source_rows"], manifest["loaded"], manifest["filtered"], manifest["quarantined"]) == (
        rows, rows, {}, {},
    )  # fmt: skip
    kept = ours.in_postgres(month).num_rows
    assert (loads["source_rows"], loads["loaded"], loads["filtered"]) == (
        rows, kept, f'{{"zero_passengers": {rows - kept}}}',
    )  # fmt: skip
    assert manifest["url"] == loads["url"] == source.format(**vars(month))
    assert manifest["sha256"] == loads["sha256"]
    assert manifest["generation"] == ours.objects()[month.key]


def load_jobs(month: TripMonth) -> set[str]:
    return {job.job_id for job in bigquery.Client().list_jobs() if month.stem in job.job_id}


def test_loading_an_unchanged_month_again_moves_no_data(
    everywhere: tuple[TripMonth, str], ours: Stores, runs: Runs
) -> None:
    month, source = everywhere

    def state_of_stores():
        rows = ours.query(f"SELECT xmin::text, ctid::text FROM {month.color} WHERE file_month = %s", month.file_month)
        return ours.objects_of(month), load_jobs(month), rows, ours.loads(month), ours.in_warehouse(month).num_rows

    before = state_of_stores()
    ours.site.forget_requests()
    again = [runs.lake(month, source=source), runs.warehouse(month), runs.postgres(month, source=source)]
    assert [outcome.status for outcome in again] == ["unchanged"] * 3
    assert [request.method for request in ours.requests(month)] == ["HEAD", "HEAD"]
    assert state_of_stores() == before


def test_a_republished_month_replaces_its_rows_and_the_outcome_says_how_many(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake(month)
    runs.warehouse(month)
    runs.postgres(month, rows="all")
    ours.site.republish(f"{month.stem}.parquet", 2)
    rows = ours.site.rows_of(month.color, month.year, month.month)
    truth = expected_changes(rows, 1, 2)
    assert truth.updated
    for run in (runs.lake, runs.warehouse, lambda m: runs.postgres(m, rows="all")):
        outcome = run(month)
        assert outcome.status == "replaced"
        assert (outcome.manifest.inserted, outcome.manifest.updated, outcome.manifest.removed) == (
            truth.inserted,
            truth.updated,
            truth.removed,
        )
    edition = as_published(ours.site.file(f"{month.stem}.parquet"), month)
    assert same(ours.in_lake(month), edition)
    assert same(ours.in_warehouse(month), edition)
    assert same(ours.in_postgres(month), edition)
    assert ours.query(f"SELECT count(*) FROM {month.color} WHERE file_month = %s", month.file_month) == [
        (edition.num_rows,)
    ]


def test_bigquery_stages_many_row_groups_per_job(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    trips = ours.in_lake(month)
    groups = [trips.slice(start, 300) for start in range(0, trips.num_rows, 300)]
    sizes: list[int] = []
    upload = connector.pandas_gbq.to_gbq

    def noting(frame: pd.DataFrame, *arguments: Any, **named: Any) -> None:
        sizes.append(len(frame))
        upload(frame, *arguments, **named)

    monkeypatch.setattr(connector.pandas_gbq, "to_gbq", noting)
    monkeypatch.setattr(connector, "_FRAME", 1000)
    store = warehouse_of(CREDENTIALS, ours.dataset).bigquery
    store.ensure_dataset("US")
    store.write_frames(staging := "many_a_job", columns(month.color), groups)
    assert sizes == [1200, trips.num_rows - 1200]
    assert bigquery.Client().get_table(f"{ours.dataset}.{staging}").num_rows == trips.num_rows
    store.drop(staging)


def test_a_warehouse_that_is_loaded_from_two_lakes_in_turn_has_the_rows_of_the_last(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    block = GcsBucket.load(LAKE)
    storage.Client().create_bucket("second-lake")
    block.copy(update={"bucket": "second-lake"}).save("second-lake", overwrite=True)
    runs.lake(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake(month, block_name="second-lake")
    for name in (LAKE, "second-lake", LAKE):
        runs.warehouse(month, block_name=name)
    assert same(ours.in_warehouse(month), ours.in_lake(month))


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_month_that_the_lake_replaces_during_a_load_job_is_looked_up_once_more(
    times: int, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake(month)
    runs.warehouse(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake(month)
    real = Warehouse._load_from_lake
    editions = iter(range(3, 3 + times))

    def overtaken(self: Warehouse, *arguments: Any) -> None:
        real(self, *arguments)
        if edition := next(editions, None):
            ours.site.republish(f"{month.stem}.parquet", edition)
            runs.lake_by_hand(month)

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "_load_from_lake", overtaken)
        result = runs.of(etl_gcs_bq, month).result(raise_on_failure=False)
    if times == 1:
        assert isinstance(result, Outcome)
        assert result.manifest.fault == ""
    else:  # the run fails, and the next one loads the month
        assert isinstance(result, Gone)
        [row] = bigquery.Client().query_and_wait(
            f"SELECT fault FROM {ours.dataset}.loads WHERE color = '{month.color}' AND file_month = '{month.file_month}'"
        )
        assert row["fault"] == "the lake's month was replaced while it was being loaded"
        assert runs.warehouse(month).manifest.fault == ""
    assert same(ours.in_warehouse(month), ours.in_lake(month))
