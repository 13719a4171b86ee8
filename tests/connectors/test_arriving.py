"""A file is read while it is written: all its bytes in order, or the reader is told that there will be no more."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.connectors import scratch
from flows.connectors.arriving import Arriving, NoMoreBytes

PIECES = [bytes([number]) * (number * 100_000) for number in range(1, 9)]


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPS_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def arriving() -> Iterator[Arriving]:
    made = Arriving()
    yield made
    made.close()


def reading(arriving: Arriving, got: list[bytes]) -> threading.Thread:
    """Start a thread that reads all bytes."""

    def read() -> None:
        try:
            for piece in arriving.pieces():
                got.append(piece)
        except NoMoreBytes:
            got.append(b"no more")

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_the_reader_gets_each_piece_before_the_next_is_written(arriving: Arriving) -> None:
    got: list[bytes] = []
    thread = reading(arriving, got)
    so_far = b""
    with scratch.copied(None, "a month", arriving) as copy:
        for piece in PIECES:
            copy(piece)
            so_far += piece
            while b"".join(got) != so_far:
                assert thread.is_alive()
        assert thread.is_alive()  # the file is not complete yet
        arriving.end("its sha256")
    thread.join(10)
    assert not thread.is_alive()
    assert b"".join(got) == so_far


def test_a_seekable_file_opens_when_it_is_complete(arriving: Arriving) -> None:
    with scratch.copied(None, "a month", arriving) as copy:
        for piece in PIECES:
            copy(piece)
        arriving.end("its sha256")
    for _ in range(2):  # each reader begins at the beginning
        with arriving.file() as file:
            file.seek(-5, os.SEEK_END)
            assert file.read() == PIECES[-1][-5:]
            file.seek(0)
            assert file.read() == b"".join(PIECES)


def test_a_reader_is_told_that_the_writer_gave_up(arriving: Arriving) -> None:
    got: list[bytes] = []
    thread = reading(arriving, got)
    with scratch.copied(None, "a month", arriving) as copy:
        copy(PIECES[0])
    arriving.stop()
    arriving.end("too late")
    thread.join(10)
    assert got[-1] == b"no more"
    for use in (arriving.wait_for_first, arriving.require, lambda: arriving.file().__enter__()):
        with pytest.raises(NoMoreBytes):
            use()


def test_a_full_disk_stops_the_reader_and_not_the_writer(arriving: Arriving, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch.copied(1 << 60, "a month", arriving) as copy:
        copy(PIECES[0])
    with pytest.raises(NoMoreBytes):
        arriving.wait_for_first()

    half_way = Arriving()
    with Path("/dev/full").open("wb") as full:
        half_way.begin(full)
    half_way.write(PIECES[0])
    with pytest.raises(NoMoreBytes):
        next(half_way.pieces())
    half_way.close()


def test_nothing_is_written_after_the_file_was_closed(tmp_path: Path) -> None:
    arriving = Arriving()
    with scratch.copied(None, "a month", arriving) as copy:
        copy(b"before")
        arriving.close()
        with (tmp_path / "another").open("wb") as another:  # may get the same descriptor
            copy(b"after")
        assert another.closed
    assert (tmp_path / "another").read_bytes() == b""


def test_without_a_reader_nothing_is_copied(tmp_path: Path) -> None:
    with scratch.copied(None, "a month", None) as copy:
        copy(b"bytes")
    assert not (tmp_path / "scratch").exists()


def test_a_file_is_kept_and_read_at_the_same_time(arriving: Arriving) -> None:
    from flows.tlc.sources import PublishedFile
    from flows.tlc.trips import TripMonth

    got: list[bytes] = []
    thread = reading(arriving, got)

    def pieces(_: PublishedFile) -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            yield piece
            while b"".join(got) != b"".join(PIECES[: number + 1]):
                assert thread.is_alive()

    published = PublishedFile(
        trip_month=TripMonth("green", 2019, 6), url="https://tlc.example/a.csv", ending=".csv", size=None, etag=None,
        last_modified=None,
    )  # fmt: skip
    raw = scratch.keep(published, pieces, arriving)
    thread.join(10)
    assert b"".join(got) == b"".join(PIECES)
    assert arriving.sha256 == raw.sha256
