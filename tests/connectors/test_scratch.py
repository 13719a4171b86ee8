"""The scratch cache is bounded, and nothing in it is believed before it was checked."""

import hashlib
import os
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.connectors import scratch
from flows.connectors.scratch import DiskFull
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth

DATA = b"0123456789" * 1000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPS_SCRATCH", str(tmp_path / "a" / "scratch"))
    return tmp_path / "a" / "scratch"


def published(month: int = 1, size: int | None = len(DATA)) -> PublishedFile:
    return PublishedFile(
        trip_month=TripMonth("green", 2021, month),
        url="http://h/x",
        ending=".csv.gz",
        etag=None,
        last_modified=None,
        size=size,
    )


def pieces(_: PublishedFile) -> Iterator[bytes]:
    yield DATA[:4000]
    yield DATA[4000:]


def test_a_file_is_kept_whole_under_its_month_and_hash(folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    assert (raw.size, raw.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [path.name for path in folder.iterdir()] == [raw.key]
    assert raw.key == f"green_tripdata_2021-01-{raw.sha256[:16]}.csv.gz"
    path = scratch.path_of(raw)
    assert path == folder / raw.key
    assert b"".join(scratch.read(path)) == DATA
    assert [len(piece) for piece in scratch.read(path, 3000)] == [3000, 3000, 3000, 1000]


def test_the_folder_is_nobody_elses(folder: Path) -> None:
    assert scratch.folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_word_the_folder_is_this_users_under_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPS_SCRATCH")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert scratch.folder() == tmp_path / f"nyc-taxi-flows-{os.getuid()}"


def test_the_same_bytes_fetched_again_are_one_file(folder: Path) -> None:
    assert scratch.keep(published(), pieces) == scratch.keep(published(), pieces)
    assert len(list(folder.iterdir())) == 1


def test_a_fetch_that_breaks_off_leaves_nothing(folder: Path) -> None:
    def broken(_: PublishedFile) -> Iterator[bytes]:
        yield DATA
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        scratch.keep(published(), broken)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "change", [lambda p: p.write_bytes(DATA[:-1]), lambda p: p.write_bytes(b"x" + DATA[1:]), Path.unlink]
)
def test_a_file_that_changed_shrank_or_went_is_not_believed(change: object) -> None:
    raw = scratch.keep(published(), pieces)
    path = scratch.path_of(raw)
    assert callable(change)
    change(path)
    assert scratch.path_of(raw) is None


def test_a_key_leads_nowhere_outside_the_folder(folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    (folder.parent / "outside").write_bytes(DATA)
    assert scratch.path_of(raw.model_copy(update={"key": "../outside"})) is None


def _aged(folder: Path, **ages: int) -> None:
    folder.mkdir(parents=True)
    for name, age in ages.items():
        (folder / name).write_bytes(DATA)
        os.utime(folder / name, (1_000_000 - age, 1_000_000 - age))


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (40_000, {"new", "older", "oldest"}),
        (30_000, {"new", "older", "oldest"}),
        (29_999, {"new", "older"}),
        (10_000, {"new"}),
        (9_999, {"new"}),
        (0, {"new"}),
    ],
)
def test_the_files_used_longest_ago_go_first_and_the_newest_never(folder: Path, limit: int, left: set[str]) -> None:
    _aged(folder, new=0, older=1, oldest=2)
    scratch._make_room(limit)
    assert {path.name for path in folder.iterdir()} == left


def test_a_file_larger_than_the_cache_is_kept_while_it_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _aged(folder, old=10)
    monkeypatch.setattr(scratch._make_room, "__defaults__", (5,))
    raw = scratch.keep(published(), pieces)
    assert scratch.path_of(raw)
    assert [path.name for path in folder.iterdir()] == [raw.key]


def test_a_file_that_another_run_removed_meanwhile_is_no_trouble(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _aged(folder, new=0, gone=1)
    listed = list(folder.iterdir())
    (folder / "gone").unlink()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    scratch._make_room(0)
    assert (folder / "new").exists()


def test_a_file_that_another_run_is_fetching_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch._make_room, "__defaults__", (0,))
    others = []

    def meanwhile(_: PublishedFile) -> Iterator[bytes]:
        yield DATA[:4000]
        others.append(scratch.keep(published(2), pieces))
        yield DATA[4000:]

    raw = scratch.keep(published(1), meanwhile)
    assert scratch.path_of(raw)
    assert others


def test_what_killed_runs_left_goes_after_a_day_whoever_comes(folder: Path) -> None:
    day_before_yesterday = time.time() - 2 * 24 * 60 * 60
    _aged(folder, kept=0)
    for age, made_at in (("young", time.time()), ("old", day_before_yesterday)):
        (folder / f".fetching-{age}").write_bytes(DATA)
        (folder / f"tmp{age}").mkdir()
        (folder / f"tmp{age}" / "trips.parquet").write_bytes(DATA)
        for name in (f".fetching-{age}", f"tmp{age}"):
            os.utime(folder / name, (made_at, made_at))
    scratch.require_room(0, "green 2021-01")
    assert {path.name for path in folder.iterdir()} == {"kept", ".fetching-young", "tmpyoung"}


def test_a_file_used_is_the_last_to_go(folder: Path) -> None:
    first, second = (scratch.keep(published(month), pieces) for month in (1, 2))
    for raw in (first, second):
        os.utime(folder / raw.key, (1_000_000, 1_000_000))
    assert scratch.path_of(first)
    scratch._make_room(len(DATA))
    assert [path.name for path in folder.iterdir()] == [first.key]


_Usage = namedtuple("_Usage", "total used free")


@pytest.mark.parametrize("size", [None, 50_000_000])
def test_a_full_disk_is_said_before_a_byte_is_fetched(
    size: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(0, 0, 60_000_000))
    with pytest.raises(DiskFull) as full:
        scratch.keep(published(size=size), lambda _: pytest.fail("fetched"))
    needed = "67" if size is None else "117"
    assert f"green 2021-01 needs {needed} MB on disk, 60 MB are free in {folder}." in str(full.value)
    assert "point TRIPS_SCRATCH at a larger disk" in str(full.value)


def test_room_enough_is_room_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(0, 0, (64 << 20) + len(DATA)))
    scratch.require_room(len(DATA), "green 2021-01")
    with pytest.raises(DiskFull):
        scratch.require_room(len(DATA) + 1, "green 2021-01")
