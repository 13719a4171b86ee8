"""Read a published file from this machine's scratch folder, for a store that has no bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from flows.connectors import scratch
from flows.connectors.web import Download
from flows.tlc.addresses import shown
from flows.tlc.errors import UnreadableFile
from flows.tlc.manifest import RawFile


@dataclass(frozen=True)
class KeptFile:
    """The bytes of a raw file in the scratch folder. They are fetched again if the folder lacks them."""

    raw: RawFile

    @contextmanager
    def file(self) -> Iterator[BinaryIO]:
        """Open the file."""
        raw = self.raw
        file = scratch.opened(raw)
        if file is None:
            again = scratch.keep(raw.published, Download)
            file = scratch.opened(raw)
            if file is None:
                raise UnreadableFile(
                    f"{raw.trip_month}: {shown(raw.published.url)} changed while it was being loaded"
                    f" (sha256 {again.sha256[:12]}…, was {raw.sha256[:12]}…). Nothing was loaded; run again."
                )
        with file:
            yield file

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes."""
        with self.file() as file:
            yield from scratch.pieces(file)
