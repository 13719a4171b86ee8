"""A work pool and a real worker replace the agent: `make up WORKER=1`, `prefect deploy` and runs of deployments."""

import re
from collections.abc import Iterator

import httpx
import pytest
import sqlalchemy
import yaml
from google.cloud import storage
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from local import demo
from local.deployments import manifests
from local.servers.stack import WORK_POOL, Stack, make_work_pool
from tests.command_line import prefect

pytestmark = pytest.mark.operations
MONTH = ("-p", "color=green", "-p", "year=2020", "-p", "months=[9]", "-p", "source=mirror", "--watch")


@pytest.fixture(scope="module")
def worker(server: Stack) -> Iterator[Stack]:
    """Start a worker, and deploy all deployments to its pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRIPS_ALLOW_SOURCES")  # its runs use the default
        server.start("worker")
    demo.prepare(server.environment(), Console(quiet=True), "worker")
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        yield server
    server.stop("worker")
    # Prefect assigns deployments with the queue `default` to this pool if no agent pool exists.
    httpx.delete(f"{server.env['PREFECT_API_URL']}/work_pools/{WORK_POOL}", trust_env=False).raise_for_status()


def pools(stack: Stack) -> set[str]:
    """Return the work pools that the project's deployments are in."""
    ours = {yaml.safe_load(path.read_text("utf-8"))["name"] for path in manifests()}
    answer = httpx.post(f"{stack.env['PREFECT_API_URL']}/deployments/filter", json={}, trust_env=False)
    return {found["work_pool_name"] for found in answer.raise_for_status().json() if found["name"] in ours}


def test_a_worker_loads_a_month_into_the_lake_and_postgres(worker: Stack) -> None:
    assert pools(worker) == {WORK_POOL}
    for deployment in (demo.LAKE, demo.DATABASE):
        assert "finished successfully" in prefect("deployment", "run", deployment, *MONTH)
    lake = storage.Client().bucket(worker.env["LAKE_BUCKET"])
    assert lake.blob("data/green/green_tripdata_2020-09.parquet").exists()
    engine = sqlalchemy.create_engine(worker.env["POSTGRES_URL"])
    with engine.connect() as connection:
        [loaded] = connection.execute(
            sqlalchemy.text("SELECT loaded FROM loads WHERE color = 'green' AND file_month = '2020-09-01'")
        ).scalars()
        counted = connection.execute(
            sqlalchemy.text("SELECT count(*) FROM green WHERE file_month = '2020-09-01'")
        ).scalar_one()
    engine.dispose()
    assert counted == loaded > 1000


def test_a_workers_run_refuses_local_files_and_private_addresses(worker: Stack) -> None:
    api = worker.env["PREFECT_API_URL"]
    month = ("-p", "color=green", "-p", "year=2020", "-p", "months=[8]", "--watch")
    for source, named in (
        ("file:///etc/{color}{year}-{month:02d}.csv", "is a local file"),
        (f"{api}/{{color}}{{year}}-{{month:02d}}.csv", "is at a private or local address"),
        (f"{api.replace('127.0.0.1', '2130706433')}/{{year}}-{{month:02d}}.csv", "is at a private or local address"),
    ):
        output = prefect("deployment", "run", demo.LAKE, "-p", f"source={source}", *month, code=1)
        [run] = re.findall(r"UUID: +([0-9a-f-]{36})", output)
        found = httpx.get(f"{api}/flow_runs/{run}", trust_env=False).raise_for_status().json()
        assert named in found["state"]["message"]
        assert "the operator sets TRIPS_ALLOW_SOURCES=" in found["state"]["message"]


def test_deployments_can_move_to_the_agents_queue_and_back_to_the_pool(worker: Stack) -> None:
    make_work_pool(worker.env["PREFECT_API_URL"], "default-agent-pool", "prefect-agent")  # as an agent does
    for runs, there in (("agent", "default-agent-pool"), ("worker", WORK_POOL)):
        demo.prepare(worker.environment(), Console(quiet=True), runs)
        assert pools(worker) == {there}
