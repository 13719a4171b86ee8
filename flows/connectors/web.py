"""The web: asks what a source publishes, and streams it; survives what networks do."""

import hashlib
import itertools
import math
import os
import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime

import httpx

from flows.connectors.digests import Check
from flows.connectors.encodings import decoded, encodings
from flows.connectors.files import opened
from flows.connectors.guard import Client, require_allowed
from flows.tlc import zones
from flows.tlc.addresses import BadAddress, escaped, parsed, shown
from flows.tlc.errors import NotPublished, TripDataError, UnreadableFile
from flows.tlc.manifest import Verified
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.reading_csv import require_header
from flows.tlc.sources import LARGEST, TEMPLATES, Ending, PublishedFile, Source, is_weak
from flows.tlc.trips import TripMonth

PIECE = 1 << 20  # bytes handed on at once
ATTEMPTS = 5  # of one request, before the retries of the task that makes it, if one does
LONGEST_WAIT = 300.0  # seconds; a server that asks for more is left alone, and the month to a later run
_ASKING = 4  # look-ups at once; hundreds of them should not look like an attack
_HEAD_WITHIN = 20.0  # seconds until an answer to a HEAD is whole; some servers never answer it
_ANSWER_WITHIN = 60.0  # seconds until the headers of any other answer are whole
_SILENCES = 2  # attempts that may pass without an answer: each costs `_ANSWER_WITHIN`
_WINDOW = 60.0  # seconds in which a body has to bring `_LEAST` bytes, those that the reader takes for itself apart
_LEAST = 64 << 10
# 403 is TLC's answer for a month that is not published; the others will not change by asking again either.
_NOT_PUBLISHED = {403, 404, 410}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_NO_RANGES = {400, 416, 501}  # answers to a Range by servers that answer without one
_HUNG = (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError)

_Ask = tuple[str, dict[str, str]]  # method and headers
_HEAD: _Ask = ("HEAD", {})
_GET: _Ask = ("GET", {})
_FIRST_BYTE: _Ask = ("GET", {"Range": "bytes=0-0"})


class AskAgainLater(TripDataError):
    """The source asks to be left alone for longer than a run waits, or published anew in mid-read; the next run may do."""


class Unreachable(Exception):
    """The source did not answer, or broke off, again and again; worth another try later."""


def source_of(word_or_template: str) -> Source:
    """Return the source that a flow's `source` names: a word, whose address the environment may override, or a URL template.

    Raises:
        UnknownMonth: It is neither.
        SourceNotAllowed: It is a local file or a private address, which this process may not read.
    """
    known = TEMPLATES.get(word_or_template)
    source = Source(_address(word_or_template, known) if known else word_or_template)
    require_allowed(source.template)
    return source


