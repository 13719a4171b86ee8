"""Read a file on the scratch disk while another thread still writes it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_PIECE = 1 << 20  # bytes read at once


class Aborted(Exception):
    """The file will not be completed, or nobody reads it any more."""


class GrowingFile:
    """A file that one thread writes, and another reads from its beginning. The reader waits for bytes that are missing.

    Any thread may call `abort`. It raises nothing in the writer; the reader gets `Aborted`.
    """

    def __init__(self) -> None:
        self.sha256 = ""
        """SHA-256 of the complete file, whose transfer was checked; "" until then."""
        self._changed = threading.Condition()
        self._descriptor = -1
        self._size = 0
        self._aborted = False

    def begin(self, file: IO[bytes]) -> None:
        """Use a file that is empty and open for writing. It may be closed, renamed or deleted later."""
        with self._changed:
            if not self._aborted:
                self._descriptor = os.dup(file.fileno())

    def grow(self, size: int) -> None:
        """Record that the file has so many more bytes, which are not in a buffer of the writer."""
        with self._changed:
            self._size += size
            self._changed.notify_all()

    def complete(self, sha256: str) -> None:
        """Record that the file is complete."""
        with self._changed:
            if not self._aborted:
                self.sha256 = sha256
            self._changed.notify_all()

    def wait(self, *, complete: bool) -> None:
        """Wait for the first bytes, or for all. Raise `Aborted` if they will not come."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self.sha256 or (self._size and not complete))
            self.require()

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes from beginning to end. Raise `Aborted` if the end will not come."""
        position = 0
        while (size := self._size_beyond(position)) > position:
            if piece := os.pread(self._descriptor, min(_PIECE, size - position), position):
                position += len(piece)
                yield piece

    def _size_beyond(self, position: int) -> int:
        """Return the size of the file once it is more than `position`, or the file is complete."""
        with self._changed:
            self._changed.wait_for(lambda: self._aborted or self._size > position or self.sha256)
            self.require()
            return self._size

    @contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        """Open the complete file. Raise `Aborted` if it will not be complete."""
        self.wait(complete=True)
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            yield file

    def require(self) -> None:
        """Raise `Aborted` if `abort` was called."""
        if self._aborted:
            raise Aborted

    def abort(self) -> None:
        """Give up: the reader gets `Aborted`."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def close(self) -> None:
        """Abort, and close the file. The reader must have ended."""
        with self._changed:
            self.abort()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
