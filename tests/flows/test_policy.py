"""The policy that Prefect adds: caching by edition, retries of transient errors, readable names, and independent months."""

import asyncio
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import engine
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from flows.catalog import catalog
from flows.connectors import scratch, transfer
from flows.connectors.bucket import Bucket
from flows.etl_gcs_bq import etl_gcs_bq, etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow, etl_web_gcs
from flows.ingest_data import ingest_data
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.tasks import stores as store_tasks
from flows.tasks.policy import started_by
from flows.tlc.errors import MisconfiguredBlock, MonthsFailed, UnreadableFile
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, POSTGRES, Runs, database_of, dying, tasks_with_retries, until
from tests.stores import Stores, as_published, same, with_passengers


def states(runs: Runs, state) -> list[tuple[str, str]]:
    return [(run.name, run.state_name) for run in runs.task_runs(state)]


def bodies(ours: Stores, month: TripMonth) -> int:
    """Return the number of GET requests for a month's file."""
    return sum(request.method == "GET" for request in ours.requests(month))


def test_runs_have_readable_names(month: TripMonth, runs: Runs) -> None:
    lake, warehouse, postgres = (runs.of(flow, month) for flow in (etl_web_gcs, etl_gcs_bq, ingest_data))
    assert [runs.name(state) for state in (lake, warehouse, postgres)] == [
        f"{month}",
        f"{month} via load_job",
        f"{month}",
    ]
    assert [[run.name for run in runs.task_runs(state)] for state in (lake, warehouse, postgres)] == [
        [f"look up {month}", *(f"{verb} {month} → the lake" for verb in ("extract", "transform", "load"))],
        [f"look up {month}", f"transform {month} → BigQuery", f"load {month} → BigQuery"],
        [
            "check Postgres",
            f"claim {month} in Postgres",
            f"look up {month}",
            *(f"{verb} {month} → Postgres" for verb in ("extract", "transform", "load")),
        ],
    ]


