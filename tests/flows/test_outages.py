"""If a network, server, disk or process fails, or runs overlap, no reader sees part of a month and the next run succeeds."""

import asyncio
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from google.cloud import bigquery
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Running

from flows.connectors import postgres
from flows.connectors.postgres import Postgres
from flows.connectors.web import look_up, source_of
from flows.etl_web_gcs import etl_parent_flow, etl_web_gcs
from flows.ingest_data import ingest_data
from flows.stores import Target, database
from flows.stores.database import Database
from flows.stores.warehouse import Warehouse
from flows.tasks import survey
from flows.tlc.catalog import ListedMonth
from flows.tlc.errors import MisconfiguredBlock, NotReconciled, Overtaken, Unreachable, Vanished
from flows.tlc.manifest import Present, RawFile, StagedMonth
from flows.tlc.trips import Rows, Terms, TripMonth, Via
from local.servers.stack import Stack
from tests.flows.conftest import (
    CREDENTIALS,
    LAKE,
    POSTGRES,
    Runs,
    Started,
    database_of,
    dying,
    lake_of,
    no_progress,
    staged_by_hand,
    until,
    warehouse_of,
)
from tests.stores import Stores, as_published, connected, same, with_passengers
from tests.strict_lake import StrictLake


def in_loads(ours: Stores, month: TripMonth) -> list[dict[str, object]]:
    """Return a month's rows of `loads` in BigQuery."""
    query = f"SELECT * FROM {ours.dataset}.loads WHERE color = '{month.color}' AND file_month = '{month.file_month}'"
    return [dict(row) for row in bigquery.Client().query_and_wait(query)]


def into_bigquery(ours: Stores, month: TripMonth, via: Via, run: str) -> None:
    """Load a month from the lake into the warehouse without Prefect, as a run that did not find the month there."""
    warehouse = warehouse_of(CREDENTIALS, ours.dataset, via)
    staged = warehouse.stage(warehouse.lake.required(month), Terms(), run, no_progress)
    warehouse.publish(staged, Present(), run)


def meet(month: TripMonth) -> Callable[[str, str], None]:
    """Return a `meddle` that makes two runs wait for each other just before they publish the month in the lake."""
    both = threading.Barrier(2, timeout=60)
    arrived: list[str] = []

    def meddle(method: str, path: str) -> None:
        if "/rewriteTo/" in path and path.endswith(f"data/{month.key}") and len(arrived) < 2:
            arrived.append(path)
            both.wait()

    return meddle


@pytest.mark.parametrize("rules", [("all", "all"), ("all", "with_passengers")], ids="-".join)
def test_if_two_runs_publish_a_month_at_once_the_object_and_its_manifest_agree(
    rules: tuple[Rows, Rows], month: TripMonth, ours: Stores, strict_lake: StrictLake
) -> None:
    lake = lake_of(LAKE)
    file = look_up(source_of(ours.official), month)

    def extract(_: Rows) -> RawFile:
        for _ in range(3):  # as the task's retries do
            with suppress(Overtaken):
                return lake.extract(file, no_progress)
        return lake.extract(file, no_progress)

    def publish(month: StagedMonth) -> None:
        with suppress(Vanished):  # the other run has another rule; a flow looks the month up once more
            lake.publish(month, Present(), "")

    with ThreadPoolExecutor() as threads:
        raw, *others = threads.map(extract, rules)
    assert others == [raw]
    staged = [lake.stage(raw, Terms(rule), f"run-{n}", no_progress) for n, rule in enumerate(rules)]
    strict_lake.meddle = meet(month)
    with ThreadPoolExecutor() as threads:
        list(threads.map(publish, staged))
    assert f"data/{month.key}" in strict_lake.refused
    everybody = ours.published(month)
    expected = {"all": everybody, "with_passengers": with_passengers(everybody)}
    manifest = ours.manifest(month)
    assert manifest["generation"] == ours.objects()[month.key]
    assert same(ours.in_lake(month), expected[manifest["rule"]])
    assert not [key for key in ours.objects("staging/") if month.stem in key]


