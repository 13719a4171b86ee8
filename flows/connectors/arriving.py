"""Read a published file from the scratch disk while it is still being written there."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_PIECE = 1 << 20  # bytes read at once


class NoMoreBytes(Exception):
    """The writer or the reader gave up before the file was complete."""


class Arriving:
    """A file that one thread writes, and another reads from its beginning. The reader waits for bytes that are missing."""

    def __init__(self) -> None:
        self.sha256 = ""
        """Of all bytes, once the file is complete and its transfer was checked."""
        self._changed = threading.Condition()
        self._descriptor = -1
        self._size = 0
        self._stopped = False

    # For the writer.

    def begin(self, file: IO[bytes]) -> None:
        """Name the file that is written. It is empty. It may be closed, renamed or deleted later."""
        with self._changed:
            if not self._stopped:
                self._descriptor = os.dup(file.fileno())

    def grow(self, size: int) -> None:
        """Say that so many more bytes are in the file, not in a buffer of the writer."""
        with self._changed:
            self._size += size
            self._changed.notify_all()

    def end(self, sha256: str) -> None:
        """Say that the file is complete."""
        with self._changed:
            if not self._stopped:
                self.sha256 = sha256
            self._changed.notify_all()

    def write(self, piece: bytes) -> None:
        """Append a piece to the file. If that fails, for example because the disk is full, give up instead of raising."""
        left = memoryview(piece)
        with self._changed:  # `close` must not close the file meanwhile: another file could get its descriptor
            try:
                while left and not self._stopped:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                self.stop()
            self.grow(len(piece) - len(left))

    # For the reader.

    def wait_for_first(self) -> None:
        """Wait for the first bytes. Raise `NoMoreBytes` if `stop` is called before."""
        self._arrived(0)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes from beginning to end. Raise `NoMoreBytes` if `stop` is called before the end."""
        position = 0
        while (arrived := self._arrived(position)) > position:
            piece = os.pread(self._descriptor, min(_PIECE, arrived - position), position)
            position += len(piece)
            yield piece

    def _arrived(self, position: int) -> int:
        """Return how many bytes are there, once they are more than `position`, or the file is complete."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._size > position or bool(self.sha256))
            self.require()
            return self._size

    @contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        """Open the complete file. Raise `NoMoreBytes` if `stop` is called before it is complete."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or bool(self.sha256))
            self.require()
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            yield file

    def require(self) -> None:
        """Raise `NoMoreBytes` if `stop` was called."""
        if self._stopped:
            raise NoMoreBytes

    # For both.

    def stop(self) -> None:
        """Give up: the reader gets `NoMoreBytes`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Give up, and close the file. The reader must have ended."""
        with self._changed:
            self.stop()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