def test_a_run_whose_task_prefect_cannot_create_ends_and_releases_its_month(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = engine.create_task_run

    async def unavailable(task: Any, *arguments: Any, **named: Any) -> Any:
        if task.name == "extract":
            raise httpx.HTTPError("503 Service Unavailable")
        return await create(task, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "create_task_run", unavailable)
        with pytest.raises(httpx.HTTPError, match="503"):
            runs.of(ingest_data, month)
    assert runs.of(ingest_data, month).is_completed()  # would wait for the month's lock


def test_a_list_in_a_run_name_has_no_brackets(ours: Stores, runs: Runs) -> None:
    state = catalog(["green", "fhv"], block_name=LAKE, return_state=True)
    assert runs.name(state) == "catalog: green, fhv"


def test_a_file_is_not_downloaded_again_on_the_same_day(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.lake(month)
    again = runs.of(etl_web_gcs, month, rows="with_passengers")
    assert [state for name, state in states(runs, again) if not name.startswith(("check", "look up"))] == [
        "Cached", "Completed", "Completed",
    ]  # fmt: skip
    assert bodies(ours, month) == 1
    expected = with_passengers(as_published(ours.site.file(f"{month.stem}.parquet"), month))
    assert same(ours.in_lake(month), expected)
    assert ours.manifest(month)["filtered"] == {
        "zero_passengers": again.result().manifest.source_rows - expected.num_rows
    }
    assert [key for key in ours.objects("results/") if month.stem in key]


@pytest.mark.parametrize("gone", ["raw file", "cached result"])
def test_a_cached_result_is_not_used_if_its_object_is_gone(
    gone: str, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake(month)
    keys = [month.raw_key(".parquet")] if gone == "raw file" else ours.objects("results/")
    for key in keys:
        if month.stem in key:
            ours.blob(key).delete()
    assert runs.lake(month, rows="with_passengers").status == "replaced"
    assert bodies(ours, month) == (2 if gone == "raw file" else 1)
    assert same(
        ours.in_lake(month), with_passengers(as_published(ours.site.file(f"{month.stem}.parquet"), month))
    )  # fmt: skip


def test_the_cached_result_of_another_edition_is_not_used(month: TripMonth, ours: Stores, runs: Runs) -> None:
    name = f"{month.stem}.parquet"
    for edition in (1, 2, 1):
        ours.site.file(name)
        ours.site.republish(name, edition)
        assert runs.lake(month).status in ("loaded", "replaced")
        assert same(ours.in_lake(month), as_published(ours.site.file(name), month))


@pytest.mark.parametrize("gone", ["scratch file", "cached result"])
def test_a_cached_result_is_not_used_if_its_scratch_file_is_gone(
    gone: str, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres(month)
    again = runs.of(ingest_data, month, rows="all")
    assert [state for name, state in states(runs, again) if not name.startswith(("check", "claim", "look up"))] == [
        "Cached", "Completed", "Completed",
    ]  # fmt: skip
    assert bodies(ours, month) == 1
    folder = scratch.folder() if gone == "scratch file" else PREFECT_LOCAL_STORAGE_PATH.value()
    for path in folder.iterdir():
        path.unlink()
    assert runs.postgres(month).status == "replaced"
    assert bodies(ours, month) == 2


@pytest.mark.parametrize("task", tasks_with_retries(), ids=lambda task: task.name)
def test_every_task_has_a_timeout_and_retries_with_growing_pauses(
    task, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # restore the pauses that `no_waiting` removed
    assert task.retries == 3
    assert task.retry_delay_seconds == [3, 6, 12]
    assert task.retry_jitter_factor
    assert task.timeout_seconds


def test_a_transient_error_is_retried(month: TripMonth, ours: Stores, runs: Runs, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "ATTEMPTS", 1)
    ours.site.fault(f"*{month.stem}*", methods=("GET",), status=503, times=2)
    state = runs.of(etl_web_gcs, month)
    assert state.is_completed()
    assert [run.run_count for run in runs.task_runs(state)] == [1, 3, 1, 1]


@pytest.mark.parametrize("flow", [etl_web_gcs, ingest_data])
def test_a_permanent_error_is_not_retried(flow, month: TripMonth, ours: Stores, runs: Runs) -> None:
    ours.site.put(f"{month.stem}.parquet", b"<!DOCTYPE html><html>404</html>")
    state = runs.of(flow, month)
    assert state.is_failed()
    assert [(run.run_count, run.state_name) for run in runs.task_runs(state)][-2:] == [(1, "Completed"), (1, "Failed")]
    with pytest.raises((UnreadableFile, MonthsFailed), match=f"{month}.*HTML"):
        state.result()


@pytest.mark.parametrize(("flow", "store"), [(etl_parent_flow, "lake"), (ingest_data, "database")])
def test_a_month_that_fails_does_not_stop_the_others_and_the_error_names_it(
    flow, store: str, ours: Stores, runs: Runs
) -> None:
    color = {"lake": "fhv", "database": "green"}[store]  # no other test of the file uses these months
    state = flow(color, 2021, [6, 8, 7], **runs.places(flow) | {"source": ours.mirror}, return_state=True)
    with pytest.raises(MonthsFailed) as failed:
        state.result()
    assert f"1 of 3 months could not be loaded:\n  - {color} 2021-08 " in str(failed.value)
    assert "is not published" in str(failed.value)
    for number in (6, 7):
        month = TripMonth(color, 2021, number)
        rows = ours.site.rows_of(color, 2021, number)
        assert (ours.manifest(month) if store == "lake" else ours.loads(month))["source_rows"] == rows
    [table] = [text for text in runs.artifacts(f"{state_key(flow)}-months") if f"{color} 2021-08" in text]
    assert "failed: " in table


def state_key(flow) -> str:
    return {"etl-parent-flow": "etl-web-gcs", "etl-gcs-bq-parent-flow": "etl-gcs-bq"}.get(flow.name, flow.name)


def test_a_parent_flow_loads_the_warehouse_and_names_the_months_that_the_lake_lacks(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake(month)
    absent = TripMonth(month.color, month.year, month.month % 12 + 1)
    for key in ours.objects_of(absent):
        ours.blob(key).delete()
    months = [month.month, absent.month]
    state = etl_gcs_bq_parent_flow(
        month.color, month.year, months, **runs.places(etl_gcs_bq_parent_flow), return_state=True
    )
    with pytest.raises(MonthsFailed, match=f"- {absent} is not in the lake.*run etl-web-gcs for it first"):
        state.result()
    assert same(ours.in_warehouse(month), ours.in_lake(month))


def test_a_retry_after_a_finished_download_does_not_download_again(month: TripMonth, ours: Stores, runs: Runs) -> None:
    with dying(Lake, "extract", when="after", times=1) as died:
        assert runs.lake(month).status == "loaded"
    assert died
    assert bodies(ours, month) == 1


@pytest.mark.parametrize("alone", [True, False], ids=["a month alone", "a parent run"])
def test_a_run_checks_its_store_once(
    alone: bool, month: TripMonth, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, checked = Bucket.check, []

    def counted(bucket: Bucket) -> None:
        checked.append(bucket)
        check(bucket)

    monkeypatch.setattr(Bucket, "check", counted)
    if alone:
        runs.lake(month)
    else:
        etl_parent_flow(month.color, month.year, [month.month], **runs.places(etl_parent_flow))
    assert len(checked) == 1


def test_the_months_of_a_parent_run_share_its_block_until_one_finds_it_misconfigured(
    month: TripMonth, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, present, loaded = store_tasks._load, Lake.present, list[str]()

    def counted(slug: str, name: str) -> Any:
        loaded.append(name)
        return load(slug, name)

    def load_months(*numbers: int) -> int:
        loaded.clear()
        places = runs.places(etl_parent_flow)
        etl_parent_flow(month.color, month.year, list(numbers), at_once=1, **places, return_state=True)
        return loaded.count(LAKE)

    def misconfigured_once(store: Lake, trip_month: TripMonth) -> Any:
        monkeypatch.setattr(Lake, "present", present)
        raise MisconfiguredBlock("as if its key was revoked")

    monkeypatch.setattr(store_tasks, "_load", counted)
    other = month.month % 12 + 1
    assert load_months(month.month, other) == 1
    assert load_months(month.month, other) == 1
    monkeypatch.setattr(Lake, "present", misconfigured_once)
    assert load_months(month.month, other) == 2


def test_a_claim_is_retried_and_released(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 31265 AND objid > 0"
    locked: list[object] = []
    monkeypatch.setattr(Database, "present", lambda *_: locked.append(ours.query(locks)) or 1 / 0)
    with dying(Database, "claim", when="before", times=1) as died:
        state = runs.of(ingest_data, month)
    assert died
    assert state.is_failed()
    assert [run.run_count for run in runs.task_runs(state)] == [1, 2, 4]  # check, claim, look up
    assert set(map(str, locked)) == {"[(1,)]"}
    until(lambda: ours.query(locks) == [(0,)], 30)


async def runs_of_a_deployment() -> dict[str, UUID]:
    """One run that the deployment's schedule made, and one that was made by request."""
    monthly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 5 1 * *"), active=True)
    async with get_client() as client:
        flow = await client.create_flow_from_name("test-history")
        deployment = await client.create_deployment(flow, "every month", schedules=[monthly])
        asked_for = await client.create_flow_run_from_deployment(deployment)
        await client._client.post(f"/deployments/{deployment}/schedule", json={})
        of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        runs = await client.read_flow_runs(deployment_filter=of_deployment)
        by_schedule = next(run for run in runs if run.auto_scheduled)
    return {"schedule": by_schedule.id, "run": asked_for.id}


def test_the_history_says_which_schedule_or_deployment_started_a_run(
    prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for how, run_id in asyncio.run(runs_of_a_deployment()).items():
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run_id))
        assert started_by() == f"{how} of test-history/every month"
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(UUID(int=7)))  # the API does not answer about the run
    assert started_by() == "a deployment"


def test_a_month_is_published_even_if_nobody_knows_who_started_the_run(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "no id of a run")
    assert runs.lake(month).manifest.started_by == ours.manifest(month)["started_by"] == "a deployment"


def test_more_months_at_once_than_a_pool_of_connections_has_can_be_claimed(ours: Stores) -> None:
    database = database_of(POSTGRES)
    with ExitStack() as claims:
        for n in range(24):
            month = TripMonth("fhv", 2016 + n // 12, n % 12 + 1)
            claims.enter_context(database.claim(month, lambda: None))
        assert database.remembered(month) is None
