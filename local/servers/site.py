"""A loopback web site that publishes trip files as TLC's CDN and the CSV mirror do, and simulates network failures.

    /trip-data/{color}_tripdata_{YYYY}-{MM}.parquet     official: 403 with S3's XML for an unpublished month
    /mirror/{color}/{color}_tripdata_….csv[.gz]         2019-01 to 2021-07: 302 to the file, otherwise 404
    /legacy/{color}_tripdata_….csv[.gz]                 every CSV era, first month to 2021-07, no redirect
    /misc/taxi_zone_lookup.csv, /healthz, POST /token   zone table, readiness, an OAuth token for any client
    /faults (POST, DELETE), /republish (POST), /requests (GET, DELETE)   control by tests in another process

A month is generated at its first request (`local.trip_files.writing`), unless `files` has a file of the same name.
"""

from __future__ import annotations

import argparse
import datetime as dt
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import socketserver
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast
from urllib.parse import urlsplit

from local.trip_files.damages import Damage, with_damage
from local.trip_files.layouts import COLORS, FIRST_FILE, Color
from local.trip_files.writing import write_month, write_zones

LAST_CSV_MONTH = "2021-07"
_MIRROR_FIRST_MONTH = "2019-01"
_TRIP_FILE = re.compile(
    rf"(?P<color>{'|'.join(COLORS)})_tripdata_(?P<month>\d{{4}}-(0[1-9]|1[0-2]))\.(?P<ending>parquet|csv|csv\.gz)"
)
_ZONES = "taxi_zone_lookup.csv"
_CHUNK = 1 << 20

Feature = Literal["etag", "last_modified", "head", "length", "ranges"]


@dataclass(frozen=True)
class Fault:
    """A failure of the next `times` requests (None: all) whose path matches a shell pattern."""

    path: str
    times: int | None = 1
    methods: tuple[str, ...] = ("GET", "HEAD")
    status: int | None = None
    """Answer with this status and no file. `retry_after` adds that header: seconds or an HTTP date."""
    retry_after: int | str | None = None
    cut_after: int | None = None
    """Close the connection after this many bytes of the body."""
    stall: float = 0
    """Seconds of silence before the answer, or in the body at byte `stall_at`."""
    stall_at: int | None = None
    missing: tuple[Feature, ...] = ()
    """Features that the server lacks: etag, last_modified, head (405), length (chunked instead), ranges."""
    body: Damage | None = None
    """Answer 200 with another body: an HTML page, a Git LFS pointer, the file's first half, or a damaged file."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that replace the file's own, such as another ETag. A header with the value "" is left out."""
    encoding: str | None = None
    """Send this Content-Encoding header. The body is encoded only for gzip."""
    drip: float = 0
    """Seconds between two bytes of the answer's headers, which never end."""
    endless: bool = False
    """Repeat the file without a length until the client disconnects."""


@dataclass
class Request:
    """One entry of the site's log. `sent` counts the bytes of the body, without headers."""

    method: str
    path: str
    range: str | None = None
    status: int = 0
    sent: int = 0


