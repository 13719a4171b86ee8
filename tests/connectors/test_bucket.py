"""A bucket that does not answer: the error is retried and does not have the address of the upload, which is a secret."""

import time
import traceback
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
import requests
from google.api_core.exceptions import Forbidden, GoogleAPIError, RetryError, ServiceUnavailable

from flows.connectors.bucket import CHUNK, TIMEOUT, Bucket
from flows.tlc.errors import PassingError, Unreachable
from tests.loopback import Loopback

ASKED = requests.Request("PUT", "https://storage.example:4443/upload?upload_id=canary")
SILENT = requests.ConnectionError("Max retries exceeded with url: /upload?upload_id=canary", request=ASKED)

EXPIRED = RetryError("Timeout of 120s exceeded", SILENT)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "host", "kind"),
    [
        (SILENT, "storage.example:4443", "ConnectionError"),
        (requests.ReadTimeout("/upload?upload_id=canary", request=ASKED), "storage.example:4443", "ReadTimeout"),
        (EXPIRED, "storage.example:4443", "ConnectionError"),
        (requests.ConnectionError("upload_id=canary"), "Google Cloud Storage", "ConnectionError"),
    ],
    ids=["connection", "timeout", "after the client's retries", "without a request"],
)
def test_the_error_names_the_host_and_not_the_address(error: Exception, host: str, kind: str) -> None:
    bucket = Bucket.__new__(Bucket)  # without a client
    bucket.block = SimpleNamespace(bucket="taxi")
    with pytest.raises(Unreachable) as raised, bucket._explained("written"):
        raise error
    assert str(raised.value) == f"bucket 'taxi' could not be written: {host} does not answer ({kind}). Run again."
    assert "canary" not in "".join(traceback.format_exception(raised.value))
    assert isinstance(raised.value, PassingError)


@pytest.mark.parametrize("refused", [True, False])
def test_the_location_is_unknown_if_it_may_not_be_read_but_an_outage_is_an_error(refused: bool) -> None:
    """The text for an unknown location tells people to change rights, which does not help in an outage."""

    def reload(timeout: object) -> None:
        raise cause

    cause: GoogleAPIError = Forbidden("no") if refused else ServiceUnavailable("later")  # type: ignore[no-untyped-call]
    bucket = Bucket.__new__(Bucket)  # without a client
    bucket.block, bucket._bucket = SimpleNamespace(bucket="taxi"), SimpleNamespace(reload=reload)  # type: ignore[assignment]
    if refused:
        assert bucket.location() is None
    else:
        with pytest.raises(ServiceUnavailable):
            bucket.location()


class _Slow(BaseHTTPRequestHandler):
    """A server that receives a body slowly."""

    def do_PUT(self) -> None:
        time.sleep(16)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.usefixtures("own_servers")
def test_a_piece_of_an_upload_may_take_longer_than_a_connection() -> None:
    """urllib3 applies the time to connect to sending the body, too. A piece of 8 MB takes 16 seconds at 4 Mbit/s."""
    with Loopback(_Slow) as server:
        assert requests.put(server.url, bytes(4 * CHUNK), timeout=TIMEOUT).ok
