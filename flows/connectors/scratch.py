"""A cache of published files on this machine's disk, limited in size, that other users cannot change.

The folder is used only if it is private. A cached file is opened once, so the bytes that are read are the bytes that were hashed.
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
from typing import IO

from flows.connectors.growing_file import GrowingFile
from flows.tlc.errors import DiskFull, UnsafeScratch
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.sources import ENDINGS, PublishedFile
from flows.tlc.trips import COLORS

DEFAULT_LIMIT = 4 << 30  # bytes of published files in the cache; the least recently used are deleted first
_ABANDONED = 24 * 60 * 60  # seconds; no run writes longer to one file
_FETCHING = ".fetching-"  # prefix of the name of an incomplete file
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

Read = Callable[[PublishedFile], Iterable[bytes]]
"""Fetches the bytes of a published file."""


def folder() -> Path:
    """Return the folder of published files. If it does not exist, create it for this user alone.

    It is `TRIPS_SCRATCH`, or else `nyc-taxi-flows` in the user's cache folder. For a user without a home, as in a container, it
    is in the system's temporary folder.

    Raises:
        UnsafeScratch: The folder is a symbolic link, belongs to another user, or other users can write to it.
            It is raised too if this user cannot write to any of the candidates.
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
    """Return candidates for the folder, the best first. https://specifications.freedesktop.org/basedir-spec/latest/"""
    places = [Path(tempfile.gettempdir()) / f"{_OURS}-{os.getuid()}"]
    cache = _at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return [cache / _OURS, *places] if cache.is_absolute() else places


def _at_home(path: str) -> Path:
    """Return the path with `~` expanded to the user's home, if the user has one."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def _make(path: Path) -> None:
    """Create a folder and its missing parents for this user alone, whatever the umask is."""
    if not os.path.lexists(path):
        if not path.parent.exists():
            _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def _require_private(path: Path) -> None:
    """Raise `UnsafeScratch` unless the path is a real folder of this user to which nobody else can write."""
    about = path.lstat()
    elsewhere = "point TRIPS_SCRATCH at a folder of this user"
    if stat.S_ISLNK(about.st_mode):
        wrong, advice = "it is a symbolic link", f"{elsewhere}, by its real path"
    elif not stat.S_ISDIR(about.st_mode):
        wrong, advice = "it is not a folder", elsewhere
    elif about.st_uid != os.getuid():
        wrong, advice = f"it belongs to another user (uid {about.st_uid}, this is {os.getuid()})", elsewhere
    elif about.st_mode & stat.S_ISVTX and about.st_mode & _OTHERS_MAY_WRITE:
        wrong = "it is shared by all users"
        advice = f"point TRIPS_SCRATCH at a folder of its own, such as {path / _OURS}"
    elif about.st_mode & _OTHERS_MAY_WRITE:
        wrong = f"other users may write to it (mode {stat.S_IMODE(about.st_mode):04o})"
        advice = f"run `chmod go-w '{path}'`, or {elsewhere}"
    else:
        return
    raise UnsafeScratch(f"published files cannot be kept in {path}: {wrong}. To mend it, {advice}. Nothing was loaded.")


def require_room(size: int | None, what: str) -> None:
    """Raise `DiskFull` unless the scratch disk has room for `size` bytes. `what` names the file in the message."""
    _sweep()
    needed, free = (size or 0) + _SPARE, shutil.disk_usage(folder()).free
    if needed > free:
        raise DiskFull(
            f"{what} needs {needed / 1e6:,.0f} MB on disk, {free / 1e6:,.0f} MB are free in {folder()}."
            " Free some room, or point TRIPS_SCRATCH at a larger disk. Nothing was loaded."
        )


@contextmanager
def disk_full_explained(what: str) -> Iterator[None]:
    """Convert the system's errors about a full disk into `DiskFull`, which says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise _full(what) from error


def _full(what: str) -> DiskFull:
    return DiskFull(
        f"{what}: the disk of {folder()} became full while the file was being written; the part already written is deleted."
        " Free some room, or point TRIPS_SCRATCH at a larger disk. Nothing was loaded."
    )


