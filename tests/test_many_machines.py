"""A back-fill spreads its months over an agent or over processes, as its user starts it."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from google.cloud import storage
from rich.console import Console

from flows.connectors.request import ATTEMPTS
from flows.tlc.trips import TripMonth
from local import demo
from local.servers.stack import Stack
from tests.stores import connected

pytestmark = pytest.mark.operations

ROOT = Path(__file__).resolve().parents[1]


def loads(server: Stack, months: list[TripMonth]) -> list[Any]:
    """Return every load of these months: from Postgres' history, and the rows of the lake's objects."""
    with connected(server.env["POSTGRES_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT color, file_month, loaded FROM loads_history WHERE color = %s AND file_month = ANY(%s) ORDER BY 1, 2",
            (months[0].color, [month.file_month for month in months]),
        )
        found: list[Any] = cursor.fetchall()
    for month in months:
        blob = storage.Client().bucket(server.env["LAKE_BUCKET"]).get_blob(f"data/{month.key}")
        assert blob
        found.append((blob.generation, pq.read_metadata(io.BytesIO(blob.download_as_bytes())).num_rows))
    return found


def backfill(server: Stack, months: list[TripMonth], spread: str, *into: str) -> str:
    """Run a back-fill of these months as a program, with one month in each batch. Return its log."""
    since, until = (f"{month.file_month:%Y-%m}" for month in (months[0], months[-1]))
    done = subprocess.run(
        [
            *(sys.executable, "flows/backfill.py", "--since", since, "--until", until),
            *("--colors", months[0].color, "--into", *into, "--spread", spread, "--machines", "1", "--batch", "1"),
        ],
        cwd=ROOT,
        env=server.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(("spread", "year"), [("queue", 2017), ("dask", 2018)])
def test_batches_load_each_month_once(spread: str, year: int, orchestrator: Stack) -> None:
    months = [TripMonth("green", year, n) for n in (1, 2)]
    demo.prepare(orchestrator.environment(), Console(quiet=True), "agent")
    assert "2 months checked, 2 to load" in backfill(orchestrator, months, spread, "lake", "database")
    found = loads(orchestrator, months)
    assert [each[:2] for each in found[:2]] == [(month.color, month.file_month) for month in months]
    assert len(found) == 4
    assert all(rows for *_, rows in found)
    assert "2 months checked, 0 to load" in backfill(orchestrator, months, spread, "lake", "database")
    assert loads(orchestrator, months) == found


@pytest.mark.parametrize(("spread", "year"), [("here", 2016), ("queue", 2017), ("dask", 2018)])
def test_a_failed_step_is_retried_in_every_spread(spread: str, year: int, orchestrator: Stack) -> None:
    """The source answers 503 to every GET of the first attempt. The second attempt gets the file."""
    month = TripMonth("green", year, 3)
    demo.prepare(orchestrator.environment(), Console(quiet=True), "agent")
    fault = {"path": f"*{month.stem}*", "methods": ["GET"], "times": ATTEMPTS, "status": 503, "retry_after": 0}
    with httpx.Client(base_url=orchestrator.address("web"), timeout=60, trust_env=False) as web:
        web.post("/faults", json=fault).raise_for_status()
        try:
            log = backfill(orchestrator, [month], spread, "lake")
        finally:
            web.delete("/faults").raise_for_status()
        answers = [entry["status"] for entry in web.get("/requests").json() if is_get_of(month, entry)]
    assert "1 months checked, 1 to load" in log
    assert answers == [503] * ATTEMPTS + [200]
    wanted = {"task_runs": {"name": {"any_": [f"extract {month} → the lake"]}}}
    api = orchestrator.env["PREFECT_API_URL"]
    found = httpx.post(f"{api}/task_runs/filter", json=wanted, timeout=60, trust_env=False).raise_for_status().json()
    assert [(run["state_type"], run["run_count"]) for run in found] == [("COMPLETED", 2)]


def is_get_of(month: TripMonth, entry: dict[str, Any]) -> bool:
    return entry["method"] == "GET" and month.stem in entry["path"]
