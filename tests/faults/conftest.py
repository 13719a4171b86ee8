"""The fault suite: `make faults`. Its short part runs in `make test`."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from local.servers.stack import Stack
from tests.faults.lab import CREDENTIALS, LAKE, POSTGRES, Lab
from tests.faults.programs import ROOT, Programs
from tests.flows.conftest import postgres_block
from tests.stores import Stores, stores
from tests.strict_lake import StrictLake


@pytest.fixture(scope="session")
def fault_stores(
    stack: Stack, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stores]:
    """Create separate stores for this suite, and blocks that name them."""
    with stores(tmp_path_factory.mktemp("faults"), "fault_tests") as made:
        credentials = GcpCredentials()
        credentials.save(CREDENTIALS)
        GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=credentials).save(LAKE)
        postgres_block(made.postgres_url).save(POSTGRES)
        yield made


@pytest.fixture(scope="session")
def programs(
    fault_stores: Stores, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Programs]:
    """Start the process that runs programs with Prefect's in-process API, and a lake that enforces every precondition."""
    # The blocks are registered already. To register them again, each run would import every collection of Prefect.
    quick = {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
    with StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict:
        env = dict(os.environ) | prefect_api | quick | {"STORAGE_EMULATOR_HOST": strict.url}
        with Programs(tmp_path_factory.mktemp("programs"), env) as made:
            yield made


@pytest.fixture(scope="session")
def lab(fault_stores: Stores, programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Combine the month, the stores and the programs."""
    folder: Path = tmp_path_factory.mktemp("editions")
    return Lab(fault_stores, programs, folder)


BEFORE = "2381526"  # a revision with fewer facts in its manifests, and no history


@pytest.fixture(scope="session")
def version_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flows of an earlier revision, in a folder of their own."""
    archive = subprocess.run(["git", "archive", BEFORE, "flows", "blocks"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.fail(f"this clone does not have revision {BEFORE}: run git fetch --unshallow")
    folder = tmp_path_factory.mktemp("before")
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder
