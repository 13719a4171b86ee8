"""Retries, timeouts and cancellation by Prefect, an unavailable API, and a killed agent. Run by `make faults`."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Scheduled
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from rich.console import Console

from local import demo
from local.servers.stack import Stack
from tests.faults.crash import STEPS, require_whole
from tests.faults.lab import CREDENTIALS, LAKE, POSTGRES, FlowName, Lab, see, until
from tests.faults.programs import Programs
from tests.faults.record import tried
from tests.faults.test_services import kill_and_start
from tests.flows.conftest import postgres_block
from tests.stores import connected

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
FLOWS: tuple[FlowName, ...] = ("etl_web_gcs", "etl_gcs_bq", "ingest_data")
FILE = "/legacy/green_tripdata_2019-06.csv"


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize(("flow", "step"), [(flow, step) for flow in FLOWS for step in STEPS[flow]])
def test_a_step_that_fails_after_its_work_is_retried_without_duplicates(
    flow: FlowName, step: str, over: bool, lab: Lab
) -> None:
    expected = lab.expected(flow, over=over)
    lab.prepare(flow, over=over)
    with tried("prefect", f"a step of `{flow}` fails after it did its work, and its task is retried") as trial:
        lab.start(flow, {"fail_at": {"name": step, "when": "after"}}).succeeded()
        trial.recoveries.append(0.0)
        require_whole(lab, expected)


@pytest.mark.parametrize(
    ("flow", "task", "step"),
    [
        ("etl_web_gcs", "extract_file", "flows.connectors.scratch:pieces"),
        ("etl_web_gcs", "transform", "flows.stores.lake:Lake._write"),
        ("etl_web_gcs", "load", "flows.connectors.bucket:Bucket.copy"),
        ("etl_gcs_bq", "load", "flows.stores.warehouse:Warehouse._load_from_lake"),
        ("ingest_data", "transform", "flows.stores.database:Database._copy"),
        ("ingest_data", "load", "flows.stores.database:Database._write_manifest"),
    ],
)
def test_a_task_that_times_out_releases_its_locks(
    flow: FlowName, task: str, step: str, lab: Lab, tmp_path: Path
) -> None:
    """In Postgres the task has a lock on the staging table, which the retry must drop."""
    expected = lab.expected(flow, over=True)
    lab.prepare(flow, over=True)
    hooks = {
        "pause_at": {"name": step, "when": "before", "file": str(tmp_path / "never")},
        "set": {f"flows.tasks.bring:{task}.timeout_seconds": 15.0},
    }
    with tried("prefect", f"the task `{task}` of `{flow}` times out and is retried") as trial:
        lab.start(flow, hooks).succeeded()
        trial.recoveries.append(0.0)
        require_whole(lab, expected)


@pytest.fixture(scope="module")
def on_server(orchestrator: Stack, lab: Lab) -> Iterator[Stack]:
    """Yield a Prefect server and an agent, with the deployments and the blocks of this suite."""
    demo.prepare(orchestrator.environment(), Console(quiet=True))
    with temporary_settings({PREFECT_API_URL: orchestrator.env["PREFECT_API_URL"]}):
        credentials = GcpCredentials()
        credentials.save(CREDENTIALS, overwrite=True)
        GcsBucket(bucket=lab.ours.bucket, bucket_folder="data", gcp_credentials=credentials).save(LAKE, overwrite=True)
        postgres_block(lab.ours.postgres_url).save(POSTGRES, overwrite=True)
        yield orchestrator


@pytest.fixture(scope="module")
def with_server(on_server: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Yield programs that report their runs to the server."""
    env = dict(os.environ) | {
        "PREFECT_API_URL": on_server.env["PREFECT_API_URL"],
        "TRIPS_ALLOW_SOURCES": "file,private",
    }
    with Programs(tmp_path_factory.mktemp("with-server"), env) as made:
        yield made


