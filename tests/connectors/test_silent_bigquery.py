"""BigQuery that does not answer: a request has a time limit, and no error has the address of an upload, which is a secret."""

import os
import traceback
from collections.abc import Iterator

import pyarrow as pa
import pytest
import requests
from google.api_core.exceptions import BadRequest, GoogleAPIError, RetryError, ServiceUnavailable
from google.auth.exceptions import TransportError
from google.cloud import bigquery
from prefect_gcp import GcpCredentials

from flows.connectors.bigquery import BigQuery
from flows.tlc.errors import MisconfiguredBlock, PassingError, Unreachable
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


ASKED = requests.Request("PUT", "https://bigquery.example:443/upload/bigquery/v2/projects/p/jobs?upload_id=canary")
SILENT = requests.ConnectionError("Max retries exceeded with url: /upload?upload_id=canary", request=ASKED)
EXPIRED = RetryError("Timeout of 600s exceeded", SILENT)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SILENT, "bigquery.example:443 does not answer (ConnectionError)"),
        (EXPIRED, "bigquery.example:443 does not answer (ConnectionError)"),
        (RetryError("of a job", EXPIRED), "bigquery.example:443 does not answer (ConnectionError)"),  # type: ignore[no-untyped-call]
        (requests.ReadTimeout("upload_id=canary"), "BigQuery does not answer (ReadTimeout)"),
        (TimeoutError("Operation did not complete"), "BigQuery does not answer (TimeoutError)"),
    ],
    ids=["connection", "after retries", "after a job's retries", "without a request", "a job's state"],
)
def test_the_error_for_no_answer_names_the_host_and_not_the_address(error: Exception, reason: str) -> None:
    store = BigQuery.__new__(BigQuery)  # without a client
    store.dataset = bigquery.DatasetReference("taxi", "trips")
    with pytest.raises(Unreachable) as raised, store._explained():
        raise error
    assert str(raised.value) == f"BigQuery dataset taxi.trips could not be used: {reason}. Run again."
    assert "canary" not in "".join(traceback.format_exception(raised.value))
    assert isinstance(raised.value, PassingError)


@pytest.mark.parametrize("cause", [ServiceUnavailable("the quota is used up"), TransportError("no token")])  # type: ignore[no-untyped-call]
def test_an_answer_with_an_error_keeps_its_text_after_the_clients_retries(cause: Exception) -> None:
    store = BigQuery.__new__(BigQuery)  # without a client
    error = RetryError("Timeout of 600s exceeded", cause)  # type: ignore[no-untyped-call]
    with pytest.raises(RetryError) as raised, store._explained():
        raise error
    assert str(cause) in str(raised.value)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequest), (403, MisconfiguredBlock), (503, GoogleAPIError), (0, Unreachable)]
)
def test_a_failed_upload_of_a_frame_does_not_reveal_its_address(
    status: int, kind: type[Exception], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small frames are sent in one request. Large ones get an address first."""
    monkeypatch.setattr("google.cloud.bigquery.client._MAX_MULTIPART_SIZE", 0)
    monkeypatch.setattr("google.resumable_media.requests._request_helpers.time.sleep", lambda seconds: None)
    store = BigQuery(GcpCredentials(), DATASET)
    store.ensure_dataset(lambda: "US")
    gate.rules = [Rule("status" if status else "reset", "PUT", "upload_id=", status=status, times=_FOR_EVER)]
    with pytest.raises(kind) as raised:
        store.write_frames("frames", COLUMNS, [ROWS])
    assert gate.happened
    assert "upload_id=" not in "".join(traceback.format_exception(raised.value))


def test_a_small_table_is_sent_in_one_request_without_an_address(gate: Gate) -> None:
    store = BigQuery(GcpCredentials(), DATASET)
    store.ensure_dataset(lambda: "US")
    gate.rules = [Rule("status", path="uploadType=resumable", status=400, times=_FOR_EVER)]
    store.replace_table("small", COLUMNS, ROWS, "a small table")
    assert not gate.happened