def _address(word: str, known: str) -> str:
    return os.environ.get(f"TLC_{word.upper()}_URL") or known


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Seconds that a server asks us to stay away: a number or a date, as HTTP has it."""
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        until = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def _pause(attempt: int) -> float:
    """Seconds until the next attempt: exponential with jitter."""
    return float(min(2**attempt, 30) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


@contextmanager
def _answer(
    client: Client,
    url: str,
    asks: Sequence[_Ask],
    within: float | None = None,
    raised: tuple[type[Exception], ...] = (),
) -> Iterator[httpx.Response]:
    """Yield a final answer to a request, made by one of `asks` after the other while failures pass.

    Errors of the kinds `raised` are raised at once. What breaks off later is the caller's to see.
    """
    silences = 0
    for attempt, (method, headers) in enumerate(asks, 1):
        last = attempt == len(asks)
        client.answer_within(within or _ANSWER_WITHIN)
        try:
            answer = client.send(client.build_request(method, url, headers=headers), stream=True)
        except raised:
            raise
        except httpx.TransportError as error:
            silences += isinstance(error, httpx.ReadTimeout)
            if last or silences == _SILENCES:
                raise Unreachable(f"{shown(url)} cannot be reached: {_why(error)}") from error
            time.sleep(_pause(attempt - 1))
            continue
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise UnreadableFile(f"{shown(url)} leads nowhere ({_why(error)}); check the source.") from None
        finally:
            client.answer_within(math.inf)
        if last or answer.status_code not in _PASSING:
            break
        answer.close()
        wait = _asked_to_wait(answer)
        if wait is not None and wait > LONGEST_WAIT:
            raise AskAgainLater(
                f"{shown(url)} answered HTTP {answer.status_code} and asks for {wait:.0f} s; try again then."
            )
        time.sleep(_pause(attempt - 1) if wait is None else wait)
    with closing(answer):
        yield answer


def _client() -> Client:
    return Client()


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {escaped(str(error), 120)}"


def _refuse(trip_month: TripMonth, url: str, answer: httpx.Response) -> None:
    if answer.status_code in _NOT_PUBLISHED:
        raise NotPublished(
            f"{trip_month} is not published at {shown(url)} (HTTP {answer.status_code})."
            " TLC publishes about two months late; the mirror ends with 2021-07.",
            answer.status_code,
        )
    if answer.status_code in _PASSING:
        raise Unreachable(f"{shown(url)} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
    if answer.status_code not in (200, 206):
        raise UnreadableFile(f"{trip_month}: {shown(url)} answered HTTP {answer.status_code}; check the source.")


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
    with _client() as client:
        answer = _headers(client, url)
    _refuse(trip_month, url, answer)
    published = _told(trip_month, url, ending, answer)
    _require_credible(published, published.size or 0)
    return published


def _headers(client: Client, url: str) -> httpx.Response:
    """Return an answer that is about the file itself.

    HEAD may be refused where GET is not (signed links), hang, or be about something else. Then a GET of one byte is asked,
    without its Range if the server knows no ranges; the body of its answer is not read. The last attempt is a GET too.
    """
    asks = [_HEAD] * (ATTEMPTS - 1) + [_FIRST_BYTE]
    try:
        with _answer(client, url, asks, _HEAD_WITHIN, raised=_HUNG) as answer:
            if _tells_all(answer) or answer.status_code in _PASSING:
                return answer
    except _HUNG:
        pass
    else:
        if answer.request.method == "GET":
            return answer
    with _answer(client, url, [_FIRST_BYTE] * ATTEMPTS) as answer:
        if answer.status_code not in _NO_RANGES:
            return answer
    with _answer(client, url, [_GET] * ATTEMPTS) as answer:
        return answer


def _tells_all(head: httpx.Response) -> bool:
    """Return whether the answer to a HEAD is of use: that of a file, with a size and a version."""
    about = head.headers
    size, kind = about.get("Content-Length", ""), about.get("Content-Type", "")
    packed = encodings(about.get("Content-Encoding"))
    return (
        head.status_code == 200 and size.strip("0").isdigit() and "ETag" in about and not packed and "html" not in kind
    )


def _told(trip_month: TripMonth, url: str, ending: Ending, answer: httpx.Response) -> PublishedFile:
    """Return what an answer tells of the file; no size if it is encoded, for that is the size of what is sent."""
    sent = _whole_size(answer)
    return PublishedFile(
        trip_month=trip_month,
        url=url,
        ending=ending,
        etag=answer.headers.get("ETag"),
        last_modified=answer.headers.get("Last-Modified"),
        size=None if encodings(answer.headers.get("Content-Encoding")) else sent,
    )


def _whole_size(answer: httpx.Response) -> int | None:
    """Return the bytes that are sent for the whole file, also where this answer is of a part."""
    text = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _require_credible(published: PublishedFile, size: int) -> None:
    if size > (most := LARGEST[published.ending]):
        raise UnreadableFile(
            f"{published.trip_month}: {shown(published.url)} has more than {most:,} bytes, four times as many as the largest"
            f" {published.ending} that was ever published; it is no month of trips. Nothing was loaded; check the source."
        )


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


def _timely(client: Client, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same pieces; `httpx.ReadTimeout` if they come too slowly, however evenly."""
    waiting = iter(pieces)
    spent, came = 0.0, 0
    while True:
        client.answer_within(2 * _WINDOW)
        began = time.monotonic()
        piece = next(waiting, None)
        spent += time.monotonic() - began
        client.answer_within(math.inf)
        if piece is None:
            return
        came += len(piece)
        if spent > _WINDOW:
            if came < _LEAST:
                raise httpx.ReadTimeout(f"only {came} bytes came in {spent:.0f} s")
            spent, came = 0.0, 0
        yield piece


