"""TLS is verified always: a server whose certificate nobody vouches for is not read."""

import ssl
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from flows.connectors import guard, request
from flows.connectors.web import look_up, source_of, zone_file
from flows.tlc.errors import Unreachable
from flows.tlc.trips import TripMonth
from tests.loopback import Loopback

ROOT = Path(__file__).resolve().parents[2]


class _Secure(Loopback):
    """An HTTPS server with a certificate that it signed itself, for the right address."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        super().__init__(Handler)
        self.certificate, key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out",
             str(self.certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_servers: None) -> Iterator[_Secure]:
    monkeypatch.setattr(request.time, "sleep", lambda seconds: None)
    guard._tls.cache_clear()
    with _Secure(tmp_path) as server:
        yield server
    guard._tls.cache_clear()


@pytest.mark.parametrize("variable", ["", "PYTHONHTTPSVERIFY", "CURL_CA_BUNDLE"])
def test_a_certificate_that_nobody_vouches_for_is_refused_whatever_the_environment_says(
    variable: str, secure: _Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, "0" if variable == "PYTHONHTTPSVERIFY" else "")
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        look_up(source_of(f"{secure.url}/{{year}}-{{month:02d}}.csv"), TripMonth("green", 2021, 1))
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        zone_file(f"{secure.url}/zones.csv")
    assert secure.asked == []


def test_no_module_turns_the_verification_off() -> None:
    off = ("verify=False", "CERT_NONE", "_create_unverified_context", "check_hostname = False", "sslmode=disable")
    for folder in ("flows", "blocks", "local", "docker"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            assert not [word for word in off if word in text], path
