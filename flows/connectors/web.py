"""The web: look up what a source publishes, and download it despite network failures."""

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
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
    require_credible,
    require_file,
    timely,
    told_by,
)
from flows.connectors.transfer import Transfer
from flows.tlc import zones
from flows.tlc.addresses import BadAddress, parsed, shown
from flows.tlc.errors import AskAgainLater, NotPublished, Unreachable, UnreadableFile
from flows.tlc.manifest import Verified
from flows.tlc.pipeline import Add
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.reading_csv import require_header
from flows.tlc.sources import TEMPLATES, Ending, PublishedFile, Source
from flows.tlc.trips import TripMonth

PIECE = 1 << 20  # bytes yielded at once
_ASKING = 4  # parallel look-ups: hundreds at once would look like an attack
_HEAD_WITHIN = 20.0  # seconds until an answer to a HEAD is complete; some servers never answer a HEAD
_NO_RANGES = {400, 416, 501}  # status codes of servers that refuse a Range but answer without one
_HUNG = (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError)
_HEAD: Ask = ("HEAD", {})
_GET: Ask = ("GET", {})
_FIRST_BYTE: Ask = ("GET", {"Range": "bytes=0-0"})


def source_of(word_or_template: str) -> Source:
    """Return the source for a flow's parameter `source`: a word, whose address the environment may override, or a URL template.

    Raises:
        BadSource: The parameter is neither.
        SourceNotAllowed: The address is a local file or a private address that this process may not read.
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
            return PublishedFile(
                trip_month=trip_month, url=url, ending=ending, etag=f"sha256:{digest}", last_modified=None,
                size=os.fstat(file.fileno()).st_size,
            )  # fmt: skip
    require_allowed(url)
    with Client() as client:
        answer = _headers(client, url)
    require_file(trip_month, url, answer)
    published = told_by(trip_month, url, ending, answer)
    require_credible(published, published.size or 0)
    return published


def _headers(client: Client, url: str) -> httpx.Response:
    """Return an answer whose headers describe the file itself.

    A server may refuse a HEAD but not a GET (signed links), never answer it, or describe something else in its answer. Then a
    GET requests one byte. If the server does not support ranges, the GET has no Range and the body is not read. The last
    attempt of the first request is a GET too.
    """
    asks = [_HEAD] * (ATTEMPTS - 1) + [_FIRST_BYTE]
    try:
        with answered(client, url, asks, _HEAD_WITHIN, raised=_HUNG) as answer:
            if _tells_all(answer) or answer.status_code in PASSING:
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


def _tells_all(head: httpx.Response) -> bool:
    """Return whether the answer to a HEAD is useful: it describes a file, with a size and an ETag."""
    about = head.headers
    sized = re.fullmatch("0*[1-9][0-9]*", about.get("Content-Length", ""))
    plain = not encodings(about.get("Content-Encoding")) and "html" not in about.get("Content-Type", "")
    return head.status_code == 200 and bool(sized) and "ETag" in about and plain


def look_up_all(source: Source, trip_months: Iterable[TripMonth]) -> dict[TripMonth, PublishedFile | Exception]:
    """Return what `look_up` returns or raises for each month, with `_ASKING` look-ups in parallel.

    If a source is down, or asks to wait, no further look-up is made. The remaining months get the error that showed it.
    """
    answered = False
    lost: list[Exception] = []  # once it has `_ASKING` errors, no further look-up is made

    def ask(trip_month: TripMonth) -> PublishedFile | Exception:
        nonlocal answered
        if len(lost) >= _ASKING:
            return lost[-1]
        try:
            found = look_up(source, trip_month)
        except Exception as error:
            if isinstance(error, AskAgainLater):
                lost.extend([error] * _ASKING)
            elif isinstance(error, Unreachable) and not answered:
                lost.append(error)
            answered = answered or isinstance(error, NotPublished)
            return error
        answered = True
        return found

    with ThreadPoolExecutor(_ASKING, thread_name_prefix="look-up") as pool:
        months = list(trip_months)
        return dict(zip(months, pool.map(ask, months), strict=True))


def _from_web(published: PublishedFile, verified: Callable[[Verified], None]) -> Generator[bytes, None, None]:
    transfer = Transfer(published)
    name = shown(published.url)
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
    verified(transfer.verified)


def _from_disk(published: PublishedFile, verified: Callable[[Verified], None]) -> Generator[bytes, None, None]:
    digest = hashlib.sha256()
    with opened(published.trip_month, published.url) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            yield piece
    if published.etag != f"sha256:{digest.hexdigest()}":
        raise AskAgainLater(f"{shown(published.url)} was changed while it was being read; run again.")


def _in_pieces(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of at least `PIECE`."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        if len(buffer) >= PIECE:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


def read(
    published: PublishedFile, verified: Callable[[Verified], None] = lambda how: None
) -> Generator[bytes, None, None]:
    """Yield the file's bytes. Check its beginning, header, end, size and digest.

    Args:
        published: The file.
        verified: Called at the end with the check that the bytes passed.

    Raises:
        UnreadableFile: The bytes are not a complete file of its kind.
        AskAgainLater: The file was changed during the download.
        Unreachable: The connection fails, or the bytes do not match the server's digest.
    """
    trip_month, name = published.trip_month, shown(published.url)
    local = _is_file(published.url)
    require_allowed(published.url)
    size, tail = 0, b""
    parts = (_from_disk if local else _from_web)(published, verified)
    with closing(parts):
        for piece in _in_pieces(parts):
            if not size:
                recognise(trip_month, published.ending, piece, name)
                require_header(trip_month, published.ending, piece, name)
            size += len(piece)
            tail = (tail + piece)[-8:]
            yield piece
    if not size:
        recognise(trip_month, published.ending, b"", name)
    recognise_end(trip_month, published.ending, tail, name)


class Download:
    """The download of a published file. Iterate once for its bytes; after that, `verified` says how they were checked."""

    verified: Verified = ""

    def __init__(self, published: PublishedFile, add: Add = lambda size, share: None) -> None:
        self._published, self._add = published, add

    def __iter__(self) -> Iterator[bytes]:
        checks: list[Verified] = []
        received = 0
        with closing(read(self._published, checks.append)) as pieces:
            for piece in pieces:
                received += len(piece)
                self._add(len(piece), received / self._published.size if self._published.size else 0)
                yield piece
        self.verified = checks[-1] if checks else ""


def zone_file(source: str) -> zones.ZoneFile:
    """Return the taxi zone look-up file.

    Args:
        source: A URL, or `official`, whose address the environment may override (TLC_ZONES_URL).

    Raises:
        NotPublished: The server has no such file.
        Unreachable: The server does not answer, or the bytes do not match its digest.
        UnreadableFile: The source is not an address, or the file is too large.
    """
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
        if wrong := check.wrong():
            raise Unreachable(f"zones: the bytes of {name} are not those the server promised ({wrong}); run again.")
        content = _small(name, decoded("zones", name, ".csv", about.get("Content-Encoding"), [sent]))
    return zones.ZoneFile(url=url, etag=about.get("ETag"), last_modified=about.get("Last-Modified"), content=content)


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
