"""A proxy for fake-gcs-server that enforces every generation precondition, as Google Cloud Storage does.

fake-gcs-server checks `ifGenerationMatch` only for one-request uploads (its pull requests 2260 and 2343 add the others).
`StrictLake` checks it for all writes. A test can also delay a request or answer it with an error.
"""

import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from tests.loopback import Loopback

_REWRITE = re.compile(r"/storage/v1/b/[^/]+/o/.+/(?:rewriteTo|copyTo)/b/(?P<bucket>[^/]+)/o/(?P<name>.+)")
_OBJECT = re.compile(r"/storage/v1/b/(?P<bucket>[^/]+)/o/(?P<name>[^/]+)")

Meddle = Callable[[str, str], int | tuple[int, str] | None]


class StrictLake(Loopback):
    """A proxy at `url` for the lake at `behind`.

    `meddle(method, path)` is called before each request. It may block. If it returns a status, or a status and a message, the
    proxy answers with that and does not forward the request.
    `shown`, if set, maps an object's stored metadata to the metadata that clients see.
    The proxy refuses metadata keys that begin with `x_testbench_`, which only Google's storage testbench may add.
    Other requests pass unchanged, so the proxy also works for BigQuery.
    """

    def __init__(self, behind: str, meddle: Meddle = lambda method, path: None) -> None:
        super().__init__(type("Handler", (_Handler,), {"lake": self}))
        self.behind, self.meddle = behind, meddle
        self.shown: Callable[[dict[str, str]], dict[str, str]] | None = None
        self.refused: list[str] = []
        self.sessions: dict[str, tuple[str, str, str]] = {}
        self.one_at_a_time = threading.Lock()
        self.client = httpx.Client(trust_env=False, timeout=60)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.client.close()

    def judge(self, method: str, path: str, body: bytes) -> int | tuple[int, str] | None:
        """The status, and maybe a message, to answer a request with instead of passing it on."""
        return self.meddle(method, unquote(urlsplit(path).path))

    def generation(self, bucket: str, name: str) -> str:
        answer = self.client.get(f"{self.behind}/storage/v1/b/{bucket}/o/{name.replace('/', '%2F')}")
        return str(answer.json()["generation"]) if answer.is_success else "0"


def _shown(answer: Any, shown: Callable[[dict[str, str]], dict[str, str]]) -> Any:
    """Return the answer with `shown` applied to the metadata of every object in it."""
    if isinstance(answer, list):
        return [_shown(part, shown) for part in answer]
    if not isinstance(answer, dict):
        return answer
    parts = {name: _shown(part, shown) for name, part in answer.items()}
    if answer.get("kind") == "storage#object":
        parts["metadata"] = shown(answer.get("metadata") or {})
    return parts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lake: StrictLake

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        status = self.lake.judge(self.command, self.path, body)
        if status:
            code, message = status if isinstance(status, tuple) else (status, "as asked for")
            self._answer(code, json.dumps({"error": {"code": code, "message": message}}).encode(), {})
            return
        if b'"x_testbench_' in body:
            message = "only the server may write this metadata"
            self._answer(400, json.dumps({"error": {"code": 400, "message": message}}).encode(), {})
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self.lake.one_at_a_time:
            if (expected := self._expected(parts.path, query)) and self.lake.generation(*expected[:2]) != expected[2]:
                self.lake.refused.append(expected[1])
                self._answer(412, json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode(), {})
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
            headers["Accept-Encoding"] = "identity"
            answer = self.lake.client.request(self.command, self.lake.behind + self.path, content=body, headers=headers)
        if query.get("uploadType") == "resumable" and "ifGenerationMatch" in query and answer.is_success:
            upload = parse_qs(urlsplit(answer.headers["Location"]).query)["upload_id"][0]
            name = query.get("name") or json.loads(body)["name"]
            self.lake.sessions[upload] = (parts.path.split("/")[5], name, query["ifGenerationMatch"])
        keep = {"content-type", "location", "range", "content-range", "x-goog-hash", "x-goog-generation", "etag"}
        content = answer.content
        if self.lake.shown and "json" in answer.headers.get("Content-Type", "") and query.get("alt") != "media":
            content = json.dumps(_shown(answer.json(), self.lake.shown)).encode()
        self._answer(answer.status_code, content, {k: v for k, v in answer.headers.items() if k.lower() in keep})

    def _expected(self, path: str, query: dict[str, str]) -> tuple[str, str, str] | None:
        """Return the bucket, the object and the generation that the request requires, or None without a precondition."""
        if "upload_id" in query:
            last = re.fullmatch(r"bytes .*/\d+", self.headers.get("Content-Range", ""))
            return self.lake.sessions.get(query["upload_id"]) if last else None
        replaced = _REWRITE.fullmatch(path) or (
            _OBJECT.fullmatch(path) if self.command in ("DELETE", "PATCH") else None
        )
        if "ifGenerationMatch" in query and replaced:
            return replaced["bucket"], unquote(replaced["name"]), query["ifGenerationMatch"]
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value.replace(self.lake.behind, self.lake.url))
        self.send_header("Content-Length", str(len(body)))
        with suppress(ConnectionError):  # a test may have killed the client
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815