class _Transfer:
    """One file on its way: its bytes as they are sent, whole though connections break, compared with what was promised."""

    def __init__(self, published: PublishedFile) -> None:
        self.published = published
        self.encoding: str | None = None
        self.size: int | None = None  # of what is sent
        self.verified: Verified = ""
        self._first: PublishedFile | None = None  # by the first answer
        self._check: Check
        self._came = hashlib.sha256()
        self._received = 0
        self._ranges = True

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the bytes; a broken connection goes on where it stopped if the server shows that the file is the same."""
        failures = kept = 0  # in a row, each with few new bytes; bytes that there were at the last of them
        with _client() as client:
            while True:
                try:
                    with _answer(client, self.published.url, [("GET", self._resuming())] * ATTEMPTS) as answer:
                        yield from self._of(client, answer)
                    break
                except httpx.TransportError as error:
                    if self._received == self.size:
                        break
                    failures = 1 if self._received - kept >= _LEAST else failures + 1
                    kept = self._received
                    if failures == ATTEMPTS:
                        raise Unreachable(f"{self._name}: broke off after {kept} bytes: {_why(error)}") from error
                    time.sleep(_pause(failures - 1))
        if wrong := self._check.wrong():
            raise Unreachable(
                f"{self._name}: the bytes are not those the server promised ({wrong}). Nothing was loaded; run again, and tell"
                " the publisher if it happens again."
            )
        self.verified = self._check.made or ("length" if self._received == self.size else "")

    @property
    def _name(self) -> str:
        return shown(self.published.url)

    def _resuming(self) -> dict[str, str]:
        """Return the headers that ask for the rest: only of the same file, which a weak ETag cannot name."""
        if not self._received or not self._first or not self._ranges:
            return {}
        strong = self._first.etag if self._first.etag and not is_weak(self._first.etag) else None
        version = strong or self._first.last_modified
        return {"Range": f"bytes={self._received}-", "If-Range": version} if version else {}

    def _of(self, client: Client, answer: httpx.Response) -> Iterator[bytes]:
        _refuse(self.published.trip_month, self.published.url, answer)
        self._require_same(answer)
        skip = self._received if answer.status_code == 200 else 0
        again = hashlib.sha256()
        for piece in _timely(client, answer.iter_raw()):
            fresh = piece
            if skip:  # from the beginning again: what is here already has to come again as it was
                again.update(piece[:skip])
                fresh, skip = piece[skip:], max(0, skip - len(piece))
                if not skip and again.digest() != self._came.digest():
                    raise self._republished()
            if fresh:
                self._received += len(fresh)
                _require_credible(self.published, self._received)
                self._came.update(fresh)
                self._check.add(fresh)
                yield fresh
        if skip:
            raise self._republished()
        if answer.status_code == 206 and self.size and self._received < self.size:
            raise httpx.ReadError("a part of what was asked for")

    def _require_same(self, answer: httpx.Response) -> None:
        """Raise unless the answer is of the file that was looked up, and goes on where we are."""
        published = self.published
        told = _told(published.trip_month, published.url, published.ending, answer)
        if self._first is None:
            # Some servers give the file's own ETag to a HEAD with another size. A strong ETag is of these very bytes.
            named = told.etag is not None and told.etag == published.etag and not is_weak(told.etag)
            if not named and published.same_edition(told) is False:
                raise self._republished()
        else:
            same = self._first.same_edition(told)
            if same is False:
                raise self._republished()
            if same is None and answer.status_code == 206:
                self._ranges = False
                raise httpx.ReadError("a range of a file of no version")
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(
            f"bytes {self._received}-"
        ):
            raise Unreachable(f"{self._name} was asked to go on at byte {self._received} and did not; try again later.")
        if self._first is None:
            self._first, self._check = told, Check(answer)
            self.encoding = answer.headers.get("Content-Encoding")
            self.size = _whole_size(answer) or (None if encodings(self.encoding) else published.size)
            _require_credible(published, self.size or 0)

    def _republished(self) -> AskAgainLater:
        return AskAgainLater(f"{self._name} was re-published while it was being read; run again.")


def _from_web(published: PublishedFile, verified: Callable[[Verified], None]) -> Generator[bytes, None, None]:
    transfer = _Transfer(published)
    name = shown(published.url)
    with closing(transfer.pieces()) as sent:
        first = next(sent, b"")
        expected = 0 if encodings(transfer.encoding) else transfer.size or 0
        size = 0
        whole = itertools.chain([first], sent)
        for piece in decoded(published.trip_month, name, published.ending, transfer.encoding, whole):
            size += len(piece)
            _require_credible(published, size)
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
    verified("sha256")


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


def read(published: PublishedFile, verified: Callable[[Verified], None] = lambda how: None) -> Iterator[bytes]:
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
    with _client() as client, _answer(client, url, [_GET] * ATTEMPTS) as answer:
        if answer.status_code in _PASSING:
            raise Unreachable(f"{name} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
        if answer.status_code != 200:
            raise NotPublished(f"zones: {name} answered HTTP {answer.status_code}; check the source.")
        about, check = answer.headers, Check(answer)
        sent = _small(name, _timely(client, answer.iter_raw()))
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
