"""Flows run in this process against the real stand-ins. Every test file has stores of its own, where every test takes a month."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pendulum
import pytest
from prefect import Flow, Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterTimestamp,
)
from prefect.client.schemas.objects import Artifact, State, TaskRun
from prefect.logging.handlers import APILogHandler
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from sqlalchemy import make_url

from flows.connectors.web import look_up, source_of
from flows.etl_gcs_bq import etl_gcs_bq
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.stores import FileStore, Target
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.stores.warehouse import Warehouse
from flows.tasks import bring, editions, survey, verify, zones
from flows.tasks import stores as store_tasks
from flows.tasks.stores import open_store
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Outcome, StagedMonth
from flows.tlc.trips import Rows, Terms, TripMonth, Via
from local.servers.stack import Stack
from tests.stores import Stores, stores
from tests.strict_lake import StrictLake

ROOT = Path(__file__).resolve().parents[2]
LAKE, CREDENTIALS, POSTGRES = "tests-lake", "tests-credentials", "tests-postgres"


def months_of(*years: int) -> Iterator[TripMonth]:
    """Yield the months of green and yellow of these years."""
    for year in years:
        for n in range(1, 13):
            for color in ("green", "yellow"):
                yield TripMonth(color, year, n)


def postgres_block(url: str, **changed: Any) -> SqlAlchemyConnector:
    """Return a block for a database with the fields that `python -m blocks.register` sets. `changed` replaces fields."""
    parts = make_url(url)
    components = {
        "driver": SyncDriver.POSTGRESQL_PSYCOPG2,
        "username": parts.username,
        "password": parts.password,
        "host": parts.host,
        "port": str(parts.port),
        "database": parts.database,
    }
    return SqlAlchemyConnector(connection_info=ConnectionComponents(**(components | changed)))


@pytest.fixture(scope="module")
def ours(
    stack: Stack, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stores]:
    """Create the stores of a test file, and blocks that name them."""
    folder = tmp_path_factory.mktemp("flows")
    with stores(folder, f"flow_{request.path.stem}") as made:
        save_blocks(made)
        yield made


def save_blocks(made: Stores) -> None:
    """Save the blocks that name these stores."""
    credentials = GcpCredentials()
    credentials.save(CREDENTIALS, overwrite=True)
    GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=credentials).save(LAKE, overwrite=True)
    postgres_block(made.postgres_url).save(POSTGRES, overwrite=True)


@pytest.fixture(scope="module")
def months() -> Iterator[TripMonth]:
    """Return the months for the tests of a file."""
    return months_of(2019, 2018, 2017, 2016)


@pytest.fixture(scope="module")
def mirrored_months() -> Iterator[TripMonth]:
    """Return the months for the tests of a file that need a CSV file. The mirror has none from before 2019."""
    return months_of(2020)


@pytest.fixture
def month(months: Iterator[TripMonth]) -> TripMonth:
    """Return a month that no other test of the file uses."""
    return next(months)


@pytest.fixture
def mirrored_month(mirrored_months: Iterator[TripMonth]) -> TripMonth:
    """Return a month that no other test of the file uses and that the mirror has as a CSV file, too."""
    return next(mirrored_months)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retries start without a pause."""
    for task in tasks_with_retries():
        monkeypatch.setattr(task, "retry_delay_seconds", 0)
        monkeypatch.setattr(task, "retry_jitter_factor", None)
    monkeypatch.setattr(verify, "_PATIENCE", 0)


def tasks_with_retries() -> list[Task[..., Any]]:
    """Return every task that uses the network."""
    named = {
        id(task): task
        for module in (bring, editions, store_tasks, survey, verify, zones)
        for task in vars(module).values()
        if isinstance(task, Task) and task is not survey.ask_source  # it retries in its own loop
    }
    return list(named.values())


def lake_of(block_name: str) -> Lake:
    """Return the lake of a block."""
    lake: Lake = open_store(Target("lake", block_name))
    return lake


def warehouse_of(credentials_block: str, dataset: str, via: Via = "load_job") -> Warehouse:
    """Return a warehouse that loads from the tests' lake."""
    warehouse: Warehouse = open_store(Target("warehouse", LAKE, credentials_block, dataset, via=via))
    return warehouse


def database_of(block_name: str) -> Database:
    """Return the database of a block."""
    database: Database = open_store(Target("database", database_block=block_name))
    return database


def staged_by_hand(store: FileStore, month: TripMonth, source: str, rows: Rows = "all") -> StagedMonth:
    """Stage a month without Prefect, as a run that does not know of any other."""
    raw = store.extract(look_up(source_of(source), month), no_progress)
    return store.stage(raw, Terms(rows), uuid4().hex, no_progress)


def by_hand(store: FileStore, month: TripMonth, source: str, rows: Rows = "all", run_id: str = "") -> Outcome:
    """Load a month with the functions that the tasks call, without Prefect. Load it even if the store already has it."""
    present = store.present(month)
    return store.publish(staged_by_hand(store, month, source, rows), present, run_id)


def no_progress(count: int, share: float) -> None:
    """Show nothing."""