def test_if_two_runs_load_a_month_into_postgres_at_once_one_waits_and_finds_it_unchanged(
    month: TripMonth, ours: Stores, start: Started
) -> None:
    arguments = (month.color, month.year, month.month, "--block-name", POSTGRES, "--source", ours.official)
    processes = [start("ingest_data", *arguments) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("is unchanged" in "".join(texts) for texts in outputs) == [False, True]
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


@pytest.mark.parametrize(("via", "publishes"), [("load_job", "_load_from_lake"), ("dataframe", "_replace_from")])
def test_if_two_runs_load_a_month_into_bigquery_at_once_both_succeed_without_duplicates(
    via: Via, publishes: str, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    both = threading.Barrier(2, timeout=60)
    publish = getattr(Warehouse, publishes)

    def together(*arguments: object) -> None:
        both.wait()
        publish(*arguments)

    monkeypatch.setattr(Warehouse, publishes, together)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda run: into_bigquery(ours, month, via, run), ("one", "two")))
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    [loads] = in_loads(ours, month)
    assert loads["flow_run_id"] in ("one", "two")
    assert loads["generation"] == ours.manifest(month)["generation"]
    tables = [table.table_id for table in bigquery.Client().list_tables(ours.dataset)]
    assert not [name for name in tables if name.startswith(month.stem.replace("-", "_"))]


