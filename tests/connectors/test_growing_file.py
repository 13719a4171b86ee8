"""A file is read while it is written: the reader gets all its bytes in order, or `Aborted`."""

import os
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.connectors import scratch
from flows.connectors.growing_file import Aborted, GrowingFile
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth

PIECES = [bytes([number]) * (number * 100_000) for number in range(1, 9)]
Usage = namedtuple("Usage", "total used free")


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


def test_the_reader_gets_each_piece_before_the_next_is_written(reader: Reader) -> None:
    so_far = b""
    with scratch.spooled(None, "a month", reader.growing) as append:
        for piece in PIECES:
            append(piece)
            so_far += piece
            assert reader.has(so_far)
        assert reader.is_alive()  # the file is not complete yet
        reader.growing.complete("its sha256")
    assert reader.ended()
    assert reader.got == so_far
    assert not reader.aborted


def test_a_seekable_file_opens_when_it_is_complete(reader: Reader) -> None:
    growing = reader.growing
    with scratch.spooled(None, "a month", growing) as append:
        for piece in PIECES:
            append(piece)
        growing.complete("its sha256")
    for _ in range(2):  # each reader begins at the beginning
        with growing.file() as file:
            file.seek(-5, os.SEEK_END)
            assert file.read() == PIECES[-1][-5:]
            file.seek(0)
            assert file.read() == b"".join(PIECES)


def test_a_reader_notices_that_the_writer_gave_up(reader: Reader) -> None:
    growing = reader.growing
    with scratch.spooled(None, "a month", growing) as append:
        append(PIECES[0])
    growing.abort()
    growing.complete("too late")
    assert reader.ended()
    assert reader.aborted
    uses: list[Callable[[], object]] = [
        lambda: growing.wait(complete=False), growing.require, lambda: growing.file().__enter__(), lambda: next(growing.pieces())
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(Aborted):
            use()


def free(monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """Let the disk have this much room at each question; the last answer stays."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, sizes.pop(0) if len(sizes) > 1 else sizes[0]))


@pytest.mark.parametrize("sizes", [[0], [1 << 40, 1 << 40, 1 << 20]], ids=["from the beginning", "half-way"])
def test_without_room_the_reader_ends_and_the_space_is_freed(
    sizes: list[int], reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, sizes)
    with scratch.spooled(None, "a month", reader.growing) as append:
        for piece in PIECES:
            append(piece)
        assert reader.ended()
        descriptor = reader.growing._descriptor
        assert descriptor < 0 or os.fstat(descriptor).st_size == 0
    assert reader.aborted


def test_a_disk_that_is_full_ends_the_reader_and_not_the_writer(reader: Reader) -> None:
    with Path("/dev/full").open("wb") as full:
        reader.growing.begin(full)
    reader.growing.append(PIECES[0])
    assert reader.ended()
    assert reader.aborted


def test_without_a_reader_nothing_is_written(tmp_path: Path) -> None:
    with scratch.spooled(None, "a month", None) as append:
        append(b"bytes")
    assert not (tmp_path / "scratch").exists()


def test_a_file_is_kept_and_read_at_the_same_time(reader: Reader) -> None:
    def pieces(_: PublishedFile) -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            yield piece
            assert reader.has(b"".join(PIECES[: number + 1]))

    published = PublishedFile(
        trip_month=TripMonth("green", 2019, 6), url="https://tlc.example/a.csv", ending=".csv", size=None, etag=None,
        last_modified=None,
    )  # fmt: skip
    raw = scratch.keep(published, pieces, reader.growing)
    assert reader.ended()
    assert reader.got == b"".join(PIECES)
    assert reader.growing.sha256 == raw.sha256