@dataclass
class _Traffic:
    """The logged requests and the pending faults, shared by the server's threads."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    busy: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def logged(self, request: Request) -> Iterator[None]:
        with self.changed:
            self.requests.append(request)
            self.busy += 1
        try:
            yield
        finally:
            with self.changed:
                self.busy -= 1
                self.changed.notify_all()

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.changed:
            for at, fault in enumerate(self.faults):
                # A redirect has no body, so faults of the body apply to the request after it.
                fits = fault.status is not None or not path.startswith("/mirror/")
                if fits and method in fault.methods and fnmatch.fnmatch(path, fault.path):
                    if fault.times is not None:
                        left = [] if fault.times == 1 else [Fault(**{**asdict(fault), "times": fault.times - 1})]
                        self.faults[at : at + 1] = left
                    return fault
        return None


class Site:
    """The site, served from a thread during the context. Its files stay in `state` for the next one."""

    def __init__(
        self,
        state: Path,
        *,
        rows: int = 20_000,
        files: Path | None = None,
        port: int = 0,
        last_month: str = "2025-12",
        seed: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.rows, self.files, self.last_month, self.seed = rows, files, last_month, seed
        self._put = state / "put"
        self._made = state / f"made-{rows}-{seed}"
        self._put.mkdir(parents=True, exist_ok=True)
        self._made.mkdir(parents=True, exist_ok=True)
        self.traffic = _Traffic()
        self.stopping = threading.Event()
        self._etags: dict[tuple[Path, int, int], str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._server = _Server((host, port), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="site", daemon=True)

    @property
    def url(self) -> str:
        """The address without a path, such as http://127.0.0.1:8080."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        """All requests so far. Waits up to five seconds until active requests end."""
        with self.traffic.changed:
            self.traffic.changed.wait_for(lambda: not self.traffic.busy, timeout=5)
            return list(self.traffic.requests)

    def forget_requests(self) -> None:
        """Empty the log."""
        with self.traffic.changed:
            self.traffic.changed.wait_for(lambda: not self.traffic.busy, timeout=5)
            self.traffic.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.hang_up()
        self.stopping.set()
        self._server.server_close()
        self._thread.join()

    def fault(self, path: str, **what: Any) -> None:
        """Add a fault with the fields of `Fault`. Faults on one path happen in the order in which they were added."""
        for name in ("methods", "missing"):
            if name in what:
                what[name] = tuple(what[name])
        with self.traffic.changed:
            self.traffic.faults.append(Fault(path, **what))

    def heal(self) -> None:
        """Remove all faults."""
        with self.traffic.changed:
            self.traffic.faults.clear()

    def put(self, name: str, content: bytes | Path) -> None:
        """Publish exactly this file under a name, and replace any other file atomically."""
        part = self._put / f".{secrets.token_hex(4)}-{name}"
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            shutil.copyfile(content, part)
        part.replace(self._put / name)

    def republish(self, name: str, edition: int = 2) -> None:
        """Replace a generated month with another edition. Raise `ValueError` if `files` or `put` provides the month."""
        path = self._made / name
        if not _TRIP_FILE.fullmatch(name) or self.find(name) not in (None, path):
            raise ValueError(f"{name} is not a month that this site generated: put() another file there instead")
        with self._locked(name):
            self._make(path, edition)

    def rows_of(self, color: str, year: int, month: int) -> int:
        """Return the row count of a month's first edition: `rows` plus or minus up to a tenth."""
        spread = zlib.crc32(f"{color} {year}-{month:02d}".encode()) / 2**32
        return max(1, round(self.rows * (0.9 + 0.2 * spread)))

    def find(self, name: str) -> Path | None:
        """Return the file with this name: from `put`, from `files`, or generated earlier; otherwise None."""
        places = (self._put, self.files, self._made)
        return next((place / name for place in places if place and (place / name).is_file()), None)

    def file(self, name: str) -> Path:
        """Return the file with this name. Generate it if there is none."""
        found = self.find(name)
        if found:
            return found
        path = self._made / name
        with self._locked(name):
            if not path.exists():
                self._make(path, 1)
        return path

    def spoiled(self, path: Path, damage: Damage) -> Path:
        """Return a damaged copy of a file, under the same name."""
        name = cast(re.Match[str], _TRIP_FILE.fullmatch(path.name))
        copy = self._made / damage / path.name
        copy.parent.mkdir(exist_ok=True)
        part = copy.with_name(f".{secrets.token_hex(4)}-{path.name}")
        part.write_bytes(with_damage(path.read_bytes(), f".{name['ending']}", damage))
        os.utime(part, (path.stat().st_mtime,) * 2)
        part.replace(copy)
        return copy

    def etag(self, path: Path) -> str:
        """Return a strong ETag as S3 makes it: the quoted MD5 of the bytes."""
        about = path.stat()
        key = (path, about.st_mtime_ns, about.st_size)
        if key not in self._etags:
            with path.open("rb") as file:
                self._etags[key] = (
                    f'"{hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()}"'
                )
        return self._etags[key]

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield

    def _make(self, path: Path, edition: int) -> None:
        part = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
        published = 1_656_633_600.0  # 2022-07-01, when TLC already published Parquet
        try:
            if path.name == _ZONES:
                write_zones(part)
            else:
                color, year, month = _month_of(path.name)
                rows = self.rows_of(color, year, month)
                write_month(part, color, year, month, rows=rows, seed=self.seed, edition=edition)
                # Two months late, as at TLC, and one day later for each edition. No date depends on today's date.
                published = ((year - 1970) * 12 + month + 2) * 2_629_746.0 + (edition - 1) * 86400
            os.utime(part, (published, published))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


