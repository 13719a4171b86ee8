"""The web: asks what a source publishes, and streams it; survives what networks do."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from flows.tlc.errors import NotPublished, UnreadableFile
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.sources import TEMPLATES, PublishedFile, Source
from flows.tlc.trips import TripMonth

PIECE = 1 << 20  # bytes handed on at once
ATTEMPTS = 5  # of one request, before the task's own retries
LONGEST_WAIT = 300.0  # seconds; a Retry-After beyond this is left to the schedule
_TIMEOUT = httpx.Timeout(60, connect=15)
# 403 is TLC's answer for a month that is not published; the others will not change by asking again either.
_NOT_PUBLISHED = {403, 404, 410}
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(Exception):
    """The source did not answer, or broke off, again and again; worth another try later."""


def source_of(word_or_template: str) -> Source:
    """The source that a flow's `source` names: a word, whose address the environment may override, or a URL template."""
    if word_or_template in TEMPLATES:
        template = os.environ.get(f"TLC_{word_or_template.upper()}_URL") or TEMPLATES[word_or_template]
        return Source(template)
    return Source(word_or_template)


def _wait(answer: httpx.Response | None, attempt: int) -> float:
    """Seconds until the next attempt: what the server asks for, otherwise exponential with jitter."""
    asked = answer.headers.get("Retry-After", "") if answer is not None else ""
    if asked.isdigit():
        return min(float(asked), LONGEST_WAIT)
    return float(min(2**attempt, 30) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


@contextmanager
def _answer(
    client: httpx.Client, method: str, url: str, headers: dict[str, str], attempts: int
) -> Iterator[httpx.Response]:
    """A final answer to one request; passing failures are waited out."""
    for attempt in range(attempts):
        last = attempt == attempts - 1
        try:
            with client.stream(method, url, headers=headers) as answer:
                if answer.status_code not in _PASSING or last:
                    yield answer
                    return
        except httpx.TransportError as error:
            if last:
                raise Unreachable(f"{url}: {type(error).__name__}: {error}") from error
            time.sleep(_wait(None, attempt))
        else:
            time.sleep(_wait(answer, attempt))


def _client() -> httpx.Client:
    # identity: a proxy must not gzip what is hashed and counted as published
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"})


def _refuse(trip_month: TripMonth, url: str, answer: httpx.Response) -> None:
    if answer.status_code in _NOT_PUBLISHED:
        raise NotPublished(
            f"{trip_month} is not published at {url} (HTTP {answer.status_code})."
            " TLC publishes about two months late; the mirror ends with 2021-07."
        )
    if answer.status_code in _PASSING:
        raise Unreachable(f"{url} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
    if answer.status_code not in (200, 206):
        raise UnreadableFile(f"{trip_month}: {url} answered HTTP {answer.status_code}; check the source.")


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def look_up(source: Source, trip_month: TripMonth) -> PublishedFile:
    """What the source publishes of a month, by one HEAD; `NotPublished` if it does not.

    For a `file://` source the version is the file's sha256.
    """
    url = source.url(trip_month)
    if path := _local_path(url):
        if not path.is_file():
            raise NotPublished(f"{trip_month} is not at {url}.")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return PublishedFile(
            trip_month=trip_month, url=url, ending=source.ending, etag=f"sha256:{digest}", last_modified=None,
            size=path.stat().st_size,
        )  # fmt: skip
    with _client() as client:
        with _answer(client, "HEAD", url, {}, ATTEMPTS) as answer:
            head = answer
        if head.status_code in (405, 501):  # a server without HEAD: ask for the file and hang up
            with _answer(client, "GET", url, {}, ATTEMPTS) as answer:
                head = answer
    _refuse(trip_month, url, head)
    size = head.headers.get("Content-Length")
    return PublishedFile(
        trip_month=trip_month,
        url=url,
        ending=source.ending,
        etag=head.headers.get("ETag"),
        last_modified=head.headers.get("Last-Modified"),
        size=int(size) if size and size.isdigit() else None,
    )


def _pieces(published: PublishedFile) -> Iterator[bytes]:
    """The file's bytes in order; a broken connection goes on where it stopped, if the file is still the same."""
    if path := _local_path(published.url):
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        return
    received = 0
    with _client() as client:
        for attempt in range(ATTEMPTS):
            headers = {"Range": f"bytes={received}-"} if received else {}
            if published.etag and received:
                headers["If-Range"] = published.etag
            try:
                with _answer(client, "GET", published.url, headers, ATTEMPTS) as answer:
                    _refuse(published.trip_month, published.url, answer)
                    if published.etag and answer.headers.get("ETag") not in (None, published.etag):
                        raise Unreachable(f"{published.url} was re-published while it was being read; run again.")
                    skip = received if answer.status_code == 200 else 0
                    for piece in answer.iter_raw(PIECE):
                        if skip >= len(piece):  # no Range there: read over what is here already
                            skip -= len(piece)
                            continue
                        fresh = piece[skip:]
                        skip = 0
                        received += len(fresh)
                        yield fresh
                return
            except httpx.TransportError as error:
                if attempt == ATTEMPTS - 1:
                    raise Unreachable(f"{published.url}: broke off after {received} bytes: {error}") from error
                time.sleep(_wait(None, attempt))


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
