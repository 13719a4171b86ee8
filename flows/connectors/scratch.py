"""This machine's disk, as a bounded cache of published files that other users cannot change.

The folder is private, or it is not used. A file of the cache is opened once: what was hashed is what is read.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, BinaryIO

from flows.tlc.errors import DiskFull, UnsafeScratch
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.sources import ENDINGS, PublishedFile
from flows.tlc.trips import COLORS

DEFAULT_LIMIT = 4 << 30  # bytes of published files kept; the oldest go first
_ABANDONED = 24 * 60 * 60  # seconds after which a file half fetched belongs to no run any more
_FETCHING = ".fetching-"  # begins the name of a file half fetched
_SPARE = 64 << 20  # bytes that must stay free on the disk
_OURS = "nyc-taxi-flows"

# The only names in the folder that this module lists or deletes.
_KEPT_NAME = re.compile(
    rf"({'|'.join(COLORS)})_tripdata_\d{{4}}-\d{{2}}-[0-9a-f]{{16}}({'|'.join(map(re.escape, ENDINGS))})"
)
_FETCHING_NAME = re.compile(rf"{re.escape(_FETCHING)}[a-z0-9_]{{8}}")

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT}


def folder() -> Path:
    """Return the folder of published files; make it, for this user alone, if it does not exist.

    It is `TRIPS_SCRATCH`, or `nyc-taxi-flows` in the user's cache folder. A user without a home (a container) has it in the
    system's temporary folder.

    Raises:
        UnsafeScratch: The folder is a symbolic link, belongs to another user, or can be written by other users.
    """
    named = os.environ.get("TRIPS_SCRATCH")
    places = [_at_home(named).absolute()] if named else _default_places()
    for path in places:
        try:
            _make(path)
        except OSError as error:
            if error.errno not in _UNUSABLE | _NO_ROOM:
                raise
            continue
        _require_private(path)
        if os.access(path, os.R_OK | os.W_OK | os.X_OK):
            return path
    raise UnsafeScratch(
        f"published files cannot be kept in {' or '.join(map(str, places))}: this user cannot write there."
        " Point TRIPS_SCRATCH at a folder of this user on a disk with room. Nothing was loaded."
    )


def _default_places() -> list[Path]:
    """Return the places for the folder, the best first. https://specifications.freedesktop.org/basedir-spec/latest/"""
    places = [Path(tempfile.gettempdir()) / f"{_OURS}-{os.getuid()}"]
    cache = _at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [cache / _OURS, *places] if cache.is_absolute() else places


def _at_home(path: str) -> Path:
    """Return the path, with `~` in the place of the user's home if there is one."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def _make(path: Path) -> None:
    """Make a folder, and those above it, for this user alone, whatever the umask is."""
    if not os.path.lexists(path):
        if not path.parent.exists():
            _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _require_private(path: Path) -> None:
    """Raise `UnsafeScratch` unless the path is a real folder of this user in which nobody else can write."""
    about = path.lstat()
    elsewhere = "point TRIPS_SCRATCH at a folder of this user"
    if stat.S_ISLNK(about.st_mode):
        wrong, advice = "it is a symbolic link", f"{elsewhere}, by its real path"
    elif not stat.S_ISDIR(about.st_mode):
        wrong, advice = "it is not a folder", elsewhere
    elif about.st_uid != os.getuid():
        wrong, advice = f"it belongs to another user (uid {about.st_uid}, this is {os.getuid()})", elsewhere
    elif about.st_mode & stat.S_ISVTX and about.st_mode & _OTHERS_MAY_WRITE:
        wrong, advice = (
            "it is shared by all users",
            f"point TRIPS_SCRATCH at a folder of its own, such as {path / _OURS}",
        )
    elif about.st_mode & _OTHERS_MAY_WRITE:
        wrong = f"other users may write to it (mode {stat.S_IMODE(about.st_mode):04o})"
        advice = f"run `chmod go-w '{path}'`, or {elsewhere}"
    else:
        return
    raise UnsafeScratch(f"published files cannot be kept in {path}: {wrong}. To mend it, {advice}. Nothing was loaded.")


def require_room(size: int | None, what: str) -> None:
    """Raise `DiskFull` unless `size` bytes fit on the scratch disk, before any of them is fetched."""
    _sweep()
    free = shutil.disk_usage(folder()).free
    if (size or 0) + _SPARE > free:
        raise DiskFull(
            f"{what} needs {((size or 0) + _SPARE) / 1e6:,.0f} MB on disk, {free / 1e6:,.0f} MB are free in {folder()}."
            " Free some, or point TRIPS_SCRATCH at a larger disk. Nothing was loaded."
        )


@contextmanager
def disk_full_explained(what: str) -> Iterator[None]:
    """Turn the system's error about a full disk into `DiskFull`, with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _full(what) from error


