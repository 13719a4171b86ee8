"""The web: asks what a source publishes, and streams it; survives what networks do."""

import hashlib
import os
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from flows.tlc import zones
from flows.tlc.errors import NotPublished, TripDataError, UnreadableFile
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.sources import TEMPLATES, Ending, PublishedFile, Source
from flows.tlc.trips import TripMonth

PIECE = 1 << 20  # bytes handed on at once
ATTEMPTS = 5  # of one request, before the retries of the task that makes it, if one does
LONGEST_WAIT = 300.0  # seconds; a server that asks for more is left alone, and the month to a later run
_ASKING = 4  # look-ups at once; hundreds of them should not look like an attack
_TIMEOUT = httpx.Timeout(60, connect=15)
# 403 is TLC's answer for a month that is not published; the others will not change by asking again either.
_NOT_PUBLISHED = {403, 404, 410}
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class AskAgainLater(TripDataError):
    """The source asks to be left alone for longer than a run waits, or published anew in mid-read; the next run may do."""


class Unreachable(Exception):
    """The source did not answer, or broke off, again and again; worth another try later."""


def source_of(word_or_template: str) -> Source:
    """The source that a flow's `source` names: a word, whose address the environment may override, or a URL template."""
    if word_or_template in TEMPLATES:
        return Source(_address(word_or_template, TEMPLATES[word_or_template]))
    return Source(word_or_template)


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
def _answer(client: httpx.Client, method: str, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """A final answer to one request; passing failures are waited out. What breaks off later is the caller's to see."""
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1
        try:
            answer = client.send(client.build_request(method, url, headers=headers), stream=True)
        except httpx.TransportError as error:
            if last:
                raise Unreachable(f"{url} cannot be reached: {type(error).__name__}: {error}") from error
            time.sleep(_pause(attempt))
            continue
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise UnreadableFile(f"{url} leads nowhere ({error}); check the source.") from error
        if last or answer.status_code not in _PASSING:
            break
        answer.close()
        wait = _asked_to_wait(answer)
        if wait is not None and wait > LONGEST_WAIT:
            raise AskAgainLater(f"{url} answered HTTP {answer.status_code} and asks for {wait:.0f} s; try again then.")
        time.sleep(_pause(attempt) if wait is None else wait)
    with closing(answer):
        yield answer


def _client() -> httpx.Client:
    # identity: a proxy must not gzip what is hashed and counted as published
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"})


def _refuse(trip_month: TripMonth, url: str, answer: httpx.Response) -> None:
    if answer.status_code in _NOT_PUBLISHED:
        raise NotPublished(
            f"{trip_month} is not published at {url} (HTTP {answer.status_code})."
            " TLC publishes about two months late; the mirror ends with 2021-07.",
            answer.status_code,
        )
    if answer.status_code in _PASSING:
        raise Unreachable(f"{url} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
    if answer.status_code not in (200, 206):
        raise UnreadableFile(f"{trip_month}: {url} answered HTTP {answer.status_code}; check the source.")


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def look_up(source: Source, trip_month: TripMonth) -> PublishedFile:
    """What the source publishes of a month, by one HEAD; `NotPublished` if it does not."""
    return published_at(trip_month, source.url(trip_month), source.ending)


def published_at(trip_month: TripMonth, url: str, ending: Ending) -> PublishedFile:
    """What is published of a month at an address, by one HEAD; `NotPublished` if nothing is.

    For a `file://` address the version is the file's sha256.
    """
    if path := _local_path(url):
        if not path.is_file():
            raise NotPublished(f"{trip_month} is not at {url}.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return PublishedFile(
            trip_month=trip_month, url=url, ending=ending, etag=f"sha256:{digest}", last_modified=None,
            size=path.stat().st_size,
        )  # fmt: skip
    with _client() as client:
        with _answer(client, "HEAD", url, {}) as head:
            pass
        if head.status_code in (405, 501):  # a server without HEAD: ask for the file and hang up
            with _answer(client, "GET", url, {}) as head:
                pass
    _refuse(trip_month, url, head)
    size = head.headers.get("Content-Length")
    return PublishedFile(
        trip_month=trip_month,
        url=url,
        ending=ending,
        etag=head.headers.get("ETag"),
        last_modified=head.headers.get("Last-Modified"),
        size=int(size) if size and size.isdigit() else None,
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


def _same(published: PublishedFile, answer: httpx.Response, received: int) -> None:
    """Raise unless the answer is of the file that was looked up, and goes on where we are."""
    for header, was in (("ETag", published.etag), ("Last-Modified", published.last_modified)):
        now = answer.headers.get(header)
        if was is not None and now is not None:
            if was != now:
                raise AskAgainLater(f"{published.url} was re-published while it was being read; run again.")
            break  # an ETag tells more than a time
    if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {received}-"):
        raise Unreachable(f"{published.url} was asked to go on at byte {received} and did not; try again later.")


def _from_web(published: PublishedFile) -> Iterator[bytes]:
    """The bytes as they come; a broken connection goes on where it stopped, if the file is still the same."""
    received = 0
    failures = 0  # since the last byte that was new
    with _client() as client:
        while True:
            headers = {"Range": f"bytes={received}-"} if received else {}
            if received and (version := published.etag or published.last_modified):
                headers["If-Range"] = version
            try:
                with _answer(client, "GET", published.url, headers) as answer:
                    _refuse(published.trip_month, published.url, answer)
                    _same(published, answer, received)
                    skip = received if answer.status_code == 200 else 0  # no Range there: read over what is here
                    for piece in answer.iter_raw():
                        fresh = piece[skip:]
                        skip = max(0, skip - len(piece))
                        if fresh:
                            failures = 0
                            received += len(fresh)
                            yield fresh
                return
            except httpx.TransportError as error:
                if received == published.size:
                    return
                failures += 1
                if failures == ATTEMPTS:
                    raise Unreachable(f"{published.url}: broke off after {received} bytes: {error}") from error
                time.sleep(_pause(failures - 1))


def _pieces(published: PublishedFile) -> Iterator[bytes]:
    """The file's bytes in order, in pieces of at least `PIECE`."""
    if path := _local_path(published.url):
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        return
    held = bytearray()
    for part in _from_web(published):
        held += part
        if len(held) >= PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def read(published: PublishedFile) -> Iterator[bytes]:
    """Stream the file, checked: its beginning, its end and its size are those of a whole file of its kind."""
    trip_month = published.trip_month
    size = 0
    tail = b""
    for piece in _pieces(published):
        if not size:
            recognise(trip_month, published.ending, piece, published.url)
        size += len(piece)
        tail = (tail + piece)[-8:]
        yield piece
    if not size:
        recognise(trip_month, published.ending, b"", published.url)
    if published.size is not None and size != published.size:
        raise UnreadableFile(
            f"{trip_month}: {published.url} is {published.size} bytes by its own word, but {size} came."
            " Nothing was loaded; run again."
        )
    recognise_end(trip_month, published.ending, tail, published.url)


def zone_file(source: str) -> zones.ZoneFile:
    """The zone look-up, whole: `official`, whose address the environment may override (TLC_ZONES_URL), or a URL."""
    url = _address("zones", zones.OFFICIAL) if source == "official" else source
    parts = urlsplit(url)
    if "@" in parts.netloc:  # URLs go into logs and tables; so this one is not even named here
        raise UnreadableFile("zones: the source holds a user name or password; publish the file where none is needed.")
    if path := _local_path(url):
        if not path.is_file():
            raise NotPublished(f"zones: there is no file {url}.")
        return zones.ZoneFile(url=url, etag=None, last_modified=None, content=_small(url, [path.read_bytes()]))
    if parts.scheme not in ("http", "https"):
        raise UnreadableFile(f"zones: source {url!r} is neither official nor an http(s):// or file:// URL.")
    with _client() as client, _answer(client, "GET", url, {}) as answer:
        if answer.status_code in _PASSING:
            raise Unreachable(f"{url} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
        if answer.status_code != 200:
            raise NotPublished(f"zones: {url} answered HTTP {answer.status_code}; check the source.")
        content = _small(url, answer.iter_raw())
        about = answer.headers
    return zones.ZoneFile(url=url, etag=about.get("ETag"), last_modified=about.get("Last-Modified"), content=content)


def _small(url: str, pieces: Iterable[bytes]) -> bytes:
    """All of them, unless that is more than a zone look-up can be."""
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > zones.LARGEST:
            raise UnreadableFile(
                f"zones: {url} is larger than {zones.LARGEST:,} bytes, no zone look-up; check the source."
            )
    return bytes(content)
