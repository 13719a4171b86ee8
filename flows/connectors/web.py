"""The web: look up what a source publishes, and download it despite network failures."""

import hashlib
import itertools
import os
import re
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx

from flows.connectors.digests import Check
from flows.connectors.encodings import decoded, encodings
from flows.connectors.files import opened
from flows.connectors.guard import Client, require_allowed
from flows.connectors.request import (
    ATTEMPTS,
    PASSING,
    Ask,
    answered,
    described_file,
    require_credible,
    require_file,
    timely,
    version,
)
from flows.connectors.transfer import Transfer
from flows.tlc import zones
from flows.tlc.addresses import BadAddress, lost_query, parsed, shown
from flows.tlc.errors import AskAgainLater, BadSource, NotPublished, Unreachable, UnreadableFile
from flows.tlc.manifest import Verified
from flows.tlc.pipeline import Add
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.reading_csv import require_header
from flows.tlc.sources import TEMPLATES, Ending, PublishedFile, Source
from flows.tlc.trips import TripMonth

PIECE = 1 << 20  # bytes yielded at once
_ASKING = 4  # parallel look-ups: hundreds at once would look like an attack
_IN_A_ROW = 16  # failed look-ups; each takes up to a quarter of a minute
_HEAD_WITHIN = 20.0  # seconds until an answer to a HEAD is complete; some servers never answer a HEAD
_NO_RANGES = {400, 416, 501}  # status codes of servers that refuse a Range but answer without one
_HUNG = (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError)
_HEAD: Ask = ("HEAD", {})
_GET: Ask = ("GET", {})
_FIRST_BYTE: Ask = ("GET", {"Range": "bytes=0-0"})


def source_of(word_or_template: str) -> Source:
    """Return the source for a flow's parameter `source`: a word or a URL template. The environment may override a word's address.

    Raise `SourceNotAllowed` for a local file or a private address that this process may not read.
    """
    template = TEMPLATES.get(word_or_template)
    source = Source(_address(word_or_template, template) if template else word_or_template)
    require_allowed(source.template)
    return source


def _address(word: str, default: str) -> str:
    return os.environ.get(f"TLC_{word.upper()}_URL") or default


def _is_file(url: str) -> bool:
    return parsed(url).scheme == "file"


def look_up(source: Source, trip_month: TripMonth) -> PublishedFile:
    """Return the file that a source publishes for a month. Raise `NotPublished` if there is none."""
    return published_at(trip_month, source.url(trip_month), source.ending)


def published_at(trip_month: TripMonth, url: str, ending: Ending) -> PublishedFile:
    """Return the file that is published for a month at an address. Raise `NotPublished` if there is none.

    For most servers one HEAD is enough. For others the first byte is requested. The ETag of a `file://` address is the file's
    SHA-256.
    """
    if _is_file(url):
        with opened(trip_month, url) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            etag, size = f"sha256:{digest}", os.fstat(file.fileno()).st_size
        return PublishedFile(trip_month=trip_month, url=url, ending=ending, etag=etag, last_modified=None, size=size)
    _require_query(url)
    require_allowed(url)
    with Client() as client:
        answer = _headers(client, url)
    require_file(trip_month, url, answer)
    published = described_file(trip_month, url, ending, answer)
    require_credible(published, published.size or 0)
    return published


def _require_query(url: str) -> None:
    if lost_query(url):
        raise BadSource(
            f"{shown(url)} cannot be fetched again: queries of addresses are not stored, because they may have a signature."
            " Load the month with its whole address: --source. Nothing was loaded."
        )


def _headers(client: Client, url: str) -> httpx.Response:
    """Return an answer whose headers describe the file itself.

    Some servers refuse a HEAD (signed links), never answer it, or describe something else in the answer. For these, a GET
    requests one byte. If the server does not support ranges, the GET has no Range and the body is not read. The last
    attempt of the first request is a GET too.
    """
    asks = [_HEAD] * (ATTEMPTS - 1) + [_FIRST_BYTE]
    try:
        with answered(client, url, asks, _HEAD_WITHIN, raised=_HUNG) as answer:
            if _describes_a_file(answer) or answer.status_code in PASSING:
                return answer
    except _HUNG:
        pass
    else:
        if answer.request.method == "GET":
            return answer
    with answered(client, url, [_FIRST_BYTE] * ATTEMPTS) as answer:
        if answer.status_code not in _NO_RANGES:
            return answer
    with answered(client, url, [_GET] * ATTEMPTS) as answer:
        return answer


def _describes_a_file(head: httpx.Response) -> bool:
    """Return whether the answer to a HEAD is useful: it describes a file, with a size and an ETag."""
    about = head.headers
    sized = re.fullmatch("0*[1-9][0-9]*", about.get("Content-Length", ""))
    plain = not encodings(about.get("Content-Encoding")) and "html" not in about.get("Content-Type", "")
    return head.status_code == 200 and bool(sized) and "ETag" in about and plain