def _full(what: str) -> DiskFull:
    return DiskFull(
        f"{what}: the disk of {folder()} became full while the file was being written; what was written is deleted."
        " Free some room, or point TRIPS_SCRATCH at a larger disk. Nothing was loaded."
    )


@contextmanager
def _listing() -> Iterator[int]:
    """Open the folder for work on names in it, which then is done in this very folder."""
    descriptor = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _named(names: re.Pattern[str], descriptor: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files of the open folder whose whole name matches; symbolic links are not followed."""
    for name in os.listdir(descriptor):
        if names.fullmatch(name):
            with suppress(FileNotFoundError):  # another run deletes too
                about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(about.st_mode):
                    yield name, about


def _sweep() -> None:
    """Delete the files half fetched that killed runs left; those of a run at work are younger."""
    with _listing() as here:
        for name, about in _named(_FETCHING_NAME, here):
            if about.st_mtime < time.time() - _ABANDONED:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)


def _make_room(limit: int = DEFAULT_LIMIT) -> None:
    """Delete the files used longest ago beyond `limit` bytes; the newest stays, however large."""
    total = 0
    with _listing() as here:
        kept = sorted(_named(_KEPT_NAME, here), key=lambda file: file[1].st_mtime_ns, reverse=True)
        for position, (name, about) in enumerate(kept):
            total += about.st_size
            if position and total > limit:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)


def keep(published: PublishedFile, read: Callable[[PublishedFile], Iterable[bytes]]) -> RawFile:
    """Fetch a file whole into the cache and return what came; a file half fetched is never seen under its name."""
    what = str(published.trip_month)
    require_room(published.size, what)
    place = folder()
    digest = hashlib.sha256()
    size = 0
    descriptor, half = tempfile.mkstemp(dir=place, prefix=_FETCHING)
    try:
        with disk_full_explained(what), os.fdopen(descriptor, "wb") as file:
            for piece in read(published):
                digest.update(piece)
                size += file.write(piece)
                if shutil.disk_usage(descriptor).free < _SPARE:  # a source need not tell its file's size
                    raise _full(what)
        raw = _raw(published, size, digest.hexdigest())
        Path(half).replace(place / raw.key)
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise
    _make_room()
    return raw


def _raw(published: PublishedFile, size: int, sha256: str) -> RawFile:
    name = f"{published.trip_month.stem}-{sha256[:16]}{published.ending}"
    return RawFile(published=published, key=name, generation=0, size=size, sha256=sha256)


def raw_of(manifest: Manifest) -> RawFile:
    """Return the published file that a month was made of, as the cache would keep it."""
    return _raw(manifest.published, manifest.size, manifest.sha256)


def opened(raw: RawFile) -> BufferedReader | None:
    """Open the cache's file of exactly these bytes, hashed through the descriptor that is returned; None if there is none."""
    path = folder() / Path(raw.key).name
    try:
        # O_NONBLOCK: another kind of file, such as a pipe, must not hold the run up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO):
            return None
        raise
    about = os.fstat(descriptor)
    private = about.st_uid == os.getuid() and not about.st_mode & _OTHERS_MAY_WRITE
    if not (stat.S_ISREG(about.st_mode) and private and about.st_size == raw.size):
        os.close(descriptor)
        return None
    file = os.fdopen(descriptor, "rb")
    if hashlib.file_digest(file, "sha256").hexdigest() != raw.sha256:
        file.close()
        return None
    file.seek(0)
    os.utime(descriptor)  # last used, last to go
    return file


def has(raw: RawFile) -> bool:
    """Return whether the cache has exactly these bytes."""
    file = opened(raw)
    if file is None:
        return False
    file.close()
    return True


def pieces(file: BinaryIO, piece: int = 1 << 20) -> Iterator[bytes]:
    """Yield an open file's bytes, from where it is."""
    while data := file.read(piece):
        yield data


@contextmanager
def temporary_file(size: int, what: str) -> Iterator[IO[bytes]]:
    """Give a file of the scratch disk that has no name and is gone when the block ends, with room for `size` bytes.

    Raises:
        DiskFull: There is no room for it, before or while it is written.
    """
    require_room(size, what)
    with disk_full_explained(what), tempfile.TemporaryFile(dir=folder()) as file:
        yield file
