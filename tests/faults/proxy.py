"""Forward connections and requests between the flows and a peer, and break them by rules.

`Wire` forwards bytes of any protocol, and is for Postgres. `Gate` forwards HTTP requests, and is for the web source, the lake and
BigQuery. No package on PyPI does both in-process; toxiproxy is a Go program.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.loopback import Loopback

_PIECE = 16 << 10


def _reset(connection: socket.socket) -> None:
    """Close a connection with RST instead of FIN."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads from it; else the connection would stay open
    with suppress(OSError):
        connection.close()


@dataclass
class Cut:
    """What happens to a connection of a `Wire`."""

    how: Literal["reset", "close", "stall", "throttle", "refuse"]
    after: int = 0
    """Bytes that pass before it happens."""
    direction: Literal["up", "down"] = "up"
    """Which bytes are counted: those to the peer (up) or from it (down)."""
    seconds: float = 0
    """How long a stall lasts, or how long one piece takes when throttled."""
    times: int = 1
    """How many connections it happens to."""


class Wire:
    """Passes connections on to a peer, byte for byte, unless a `Cut` applies."""

    def __init__(self, host: str, port: int) -> None:
        self.peer = (host, port)
        self.cuts: list[Cut] = []
        self.happened: list[Cut] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._is_closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            _reset(connection)

    def _accept(self) -> None:
        while not self._is_closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                cut = next((one for one in self.cuts if one.times > 0), None)
            if cut and cut.how == "refuse":
                self._happens(cut)
                _reset(near)
                continue
            try:
                far = socket.create_connection(self.peer, timeout=10)
                far.settimeout(None)
            except OSError:
                _reset(near)
                continue
            self._open |= {near, far}
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, direction, cut), daemon=True).start()

    def _happens(self, cut: Cut) -> bool:
        with self._lock:
            if cut.times <= 0:
                return False
            cut.times -= 1
            self.happened.append(cut)
        return True

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str, cut: Cut | None) -> None:
        passed, mine = 0, cut if cut and cut.direction == direction else None
        with suppress(OSError):
            while data := source.recv(_PIECE):
                if mine and passed + len(data) > mine.after and (mine.how == "throttle" or self._happens(mine)):
                    sink.sendall(data[: max(0, mine.after - passed)])
                    if mine.how in ("reset", "close"):
                        for connection in (source, sink):
                            if mine.how == "reset":
                                _reset(connection)
                            else:
                                connection.shutdown(socket.SHUT_RDWR)
                        return
                    if mine.how == "throttle" and mine not in self.happened:
                        self._happens(mine)
                    time.sleep(mine.seconds)
                    sink.sendall(data[max(0, mine.after - passed) :])
                    mine = mine if mine.how == "throttle" else None
                else:
                    sink.sendall(data)
                passed += len(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


Fate = Literal[
    "status",
    "reset",
    "lost answer",
    "broken answer",
    "broken request",
    "short",
    "stall",
    "throttle",
    "html",
    "redirect",
]


@dataclass
class Rule:
    """What happens to the next `times` requests that match."""

    fate: Fate
    method: str = ".*"
    path: str = ".*"
    """A regular expression for the path and query."""
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    at: int = 0
    """Bytes of the body that pass before it breaks."""
    seconds: float = 0
    times: int = 1
    """The rule applies to this many requests; a large number means all from now on."""
    skip: int = 0
    """How many matching requests pass before the rule applies."""
    then: Callable[[], None] = lambda: None
    """Called when it happens."""

    def fits(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method, method) and re.search(self.path, path))


class Gate(Loopback):
    """Passes HTTP requests on to a peer, unless a `Rule` applies."""

    def __init__(self, behind: str, *rules: Rule) -> None:
        super().__init__(type("Handler", (_Passing,), {"gate": self}))
        self.behind = urlsplit(behind)
        self.rules = list(rules)
        self.happened: list[tuple[Rule, str]] = []
        self._lock = threading.Lock()
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # broken connections are intended

    def take(self, method: str, path: str) -> Rule | None:
        with self._lock:
            for rule in self.rules:
                if rule.times > 0 and rule.fits(method, path):
                    if rule.skip > 0:
                        rule.skip -= 1
                        continue
                    rule.times -= 1
                    self.happened.append((rule, f"{method} {path}"))
                    break
            else:
                return None
        rule.then()
        return rule


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    gate: Gate

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _pass(self) -> None:
        rule = self.gate.take(self.command, self.path)
        if rule and rule.fate == "reset":
            self._hang_up()
            return
        if rule and rule.fate == "broken request":
            self.rfile.read(min(rule.at, int(self.headers.get("Content-Length") or 0)))
            self._hang_up()
            return
        body = self._body()
        if rule and rule.fate in ("status", "html", "redirect"):
            page = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
            kind = {"Content-Type": "text/html"} if rule.fate == "html" else {"Content-Type": "text/plain"}
            status = {"html": 200, "redirect": 302}.get(rule.fate, rule.status)
            self._answer(status, kind | dict(rule.headers), page if rule.fate == "html" else b"as asked for")
            return
        if rule and rule.fate == "stall" and not rule.at:
            time.sleep(rule.seconds)
        status, headers, answer = self._ask(body)
        if rule and rule.fate == "lost answer":
            self._hang_up()
            return
        self._answer(status, headers, answer, rule)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        behind = self.gate.behind
        assert behind.hostname
        peer = http.client.HTTPConnection(behind.hostname, behind.port, timeout=120)
        try:
            left_out = {"host", "transfer-encoding", "content-length", "connection", "accept-encoding"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            headers |= {"Accept-Encoding": "identity", "Connection": "close"}
            peer.request(self.command, self.path, body or None, headers | ({} if body else {"Content-Length": "0"}))
            answer = peer.getresponse()
            kept = {
                name: value.replace(behind.geturl(), self.gate.url)
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection")
            }
            return answer.status, kept, answer.read()
        finally:
            peer.close()

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes, rule: Rule | None = None) -> None:
        self.send_response_only(status)
        given = {name.lower(): value for name, value in headers.items()}
        if self.command != "HEAD" or "content-length" not in given:
            given["content-length"] = str(len(body))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        at = min(rule.at, len(body)) if rule else len(body)
        match rule.fate if rule else "":
            case "broken answer":
                self.wfile.write(body[:at])
                self.wfile.flush()
                self._hang_up()
            case "short":
                self.wfile.write(body[:at])
                self.close_connection = True
            case "stall" if rule and rule.at:
                self.wfile.write(body[:at])
                self.wfile.flush()
                time.sleep(rule.seconds)
                self.wfile.write(body[at:])
            case "throttle" if rule:
                for start in range(0, len(body), _PIECE):
                    self.wfile.write(body[start : start + _PIECE])
                    self.wfile.flush()
                    time.sleep(rule.seconds)
            case _:
                self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        # The server would close it with FIN. The streams keep it open until they are closed.
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for stream in (self.wfile, self.rfile, self.connection):
            with suppress(OSError):
                stream.close()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
