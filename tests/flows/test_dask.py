"""The months of a run are loaded by an existing Dask cluster. Its workers need this package and the flow's environment."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from distributed import Client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.tasks.machines import Dask, machines_of
from flows.tlc.errors import TripDataError
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, ROOT, Program
from tests.stores import Stores, as_published, same

MONTHS = [TripMonth("fhv", 2019, 3), TripMonth("fhv", 2019, 4)]

ADDRESS = "tcp://10.0.0.5:8786"

pytestmark = pytest.mark.operations


@pytest.fixture
def scheduler(ours: Stores, prefect_api: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Start a scheduler and two workers, each in its own process, and yield the scheduler's address."""
    file = tmp_path / "scheduler.json"

    def start(role: str, *options: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"distributed.cli.dask_{role}",
                *options,
                "--no-dashboard",
                "--scheduler-file",
                str(file),
            ],
            cwd=ROOT,
            env=os.environ | prefect_api,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    here = ("--host", "127.0.0.1")
    local = ("--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path))
    processes = [start("scheduler", *here, "--port", "0"), *(start("worker", *here, *local) for _ in range(2))]
    try:
        with Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(2, timeout=120)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(processes):  # stop the workers first, because a worker tells its scheduler that it ends
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def test_the_workers_of_a_dask_cluster_load_the_months(scheduler: str, ours: Stores, program: Program) -> None:
    numbers = [month.month for month in MONTHS]
    arguments = ("fhv", 2019, *numbers, "--block-name", LAKE, "--source", ours.official)
    done = program("etl_web_gcs", *arguments, TRIPS_DASK_SCHEDULER=scheduler)
    assert done.returncode == 0, done.stderr
    assert f"Connecting to an existing Dask cluster at {scheduler}" in done.stderr
    for month in MONTHS:
        assert same(ours.in_lake(month), as_published(ours.site.file(f"{month.stem}.parquet"), month))
        assert ours.manifest(month)["generation"] == ours.objects()[month.key]
    with Client(scheduler, timeout=60) as client:
        worked = client.run(lambda dask_worker: len(dask_worker.state.log))
    assert len(worked) == 2
    assert all(worked.values())


@pytest.mark.parametrize(
    ("started", "operators", "allowed"),
    [("by a deployment", "", False), ("by a deployment", "tcp://h:1", False), ("by a deployment", ADDRESS, True),
     ("on a command line", "", True)],
)  # fmt: skip
def test_the_run_of_a_deployment_connects_only_to_the_scheduler_of_its_operator(
    started: str, operators: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if started == "by a deployment":
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "e6f5b3a2")
    monkeypatch.setenv("TRIPS_DASK_SCHEDULER", operators)
    monkeypatch.setitem(sys.modules, "distributed", None)  # so an allowed run fails at this import
    refused = pytest.raises(TripDataError, match=r"the operator sets as TRIPS_DASK_SCHEDULER .* Nothing was started\.")
    server = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"})
    with server, pytest.raises(ImportError) if allowed else refused, machines_of("dask", "", ADDRESS, 1):
        pass


def test_the_cluster_of_one_machine_is_encrypted(own_servers: None) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), machines_of("dask", "", "", 1) as made:
        assert isinstance(made, Dask)
        assert made._cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert made._client.submit(sum, [1, 2]).result(timeout=60) == 3
