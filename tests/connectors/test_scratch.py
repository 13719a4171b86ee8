"""The scratch cache is private and limited in size, and every file in it is checked before use."""

import errno
import hashlib
import os
import re
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.connectors import scratch
from flows.stores.kept_file import KeptFile
from flows.tlc.errors import DiskFull, UnsafeScratch
from flows.tlc.sources import PublishedFile
from flows.tlc.stream import MonthStream
from flows.tlc.trips import TripMonth
from tests.tlc.published import csv_file, line

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


def test_a_file_is_stored_under_its_month_and_checksum(folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    assert (raw.size, raw.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [path.name for path in folder.iterdir()] == [raw.key]
    assert raw.key == f"green_tripdata_2021-01-{raw.sha256[:16]}.csv.gz"
    file = scratch.opened(raw)
    assert file is not None
    with file:
        assert [len(piece) for piece in scratch.pieces(file, 3000)] == [3000, 3000, 3000, 1000]
        file.seek(0)
        assert b"".join(scratch.pieces(file)) == DATA


def test_only_this_user_can_enter_the_folder(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert scratch.folder() == folder
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a home and a temporary folder, without TRIPS_SCRATCH."""
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    for name in ("TRIPS_SCRATCH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


def test_by_default_the_folder_is_in_this_users_cache_folder(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scratch.folder() == at_home / "home" / ".cache" / "nyc-taxi-flows"
    monkeypatch.setenv("XDG_CACHE_HOME", str(at_home / "caches"))
    assert scratch.folder() == at_home / "caches" / "nyc-taxi-flows"


@pytest.mark.parametrize("home", ["/proc/no-such-folder", "relative"])
def test_without_a_home_the_folder_is_a_private_one_in_the_temporary_folder(
    home: str, at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert scratch.folder() == at_home / "tmp" / f"nyc-taxi-flows-{os.getuid()}"
    assert scratch.folder().stat().st_mode & 0o777 == 0o700


def test_the_error_for_a_folder_that_cannot_be_made_gives_advice(
    at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (at_home / "a-file").touch()
    monkeypatch.setenv("TRIPS_SCRATCH", str(at_home / "a-file" / "scratch"))
    with pytest.raises(UnsafeScratch) as error:
        scratch.folder()
    assert f"cannot be kept in {at_home}/a-file/scratch: this user cannot write there" in str(error.value)
    assert "Point TRIPS_SCRATCH at" in str(error.value)


def test_a_tilde_in_the_path_means_the_home(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPS_SCRATCH", "~/trips")
    assert scratch.folder() == at_home / "home" / "trips"


def _linked(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(folder.parent / "elsewhere")


def _of_mode(mode: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        folder.chmod(mode)

    return make


def _of_another_user(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@pytest.mark.parametrize(
    ("make", "wrong", "advice"),
    [
        pytest.param(_linked, "it is a symbolic link", "by its real path", id="a link"),
        pytest.param(Path.touch, "it is not a folder", "point TRIPS_SCRATCH at", id="a file"),
        pytest.param(_of_mode(0o777), "other users may write to it (mode 0777)", "run `chmod go-w '", id="0777"),
        pytest.param(_of_mode(0o720), "other users may write to it (mode 0720)", "run `chmod go-w '", id="0720"),
        pytest.param(_of_mode(0o1777), "it is shared by all users", "at a folder of its own, such as", id="as /tmp is"),
        pytest.param(_of_another_user, "it belongs to another user (uid 12345", "of this user", id="anothers", marks=as_root),
    ],
)  # fmt: skip
def test_a_folder_that_others_could_change_is_refused_and_not_touched(
    make: Callable[[Path], None], wrong: str, advice: str, folder: Path
) -> None:
    folder.parent.mkdir()
    make(folder)
    target = folder.resolve() if folder.is_dir() else folder.parent
    (target / ".fetching-abcdefgh").write_bytes(DATA)
    (target / "of-theirs").mkdir()
    for path in target.iterdir():
        os.utime(path, (0, 0))
    before = sorted(target.iterdir())
    for attempt in (
        scratch.folder,
        lambda: scratch.keep(published(), lambda _: pytest.fail("fetched")),
        lambda: scratch.require_room(0, "green 2021-01"),
        lambda: scratch.temporary_file(0, "green 2021-01").__enter__(),
    ):
        with pytest.raises(UnsafeScratch) as error:
            attempt()
        assert f"cannot be kept in {folder}: {wrong}" in str(error.value)
        assert advice in str(error.value)
    assert sorted(target.iterdir()) == before


def test_a_hostile_folder_in_the_temporary_folder_is_refused(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/no-such-folder")
    theirs = at_home / "tmp" / f"nyc-taxi-flows-{os.getuid()}"
    theirs.symlink_to(at_home / "home")
    with pytest.raises(UnsafeScratch, match="it is a symbolic link"):
        scratch.folder()


def test_the_same_bytes_are_stored_once(folder: Path) -> None:
    assert scratch.keep(published(), pieces) == scratch.keep(published(), pieces)
    assert len(list(folder.iterdir())) == 1


def test_an_interrupted_download_leaves_no_file(folder: Path) -> None:
    def broken(_: PublishedFile) -> Iterator[bytes]:
        yield DATA
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        scratch.keep(published(), broken)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "change", [lambda p: p.write_bytes(DATA[:-1]), lambda p: p.write_bytes(b"x" + DATA[1:]), Path.unlink]
)
def test_a_changed_truncated_or_missing_file_is_not_used(change: object, folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    assert callable(change)
    change(folder / raw.key)
    assert scratch.opened(raw) is None


def _a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        _a_link,
        _a_pipe,
        _a_folder,
        lambda path: path.chmod(0o666),
        pytest.param(lambda path: os.chown(path, 12345, -1), marks=as_root),
    ],
)
def test_a_file_that_another_user_could_change_is_not_used(change: Callable[[Path], None], folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    change(folder / raw.key)
    assert not scratch.has(raw)


def test_a_file_replaced_after_its_check_is_read_as_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = csv_file(*[line(fare_amount=f"{n}.5") for n in range(100)])
    poisoned = csv_file(*[line(fare_amount="999.5") for _ in range(100)])
    about = published(size=len(good)).model_copy(update={"ending": ".csv"})
    raw = scratch.keep(about, lambda _: [good])
    checked = hashlib.file_digest

    def and_swapped(file: Any, name: str) -> Any:
        digest = checked(file, name)
        (folder / "theirs").write_bytes(poisoned)
        (folder / "theirs").replace(folder / raw.key)
        return digest

    monkeypatch.setattr("hashlib.file_digest", and_swapped)
    fares = [fare for chunk in MonthStream(raw, KeptFile(raw)) for fare in chunk.trips["fare_amount"].to_pylist()]
    assert fares == [n + 0.5 for n in range(100)]


def test_a_key_cannot_name_a_file_outside_the_folder(folder: Path) -> None:
    raw = scratch.keep(published(), pieces)
    (folder.parent / "outside").write_bytes(DATA)
    assert not scratch.has(raw.model_copy(update={"key": "../outside"}))


def _named(word: str) -> str:
    """Return a name in the format of the cache."""
    return f"green_tripdata_2021-01-{hashlib.sha256(word.encode()).hexdigest()[:16]}.csv.gz"


def _aged(folder: Path, **ages: int) -> None:
    folder.mkdir(parents=True)
    for word, age in ages.items():
        (folder / _named(word)).write_bytes(DATA)
        os.utime(folder / _named(word), (1_000_000 - age, 1_000_000 - age))


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
def test_the_least_recently_used_files_are_deleted_first_and_the_newest_never(
    folder: Path, limit: int, left: set[str]
) -> None:
    _aged(folder, new=0, older=1, oldest=2)
    scratch._make_room(limit)
    assert {path.name for path in folder.iterdir()} == set(map(_named, left))


def test_a_file_larger_than_the_cache_is_kept_while_its_run_needs_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _aged(folder, old=10)
    monkeypatch.setattr(scratch._make_room, "__defaults__", (5,))
    raw = scratch.keep(published(), pieces)
    assert scratch.has(raw)
    assert [path.name for path in folder.iterdir()] == [raw.key]


def test_a_file_that_another_run_has_deleted_causes_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _aged(folder, new=0, gone=1, oldest=2)
    listed = [path.name for path in folder.iterdir()]
    (folder / _named("gone")).unlink()
    monkeypatch.setattr("os.listdir", lambda _: listed)
    scratch._make_room(0)
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == [_named("new")]


def test_a_file_that_another_run_is_fetching_is_not_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch._make_room, "__defaults__", (0,))
    others = []

    def with_another_run(_: PublishedFile) -> Iterator[bytes]:
        yield DATA[:4000]
        others.append(scratch.keep(published(2), pieces))
        yield DATA[4000:]

    raw = scratch.keep(published(1), with_another_run)
    assert scratch.has(raw)
    assert others


def test_files_that_killed_runs_left_are_deleted_after_a_day(folder: Path) -> None:
    _aged(folder, kept=0)
    for name, made_at in ((".fetching-0young00", time.time()), (".fetching-00old_00", time.time() - 2 * 24 * 60 * 60)):
        (folder / name).write_bytes(DATA)
        os.utime(folder / name, (made_at, made_at))
    scratch.require_room(0, "green 2021-01")
    assert {path.name for path in folder.iterdir()} == {_named("kept"), ".fetching-0young00"}


def test_files_with_other_names_are_never_deleted(folder: Path) -> None:
    _aged(folder, new=0)
    outside = folder.parent / "outside"
    outside.write_bytes(DATA)
    names = [
        "thesis.pdf",
        ".fetching-thesis.pdf",
        "green_tripdata_2021-01.parquet",
        _named("x") + ".bak",
        "tmpabcdefgh",
    ]
    for name in names:
        (folder / name).write_bytes(DATA)
    for name in (".fetching-0folder0", _named("folder")):
        (folder / name).mkdir()
        (folder / name / "trips.parquet").write_bytes(DATA)
    for name in (".fetching-000link0", _named("link")):
        (folder / name).symlink_to(outside)
    before = {path.name for path in folder.iterdir()}
    for path in [*folder.iterdir(), outside]:
        os.utime(path, (0, 0), follow_symlinks=False)
    scratch.require_room(0, "green 2021-01")
    scratch._make_room(0)
    assert {path.name for path in folder.iterdir()} == before
    assert outside.read_bytes() == DATA


def test_using_a_file_makes_it_the_last_to_be_deleted(folder: Path) -> None:
    first, second = (scratch.keep(published(month), pieces) for month in (1, 2))
    for raw in (first, second):
        os.utime(folder / raw.key, (1_000_000, 1_000_000))
    assert scratch.has(first)
    scratch._make_room(len(DATA))
    assert [path.name for path in folder.iterdir()] == [first.key]


_Usage = namedtuple("_Usage", "total used free")


def fetch_into_a_temporary_file(published: PublishedFile, read: scratch.Read) -> None:
    with scratch.fetched(published, read):
        pass


BOTH = pytest.mark.parametrize("fetch", [scratch.keep, fetch_into_a_temporary_file])


@BOTH
@pytest.mark.parametrize("size", [None, 50_000_000])
def test_a_full_disk_is_reported_before_the_download(
    fetch: Callable[[PublishedFile, scratch.Read], object],
    size: int | None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(0, 0, 60_000_000))
    with pytest.raises(DiskFull) as full:
        fetch(published(size=size), lambda _: pytest.fail("fetched"))
    needed = "67" if size is None else "117"
    assert f"green 2021-01 needs {needed} MB on disk, 60 MB are free in {folder}." in str(full.value)
    assert "point TRIPS_SCRATCH at a larger disk" in str(full.value)


def test_a_disk_with_enough_space_passes_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(0, 0, (64 << 20) + len(DATA)))
    scratch.require_room(len(DATA), "green 2021-01")
    with pytest.raises(DiskFull):
        scratch.require_room(len(DATA) + 1, "green 2021-01")


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@BOTH
def test_a_disk_that_fills_up_during_a_download_is_reported_and_no_file_is_left(
    fetch: Callable[[PublishedFile, scratch.Read], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_filling_disk(_: PublishedFile) -> Iterator[bytes]:
        yield DATA
        monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(0, 0, 1_000_000))  # other programs fill the disk
        yield DATA
        pytest.fail("fetched on")

    for read in (on_a_filling_disk, no_room):
        with pytest.raises(DiskFull, match=re.escape(f"green 2021-01: the disk of {folder} became full")) as full:
            fetch(published(size=None), read)  # type: ignore[arg-type]
        assert "point TRIPS_SCRATCH at a larger disk" in str(full.value)
        assert list(folder.iterdir()) == []
        monkeypatch.undo()
        monkeypatch.setenv("TRIPS_SCRATCH", str(folder))


def test_a_failed_write_to_a_full_disk_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (full, str(folder / ".fetching-abcdefgh")))
    with pytest.raises(DiskFull, match="became full"):
        scratch.keep(published(), pieces)


def test_a_temporary_file_has_no_name_and_a_full_disk_is_reported(folder: Path) -> None:
    with scratch.temporary_file(len(DATA), "green 2021-01") as file:
        file.write(DATA)
        assert list(folder.iterdir()) == []
    with pytest.raises(DiskFull, match="green 2021-01: the disk of"), scratch.temporary_file(0, "green 2021-01"):
        no_room()
    with pytest.raises(OSError, match="Input/output"), scratch.temporary_file(0, "green 2021-01"):
        raise OSError(errno.EIO, "Input/output error")
