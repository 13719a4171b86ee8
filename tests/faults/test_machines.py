"""A back-fill over machines: processes with folders of their own that share only the servers. One is killed half-way."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Literal

import psycopg2
import pytest
from distributed import Client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from rich.console import Console
from sqlalchemy import make_url

from flows.tasks.batches import BATCHES_OF
from flows.tasks.notify import PART_OF_ANOTHER
from flows.tlc.trips import TripMonth
from local import demo
from local.servers.stack import WORK_POOL, Stack, make_work_pool
from tests.faults.record import tried
from tests.faults.test_prefect import _client as client
from tests.flows.conftest import postgres_block, until
from tests.flows.test_backfill import require_exact
from tests.stores import Stores, stores

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
NAME = "machine-tests"
SILENT_AFTER = 30
ON_POSTGRES = "PREFECT_API_DATABASE_CONNECTION_URL"
SERVERS = itertools.count()


def months_of(color: str, *years: int) -> list[TripMonth]:
    return [TripMonth(color, year, n) for year in years for n in range(1, 13)]


YEARS = (months_of("green", year) for year in itertools.count(2014))  # each test takes one
FOUR_YEARS = months_of("yellow", 2015, 2016, 2017, 2018)


@pytest.fixture(scope="module", params=["sqlite"])
def server(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Add a Prefect server to `stack`, with its own database on SQLite or Postgres."""
    if request.param == "postgres":
        with closing(psycopg2.connect(stack.env["POSTGRES_URL"])) as connection:
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE prefect_server")
        url = make_url(stack.env["POSTGRES_URL"]).set(drivername="postgresql+asyncpg", database="prefect_server")
        stack.env[ON_POSTGRES] = url.render_as_string(hide_password=False)
    stack.start("prefect")
    stack.env.pop(ON_POSTGRES, None)  # only the server needs it
    yield stack
    stack.stop("prefect")


@pytest.fixture(scope="module")
def own(server: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores of this module's own, and their blocks on the Prefect server."""
    with stores(tmp_path_factory.mktemp("site"), f"{NAME}-{next(SERVERS)}", rows=3000) as made:
        demo.prepare(server.environment(), Console(quiet=True))
        with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
            credentials = GcpCredentials()
            credentials.save(NAME, overwrite=True)
            GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=credentials).save(NAME, overwrite=True)
            postgres_block(made.postgres_url).save(NAME, overwrite=True)
            yield made