class _Server(ThreadingHTTPServer):
    # Closing first ends the connections and then waits for their threads, so nothing runs after the site.
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        self.site = site
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not the method of HTTPServer, which looks up the host's name in DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The client or the site closed the connection: no answer can be sent.
        with suppress(ConnectionError):
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close every connection that a client keeps open."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    _server = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Do nothing: requests are logged in `Site.requests`, not on the terminal."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._steer()

    def do_DELETE(self) -> None:
        self._steer()

    def version_string(self) -> str:
        """Return the value of the header Server."""
        return self._server or super().version_string()

    @property
    def site(self) -> Site:
        return self.server.site

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.entry = Request(self.command, path, self.headers.get("Range"))
        if path == "/requests":
            self._json([asdict(request) for request in self.site.requests])
            return
        with self.site.traffic.logged(self.entry):
            fault = self.site.traffic.take_fault(self.command, path) or Fault(path)
            if fault.stall and fault.stall_at is None:
                self.site.stopping.wait(fault.stall)
            if fault.drip:
                self._drip(fault.drip)
            elif fault.status is not None:
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                self._text(fault.status, f"{fault.status} as asked for\n", headers=headers | fault.headers)
            elif "head" in fault.missing and self.command == "HEAD":
                self._text(405, "", headers={"Allow": "GET"})
            elif fault.body in ("html", "lfs_pointer"):
                kind = "text/html" if fault.body == "html" else "text/plain"
                self._text(200, with_damage(b"", "", fault.body).decode(), kind)
            else:
                self._route(path, fault)

    def _drip(self, pause: float) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with suppress(OSError):  # the client disconnected
            while not self.site.stopping.wait(pause):
                self.wfile.write(b"x")

    def _route(self, path: str, fault: Fault) -> None:
        area, _, name = path[1:].partition("/")
        name = name.rpartition("/")[2]
        if path == "/healthz":
            self._text(200, "ok\n")
        elif path == f"/misc/{_ZONES}":
            self._file(name, fault)
        elif area == "trip-data":
            if self._published(name, "parquet"):
                self._file(name, fault)
            else:
                self._text(403, _ACCESS_DENIED.format(secrets.token_hex(8).upper()), "application/xml")
        elif area == "mirror" and self._published(name, "csv", _MIRROR_FIRST_MONTH):
            self._text(302, "", headers={"Location": f"/release-assets/{name}?signature={secrets.token_hex(8)}"})
        elif area in ("release-assets", "legacy") and self._published(name, "csv"):
            self._file(name, fault)
        else:
            self._text(404, "Not Found")

    def _published(self, name: str, file_format: str, first: str = "") -> bool:
        if self.site.find(name):
            return True
        match = _TRIP_FILE.fullmatch(name)
        if not match or match["ending"].startswith("csv") != (file_format == "csv"):
            return False
        last = LAST_CSV_MONTH if file_format == "csv" else self.site.last_month
        return max(first, FIRST_FILE.get((match["color"], file_format), "never")) <= match["month"] <= last

    def _file(self, name: str, fault: Fault) -> None:
        path = self.site.file(name)
        if fault.body and fault.body != "truncated":
            path = self.site.spoiled(path, fault.body)
        with path.open("rb") as plain:
            about = os.fstat(plain.fileno())
            file: BinaryIO = plain
            size = about.st_size // 2 if fault.body == "truncated" else about.st_size
            if fault.encoding == "gzip":
                packed = gzip.compress(plain.read(size), 1, mtime=0)
                file, size = io.BytesIO(packed), len(packed)
            headers = {"Content-Type": "binary/octet-stream", "Accept-Ranges": "bytes"}
            headers["ETag"] = self.site.etag(path)
            headers["Last-Modified"] = formatdate(about.st_mtime, usegmt=True)
            for word, header in _HEADER_OF.items():
                if word in fault.missing:
                    del headers[header]
            if fault.encoding:
                headers["Content-Encoding"] = fault.encoding
            headers = {name: value for name, value in (headers | fault.headers).items() if value}
            if self._unmodified(headers):
                self._head(304, {name: value for name, value in headers.items() if name != "Content-Type"})
                return
            span = None if "ranges" in fault.missing else self._range(size, headers)
            if span == "unsatisfiable":
                self._text(416, "", headers={"Content-Range": f"bytes */{size}"})
                return
            start, stop = span or (0, size)
            if span:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            chunked = fault.endless or "length" in fault.missing
            length = fault.headers.get("Content-Length") or str(stop - start)
            headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": length}
            self._head(206 if span else 200, headers)
            if self.command == "GET":
                self._body(file, start, stop, fault, chunked=chunked)

    def _body(self, file: BinaryIO, start: int, stop: int, fault: Fault, *, chunked: bool) -> None:
        cut = stop if fault.cut_after is None else min(stop, start + fault.cut_after)
        if fault.stall_at is not None:
            pause = min(cut, start + fault.stall_at)
            self._send(file, start, pause, chunked=chunked)
            self.site.stopping.wait(fault.stall)
            start = pause
        self._send(file, start, cut, chunked=chunked)
        while fault.endless and not self.site.stopping.is_set():
            self._send(file, 0, cut, chunked=chunked)
        if fault.cut_after is not None:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, file: BinaryIO, start: int, stop: int, *, chunked: bool) -> None:
        step = _CHUNK if chunked else max(1, stop - start)
        for at in range(start, stop, step):
            count = min(step, stop - at)
            if chunked:
                self.wfile.write(f"{count:x}\r\n".encode())
            file.seek(at)
            try:
                if isinstance(file, io.BytesIO):
                    self.wfile.write(file.read(count))
                else:
                    self.connection.sendfile(file, at, count)
            finally:
                # Even if the client disconnects, socket.sendfile leaves the file's position after the last byte sent.
                self.entry.sent += file.tell() - at
            if chunked:
                self.wfile.write(b"\r\n")

    def _unmodified(self, headers: dict[str, str]) -> bool:
        header = self.headers.get("If-None-Match")
        if header is not None:
            tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
            return "ETag" in headers and ("*" in tags or headers["ETag"] in tags)
        return self._not_after(self.headers.get("If-Modified-Since"), headers)

    def _range(self, size: int, headers: dict[str, str]) -> tuple[int, int] | Literal["unsatisfiable"] | None:
        """Return start and stop of the requested range, or None for the whole file or a range of another form."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or match[0] == "bytes=-":
            return None
        version = self.headers.get("If-Range")
        if version and version != headers.get("ETag") and not self._not_after(version, headers):
            return None
        first, last = match.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1) if first and last else size
        return (start, stop) if start < stop else "unsatisfiable"

    @staticmethod
    def _not_after(date: str | None, headers: dict[str, str]) -> bool:
        if date is None or "Last-Modified" not in headers:
            return False
        try:
            return parsedate_to_datetime(headers["Last-Modified"]) <= parsedate_to_datetime(date)
        except (TypeError, ValueError):
            return False

    def _steer(self) -> None:
        self.entry = Request(self.command, urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if (self.command, self.entry.path) == ("POST", "/token"):
            self._json({"access_token": "local", "token_type": "Bearer", "expires_in": 3600})
            return
        actions: dict[tuple[str, str], Callable[..., object]] = {
            ("POST", "/faults"): self.site.fault,
            ("DELETE", "/faults"): self.site.heal,
            ("POST", "/republish"): self.site.republish,
            ("DELETE", "/requests"): self.site.forget_requests,
        }
        action = actions.get((self.command, self.entry.path))
        if not action:
            self._text(404, "Not Found")
            return
        try:
            self._json(action(**json.loads(body or b"{}")))
        except (TypeError, ValueError) as wrong:
            self._text(400, f"{wrong}\n")

    def _json(self, content: object) -> None:
        self._text(200, json.dumps(content), "application/json")

    def _text(self, status: int, text: str, kind: str = "text/plain", headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.entry.sent += len(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.entry.status = status
        self._server = headers.pop("Server", "")
        reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        self.send_response(status, reason)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


_HEADER_OF: dict[Feature, str] = {"etag": "ETag", "last_modified": "Last-Modified", "ranges": "Accept-Ranges"}
_ACCESS_DENIED = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message>'
    "<RequestId>{}</RequestId></Error>"
)


def _month_of(name: str) -> tuple[Color, int, int]:
    match = _TRIP_FILE.fullmatch(name)
    if not match:
        raise ValueError(f"{name} is not the name of a trip file")
    year, month = match["month"].split("-")
    return cast(Color, match["color"]), int(year), int(month)


def two_months_ago() -> str:
    """Return the newest month that TLC has published, such as 2021-01: it publishes about two months late."""
    today = dt.datetime.now(dt.UTC).date()
    year, month = divmod(today.year * 12 + today.month - 3, 12)
    return f"{year}-{month + 1:02d}"


def main() -> int:
    """Serve until SIGTERM or Ctrl-C. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m local.servers.site", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another one only inside a container")
    parser.add_argument("--port", type=int, required=True, help="port of that address")
    parser.add_argument("--state", type=Path, required=True, help="folder for the generated files")
    parser.add_argument("--rows", type=int, default=20_000, help="approximate number of rows of a month")
    parser.add_argument("--files", type=Path, help="folder of real files, which are served instead of generated ones")
    parser.add_argument(
        "--last-month",
        default=two_months_ago(),
        help="the newest published month; by default two months ago, as at TLC",
    )
    asked = parser.parse_args()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    try:
        site = Site(
            asked.state,
            rows=asked.rows,
            files=asked.files,
            port=asked.port,
            last_month=asked.last_month,
            host=asked.host,
        )
    except OSError as wrong:
        print(f"cannot serve on {asked.host}:{asked.port}: {wrong.strerror}", file=sys.stderr)
        return 1
    with site:
        print(f"trip files at {site.url}", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
