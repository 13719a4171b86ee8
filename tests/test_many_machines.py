"""A back-fill spreads its months over an agent or over processes, as its user starts it."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from google.cloud import storage
from rich.console import Console

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


@pytest.mark.parametrize(("spread", "year"), [("queue", 2017), ("dask", 2018)])
def test_batches_load_each_month_once(spread: str, year: int, orchestrator: Stack) -> None:
    months = [TripMonth("green", year, n) for n in (1, 2)]
    demo.prepare(orchestrator.environment(), Console(quiet=True), "agent")
    command = [
        sys.executable,
        "flows/backfill.py",
        "--since",
        f"{year}-01",
        "--until",
        f"{year}-02",
        "--colors",
        "green",
    ]
    command += ["--into", "lake", "database", "--spread", spread, "--machines", "1", "--batch", "1"]

    def run() -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=orchestrator.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    assert "2 months checked, 2 to load" in run()
    found = loads(orchestrator, months)
    assert [each[:2] for each in found[:2]] == [(month.color, month.file_month) for month in months]
    assert len(found) == 4
    assert all(rows for *_, rows in found)
    assert "2 months checked, 0 to load" in run()
    assert loads(orchestrator, months) == found