def test_a_transaction_that_bigquery_aborts_for_a_concurrent_update_is_retried(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    replace, asked = Warehouse._replace_from, []

    def meddle(method: str, path: str) -> tuple[int, str] | None:
        if (method, path.rpartition("/")[2]) != ("POST", "jobs"):
            return None
        asked.append(path)  # the first job counts the staged rows
        aborted = "Transaction is aborted due to concurrent update against table taxi-local:trips_data_all.loads"
        return (400, aborted) if len(asked) in (2, 3) else None

    def meddled(*arguments: object) -> None:
        strict.meddle = meddle
        replace(*arguments)

    with StrictLake(os.environ["BIGQUERY_EMULATOR_HOST"]) as strict, monkeypatch.context() as patch:
        patch.setenv("BIGQUERY_EMULATOR_HOST", strict.url)
        patch.setattr(Warehouse, "_replace_from", meddled)
        into_bigquery(ours, month, "dataframe", "one")
    assert len(asked) > 3
    assert same(ours.in_warehouse(month), ours.in_lake(month))


def test_a_run_succeeds_if_the_lake_answers_503_to_the_first_attempt_of_every_write(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    refused: list[str] = []

    def meddle(method: str, path: str) -> int | None:
        if method in ("GET", "HEAD", "DELETE") or (request := f"{method} {path}") in refused:
            return None
        refused.append(request)
        return 503

    strict_lake.meddle = meddle
    assert runs.lake(month).status == "loaded"
    assert any("/rewriteTo/" in request for request in refused)
    assert same(ours.in_lake(month), ours.published(month))
    assert ours.manifest(month)["generation"] == ours.objects()[month.key]


def test_the_next_run_writes_the_manifest_that_a_killed_run_did_not_write(
    month: TripMonth, ours: Stores, runs: Runs, start: Started, strict_lake: StrictLake
) -> None:
    reached, killed = threading.Event(), threading.Event()

    def meddle(method: str, path: str) -> int | None:
        if method == "POST" and "/upload/" in path and not killed.is_set() and month.key in ours.objects():
            reached.set()  # the upload of the manifest
            killed.wait(300)
            return 503  # the manifest is not stored
        return None

    strict_lake.meddle = meddle
    arguments = (month.color, month.year, month.month, "--block-name", LAKE, "--source", ours.official)
    process = start("etl_web_gcs", *arguments)
    assert reached.wait(300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed.set()
    assert month.manifest_key not in ours.objects()
    assert runs.lake(month).manifest.loaded == ours.published(month).num_rows
    assert same(ours.in_lake(month), ours.published(month))
    assert ours.manifest(month)["generation"] == ours.objects()[month.key]


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
def test_a_staging_table_that_lost_rows_is_not_published(
    over: bool, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    """If `over`, only the rows that differ from the edition before are staged."""
    store = database_of(POSTGRES)
    if over:
        runs.postgres_by_hand(month)
        ours.site.republish(f"{month.stem}.parquet", 2)
    before = ours.loads(month) if over else None
    staged = staged_by_hand(store, month, ours.official, "with_passengers")
    ours.query(f"DELETE FROM {staged.key} WHERE row_number < 20")
    with pytest.raises(Vanished if over else NotReconciled, match="Nothing was published"):
        store.publish(staged, store.present(month), "by-hand")
    assert (ours.loads(month) if over else None) == before
    store.discard(staged)


def test_a_run_killed_while_postgres_publishes_leaves_the_old_month_and_the_next_run_replaces_it(
    month: TripMonth, ours: Stores, runs: Runs, start: Started
) -> None:
    runs.postgres_by_hand(month)
    old = ours.in_postgres(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connected(ours.postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE loads IN SHARE MODE")  # the publishing transaction writes `loads` last
        process = start(
            "ingest_data", month.color, month.year, month.month, "--block-name", POSTGRES, "--source", ours.official
        )
        until(lambda: ours.query(waiting) == [(1,)])
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: ours.query(waiting) == [(0,)])
    assert same(ours.in_postgres(month), old)
    outcome = runs.postgres(month)
    assert (outcome.status, outcome.manifest.updated > 0) == ("replaced", True)
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


def test_a_run_succeeds_if_the_server_restarts_during_copy(
    month: TripMonth, ours: Stores, runs: Runs, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = stack.executors["postgres"]
    encoded = database.encode
    restarts: list[str] = []

    def encode(*trips: object) -> bytes:
        if not restarts:
            restarts.append("restart")
            server.stop()
            server.start()
        return encoded(*trips)

    monkeypatch.setattr(database, "encode", encode)
    assert runs.postgres(month).status == "loaded"
    assert restarts
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


def test_a_task_succeeds_if_the_server_is_still_starting(
    month: TripMonth, runs: Runs, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    server = stack.executors["postgres"]
    monkeypatch.setattr(postgres, "_PATIENCE", 0)
    server.stop()
    check, refused = Postgres.check, []

    def start_after_the_first_check(database: Postgres) -> None:
        try:
            check(database)
        except Unreachable as error:
            refused.append(str(error))
            server.start()
            raise

    monkeypatch.setattr(Postgres, "check", start_after_the_first_check)

    @flow(name="test-list-postgres")
    def listing() -> dict[TripMonth, ListedMonth]:
        target = Target("database", database_block=POSTGRES)
        found: dict[TripMonth, ListedMonth] = survey.list_months.submit(target, [month.color]).result()
        return found

    assert month in listing()
    [reason] = refused
    assert "Connection refused" in reason


def test_a_check_waits_for_a_server_that_restarts(stack: Stack, ours: Stores) -> None:
    server = stack.executors["postgres"]
    server.stop()
    back = threading.Timer(1, server.start)
    back.start()
    database_of(POSTGRES).check()
    back.join()


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_starts_no_further_month_and_ends(times: int, ours: Stores, start: Started) -> None:
    color, year = "fhv", 2017 + times  # no other test of the file uses these months
    ours.site.fault(f"*{color}_tripdata_{year}-01*", methods=("GET",), stall=3)
    months = range(1, 9)
    process = start(
        "etl_web_gcs", color, year, *months, "--block-name", LAKE, "--source", ours.official, "--at-once", 1
    )
    until(lambda: any(f"{color}_tripdata_{year}-01" in request.path for request in ours.site.requests))
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=90)
    assert process.returncode != 0
    asked = {n for n in months for request in ours.site.requests if f"{color}_tripdata_{year}-{n:02d}" in request.path}
    assert asked <= {1, 2}


@pytest.mark.parametrize(("state", "number"), [(Cancelling, 12), (Running, 11)], ids=["cancelled", "stopped"])
def test_a_cancelled_run_of_a_deployment_ends_within_seconds_although_a_step_is_in_progress(
    state: Any, number: int, ours: Stores, start: Started
) -> None:
    async def of_deployment() -> str:
        async with get_client() as client:
            run = await client.create_flow_run(etl_parent_flow)
            await client.set_flow_run_state(run.id, state(), force=True)
            return str(run.id)

    month = TripMonth("fhv", 2015, number)  # no other test of the file uses it
    ours.site.fault(f"*{month.stem}*", methods=("GET",), stall=12)
    process = start(
        "etl_web_gcs", month.color, month.year, month.month, "--block-name", LAKE, "--source", ours.official,
        PREFECT__FLOW_RUN_ID=asyncio.run(of_deployment()),
    )  # fmt: skip
    until(lambda: any(month.stem in r.path and r.method == "GET" for r in ours.site.requests))
    stopped = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    took = time.monotonic() - stopped
    ours.site.heal()
    killed = process.returncode == -signal.SIGKILL
    assert killed == ("the months in progress have 5 seconds to end" in log) == (state is Cancelling)
    assert bool(ours.objects(month.manifest_key)) == (state is Running)  # a machine that stops lets the month end
    assert 5 < took < (10 if killed else 60)


def test_the_garbage_collector_does_not_finish_a_failed_upload(
    month: TripMonth, ours: Stores, strict_lake: StrictLake
) -> None:
    lake = lake_of(LAKE)

    strict_lake.meddle = lambda method, path: 403 if method == "POST" else None

    def write() -> None:
        with lake.bucket.writer(month.raw_key(".csv")) as file:
            file.write(b"all that came")

    with pytest.raises(MisconfiguredBlock):
        write()
    strict_lake.meddle = lambda method, path: None
    gc.collect()
    assert month.raw_key(".csv") not in ours.objects()


def test_a_retry_after_an_unreported_success_reports_the_original_counts(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    with dying(Database, "publish", when="after", times=1) as died:
        outcome = runs.postgres(month)
    assert died
    facts = ours.loads(month)
    assert (outcome.status, outcome.manifest.updated > 0) == ("replaced", True)
    assert [getattr(outcome.manifest, name) for name in ("inserted", "updated", "removed")] == [
        facts[name] for name in ("inserted", "updated", "removed")
    ]
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


@pytest.mark.parametrize("flow", [etl_web_gcs, ingest_data])
def test_a_full_disk_is_reported_before_anything_is_written(
    flow, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type(shutil.disk_usage("/"))(10**9, 10**9 - 10**6, 10**6)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        state = runs.of(flow, month)
    error = str(state.result(raise_on_failure=False))
    assert f"{month}" in error
    assert "1 MB are free" in error
    assert "TRIPS_SCRATCH" in error
    assert [run.run_count for run in runs.task_runs(state)][-1] == 1
    assert month.key not in ours.objects()
    assert ours.query("SELECT to_regclass(%s)", month.postgres_partition) == [(None,)]
    assert (runs.lake if flow is etl_web_gcs else runs.postgres)(month).status == "loaded"


def test_readers_see_the_old_month_until_the_new_one_is_committed(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    old = ours.in_postgres(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    new = with_passengers(ours.published(month))
    write, seen = Database._write_manifest, []

    def look_first(*arguments: object) -> None:
        seen.append(
            ours.in_postgres(month)
        )  # another connection reads after all rows are written and before the commit
        write(*arguments)

    monkeypatch.setattr(Database, "_write_manifest", look_first)
    runs.postgres(month)
    assert [same(trips, old) for trips in seen] == [True]
    assert same(ours.in_postgres(month), new)


def test_the_same_bytes_with_a_new_etag_are_not_loaded_again(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake(month)
    runs.postgres(month)
    before = ours.objects()[month.key], ours.in_postgres(month)
    monkeypatch.setattr(ours.site, "etag", lambda path: '"touched"')
    path = ours.site.file(f"{month.stem}.parquet")
    os.utime(path, (0, path.stat().st_mtime + 60))
    assert [runs.lake(month).status, runs.postgres(month).status] == ["unchanged", "unchanged"]
    assert ours.objects()[month.key] == before[0]
    raw = ours.blob(month.raw_key(".parquet"))
    raw.reload()
    assert raw.metadata["etag"] == '"touched"'
    assert same(ours.in_postgres(month), before[1])
    assert ours.manifest(month)["etag"] == ours.loads(month)["etag"] == '"touched"'
    ours.site.forget_requests()
    assert [runs.lake(month).status, runs.postgres(month).status] == ["unchanged", "unchanged"]
    assert [request.method for request in ours.requests(month)] == ["HEAD", "HEAD"]


def test_if_a_source_sends_no_etag_and_no_date_its_bytes_decide(month: TripMonth, ours: Stores, runs: Runs) -> None:
    ours.site.fault(f"*{month.stem}*", times=None, missing=["etag", "last_modified"])
    try:
        both = (runs.lake, runs.postgres)
        assert [run(month).status for run in both] == ["loaded", "loaded"]
        assert [run(month).status for run in both] == ["unchanged", "unchanged"]
        ours.site.republish(f"{month.stem}.parquet", 2)
        assert [run(month).status for run in both] == ["replaced", "replaced"]
    finally:
        ours.site.heal()
    assert same(ours.in_lake(month), ours.published(month))
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


def test_a_file_from_another_source_replaces_the_month(ours: Stores, runs: Runs) -> None:
    month = TripMonth("yellow", 2021, 6)  # published in both formats
    for source, ending in ((ours.official, ".parquet"), (ours.mirror, ".csv.gz")):
        runs.lake(month, source=source)
        runs.postgres(month, source=source)
        expected = as_published(ours.site.file(f"{month.stem}{ending}"), month)
        assert same(ours.in_lake(month), expected)
        assert same(ours.in_postgres(month), with_passengers(expected))
        assert ours.manifest(month)["url"] == source.format(**vars(month))


def test_a_run_that_lost_its_claim_does_not_publish_the_rows_of_another(month: TripMonth, ours: Stores) -> None:
    store = database_of(POSTGRES)
    staged = []
    for edition in (1, 2, 1):  # the first run stages again after the second, which has the claim now
        ours.site.republish(f"{month.stem}.parquet", edition)
        staged.append(staged_by_hand(store, month, ours.official))
    with pytest.raises(Vanished, match=f"{month.postgres_partition}_staging or .* was changed during this run"):
        store.publish(staged[1], Present(), "run 2")
    assert store.remembered(month) is None
    assert store.publish(staged[2], Present(), "run 1").status == "loaded"
    with pytest.raises(Vanished, match="was changed during this run"):  # the staging table is gone
        store.publish(staged[1], Present(), "run 2")


@pytest.mark.parametrize("over", [False, True], ids=["new", "over"])
def test_a_month_that_is_staged_does_not_block_changes_of_its_table(
    over: bool, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over:
        runs.postgres_by_hand(month)
    encode, locked = database.encode, []

    def locking(*arguments: Any) -> Iterator[bytes]:
        pieces = encode(*arguments)
        yield next(pieces)  # the COPY of a new month has begun; the batch before this one may be compared now
        ours.query(f"SET lock_timeout = '5s'; LOCK TABLE {month.color} IN ACCESS EXCLUSIVE MODE; SELECT 1")
        locked.append(month)
        yield from pieces

    monkeypatch.setattr(database, "encode", locking)
    monkeypatch.setattr(database, "_BATCH", 500)
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.postgres_by_hand(month)
    assert len(locked) > 2 if over else locked
