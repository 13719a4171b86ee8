"""Download one file from a web server: resume after broken connections, and check the bytes against the server's digests."""

import hashlib
import time
from collections.abc import Generator, Iterator

import httpx

from flows.connectors.digests import Check
from flows.connectors.encodings import encodings
from flows.connectors.guard import Client
from flows.connectors.request import (
    ATTEMPTS,
    LEAST,
    REFUSED,
    answered,
    described_file,
    pause,
    require_credible,
    require_file,
    timely,
    whole_size,
    why,
)
from flows.tlc.addresses import shown
from flows.tlc.errors import AskAgainLater, NotPublished, Unreachable
from flows.tlc.manifest import Verified
from flows.tlc.reading import recognise
from flows.tlc.sources import PublishedFile, is_weak


class Transfer:
    """The download of one file: its bytes as they are sent, resumed after broken connections, checked against digests."""

    def __init__(self, published: PublishedFile) -> None:
        self.published = published
        self.encoding: str | None = None
        self.size: int | None = None  # bytes that are sent, still encoded
        self.verified: Verified = ""
        self._first: PublishedFile | None = None  # as the first answer describes it
        self._check: Check
        self._sha256 = hashlib.sha256()
        self._received = 0
        self._ranges = True

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the bytes. After a broken connection, resume if the server sends the same version of the file."""
        failures = 0  # consecutive failures, each after fewer than `LEAST` new bytes
        kept = 0  # bytes received before the last failure
        with Client() as client:
            while True:
                try:
                    with answered(client, self.published.url, [("GET", self._resuming())] * ATTEMPTS) as answer:
                        yield from self._body(client, answer)
                    break
                except httpx.TransportError as error:
                    if self._received in (self.size, self.published.size):
                        break
                    failures = 1 if self._received - kept >= LEAST else failures + 1
                    kept = self._received
                    if failures == ATTEMPTS:
                        raise Unreachable(f"{self._name}: broke off after {kept} bytes: {why(error)}") from error
                    time.sleep(pause(failures - 1))
        if mismatch := self._check.mismatch():
            raise Unreachable(
                f"{self._name}: the bytes do not match the digest that the server sent ({mismatch})."
                " Nothing was loaded; run again, and tell the publisher if it happens again."
            )
        self.verified = self._check.matched or ("length" if self._received == self.size else "")

    @property
    def _name(self) -> str:
        return shown(self.published.url)

    def _resuming(self) -> dict[str, str]:
        """Return headers that request the rest of the same file. A weak ETag cannot identify a file, so it is not used."""
        if not self._received or not self._first or not self._ranges:
            return {}
        strong = self._first.etag if self._first.etag and not is_weak(self._first.etag) else None
        version = strong or self._first.last_modified
        return {"Range": f"bytes={self._received}-", "If-Range": version} if version else {}

    def _body(self, client: Client, answer: httpx.Response) -> Iterator[bytes]:
        if answer.status_code in REFUSED:
            raise NotPublished(
                f"{self.published.trip_month}: {self._name} existed when it was looked up, and now answers HTTP"
                f" {answer.status_code}. Nothing was loaded; open the address from another network, or check the source.",
                answer.status_code,
            )
        require_file(self.published.trip_month, self.published.url, answer)
        self._require_same(client, answer)
        skip = self._received if answer.status_code == 200 else 0
        again = hashlib.sha256()
        for piece in timely(client, answer.iter_raw()):
            fresh = piece
            if skip:  # the file is sent from its beginning: the bytes already received must be the same again
                again.update(piece[:skip])
                fresh, skip = piece[skip:], max(0, skip - len(piece))
                if not skip and again.digest() != self._sha256.digest():
                    raise self._republished()
            if fresh:
                self._received += len(fresh)
                require_credible(self.published, self._received)
                self._sha256.update(fresh)
                self._check.add(fresh)
                yield fresh
        if skip:
            raise self._republished()
        if answer.status_code == 206 and self.size and self._received < self.size:
            raise httpx.ReadError("the answer has only a part of the requested range")

    def _head_is_wrong(self, client: Client, got: PublishedFile) -> bool:
        """Return whether the server's versions are unreliable: then a different version is no new edition.

        Some servers repeat in each HEAD a version that contradicts the GET (`got`). Others send a new version in every answer,
        for a file of the same size.
        """
        with answered(client, self.published.url, [("HEAD", {})] * 2) as head:
            again = described_file(self.published.trip_month, self.published.url, self.published.ending, head)
        if head.status_code != 200:
            return False
        same_size = got.size is not None and self.published.size == got.size == again.size
        always_new = same_size and got.same_edition(again) is False
        return always_new or self.published.same_edition(again) is not False

    def _require_same(self, client: Client, answer: httpx.Response) -> None:
        """Raise unless the answer is for the file that was looked up, and starts where the last answer stopped."""
        published = self.published
        got = described_file(published.trip_month, published.url, published.ending, answer)
        if self._first is None:
            # Some servers answer a HEAD with the file's ETag and a wrong size. A strong ETag identifies exactly these bytes.
            same_etag = got.etag is not None and got.etag == published.etag and not is_weak(got.etag)
            if not same_etag and published.same_edition(got) is False and not self._head_is_wrong(client, got):
                # Raise another error for an error page: it is no new edition.
                recognise(published.trip_month, published.ending, next(answer.iter_raw(), b""), self._name)
                raise self._republished()
        else:
            same = self._first.same_edition(got)
            if same is False:
                raise self._republished()
            if same is None and answer.status_code == 206:
                self._ranges = False
                raise httpx.ReadError("the answer to a Range has no version of the file")
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(
            f"bytes {self._received}-"
        ):
            raise Unreachable(
                f"{self._name} was asked to continue at byte {self._received} and did not; try again later."
            )
        if self._first is None:
            self._first, self._check = got, Check(answer)
            self.encoding = answer.headers.get("Content-Encoding")
            # A chunked answer marks its own end. Other answers are complete if they have the size from the look-up.
            ended = encodings(self.encoding) or "chunked" in answer.headers.get("Transfer-Encoding", "")
            self.size = whole_size(answer) or (None if ended else published.size)
            require_credible(published, self.size or 0)

    def _republished(self) -> AskAgainLater:
        return AskAgainLater(f"{self._name} was re-published while it was being read; run again.")
