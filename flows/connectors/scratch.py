"""This machine's disk, as a bounded cache of published files; nothing in it is believed before it was checked."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.sources import PublishedFile

DEFAULT_LIMIT = 4 << 30  # bytes of published files kept; the oldest go first
_ABANDONED = 24 * 60 * 60  # seconds after which a folder, or a file half fetched, is nobody's any more
_FETCHING = ".fetching-"  # begins the name of a file half fetched
_SPARE = 64 << 20  # bytes that must stay free on the disk


class DiskFull(TripDataError):
    """The disk has no room for the file; nothing was begun."""


def folder() -> Path:
    """Where the files are: `TRIPS_SCRATCH`, or a folder of this user's under the system's temporary one."""
    path = Path(os.environ.get("TRIPS_SCRATCH") or Path(tempfile.gettempdir()) / f"nyc-taxi-flows-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _path(key: str) -> Path:
    return folder() / Path(key).name


def require_room(size: int | None, what: str) -> None:
    """Raise `DiskFull` unless `size` bytes fit on the scratch disk, before any of them is fetched."""
    _sweep()
    free = shutil.disk_usage(folder()).free
    if (size or 0) + _SPARE > free:
        raise DiskFull(
            f"{what} needs {((size or 0) + _SPARE) / 1e6:,.0f} MB on disk, {free / 1e6:,.0f} MB are free in {folder()}."
            " Free some, or point TRIPS_SCRATCH at a larger disk. Nothing was loaded."
        )


def _sweep() -> None:
    """Remove what killed runs left, folders and files half fetched; those of a run at work are younger."""
    for path in folder().iterdir():
        with suppress(FileNotFoundError):  # another run sweeps too
            if path.stat().st_mtime > time.time() - _ABANDONED:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(_FETCHING):
                path.unlink()


def _make_room(limit: int = DEFAULT_LIMIT) -> None:
    """Remove the files used longest ago beyond `limit` bytes; the newest stays, however large."""
    kept = []
    for path in folder().iterdir():
        with suppress(FileNotFoundError):  # another run makes room too
            if path.is_file() and not path.name.startswith(_FETCHING):
                about = path.stat()
                kept.append((about.st_mtime_ns, path, about.st_size))
    total = 0
    for position, (_, path, size) in enumerate(sorted(kept, reverse=True)):
        total += size
        if position and total > limit:
            path.unlink(missing_ok=True)


def keep(published: PublishedFile, read: Callable[[PublishedFile], Iterable[bytes]]) -> RawFile:
    """Fetch a file whole into the cache and tell what came; a file half fetched is never seen under its name."""
    require_room(published.size, str(published.trip_month))
    digest = hashlib.sha256()
    size = 0
    with tempfile.NamedTemporaryFile(dir=folder(), prefix=_FETCHING, delete=False) as file:
        try:
            for piece in read(published):
                digest.update(piece)
                size += file.write(piece)
        except BaseException:
            Path(file.name).unlink()
            raise
    raw = _raw(published, size, digest.hexdigest())
    Path(file.name).replace(_path(raw.key))
    _make_room()
    return raw


def _raw(published: PublishedFile, size: int, sha256: str) -> RawFile:
    name = f"{published.trip_month.stem}-{sha256[:16]}{published.ending}"
    return RawFile(published=published, key=name, generation=0, size=size, sha256=sha256)


def raw_of(manifest: Manifest) -> RawFile:
    """The published file that a month was made of, as the cache would keep it."""
    return _raw(manifest.published, manifest.size, manifest.sha256)


def path_of(raw: RawFile) -> Path | None:
    """Where the cache has exactly these bytes, or None."""
    path = _path(raw.key)
    if not path.is_file() or path.stat().st_size != raw.size:
        return None
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != raw.sha256:
            return None
    path.touch()  # last used, last to go
    return path


def read(path: Path, piece: int = 1 << 20) -> Iterator[bytes]:
    """A file's bytes."""
    with path.open("rb") as file:
        while data := file.read(piece):
            yield data
