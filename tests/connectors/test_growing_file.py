"""A file is read while it is written: the reader gets all its bytes in order, or `Aborted`."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.connectors import scratch
from flows.connectors.growing_file import Aborted, GrowingFile
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth

PIECES = [bytes([number]) * (number * 100_000) for number in range(1, 9)]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPS_SCRATCH", str(tmp_path / "scratch"))


class Reader(threading.Thread):
    """Reads all bytes of a growing file."""

    def __init__(self, growing: GrowingFile) -> None:
        super().__init__(daemon=True)
        self.growing, self.got, self.aborted = growing, b"", False
        self._more = threading.Condition()
        self.start()

    def run(self) -> None:
        try:
            for piece in self.growing.pieces():
                with self._more:
                    self.got += piece
                    self._more.notify_all()
        except Aborted:
            self.aborted = True

    def has(self, expected: bytes) -> bool:
        """Wait until these bytes were read. Return whether they are all that were read."""
        with self._more:
            self._more.wait_for(lambda: len(self.got) >= len(expected), timeout=10)
        return self.got == expected

    def ended(self) -> bool:
        """Wait for the end of the thread. Return whether it came."""
        self.join(10)
        return not self.is_alive()


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader(GrowingFile())
    yield made
    made.growing.close()


PUBLISHED = PublishedFile(
    trip_month=TripMonth("green", 2019, 6), url="https://tlc.example/a.csv", ending=".csv", size=None, etag=None,
    last_modified=None,
)  # fmt: skip


def kept(read: scratch.Read, growing: GrowingFile) -> str:
    return scratch.keep(PUBLISHED, read, growing).sha256


def fetched(read: scratch.Read, growing: GrowingFile) -> str:
    with scratch.fetched(PUBLISHED, read, growing) as (_, sha256):
        return sha256


@pytest.mark.parametrize("fetch", [kept, fetched])
def test_the_reader_gets_each_piece_before_the_next_is_fetched(
    fetch: Callable[[scratch.Read, GrowingFile], str], reader: Reader
) -> None:
    def pieces(_: PublishedFile) -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            yield piece
            assert reader.has(b"".join(PIECES[: number + 1]))
        assert reader.is_alive()  # the file is not complete yet

    sha256 = fetch(pieces, reader.growing)
    assert reader.ended()
    assert reader.got == b"".join(PIECES)
    assert not reader.aborted
    assert reader.growing.sha256 == sha256 == hashlib.sha256(b"".join(PIECES)).hexdigest()


def test_a_reader_that_seeks_does_not_change_the_size_that_is_recorded() -> None:
    class Seeking(GrowingFile):
        def complete(self, sha256: str) -> None:
            super().complete(sha256)
            with self.file() as file:
                file.seek(-5, os.SEEK_END)

    growing = Seeking()
    raw = scratch.keep(PUBLISHED, lambda _: PIECES, growing)
    growing.close()
    assert raw.size == sum(map(len, PIECES))
    assert scratch.has(raw)


def test_a_seekable_file_opens_when_it_is_complete(reader: Reader) -> None:
    whole = b"".join(PIECES)
    with scratch.fetched(PUBLISHED, lambda _: PIECES, reader.growing) as (file, _):
        pieces = scratch.pieces(file, 100_000)
        begun = next(pieces)
        for _ in range(2):  # each reader begins at the beginning
            with reader.growing.file() as other:
                other.seek(-5, os.SEEK_END)
                assert other.read() == whole[-5:]
                other.seek(0)
                assert other.read() == whole
        assert begun + b"".join(pieces) == whole  # the other readers did not move this one


def test_a_reader_notices_that_the_writer_gave_up(reader: Reader) -> None:
    growing = reader.growing

    def pieces(_: PublishedFile) -> Iterator[bytes]:
        yield PIECES[0]
        growing.abort()

    with scratch.fetched(PUBLISHED, pieces, growing) as (file, _):
        assert b"".join(scratch.pieces(file)) == PIECES[0]  # the writer goes on
    assert growing.sha256 == ""
    assert reader.ended()
    assert reader.aborted
    uses: list[Callable[[], object]] = [
        lambda: growing.wait(complete=False), growing.require, lambda: growing.file().__enter__(), lambda: next(growing.pieces())
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(Aborted):
            use()