@contextmanager
def machine(folder: Path, server: Stack, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process group with its own working directory, home, scratch folder and Prefect folder."""
    folder.mkdir()
    env = server.environment() | {
        "HOME": str(folder), "TRIPS_SCRATCH": str(folder / "scratch"), "PREFECT_HOME": str(folder / "prefect"),
        "TRIPS_ALLOW_SOURCES": "file,private", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        for number in descendants(process.pid):
            os.kill(number, signal.SIGKILL)
        process.wait()


def descendants(pid: int) -> list[int]:
    """A process and all that it started, as far as they run."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    alive = [pid] if Path(f"/proc/{pid}").exists() else []
    return alive + [number for child in out.split() for number in descendants(int(child))]


def kill(process: "subprocess.Popen[bytes]") -> None:
    """End a machine as a power cut does."""
    for number in descendants(process.pid):
        os.kill(number, signal.SIGKILL)
    process.wait()


def command(kind: Literal["agent", "worker"], number: int) -> list[str]:
    program = str(Path(sys.executable).with_name("prefect"))
    if kind == "agent":
        return [program, "agent", "start", "-q", "default", "--limit", "1"]
    return [
        program,
        "worker",
        "start",
        "--pool",
        WORK_POOL,
        "--type",
        "process",
        "--name",
        f"m{number}",
        "--limit",
        "1",
    ]


def start_backfill(
    own: Stores, server: Stack, folder: Path, months: Sequence[TripMonth], *words: object
) -> "subprocess.Popen[bytes]":
    since, until = (f"{month.file_month:%Y-%m}" for month in (months[0], months[-1]))
    options = [
        "--since", since, "--until", until, "--colors", months[0].color, "--into", "lake", "warehouse", "database", "--batch", 3,
        "--silent-after", SILENT_AFTER, "--source", own.official, "--block-name", NAME, "--credentials-block", NAME,
        "--dataset", own.dataset, "--postgres-block", NAME, *words,
    ]  # fmt: skip
    env = server.environment() | {"TRIPS_ALLOW_SOURCES": "file,private"}
    with (folder / "backfill.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "flows/backfill.py", *map(str, options)], cwd=ROOT, env=env, stdout=log, stderr=log
        )


def runs() -> list[FlowRun]:
    """All runs of the flow, newest first."""
    found: list[FlowRun] = client("read_flow_runs")
    return sorted(found, key=lambda run: str(run.created), reverse=True)


def require_ended(own: Stores, process: "subprocess.Popen[bytes]", folder: Path, months: Sequence[TripMonth]) -> str:
    """Wait for the back-fill, compare every row of the stores, and return its log. No run stays Running."""
    process.wait(1200)
    log = (folder / "backfill.log").read_text()
    assert process.returncode == 0, log
    require_exact(own, list(months))
    # A slow run may have been marked as crashed by mistake. Then it ends by itself.
    until(lambda: not any(map(is_active, runs())))
    return log


def loaded(own: Stores, months: Sequence[TripMonth]) -> int:
    return len({month.manifest_key for month in months} & own.objects("manifests/").keys())


@pytest.mark.parametrize(
    ("server", "kind", "count", "years"),
    [
        ("sqlite", "agent", 2, 1),
        ("sqlite", "agent", 4, 4),
        ("sqlite", "worker", 2, 1),
        ("sqlite", "worker", 4, 1),
        ("postgres", "agent", 4, 1),
    ],
    indirect=["server"],
)
def test_a_machine_of_the_queue_is_killed_half_way(
    kind: Literal["agent", "worker"],
    count: int,
    years: int,
    own: Stores,
    server: Stack,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    months = next(YEARS) if years == 1 else FOUR_YEARS
    what = "a back-fill" if years == 1 else f"a back-fill of {len(months)} months"
    where = "; Prefect's server on Postgres" if "postgres" in request.node.callspec.id else ""
    if kind == "worker":
        make_work_pool(server.env["PREFECT_API_URL"], WORK_POOL, "process")
    demo.prepare(server.environment(), Console(quiet=True), kind)
    with (
        tried("machines", f"{count} {kind}s share {what}, and one is killed with its runs{where}") as trial,
        ExitStack() as on,
    ):
        machines = [on.enter_context(machine(tmp_path / f"m{n}", server, *command(kind, n))) for n in range(count)]
        process = start_backfill(own, server, tmp_path, months, "--spread", "queue", "--machines", count)
        on.callback(process.kill)
        until(lambda: loaded(own, months) >= 2 or process.poll() is not None, 600)
        busy = next(m for m in machines if len(descendants(m.pid)) > 1)
        kill(busy)
        with trial.recovering():
            log = require_ended(own, process, tmp_path, months)
        assert "marked as crashed: no heartbeat for" in log
        # Not by its name: it may have been killed before it had one.
        crashed = next(r for r in runs() if r.state and r.state.is_crashed() and PART_OF_ANOTHER in r.tags)
        assert "its process or machine died" in str(crashed.state and crashed.state.message)


def test_a_worker_of_a_dask_cluster_is_killed_half_way(own: Stores, server: Stack, tmp_path: Path) -> None:
    months, file = next(YEARS), tmp_path / "scheduler.json"
    dask = (sys.executable, "-m", "distributed.cli.dask_")

    def role(name: str, *words: str) -> list[str]:
        return [*dask[:2], dask[2] + name, "--no-dashboard", "--scheduler-file", str(file), *words]

    with tried("machines", "4 Dask workers share a back-fill, and one is killed") as trial, ExitStack() as on:
        on.enter_context(machine(tmp_path / "s", server, *role("scheduler", "--host", "127.0.0.1", "--port", "0")))
        single = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
        workers = [on.enter_context(machine(tmp_path / f"w{n}", server, *role("worker", *single))) for n in range(4)]
        with Client(scheduler_file=str(file), timeout=60) as scheduler:
            scheduler.wait_for_workers(4, timeout=240)
            address = scheduler.scheduler.address
            words = ("--spread", "dask", "--dask", address, "--machines", 4, "--at-once", 1)
            process = start_backfill(own, server, tmp_path, months, *words)
            on.callback(process.kill)
            until(lambda: loaded(own, months) >= 2 or process.poll() is not None, 600)
            busy = scheduler.processing()
        names = {
            f"{w}": next(m for m in workers if w.split(":")[-1] in ports(m.pid)) for w, keys in busy.items() if keys
        }
        kill(next(iter(names.values())))
        with trial.recovering():
            log = require_ended(own, process, tmp_path, months)
        # Either another worker was free and Dask started the batch again, or the batch sent no heartbeat.
        assert "marked as crashed: " in log, log


@pytest.mark.parametrize("spread", ["here", "queue", "dask"])
def test_a_backfill_that_is_cancelled_stops_on_all_machines_and_can_be_resumed(
    spread: Literal["here", "queue", "dask"], own: Stores, server: Stack, tmp_path: Path
) -> None:
    months = next(YEARS)
    demo.prepare(server.environment(), Console(quiet=True), "agent")
    with tried("machines", f"a back-fill with `--spread {spread}` is cancelled through the API") as trial:
        with ExitStack() as on:
            for n in range(2 if spread == "queue" else 0):
                on.enter_context(machine(tmp_path / f"m{n}", server, *command("agent", n)))
            process = start_backfill(own, server, tmp_path, months, "--spread", spread, "--machines", 2)
            on.callback(process.kill)
            until(lambda: loaded(own, months) >= 2 or process.poll() is not None, 600)
            cancelled = next(run for run in runs() if is_active(run) and PART_OF_ANOTHER not in run.tags)
            client("set_flow_run_state", cancelled.id, Cancelling())
            process.wait(120)
            until(lambda: not any(map(is_active, runs())), 120)
            ended = [run for run in runs() if run.id == cancelled.id or BATCHES_OF.format(id=cancelled.id) in run.tags]
            assert {run.state_type for run in ended} == {StateType.CANCELLED}
            assert len(ended) == (1 if spread == "here" else 3)
            assert loaded(own, months) < 12
        with trial.recovering():
            require_ended(own, start_backfill(own, server, tmp_path, months), tmp_path, months)


def is_active(run: FlowRun) -> bool:
    return run.state_type in (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)


def ports(pid: int) -> set[str]:
    """The TCP ports on which a process listens."""
    out = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=False).stdout
    return {line.split()[3].rpartition(":")[2] for line in out.splitlines() if f"pid={pid}," in line}


def test_a_backfill_that_is_killed_is_marked_by_the_next_one_and_its_waiting_batches_are_cancelled(
    own: Stores, server: Stack, tmp_path: Path
) -> None:
    """Without an agent, its batches wait for ever."""
    months = next(YEARS)
    demo.prepare(server.environment(), Console(quiet=True), "agent")
    process = start_backfill(own, server, tmp_path, months, "--spread", "queue", "--machines", 2)
    until(
        lambda: [run.state_type for run in runs() if PART_OF_ANOTHER in run.tags][:2] == [StateType.SCHEDULED] * 2, 300
    )
    process.kill()
    process.wait()
    killed = next(run for run in runs() if run.state_type == StateType.RUNNING)
    time.sleep(SILENT_AFTER)
    first = f"{months[0].file_month:%Y-%m}"
    again = start_backfill(own, server, tmp_path, months, "--since", first, "--until", first)
    again.wait(600)
    assert again.returncode == 0, (tmp_path / "backfill.log").read_text()
    require_exact(own, months[:1])
    assert client("read_flow_run", killed.id).state.is_crashed()
    batches = [run for run in runs() if BATCHES_OF.format(id=killed.id) in run.tags]
    assert [run.state_type for run in batches] == [StateType.CANCELLED] * 2