class Runs:
    """Run the three flows on the tests' stores, and read the runs from Prefect."""

    def __init__(self, ours: Stores) -> None:
        self.ours = ours
        self._since = pendulum.now("UTC")

    def lake(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Load a month from the web into the lake."""
        return self.of(etl_web_gcs, month, **parameters).result()

    def warehouse(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Load a month from the lake into the warehouse."""
        return self.of(etl_gcs_bq, month, **parameters).result()

    def postgres(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Load a month from the web into Postgres."""
        [outcome] = self.of(ingest_data, month, **parameters).result()
        return outcome

    def lake_by_hand(self, month: TripMonth) -> Outcome:
        """Load a month from the web into the lake without Prefect, which is much faster."""
        return by_hand(lake_of(LAKE), month, self.ours.official)

    def postgres_by_hand(self, month: TripMonth) -> Outcome:
        """Load a month from the web into Postgres without Prefect."""
        return by_hand(database_of(POSTGRES), month, self.ours.official, "with_passengers")

    def of(self, flow: Flow[..., Any], month: TripMonth, **parameters: Any) -> State[Any]:
        """Run a flow for one month and return the final state."""
        about: dict[str, Any] = {"color": month.color, "year": month.year}
        about |= {"months": [month.month]} if flow is ingest_data else {"month": month.month}
        return flow(**(about | self.places(flow) | parameters), return_state=True)

    def places(self, flow: Flow[..., Any]) -> dict[str, Any]:
        """Return the parameters of a flow that name the tests' stores."""
        named = set(flow.parameters.properties)
        places: dict[str, Any] = {"block_name": POSTGRES if flow is ingest_data else LAKE}
        if "source" in named:
            places["source"] = self.ours.official
        if "dataset" in named:
            places |= {"dataset": self.ours.dataset, "credentials_block": CREDENTIALS}
        return places

    def task_runs(self, state: State[Any]) -> list[TaskRun]:
        """Return a flow run's task runs in the order in which they began."""

        async def read() -> list[TaskRun]:
            async with get_client() as client:
                where = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
                return await client.read_task_runs(flow_run_filter=where)

        return sorted(asyncio.run(read()), key=lambda run: run.expected_start_time or run.created)

    def name(self, state: State[Any]) -> str:
        """Return the name of a flow run."""

        async def read() -> str:
            async with get_client() as client:
                return (await client.read_flow_run(state.state_details.flow_run_id)).name

        return asyncio.run(read())

    def artifacts(self, key: str) -> list[str]:
        """Return the texts of the artifacts with a key, the oldest first."""

        async def read() -> list[Artifact]:
            async with get_client() as client:
                return await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

        return [
            str(artifact.data) for artifact in sorted(asyncio.run(read()), key=lambda artifact: str(artifact.created))
        ]

    def logs(self) -> str:
        """Return all log lines since this object was made, as the UI shows them."""
        since = LogFilter(timestamp=LogFilterTimestamp(after_=self._since))

        async def read() -> list[str]:
            lines: list[str] = []
            async with get_client() as client:
                while page := await client.read_logs(since, limit=200, offset=len(lines)):
                    lines += [line.message for line in page]
            return lines

        APILogHandler.flush()
        return "\n".join(asyncio.run(read()))


@pytest.fixture
def runs(ours: Stores) -> Runs:
    """Return the runner of the three flows."""
    return Runs(ours)


@pytest.fixture
def strict_lake(ours: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictLake]:
    """Put a `StrictLake` in front of the lake. Flows that start during the test use it."""
    with StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as lake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", lake.url)
        yield lake


class Dies(TripDataError):
    """An injected error that ends a run without a retry."""


@contextmanager
def dying(owner: Any, name: str, *, when: Literal["before", "after"], times: int | None = None) -> Iterator[list[str]]:
    """Make calls of `owner.name` fail before or after their work.

    Without `times`, all calls fail, with an error that is not retried. With it, the first calls fail with a network error.
    """
    real = getattr(owner, name)
    died: list[str] = []

    def dies(*arguments: Any, **named: Any) -> Any:
        if times is not None and len(died) >= times:
            return real(*arguments, **named)
        if when == "after":
            real(*arguments, **named)
        died.append(name)
        raise Dies(f"{name} died") if times is None else ConnectionError(f"{name} was cut off")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dies)
        yield died


def until(happened: Callable[[], bool], seconds: float = 300) -> None:
    """Wait until `happened` returns true. Raise `AssertionError` after `seconds`."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"the condition was still false after {seconds} s"
        time.sleep(0.05)


Program = Callable[..., "subprocess.CompletedProcess[str]"]
Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(ours: Stores, prefect_api: dict[str, str]) -> Iterator[Started]:
    """Return a function that starts `python flows/x.py …` in its own process. The process is killed at the end of the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(name: str, *arguments: object, **variables: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, f"flows/{name}.py", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | prefect_api | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def program(start: Started) -> Program:
    """Return a function that runs `python flows/x.py …` until it ends."""

    def run(name: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = start(name, *arguments, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