@pytest.mark.parametrize("how", ["stopped for a minute", "killed and started again"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_run_survives_an_unavailable_api(
    flow: FlowName, how: str, lab: Lab, on_server: Stack, with_server: Programs, tmp_path: Path
) -> None:
    expected = lab.expected(flow, over=True)
    lab.prepare(flow, over=True)
    go_on, server = tmp_path / "go.on", on_server.executors["prefect"]
    hooks = {"pause_at": {"name": STEPS[flow][-3], "when": "before", "file": str(go_on)}}
    with tried("prefect", f"the API is {how} while `{flow}` runs") as trial:
        run = with_server.start(flow, *lab.arguments(flow, lab.month), hooks=hooks)
        until(go_on.with_suffix(".reached").exists)
        if how.startswith("stopped"):
            server.stop()
            go_on.touch()
            time.sleep(60)
            server.start()
        else:
            kill_and_start(on_server, "prefect")
            go_on.touch()
        run.wait(900)
        if run.status:
            with trial.recovering():
                with_server.start(flow, *lab.arguments(flow, lab.month)).succeeded(900)
        else:
            trial.recoveries.append(0.0)
        require_whole(lab, expected)


def _client(call: str, *arguments: Any, **named: Any) -> Any:
    async def ask() -> Any:
        async with get_client() as client:
            return await getattr(client, call)(*arguments, **named)

    return asyncio.run(ask())


def _deployed(flow: FlowName, lab: Lab, late: timedelta = timedelta()) -> UUID:
    """Start a run of a deployment that was scheduled for `late` ago, and return its id."""
    name = {"etl_web_gcs": demo.LAKE, "ingest_data": demo.DATABASE}[flow]
    deployment = _client("read_deployment_by_name", name)
    block = POSTGRES if flow == "ingest_data" else LAKE
    parameters = {"color": "green", "year": 2019, "months": [6], "block_name": block, "source": lab.source}
    state = Scheduled(scheduled_time=datetime.now(UTC) - late)
    run = _client("create_flow_run_from_deployment", deployment.id, parameters=parameters, state=state)
    return UUID(str(run.id))


def _state(run: UUID) -> str:
    read: FlowRun = _client("read_flow_run", run)
    return read.state.name if read.state else ""


def _process(run: UUID) -> psutil.Process:
    """Return the process that the agent started for a run."""
    read: FlowRun = _client("read_flow_run", run)
    assert read.infrastructure_pid
    return psutil.Process(int(read.infrastructure_pid.rpartition(":")[2]))


def _asked(lab: Lab) -> bool:
    return any(request.method == "GET" and request.path == FILE for request in list(lab.ours.site.traffic.requests))


@pytest.fixture
def fresh_agent(lab: Lab, on_server: Stack, tmp_path: Path) -> Iterator[None]:
    """Start an agent whose runs find no file of an earlier run, so that each downloads the month."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPS_ALLOW_SOURCES", "file,private")
        patch.setenv("TRIPS_SCRATCH", str(tmp_path / "scratch"))
        on_server.stop("agent")
        on_server.start("agent")
        lab.ours.site.forget_requests()
        yield
    lab.ours.site.heal()
    on_server.stop("agent")
    on_server.start("agent")


@pytest.mark.parametrize("flow", ["etl_web_gcs", "ingest_data"])
def test_a_cancelled_run_stops_and_leaves_the_old_month(
    flow: FlowName, lab: Lab, on_server: Stack, fresh_agent: None
) -> None:
    expected, allowed = lab.expected(flow, over=True), lab.states(flow, over=True)
    lab.ours.site.forget_requests()
    lab.ours.site.fault(FILE, methods=("GET",), stall=120, stall_at=100_000)
    with tried("prefect", f"a run of `{flow}` is cancelled through the API, until its process ends") as trial:
        run = _deployed(flow, lab)
        until(lambda: _asked(lab), 300)
        process = _process(run)
        with trial.recovering():
            _client("set_flow_run_state", run, Cancelling(), force=True)
            until(lambda: not process.is_running(), 30)
        until(lambda: _state(run) == "Cancelled", 10)
    with tried("prefect", f"a run of `{flow}` is cancelled through the API") as trial:
        assert all(see(lab)[store] in states for store, states in allowed.items())
        lab.ours.site.heal()
        with trial.recovering():
            lab.start(flow).succeeded()
        require_whole(lab, expected)


def test_a_run_that_waits_for_a_lock_while_it_publishes_can_be_cancelled(
    lab: Lab, on_server: Stack, fresh_agent: None
) -> None:
    expected, allowed = lab.expected("ingest_data", over=True), lab.states("ingest_data", over=True)
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = to_regclass(%s)"
    with (
        tried("prefect", "a run of `ingest_data` that waits for a lock is cancelled, until its process ends") as trial,
        connected(lab.ours.postgres_url) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(f"LOCK TABLE {lab.month.postgres_partition} IN SHARE MODE")
        run = _deployed("ingest_data", lab)
        until(lambda: bool(lab.ours.query(waiting, lab.month.postgres_partition)), 300)
        process = _process(run)
        with trial.recovering():
            _client("set_flow_run_state", run, Cancelling(), force=True)
            until(lambda: not process.is_running(), 30)
        until(lambda: _state(run) == "Cancelled", 10)
    with tried("prefect", "a run of `ingest_data` that waits for a lock is cancelled") as trial:
        assert see(lab)["database"] in allowed["database"]
        with trial.recovering():
            lab.start("ingest_data").succeeded()
        require_whole(lab, expected)


def _slow_download(lab: Lab) -> dict[str, Any]:
    """Publish a month, slow the download of its next edition down, and return the digest to expect."""
    expected: dict[str, Any] = lab.expected("ingest_data", over=True)
    lab.prepare("ingest_data", over=True)
    lab.ours.site.forget_requests()
    lab.ours.site.fault(FILE, methods=("GET",), stall=5, stall_at=100_000)
    return expected


def test_a_month_is_loaded_after_the_agent_was_killed(lab: Lab, on_server: Stack, fresh_agent: None) -> None:
    expected = _slow_download(lab)
    with tried("prefect", "the agent is killed while a run is at work, and started again") as trial:
        _deployed("ingest_data", lab)
        until(lambda: _asked(lab), 300)
        process = on_server.executors["agent"].process
        assert process
        os.kill(process.pid, signal.SIGKILL)
        on_server.stop("agent")
        on_server.start("agent")
        with trial.recovering():
            run = _deployed("ingest_data", lab)
            until(lambda: _state(run) == "Completed", 600)
        require_whole(lab, expected)


def test_a_run_survives_an_edit_of_its_deployment(lab: Lab, on_server: Stack, fresh_agent: None) -> None:
    expected = _slow_download(lab)
    with tried("prefect", "a deployment is edited while its run is at work") as trial:
        run = _deployed("ingest_data", lab)
        until(lambda: _asked(lab), 300)
        deployment = _client("read_deployment_by_name", demo.DATABASE)
        before = deployment.parameters
        deployment.parameters = {"color": "yellow", "year": 2009, "months": [1], "block_name": "another"}
        _client("update_deployment", deployment)
        try:
            assert _client("read_deployment_by_name", demo.DATABASE).parameters == deployment.parameters != before
            assert _state(run) == "Running"
            until(lambda: _state(run) == "Completed", 600)
        finally:
            deployment.parameters = before
            _client("update_deployment", deployment)
        trial.recoveries.append(0.0)
        require_whole(lab, expected)


def test_late_scheduled_runs_load_the_month_once(lab: Lab, on_server: Stack, fresh_agent: None) -> None:
    """After an outage of the agent, Prefect starts every run that it missed, however late, and at the same time."""
    expected = lab.expected("ingest_data", over=True)
    lab.prepare("ingest_data", over=True)
    on_server.stop("agent")
    with tried("prefect", "three scheduled runs start days late and at once", 3) as trial:
        runs = [_deployed("ingest_data", lab, timedelta(days=days)) for days in (25, 2, 1)]
        on_server.start("agent")
        for run in runs:
            until(lambda run=run: _state(run) == "Completed", 600)  # type: ignore[misc]
        trial.recoveries.append(0.0)
        require_whole(lab, expected)