@contextmanager
def _listing() -> Iterator[int]:
    """Yield a descriptor of the folder. The descriptor stays on this folder even if the path is replaced."""
    descriptor = os.open(folder(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _named(names: re.Pattern[str], descriptor: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the regular files of the open folder whose whole name matches. Do not follow symbolic links."""
    for name in os.listdir(descriptor):
        if names.fullmatch(name):
            with suppress(FileNotFoundError):  # another run may have deleted it
                about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISREG(about.st_mode):
                    yield name, about


def _sweep() -> None:
    """Delete incomplete files of runs that were killed. The files of active runs are younger than `_ABANDONED`."""
    with _listing() as here:
        for name, about in _named(_FETCHING_NAME, here):
            if about.st_mtime < time.time() - _ABANDONED:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)


def _make_room(limit: int = DEFAULT_LIMIT) -> None:
    """Delete the least recently used files until the others fit in `limit` bytes. Keep the newest, however large it is."""
    total = 0
    with _listing() as here:
        kept = sorted(_named(_KEPT_NAME, here), key=lambda file: file[1].st_mtime_ns, reverse=True)
        for position, (name, about) in enumerate(kept):
            total += about.st_size
            if position and total > limit:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)


def keep(published: PublishedFile, read: Read, growing: GrowingFile | None = None) -> RawFile:
    """Fetch a file into the cache and return its facts. Give the file its name only when it is complete.

    Another thread can read its bytes from `growing` meanwhile.
    """
    what = str(published.trip_month)
    require_room(published.size, what)
    place = folder()
    descriptor, half = tempfile.mkstemp(dir=place, prefix=_FETCHING)
    try:
        with disk_full_explained(what), os.fdopen(descriptor, "wb") as file:
            sha256 = _fetch(published, read, file, growing)
            # Not `tell`: the reader of a growing file moves the position, too.
            raw = _raw(published, os.fstat(file.fileno()).st_size, sha256)
        Path(half).replace(place / raw.key)
    except BaseException:
        Path(half).unlink(missing_ok=True)
        raise
    _make_room()
    return raw


@contextmanager
def fetched(
    published: PublishedFile, read: Read, growing: GrowingFile | None = None
) -> Iterator[tuple[IO[bytes], str]]:
    """Fetch a file into a temporary one. Yield it and its SHA-256. Another thread can read its bytes from `growing` meanwhile."""
    with temporary_file(published.size, str(published.trip_month)) as file:
        yield file, _fetch(published, read, file, growing)


def _fetch(published: PublishedFile, read: Read, file: IO[bytes], growing: GrowingFile | None) -> str:
    """Write the bytes of a published file to an empty file, and return their SHA-256."""
    digest = hashlib.sha256()
    if growing:
        growing.begin(file)
    for piece in read(published):
        digest.update(piece)
        file.write(piece)
        file.flush()
        if growing:
            growing.grow(len(piece))
        if shutil.disk_usage(file.fileno()).free < _SPARE:  # the file's size may be unknown before it is fetched
            raise _full(str(published.trip_month))
    sha256 = digest.hexdigest()
    if growing:
        growing.complete(sha256)
    return sha256


def _raw(published: PublishedFile, size: int, sha256: str) -> RawFile:
    name = f"{published.trip_month.stem}-{sha256[:16]}{published.ending}"
    return RawFile(published=published, key=name, generation=0, size=size, sha256=sha256)


def raw_of(manifest: Manifest) -> RawFile:
    """Return the published file from which a month was made, with the name that it has in the cache."""
    return _raw(manifest.published, manifest.size, manifest.sha256)


def opened(raw: RawFile) -> BufferedReader | None:
    """Open the cached file with exactly these bytes, or return None. The bytes are hashed through the returned file."""
    path = folder() / Path(raw.key).name
    try:
        # O_NONBLOCK: opening a pipe must not block the run.
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
    os.utime(descriptor)  # the modification time records the last use
    return file


def has(raw: RawFile) -> bool:
    """Return whether the cache has a file with exactly these bytes."""
    file = opened(raw)
    if file is None:
        return False
    file.close()
    return True


def pieces(file: IO[bytes], piece: int = 1 << 20) -> Iterator[bytes]:
    """Yield all bytes of a file on disk. Its position, which another thread may use, is neither used nor changed."""
    position = 0
    while data := os.pread(file.fileno(), piece, position):
        position += len(data)
        yield data


@contextmanager
def temporary_file(size: int | None, what: str) -> Iterator[IO[bytes]]:
    """Yield an unnamed file on the scratch disk. Raise `DiskFull` if the disk has no room for it, now or while it is written."""
    require_room(size, what)
    with disk_full_explained(what), tempfile.TemporaryFile(dir=folder()) as file:
        yield file