def look_up_all(source: Source, trip_months: Iterable[TripMonth]) -> dict[TripMonth, PublishedFile | Exception]:
    """Return what `look_up` returns or raises for each month, with `_ASKING` look-ups in parallel.

    If a source is down, or asks to wait, make no further look-up. It is down after some failures in a row: `_ASKING` before its
    first answer, `_IN_A_ROW` afterwards. The error of each remaining month says so.
    """
    lock = threading.Lock()
    down: Exception | None = None
    failures, most = 0, _ASKING

    def ask(trip_month: TripMonth) -> PublishedFile | Exception:
        nonlocal down, failures, most
        if down:
            return type(down)(f"{trip_month} was not looked up: {down}")
        answer: PublishedFile | Exception
        try:
            answer = look_up(source, trip_month)
        except Exception as error:
            answer = error
        with lock:
            if isinstance(answer, Unreachable):
                failures += 1
            elif isinstance(answer, PublishedFile | NotPublished):
                failures, most = 0, _IN_A_ROW
            if isinstance(answer, AskAgainLater) or (isinstance(answer, Unreachable) and failures >= most):
                down = down or answer
        return answer

    with ThreadPoolExecutor(_ASKING, thread_name_prefix="look-up") as pool:
        months = list(trip_months)
        return dict(zip(months, pool.map(ask, months), strict=True))


class Download:
    """The download of a published file. Iterate over it once for its checked bytes. Then `verified` is the kind of check.

    Raises:
        UnreadableFile: The bytes are not a complete file of its kind.
        AskAgainLater: The file was changed during the download.
        Unreachable: The connection fails, or the bytes do not match the server's digest.
    """

    verified: Verified = ""

    def __init__(self, published: PublishedFile, add: Add = lambda size, share: None) -> None:
        self._published, self._add = published, add

    def __iter__(self) -> Iterator[bytes]:
        published, name = self._published, shown(self._published.url)
        local = _is_file(published.url)
        _require_query(published.url)
        require_allowed(published.url)
        size, tail = 0, b""
        with closing(self._from_disk() if local else self._from_web(name)) as parts:
            for piece in _in_pieces(parts):
                if not size:
                    recognise(published.trip_month, published.ending, piece, name)
                    require_header(published.trip_month, published.ending, piece, name)
                size += len(piece)
                tail = (tail + piece)[-8:]
                self._add(len(piece), size / published.size if published.size else 0)
                yield piece
        if not size:
            recognise(published.trip_month, published.ending, b"", name)
        recognise_end(published.trip_month, published.ending, tail, name)

    def _from_web(self, name: str) -> Generator[bytes, None, None]:
        published, transfer = self._published, Transfer(self._published)
        with closing(transfer.pieces()) as sent:
            first = next(sent, b"")
            expected = 0 if encodings(transfer.encoding) else transfer.size or 0
            size = 0
            whole = itertools.chain([first], sent)
            for piece in decoded(published.trip_month, name, published.ending, transfer.encoding, whole):
                size += len(piece)
                require_credible(published, size)
                if expected and size > expected:
                    break
                yield piece
        if expected and size != expected:
            received = "more" if size > expected else str(size)
            raise UnreadableFile(
                f"{published.trip_month}: {name} should have {expected} bytes by its headers, but {received} came."
                " Nothing was loaded; run again."
            )
        self.verified = transfer.verified

    def _from_disk(self) -> Generator[bytes, None, None]:
        published, digest = self._published, hashlib.sha256()
        with opened(published.trip_month, published.url) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                yield piece
        if published.etag != f"sha256:{digest.hexdigest()}":
            raise AskAgainLater(f"{shown(published.url)} was changed while it was being read; run again.")


def _in_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes in pieces of at least `PIECE` bytes."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        if len(buffer) >= PIECE:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def zone_file(source: str) -> zones.ZoneFile:
    """Return the taxi zone look-up file at a URL, or the `official` one. TLC_ZONES_URL overrides the official address."""
    url = _address("zones", zones.OFFICIAL) if source == "official" else source
    name = shown(url)
    try:
        local = _is_file(url)
    except BadAddress as error:
        raise UnreadableFile(
            f"zones: the source is neither official nor an http(s):// or file:// URL: {error}."
        ) from None
    require_allowed(url)
    if local:
        with opened("the zone look-up", url) as file:
            content = _small(name, iter(lambda: file.read(PIECE), b""))
        return zones.ZoneFile(url=url, etag=None, last_modified=None, content=content)
    with Client() as client, answered(client, url, [_GET] * ATTEMPTS) as answer:
        if answer.status_code in PASSING:
            raise Unreachable(f"{name} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
        if answer.status_code != 200:
            raise NotPublished(f"zones: {name} answered HTTP {answer.status_code}; check the source.")
        about, check = answer.headers, Check(answer)
        sent = _small(name, timely(client, answer.iter_raw()))
        check.add(sent)
        if mismatch := check.mismatch():
            raise Unreachable(
                f"zones: the bytes of {name} do not match the digest that the server sent ({mismatch}); run again."
            )
        content = _small(name, decoded("zones", name, ".csv", about.get("Content-Encoding"), [sent]))
    return zones.ZoneFile(
        url=url, etag=version(answer, "ETag"), last_modified=version(answer, "Last-Modified"), content=content
    )


def _small(name: str, pieces: Iterable[bytes]) -> bytes:
    """Return all bytes. Raise `UnreadableFile` if they are more than a zone look-up can have."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > zones.LARGEST:
            raise UnreadableFile(
                f"zones: {name} is larger than {zones.LARGEST:,} bytes, so it is not a zone look-up; check the source."
            )
    return bytes(content)
