"""After a fault at any step, a store has the old month or the new one, and the next run stores exactly the published rows."""

import datetime as dt
import hashlib
import io
import threading
from typing import Any, Literal
from urllib.parse import quote
from uuid import uuid4

import httpx
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery, storage
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.connectors.bucket import Bucket
from flows.connectors.web import look_up, source_of
from flows.etl_gcs_bq import etl_gcs_bq
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.stores import lake as lake_module
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.stores.warehouse import Warehouse
from flows.tlc.errors import NotReconciled, TripDataError
from flows.tlc.manifest import Present, Profile, StagedCopy
from flows.tlc.trips import TEMPORARY_KEYS, Terms, TripMonth, staged_key
from flows.withdraw import withdraw
from local.trip_files.writing import BadRows, write_month
from tests.flows.conftest import CREDENTIALS, LAKE, Runs, dying, lake_of, no_progress, warehouse_of
from tests.stores import Stores, same, with_passengers
from tests.strict_lake import StrictLake


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [(Bucket, "written", "before"), (Lake, "_write", "before"), (Lake, "_write", "after"), (Bucket, "copy", "before"),
     (Bucket, "copy", "after"), (Lake, "_publish_side_object", "before"), (Lake, "_publish_side_object", "after"),
     (Lake, "remember", "before"), (Lake, "remember", "after")],
)  # fmt: skip
def test_after_a_fault_in_a_lake_run_the_month_is_whole_and_the_next_run_succeeds(
    owner: type, name: str, when: Literal["before", "after"], month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    old = ours.in_lake(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    new = ours.published(month)
    assert not same(old, new)
    with dying(owner, name, when=when), pytest.raises(TripDataError):
        runs.lake_by_hand(month)
    present = ours.in_lake(month)
    assert same(present, old) or same(present, new)
    lake = lake_of(LAKE)
    read = lake.current(month)
    assert read is not None
    assert (read.loaded, read.generation) == (present.num_rows, ours.objects()[month.key])
    assert read == lake.months([month.color])[month].manifest
    if same(present, old):
        assert lake.raw_of(read).key == month.raw_key(".parquet")
    assert lake.months([month.color])[month].finished == (same(present, old) or (name, when) == ("remember", "after"))
    assert runs.lake(month).status in ("replaced", "unchanged")
    assert same(ours.in_lake(month), new)
    present_after = lake.present(month)
    assert present_after.finished
    manifest = present_after.manifest
    assert manifest is not None
    assert manifest.generation == ours.objects()[month.key]
    assert (
        lake.raw_of(manifest).sha256 == hashlib.sha256(ours.site.file(f"{month.stem}.parquet").read_bytes()).hexdigest()
    )


def test_bigquery_can_load_a_month_whose_lake_run_died_before_its_manifest(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    with dying(Lake, "remember", when="before"), pytest.raises(TripDataError):
        runs.lake_by_hand(month)
    assert runs.warehouse(month).manifest.source_rows == ours.published(month).num_rows
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    runs.lake(month)
    assert runs.warehouse(month).status == "unchanged"


def test_a_month_whose_manifest_is_too_large_for_metadata_can_be_read_after_a_crash(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lake_module, "_ROOM", 1200)
    with dying(Lake, "remember", when="before"), pytest.raises(TripDataError):
        runs.lake_by_hand(month)
    read = lake_of(LAKE).required(month)
    assert (read.loaded, read.profile) == (ours.in_lake(month).num_rows, Profile())
    assert runs.warehouse(month).manifest.loaded == read.loaded
    whole = runs.lake(month).manifest
    assert lake_of(LAKE).remembered(month) == whole
    assert whole.profile.days


def test_a_corrupt_manifest_hides_no_month_and_is_replaced(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.lake_by_hand(month)
    ours.blob(month.manifest_key).upload_from_string("<<<<<<< HEAD")
    lake = lake_of(LAKE)
    assert lake.current(month) is not None
    outcome = runs.lake(month)
    assert (outcome.manifest.inserted, outcome.manifest.updated, outcome.manifest.removed) == (0, 0, 0)
    assert lake.present(month).finished


def test_a_foreign_object_at_a_months_key_is_not_changed(month: TripMonth, ours: Stores, runs: Runs) -> None:
    ours.blob(month.key).upload_from_string(b"made by df.to_parquet")
    before = ours.objects_of(month)
    error = str(runs.of(etl_web_gcs, month).result(raise_on_failure=False))
    assert f"data/{month.key} exists already, but this project did not write it; move it away" in error
    assert ours.objects_of(month) == before


@pytest.mark.parametrize("what", ["quarantine_key", "extra_key"])
@pytest.mark.parametrize("content", ["text", "parquet"])
def test_a_foreign_object_at_the_key_of_a_months_part_is_not_changed(
    what: str, content: str, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    file = io.BytesIO(b"made by hand")
    if content == "parquet":
        pq.write_table(pa.table({"model": [1]}), file)
    key = getattr(month, what)
    ours.blob(key).upload_from_string(file.getvalue())
    refused = f"data/{key} exists already, but this project did not write it; move it away"
    assert refused in str(runs.of(etl_web_gcs, month).result(raise_on_failure=False))
    assert month.key not in ours.objects_of(month)
    ours.blob(key).delete()
    runs.lake(month)
    ours.blob(key).upload_from_string(file.getvalue())
    before = ours.objects_of(month)
    state = withdraw(month.color, month.year, [month.month], stores=["lake"], block_name=LAKE, return_state=True)
    assert refused in str(state.result(raise_on_failure=False))
    assert ours.objects_of(month) == before
    assert ours.blob(key).download_as_bytes() == file.getvalue()


def test_a_sweep_deletes_only_objects_that_this_project_made_and_that_nobody_replaced(
    month: TripMonth, ours: Stores, strict_lake: StrictLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block has no folder, so that the prefixes are folders of the bucket itself."""
    bucket, delete_older = storage.Client().bucket(ours.bucket), Bucket.delete_older
    objects = f"{strict_lake.behind}/storage/v1/b/{ours.bucket}/o"
    foreign = ["staging/model.parquet", "staging/green/trips.parquet", "results/report-1.json"]
    staged, taken, replaced = (staged_key(month.key, str(uuid4())) for _ in range(3))
    for name in (*foreign, staged, taken, replaced):
        bucket.blob(name).upload_from_string(b"first")

    def meddle(method: str, path: str) -> None:
        if method == "DELETE" and path.endswith(replaced):
            bucket.blob(replaced).upload_from_string(b"second")
        if method == "DELETE" and path.endswith(taken):
            httpx.delete(f"{objects}/{quote(taken, safe='')}").raise_for_status()

    def in_two_days(*arguments: Any) -> None:
        delete_older(*arguments[:-1], arguments[-1] + dt.timedelta(days=2))

    monkeypatch.setattr(Bucket, "delete_older", in_two_days)
    strict_lake.meddle = meddle
    Lake(GcsBucket(bucket=ours.bucket, gcp_credentials=GcpCredentials()))._sweep()
    left = [blob.name for prefix in TEMPORARY_KEYS for blob in bucket.list_blobs(prefix=prefix)]
    assert sorted(left) == sorted([*foreign, replaced])
    for name in left:
        bucket.blob(name).delete()


def test_only_the_last_run_that_published_a_month_may_write_its_quarantine(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    lake = lake_of(LAKE)
    runs.lake_by_hand(month)
    first = lake.bucket.stat(month.key)
    assert first is not None
    runs.lake_by_hand(month)
    ours.blob(month.quarantine_key).upload_from_string("of the second run")
    ours.blob("staging/of-the-first").upload_from_string("of the first run")
    before = ours.objects(month.quarantine_key)
    for staged in ("", "staging/of-the-first"):
        lake._publish_side_object(staged, month.quarantine_key, first)
        assert ours.objects(month.quarantine_key) == before

    second = lake.bucket.stat(month.key)
    assert second is not None
    meddled: list[str] = []

    def meddle(method: str, path: str) -> None:
        if "/rewriteTo/" in path and not meddled:  # another run writes just before this one
            meddled.append(path)
            ours.blob(month.quarantine_key).upload_from_string("of another run of that month")

    strict_lake.meddle = meddle
    lake._publish_side_object("staging/of-the-first", month.quarantine_key, second)
    assert strict_lake.refused == [f"data/{month.quarantine_key}"]
    assert ours.blob(month.quarantine_key).download_as_bytes() == b"of the first run"


def test_a_run_uses_the_raw_file_that_another_run_published_from_its_staging(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    lake = lake_of(LAKE)
    raw = lake.extract(look_up(source_of(ours.official), month), no_progress)
    assert raw.key.startswith("staging/raw/")
    staged = lake.stage(raw, Terms(), "another-run", no_progress)
    lake.publish(staged, lake.present(month), "")
    assert not lake.has(raw)
    assert b"".join(lake.content(raw).pieces()) == ours.site.file(f"{month.stem}.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("stage", "before"),
        ("stage", "after"),
        ("_publish", "before"),
        ("_write_manifest", "before"),
        ("_publish", "after"),
    ],
)
def test_after_a_fault_in_a_postgres_run_the_month_is_whole_and_the_next_run_succeeds(
    name: str, when: Literal["before", "after"], month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    old = ours.in_postgres(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    new = with_passengers(ours.published(month))
    with dying(Database, name, when=when), pytest.raises(TripDataError):
        runs.postgres_by_hand(month)
    assert same(ours.in_postgres(month), new if (name, when) == ("_publish", "after") else old)
    runs.postgres(month)
    assert same(ours.in_postgres(month), new)
    assert ours.query(
        "SELECT count(*) FROM pg_class WHERE relname LIKE %s", f"{month.postgres_partition}_staging%"
    ) == [(0,)]


@pytest.mark.parametrize(
    ("name", "when"), [("_load_from_lake", "before"), ("_load_from_lake", "after"), ("publish", "after")]
)
def test_after_a_fault_in_a_warehouse_run_the_next_run_loads_no_row_twice(
    name: str, when: Literal["before", "after"], month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    with dying(Warehouse, name, when=when), pytest.raises(TripDataError):
        runs.warehouse(month)
    runs.warehouse(month)
    assert same(ours.in_warehouse(month), ours.in_lake(month))


def test_a_crash_between_bigquerys_rows_and_loads_is_corrected_by_the_next_run(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake_by_hand(month)
    with dying(Warehouse, "_remembering", when="before"), pytest.raises(TripDataError):
        runs.warehouse(month)
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    generation = ours.manifest(month)["generation"]
    assert in_loads(ours, month, "generation") != generation
    assert runs.warehouse(month).status != "unchanged"
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    assert in_loads(ours, month, "generation") == generation
    assert runs.warehouse(month).status == "unchanged"


def test_with_data_frames_bigquerys_rows_and_loads_change_atomically(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    old, generation = ours.in_warehouse(month), in_loads(ours, month, "generation")
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake_by_hand(month)
    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "_remembering", lambda *_: ([f"INSERT INTO {ours.dataset}.no_table VALUES (1)"], {}))
        assert runs.of(etl_gcs_bq, month, via="dataframe").is_failed()
    assert same(ours.in_warehouse(month), old)
    assert in_loads(ours, month, "generation") == generation
    assert runs.warehouse(month, via="dataframe").status == "replaced"
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    assert in_loads(ours, month, "generation") == ours.manifest(month)["generation"]


def test_a_month_whose_row_count_differs_from_its_manifest_is_not_published_in_bigquery(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    old = ours.in_warehouse(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake_by_hand(month)
    lake = lake_of(LAKE)
    manifest = lake.current(month)
    assert manifest
    wrong = manifest.model_copy(update={"loaded": manifest.loaded + 1})
    with pytest.raises(
        NotReconciled, match=rf"{month}: {wrong.loaded} rows .* has {manifest.loaded}\. Nothing was published"
    ):
        warehouse_of(CREDENTIALS, ours.dataset).publish(StagedCopy(manifest=wrong), Present(), "")
    assert same(ours.in_warehouse(month), old)


def in_loads(ours: Stores, month: TripMonth, name: str) -> object:
    """Return a column of a month's row of `loads` in BigQuery."""
    query = (
        f"SELECT {name} FROM {ours.dataset}.loads WHERE color = '{month.color}' AND file_month = '{month.file_month}'"
    )
    [row] = bigquery.Client().query_and_wait(query)
    return row[name]


def test_readers_of_postgres_never_see_part_of_a_month(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.postgres(month, rows="all")
    seen, stop = set(), threading.Event()

    def read() -> None:
        connection = psycopg2.connect(ours.postgres_url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not stop.is_set():
                cursor.execute(
                    f"SELECT count(*), sum(total_amount) FROM {month.color} WHERE file_month = %s", (month.file_month,)
                )
                seen.add(cursor.fetchone())
        connection.close()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        ours.site.republish(f"{month.stem}.parquet", 2)
        runs.postgres(month, rows="all")
    finally:
        stop.set()
        reader.join()
    assert 1 <= len(seen) <= 2
    edition = ours.published(month)
    assert {count for count, _ in seen} <= {ours.site.rows_of(month.color, month.year, month.month), edition.num_rows}


def test_bad_rows_are_quarantined_with_a_reason_until_a_clean_edition_is_loaded(
    month: TripMonth, ours: Stores, runs: Runs, tmp_path
) -> None:
    name = f"{month.stem}.csv.gz"
    source = ours.site.url + "/legacy/{color}_tripdata_{year}-{month:02d}.csv.gz"
    written = write_month(
        tmp_path / name,
        month.color,
        month.year,
        month.month,
        rows=2000,
        bad_rows=BadRows(unconvertible=3, too_few_fields=2),
    )
    ours.site.put(name, tmp_path / name)
    outcome = runs.lake(month, source=source)
    rejected = ours.quarantined(month)
    assert sorted(row["row_number"] for row in rejected) == sorted(written.bad_row_numbers)
    assert sum(outcome.manifest.quarantined.values()) == len(rejected) == 5
    assert outcome.manifest.quarantined["wrong number of fields"] == 2
    assert all(row["original"] and row["reason"] for row in rejected)
    assert not set(written.bad_row_numbers) & set(pc.unique(ours.in_lake(month)["row_number"]).to_pylist())
    assert ours.manifest(month)["quarantine_key"] == month.quarantine_key

    write_month(tmp_path / f"clean-{name}", month.color, month.year, month.month, rows=2000)
    ours.site.put(name, tmp_path / f"clean-{name}")
    assert runs.lake(month, source=source).manifest.quarantined == {}
    assert month.quarantine_key not in ours.objects()


def test_too_many_bad_rows_stop_the_month_in_every_store(month: TripMonth, ours: Stores, runs: Runs, tmp_path) -> None:
    name = f"{month.stem}.csv.gz"
    source = ours.site.url + "/legacy/{color}_tripdata_{year}-{month:02d}.csv.gz"
    write_month(tmp_path / name, month.color, month.year, month.month, rows=2000, bad_rows=BadRows(unconvertible=40))
    ours.site.put(name, tmp_path / name)
    for flow in (etl_web_gcs, ingest_data):
        state = runs.of(flow, month, source=source)
        assert state.is_failed()
        error = f"{state.message} {state.result(raise_on_failure=False)}"
        assert "40 of 2000 rows do not fit" in error
        assert "The first is row " in error
    assert month.key not in ours.objects()
    assert not ours.objects(f"staging/quarantine/{month.color}/{month.stem}")
    assert ours.query(
        "SELECT to_regclass(%s), to_regclass(%s)", month.postgres_partition, f"{month.postgres_partition}_staging"
    ) == [(None, None)]


def test_an_interrupted_download_is_resumed(month: TripMonth, ours: Stores, runs: Runs) -> None:
    ours.site.fault(f"*{month.stem}*", times=1, methods=("GET",), cut_after=4000)
    assert runs.lake(month).status == "loaded"
    assert same(ours.in_lake(month), ours.published(month))
    assert any(request.range for request in ours.requests(month))


def test_the_warehouse_refuses_a_month_that_the_lake_does_not_have(month: TripMonth, runs: Runs) -> None:
    state = runs.of(etl_gcs_bq, month)
    assert state.is_failed()
    assert "run etl-web-gcs for it first" in str(state.result(raise_on_failure=False))
