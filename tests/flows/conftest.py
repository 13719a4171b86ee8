"""Flows run in this process against the real stand-ins, on stores of these tests' own; every test takes a month for itself."""

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

import pytest
from prefect import Flow, Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
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
from flows.tlc.manifest import Outcome
from flows.tlc.trips import Rows, Terms, TripMonth, Via
from local.servers.stack import Stack
from tests.stores import Stores, stores
from tests.strict_lake import StrictLake

ROOT = Path(__file__).resolve().parents[2]
LAKE, CREDENTIALS, POSTGRES = "tests-lake", "tests-credentials", "tests-postgres"

# Those that no test names; of some, 2019 to 2020, there are CSVs at the mirror too.
_months = (
    TripMonth(color, year, n)
    for year in (2019, 2020, 2018, 2017)
    for n in range(1, 13)
    for color in ("green", "yellow")
)


def postgres_block(url: str, **changed: Any) -> SqlAlchemyConnector:
    """A block for a database, as `python -m blocks.register` makes it, but for what is `changed`."""
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


@pytest.fixture(scope="session")
def ours(stack: Stack, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores of the flow tests' own, with blocks that name them."""
    folder = tmp_path_factory.mktemp("flows")
    with stores(folder, "flow_tests") as made:
        credentials = GcpCredentials()
        credentials.save(CREDENTIALS)
        GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=credentials).save(LAKE)
        postgres_block(made.postgres_url).save(POSTGRES)
        yield made


@pytest.fixture
def month() -> TripMonth:
    """A month that no other test has touched."""
    return next(_months)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries happen, at once."""
    for task in tasks_with_retries():
        monkeypatch.setattr(task, "retry_delay_seconds", 0)
        monkeypatch.setattr(task, "retry_jitter_factor", None)
    monkeypatch.setattr(verify, "_PATIENCE", 0)


def tasks_with_retries() -> list[Task[..., Any]]:
    """Every task that touches a network."""
    named = {
        id(task): task
        for module in (bring, editions, store_tasks, survey, verify, zones)
        for task in vars(module).values()
        if isinstance(task, Task) and task is not survey.ask_source  # which asks again by itself
    }
    return list(named.values())


def lake_of(block_name: str) -> Lake:
    """The lake of a block."""
    lake: Lake = open_store(Target("lake", block_name))
    return lake


def warehouse_of(credentials_block: str, dataset: str, via: Via = "load_job") -> Warehouse:
    """A dataset that is loaded from our lake."""
    warehouse: Warehouse = open_store(Target("warehouse", LAKE, credentials_block, dataset, via=via))
    return warehouse


def database_of(block_name: str) -> Database:
    """The database of a block."""
    database: Database = open_store(Target("database", database_block=block_name))
    return database


def by_hand(store: FileStore, month: TripMonth, source: str, rows: Rows = "all", run_id: str = "") -> Outcome:
    """Load a month as its tasks do, without Prefect, whatever the store has of it."""
    present = store.present(month)
    raw = store.extract(look_up(source_of(source), month), no_progress)
    return store.publish(store.stage(raw, Terms(rows), uuid4().hex, no_progress), present, run_id)


def no_progress(count: int, share: float) -> None:
    """Show nothing."""


class Runs:
    """The three flows on our stores, and what Prefect tells of their runs."""

    def __init__(self, ours: Stores) -> None:
        self.ours = ours

    def lake(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Web → lake, one month."""
        return self.of(etl_web_gcs, month, **parameters).result()

    def warehouse(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Lake → warehouse, one month."""
        return self.of(etl_gcs_bq, month, **parameters).result()

    def postgres(self, month: TripMonth, **parameters: Any) -> Outcome:
        """Web → Postgres, one month."""
        [outcome] = self.of(ingest_data, month, **parameters).result()
        return outcome

    def lake_by_hand(self, month: TripMonth) -> Outcome:
        """Web → lake without Prefect, in a fraction of the time."""
        return by_hand(lake_of(LAKE), month, self.ours.official)

    def postgres_by_hand(self, month: TripMonth) -> Outcome:
        """Web → Postgres in the same way."""
        return by_hand(database_of(POSTGRES), month, self.ours.official, "with_passengers")

    def of(self, flow: Flow[..., Any], month: TripMonth, **parameters: Any) -> State[Any]:
        """The final state of a run of one month."""
        about: dict[str, Any] = {"color": month.color, "year": month.year}
        about |= {"months": [month.month]} if flow is ingest_data else {"month": month.month}
        return flow(**(about | self.places(flow) | parameters), return_state=True)

    def places(self, flow: Flow[..., Any]) -> dict[str, Any]:
        """The parameters by which a flow finds our stores."""
        named = set(flow.parameters.properties)
        places: dict[str, Any] = {"block_name": POSTGRES if flow is ingest_data else LAKE}
        if "source" in named:
            places["source"] = self.ours.official
        if "dataset" in named:
            places |= {"dataset": self.ours.dataset, "credentials_block": CREDENTIALS}
        return places

    def task_runs(self, state: State[Any]) -> list[TaskRun]:
        """A flow run's task runs, in the order they began."""

        async def read() -> list[TaskRun]:
            async with get_client() as client:
                where = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
                return await client.read_task_runs(flow_run_filter=where)

        return sorted(asyncio.run(read()), key=lambda run: run.expected_start_time or run.created)

    def name(self, state: State[Any]) -> str:
        """The name of a flow run."""

        async def read() -> str:
            async with get_client() as client:
                return (await client.read_flow_run(state.state_details.flow_run_id)).name

        return asyncio.run(read())

    def artifacts(self, key: str) -> list[str]:
        """What was left for people under a key, as text, oldest first."""

        async def read() -> list[Artifact]:
            async with get_client() as client:
                return await client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))

        return [
            str(artifact.data) for artifact in sorted(asyncio.run(read()), key=lambda artifact: str(artifact.created))
        ]

    def logs(self) -> str:
        """Every line that any run has logged, as the UI shows it."""

        async def read() -> list[str]:
            lines: list[str] = []
            async with get_client() as client:
                while page := await client.read_logs(limit=200, offset=len(lines)):
                    lines += [line.message for line in page]
            return lines

        APILogHandler.flush()
        return "\n".join(asyncio.run(read()))


@pytest.fixture
def runs(ours: Stores) -> Runs:
    """The three flows on our stores."""
    return Runs(ours)


@pytest.fixture
def strict_lake(ours: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictLake]:
    """Our lake as Google's would be; flows that start now use it."""
    with StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as lake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", lake.url)
        yield lake


class Dies(TripDataError):
    """Ends a run here, without another attempt."""


@contextmanager
def dying(owner: Any, name: str, *, when: Literal["before", "after"], times: int | None = None) -> Iterator[list[str]]:
    """Calls of `owner.name` fail, before or after they did their work: all of them, for good, or some, as a network fails."""
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
    """Wait; AssertionError if it does not happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


Program = Callable[..., "subprocess.CompletedProcess[str]"]
Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(ours: Stores, prefect_api: dict[str, str]) -> Iterator[Started]:
    """`python flows/x.py …` in a process of its own, which is gone when the test ends."""
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
    """`python flows/x.py …`, run to its end."""

    def run(name: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = start(name, *arguments, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
