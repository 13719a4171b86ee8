"""One request to a web server: retry temporary failures, limit the time, and check the answer."""

import math
import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime

import httpx

from flows.connectors.encodings import encodings
from flows.connectors.guard import Client
from flows.tlc.addresses import escaped, shown
from flows.tlc.errors import AskAgainLater, NotPublished, Unreachable, UnreadableFile
from flows.tlc.sources import LARGEST, Ending, PublishedFile
from flows.tlc.trips import TripMonth

ATTEMPTS = 5  # per request; the task may retry them all
LONGEST_WAIT = 300.0  # seconds; if a server asks for a longer wait, the run fails and a later run must load the month
ANSWER_WITHIN = 60.0  # seconds until the headers of an answer are complete
_SILENCES = 2  # attempts without an answer until the run fails; each takes `ANSWER_WITHIN`
WINDOW = 60.0  # seconds in which at least `LEAST` bytes of a body must arrive; the caller's own time does not count
LEAST = 64 << 10
# TLC answers 403 for a month that is not published. A retry does not help for the other codes either.
REFUSED = {403, 404, 410}
PASSING = {408, 425, 429, 500, 502, 503, 504}

_VERSIONS = {
    "ETag": re.compile(r"[\x20-\x7e\xa0-\xff]{1,1000}"),  # RFC 9110, 8.8.3; some servers leave the quotes out
    "Last-Modified": re.compile(r"[A-Za-z0-9 ,.:+-]{1,100}"),
}

Ask = tuple[str, dict[str, str]]  # method and headers


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Return the seconds of an answer's Retry-After header, which may be a number or a date; None without one."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, until.timestamp() - time.time())


def pause(attempt: int) -> float:
    """Return the seconds until the next attempt: exponential backoff with jitter."""
    return float(min(2**attempt, 30) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret


@contextmanager
def answered(
    client: Client, url: str, asks: Sequence[Ask], within: float = 0, raised: tuple[type[Exception], ...] = ()
) -> Iterator[httpx.Response]:
    """Yield the final answer to a request. Make the attempts of `asks` in order, until one has no temporary failure.

    The caller must handle a connection that breaks while it reads the body.

    Args:
        client: The HTTP client.
        url: The address.
        asks: Method and headers of each attempt.
        within: Seconds until the headers of an answer must be complete; 0 for `ANSWER_WITHIN`.
        raised: Errors that are not retried.

    Raises:
        Unreachable: No attempt got an answer.
        UnreadableFile: The address is invalid, or it redirects too often.
        AskAgainLater: The server asks for a wait of more than `LONGEST_WAIT`.
    """
    silences = 0
    for attempt, (method, headers) in enumerate(asks, 1):
        last = attempt == len(asks)
        client.answer_within(within or ANSWER_WITHIN)
        try:
            answer = client.send(client.build_request(method, url, headers=headers), stream=True)
        except raised:
            raise
        except httpx.TransportError as error:
            silences += isinstance(error, httpx.ReadTimeout)
            if last or silences == _SILENCES:
                raise Unreachable(f"{shown(url)} cannot be reached: {why(error)}") from error
            time.sleep(pause(attempt - 1))
            continue
        except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise UnreadableFile(f"{shown(url)} cannot be opened ({why(error)}); check the source.") from None
        finally:
            client.answer_within(math.inf)
        if last or answer.status_code not in PASSING:
            break
        answer.close()
        wait = _asked_to_wait(answer)
        if wait is not None and wait > LONGEST_WAIT:
            raise AskAgainLater(
                f"{shown(url)} answered HTTP {answer.status_code} and asks for {wait:.0f} s; try again then."
            )
        time.sleep(pause(attempt - 1) if wait is None else wait)
    with closing(answer):
        yield answer


def why(error: Exception) -> str:
    """Return a short text for an error of httpx. Text from the server is shortened and escaped."""
    return f"{type(error).__name__}: {escaped(str(error), 120)}"


def require_file(trip_month: TripMonth, url: str, answer: httpx.Response) -> None:
    """Raise `NotPublished`, `Unreachable` or `UnreadableFile` unless an answer's status means that it has a file."""
    if answer.status_code in REFUSED:
        raise NotPublished(
            f"{trip_month} is not published at {shown(url)} (HTTP {answer.status_code})."
            " TLC publishes about two months late; the mirror ends with 2021-07.",
            answer.status_code,
        )
    if answer.status_code in PASSING:
        raise Unreachable(f"{shown(url)} answered HTTP {answer.status_code} {ATTEMPTS} times; try again later.")
    if answer.status_code not in (200, 206):
        raise UnreadableFile(f"{trip_month}: {shown(url)} answered HTTP {answer.status_code}; check the source.")


def described_file(trip_month: TripMonth, url: str, ending: Ending, answer: httpx.Response) -> PublishedFile:
    """Return the file that an answer describes. The size is None if the body is encoded, because its length then differs."""
    sent = whole_size(answer)
    return PublishedFile(
        trip_month=trip_month,
        url=url,
        ending=ending,
        etag=version(answer, "ETag"),
        last_modified=version(answer, "Last-Modified"),
        size=None if encodings(answer.headers.get("Content-Encoding")) else sent,
    )


def version(answer: httpx.Response, header: str) -> str | None:
    """Return a header with the file's version; None if it is absent or invalid.

    Versions are stored and shown. So a time with special characters of a terminal or of HTML is not accepted.
    """
    text = answer.headers.get(header, "")
    return text if _VERSIONS[header].fullmatch(text) else None


def whole_size(answer: httpx.Response) -> int | None:
    """Return how many bytes are sent for the whole file, even if this answer is for a part; None if it is unknown."""
    text = answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        text = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def require_credible(published: PublishedFile, size: int) -> None:
    """Raise `UnreadableFile` if `size` bytes are more than a month can have."""
    if size > (most := LARGEST[published.ending]):
        raise UnreadableFile(
            f"{published.trip_month}: {shown(published.url)} has more than {most:,} bytes, four times as many as the largest"
            f" {published.ending} that was ever published; it is not a month of trips. Nothing was loaded; check the source."
        )


def timely(client: Client, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same pieces. Raise `httpx.ReadTimeout` if fewer than `LEAST` bytes arrive in `WINDOW` seconds."""
    waiting = iter(pieces)
    spent, received = 0.0, 0
    while True:
        client.answer_within(2 * WINDOW)
        began = time.monotonic()
        piece = next(waiting, None)
        spent += time.monotonic() - began
        client.answer_within(math.inf)
        if piece is None:
            return
        received += len(piece)
        if spent > WINDOW:
            if received < LEAST:
                raise httpx.ReadTimeout(f"only {received} bytes arrived in {spent:.0f} s")
            spent, received = 0.0, 0
        yield piece
