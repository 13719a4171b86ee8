"""Open files of this machine by their file:// addresses. Only regular files are accepted."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

from flows.connectors.guard import require_allowed
from flows.tlc.addresses import escaped, parsed, path_of, shown
from flows.tlc.errors import NotPublished, UnreadableFile


@contextmanager
def opened(about: object, url: str) -> Iterator[BufferedReader]:
    """Open the file at a file:// address.

    Raises:
        NotPublished: The file does not exist.
        UnreadableFile: The address names a folder, a device or a pipe, or the file may not be read.
        SourceNotAllowed: This process may not read local files.
    """
    parsed(url)
    require_allowed(url)
    path = path_of(url)
    try:
        # Without O_NONBLOCK, opening a pipe that has no writer blocks forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NotPublished(f"{about} is not at {shown(url)}: there is no file {escaped(path)}.") from None
        raise UnreadableFile(
            f"{about}: the file {escaped(path)} cannot be read ({error.strerror}); check its permissions, and the source."
        ) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        with os.fdopen(descriptor, "rb") as file:
            yield file
        return
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise UnreadableFile(
            f"{about}: {shown(url)} is a folder, such as Spark writes: name one file, or join the folder's files into one."
        )
    raise UnreadableFile(f"{about}: {shown(url)} is a device, a pipe or a socket, not a file; check the source.")
