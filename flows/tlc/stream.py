"""Read a month's published file once, from beginning to end, as canonical trips."""

import datetime as dt
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from typing import IO, Any, Protocol

from flows.tlc.clean import FILTERS, Chunk, Tally, filtered
from flows.tlc.manifest import RawFile, StagedMonth
from flows.tlc.matching import Shape
from flows.tlc.pickups import Pickups
from flows.tlc.pipeline import Add, ahead
from flows.tlc.quality import Profiler
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.trips import Rows, SchemaRule


class Content(Protocol):
    """The bytes of a raw file, independent of where they are kept."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes from beginning to end."""

    def file(self) -> AbstractContextManager[IO[bytes]]:
        """Open the bytes as a seekable file."""


class MonthStream:
    """Iterates once over a raw file, in chunks of canonical trips. Then the shape, the tally and the profile are complete.

    If the file is not a sound file of its month, iteration raises after the last chunk at the latest: `UnreadableFile`,
    `SchemaMismatch`, `TooManyRejects` or `WrongMonth`. Therefore publish only after the loop.
    """

    shape: Shape

    def __init__(
        self,
        raw: RawFile,
        content: Content,
        rows: Rows = "all",
        schema: SchemaRule = "strict",
        on_rows: Add = lambda rows, share: None,
    ) -> None:
        self.raw, self.rows = raw, rows
        self.trip_month = raw.published.trip_month
        self.tally = Tally(self.trip_month)
        self._content, self._schema, self._on_rows = content, schema, on_rows
        self._profiler = Profiler(self.trip_month)
        self._started_at = dt.datetime.now(dt.UTC)

    def __iter__(self) -> Iterator[Chunk]:
        # The profile counts the trips that `rows` wants; this counts all trips.
        every_pickup = Pickups(self.trip_month) if FILTERS[self.rows] else self._profiler.pickups
        with closing(self._chunks()) as chunks:
            for chunk in chunks:
                assert chunk.shape is not None  # noqa: S101 - every chunk of a reader has one
                self.shape = chunk.shape
                if every_pickup is not self._profiler.pickups:
                    every_pickup.add(chunk.trips)
                self._on_rows(chunk.source_rows, chunk.share)
                wanted = filtered(chunk, self.rows)
                self._profiler.add(wanted.trips)
                self.tally.add(wanted)
                yield wanted
        self.tally.check(self.trip_month)
        every_pickup.check()

    def _chunks(self) -> Generator[Chunk, None, None]:
        ending = self.raw.published.ending
        if ending == ".parquet":  # needs a seekable file: its footer is read first
            with self._content.file() as file:
                yield from parquet_chunks(self.trip_month, file, self._schema)
        else:
            yield from csv_chunks(self.trip_month, ending, ahead(self._content.pieces()), self._schema, self.raw.size)

    def staged(self, **where: Any) -> StagedMonth:
        """Return the facts about the staged month. `where` are the store's facts: its key, its generation and so on."""
        tally = self.tally
        return StagedMonth(
            raw=self.raw,
            rule=self.rows,
            era=self.shape.era.name,
            columns=self.shape.published,
            source_rows=tally.source_rows,
            loaded=tally.loaded,
            filtered={name: count for name, count in tally.filtered.items() if count},
            quarantined=dict(tally.quarantined),
            profile=self._profiler.profile(),
            new_columns=self.shape.new,
            repeated=tally.repeated,
            started_at=self._started_at,
            **where,
        )
