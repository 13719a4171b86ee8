"""A failed run that a person retries in the UI loads the months that are missing, each from its own file."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry

from flows.bring_up_to_date import bring_up_to_date
from flows.etl_web_gcs import etl_parent_flow
from flows.ingest_data import ingest_data
from flows.tlc.trips import TripMonth
from tests.flows.conftest import CREDENTIALS, LAKE, POSTGRES, ROOT
from tests.stores import Stores, as_published, same

pytestmark = pytest.mark.operations

RANGE = {"since": "2017-01", "until": "2017-03"}
CASES: dict[str, tuple[Flow[..., Any], str, dict[str, Any]]] = {
    "etl_web_gcs": (etl_parent_flow, "fhv", {"block_name": LAKE, **RANGE}),
    "ingest_data": (ingest_data, "fhv", {"block_name": POSTGRES, **RANGE}),
    "bring_up_to_date": (
        bring_up_to_date,
        "green",
        {"block_name": LAKE, "credentials_block": CREDENTIALS, "into": ["lake"], "expect_within": 0, **RANGE},
    ),
}


async def create(flow: Flow[..., Any], file: str, parameters: dict[str, Any]) -> FlowRun:
    """Create a run of a new deployment, as the UI does."""
    async with get_client() as client:
        deployment = await client.create_deployment(
            await client.create_flow(flow),
            f"retried {file}",
            path=str(ROOT),
            entrypoint=f"flows/{file}.py:{flow.fn.__name__}",
        )
        run: FlowRun = await client.create_flow_run_from_deployment(deployment, parameters=parameters)
        return run


async def retry(run: FlowRun) -> None:
    """Do what the UI's button does."""
    async with get_client() as client:
        await client.set_flow_run_state(run.id, AwaitingRetry())


async def state_of(run: FlowRun) -> tuple[str, str]:
    async with get_client() as client:
        state = (await client.read_flow_run(run.id)).state
        assert state
        return state.name, str(state.message)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("file", CASES)
def test_a_retried_run_loads_the_missing_month_from_its_own_file(
    file: str, at_once: int, ours: Stores, prefect_api: dict[str, str]
) -> None:
    flow, color, parameters = CASES[file]
    year = 2016 + at_once
    bounds = {"since": f"{year}-01", "until": f"{year}-03"}
    months = [TripMonth(color, year, n) for n in (1, 2, 3)]
    given = parameters | bounds | {"source": ours.official, "at_once": at_once}
    given |= {"colors": [color]} if file == "bring_up_to_date" else {"color": color}
    if file == "ingest_data":
        given["rows"] = "all"
    run = asyncio.run(create(flow, file, given))
    environment = os.environ | prefect_api | {"TRIPS_ALLOW_SOURCES": "file,private"}

    def engine() -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "prefect.engine", str(run.id)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=False,
        )
        name, message = asyncio.run(state_of(run))
        return name, message + done.stderr.decode()[-6000:]

    ours.site.fault(f"*/{months[1].stem}.parquet", methods=["GET"], body="html", times=None)
    try:
        name, text = engine()
    finally:
        ours.site.heal()
    assert name == "Failed", text
    assert str(months[1]) in text
    asyncio.run(retry(run))
    name, text = engine()
    assert name == "Completed", text
    for month in months:
        trips = ours.in_postgres(month) if file == "ingest_data" else ours.in_lake(month)
        assert same(trips, as_published(ours.site.file(f"{month.stem}.parquet"), month)), month
