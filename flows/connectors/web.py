"""The web: asks what a source publishes, and streams it; survives what networks do."""

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
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.reading_csv import require_header
from flows.tlc.sources import TEMPLATES, Ending, PublishedFile, Source
from flows.tlc.trips import TripMonth

Add = Callable[[int, float], None]  # gets how much more was done, and the share of the whole that is done by now

PIECE = 1 << 20  # bytes handed on at once
_ASKING = 4  # look-ups at once; hundreds of them should not look like an attack
_HEAD_WITHIN = 20.0  # seconds until an answer to a HEAD is whole; some servers never answer it
_NO_RANGES = {400, 416, 501}  # answers to a Range by servers that answer without one
_HUNG = (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError)
_HEAD: Ask = ("HEAD", {})
_GET: Ask = ("GET", {})
_FIRST_BYTE: Ask = ("GET", {"Range": "bytes=0-0"})


def source_of(word_or_template: str) -> Source:
    """Return the source that a flow's `source` names: a word, whose address the environment may override, or a URL template.

    Raises:
        BadSource: It is neither.
        SourceNotAllowed: It is a local file or a private address, which this process may not read.
    """
    known = TEMPLATES.get(word_or_template)
    source = Source(_address(word_or_template, known) if known else word_or_template)
    require_allowed(source.template)
    return source


def _address(word: str, known: str) -> str:
    return os.environ.get(f"TLC_{word.upper()}_URL") or known


def _is_file(url: str) -> bool:
    return parsed(url).scheme == "file"


def look_up(source: Source, trip_month: TripMonth) -> PublishedFile:
    """Return what the source publishes of a month; `NotPublished` if it publishes nothing."""
    return published_at(trip_month, source.url(trip_month), source.ending)


def published_at(trip_month: TripMonth, url: str, ending: Ending) -> PublishedFile:
    """Return what is published of a month at an address; `NotPublished` if nothing is.

    One HEAD tells it of most servers. Others are asked for the first byte. A `file://` address has the file's sha256 as ETag.
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
    """Return an answer that is about the file itself.

    HEAD may be refused where GET is not (signed links), hang, or be about something else. Then a GET of one byte is asked,
    without its Range if the server knows no ranges; the body of its answer is not read. The last attempt is a GET too.
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
    """Return whether the answer to a HEAD is of use: that of a file, with a size and a version."""
    about = head.headers
    sized = re.fullmatch("0*[1-9][0-9]*", about.get("Content-Length", ""))
    plain = not encodings(about.get("Content-Encoding")) and "html" not in about.get("Content-Type", "")
    return head.status_code == 200 and bool(sized) and "ETag" in about and plain


def look_up_all(source: Source, trip_months: Iterable[TripMonth]) -> dict[TripMonth, PublishedFile | Exception]:
    """What `look_up` answers or raises for each month, a few asked at once.

    A source that is down, or asks to be left alone, is not asked on: the months left get the error that told so.
    """
    answered = False
    lost: list[Exception] = []  # nobody asks any more once there are as many as ask at once

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
        came = "more" if size > expected else str(size)
        raise UnreadableFile(
            f"{published.trip_month}: {name} is {expected} bytes by its own word, but {came} came."
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
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def read(
    published: PublishedFile, verified: Callable[[Verified], None] = lambda how: None
) -> Generator[bytes, None, None]:
    """Stream the file, checked: its beginning, its header, its end, its size and its digest are those of a file of its kind.

    `verified` is called at the end with what the bytes were compared with.
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
    """A published file on its way. Iterate once for its bytes; afterwards `verified` says how they were checked."""

    verified: Verified = ""

    def __init__(self, published: PublishedFile, add: Add = lambda size, share: None) -> None:
        self._published, self._add = published, add

    def __iter__(self) -> Iterator[bytes]:
        checks: list[Verified] = []
        come = 0
        with closing(read(self._published, checks.append)) as pieces:
            for piece in pieces:
                come += len(piece)
                self._add(len(piece), come / self._published.size if self._published.size else 0)
                yield piece
        self.verified = checks[-1] if checks else ""


def zone_file(source: str) -> zones.ZoneFile:
    """Return the zone look-up, whole: `official`, whose address the environment may override (TLC_ZONES_URL), or a URL."""
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
    """All of them, unless that is more than a zone look-up can be."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > zones.LARGEST:
            raise UnreadableFile(
                f"zones: {name} is larger than {zones.LARGEST:,} bytes, no zone look-up; check the source."
            )
    return bytes(content)
