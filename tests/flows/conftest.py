"""Flows run in this process against the real stand-ins, on stores of these tests' own; every test takes a month for itself."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, State, TaskRun
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from sqlalchemy import make_url

from flows.etl_gcs_bq import etl_gcs_bq
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.tasks import extract, load, transform
from flows.tlc.manifest import Outcome
from flows.tlc.trips import TripMonth
from local.stack import Stack
from tests.stores import Stores, stores

ROOT = Path(__file__).resolve().parents[2]
LAKE, CREDENTIALS, POSTGRES = "tests-lake", "tests-credentials", "tests-postgres"

# Published in both formats, Parquet and CSV.
_months = itertools.chain(
    (TripMonth("green", 2019 + n // 12, 1 + n % 12) for n in range(31)),
    (TripMonth("yellow", 2019 + n // 12, 1 + n % 12) for n in range(31)),
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
def ours(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores of the flow tests' own, with blocks that name them."""
    with stores(tmp_path_factory.mktemp("flows"), "flow_tests") as made:
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
    for module in (extract, transform, load):
        for name, task in vars(module).items():
            if name.startswith(("extract_", "transform_", "load_")) and hasattr(task, "retry_delay_seconds"):
                monkeypatch.setattr(task, "retry_delay_seconds", 0)
                monkeypatch.setattr(task, "retry_jitter_factor", None)


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

    def task_runs(self, state: State[Any]) -> dict[str, TaskRun]:
        """A flow run's task runs by the first two words of their task's name, the last of each."""

        async def read() -> list[TaskRun]:
            async with get_client() as client:
                return await client.read_task_runs(flow_run_filter=_only(state))

        runs = sorted(asyncio.run(read()), key=lambda run: run.created)
        return {run.dynamic_key and run.task_key.rpartition(".")[2]: run for run in runs}

    def artifacts(self, state: State[Any]) -> list[Artifact]:
        """What a flow run left for people."""

        async def read() -> list[Artifact]:
            async with get_client() as client:
                where = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
                return await client.read_artifacts(artifact_filter=where)

        return asyncio.run(read())


def _only(state: State[Any]) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))


@pytest.fixture
def runs(ours: Stores) -> Runs:
    """The three flows on our stores."""
    return Runs(ours)


Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def program(ours: Stores) -> Program:
    """`python flows/x.py …`, run to its end."""

    def run(name: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, f"flows/{name}.py", *map(str, arguments)],
            cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run
