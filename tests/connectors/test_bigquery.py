"""BigQuery that does not answer: a request has a time limit, and is sent again."""

import os
from collections.abc import Iterator

import pyarrow as pa
import pytest
from google.cloud import bigquery
from prefect_gcp import GcpCredentials

from flows.connectors.bigquery import BigQuery
from flows.tlc.schema import Column
from local.servers.stack import Stack
from tests.faults.proxy import Gate, Rule

DATASET = "silent_tests"
COLUMNS = (Column("id", "integer", "a number"), Column("name", "text", "a name"))
ROWS = pa.table({"id": [1, 2], "name": ["one", None]})
_FOR_EVER = 10**6  # seconds

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def gate(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Yield a gate in front of BigQuery, which does not have the dataset."""
    client = bigquery.Client()
    with Gate(os.environ["BIGQUERY_EMULATOR_HOST"]) as made:
        monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", made.url)
        yield made
    client.delete_dataset(DATASET, delete_contents=True, not_found_ok=True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", r"/datasets/\w+\?"),
        ("POST", r"/datasets\?"),
        ("POST", r"/tables\?"),
        ("GET", r"/tables/"),
        ("PATCH", r"/tables/"),
        ("DELETE", r"/tables/"),
        ("POST", r"v2/projects/[^/]+/jobs\?(?!upload)"),
        ("POST", r"^/upload/"),
        ("GET", r"/queries/"),
    ],
)
def test_a_request_that_gets_no_answer_is_sent_again(
    method: str, path: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.connectors.bigquery.TIMEOUT", 1.0)
    gate.rules = [Rule("stall", method, path, seconds=_FOR_EVER)]
    store = BigQuery(GcpCredentials(), DATASET)
    store.ensure_dataset(lambda: "US")
    store.ensure_table("trips", COLUMNS)
    store.write_frames("frames", COLUMNS, [ROWS])
    store.replace_table("small", COLUMNS, ROWS, "a small table")
    for table in ("frames", "small"):
        assert store.query(f"SELECT * FROM {store.sql_name(table)} ORDER BY id") == ROWS.to_pylist()
    store.drop("frames")
    assert gate.happened
