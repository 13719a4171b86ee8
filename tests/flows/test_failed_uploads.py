"""An upload that fails while another thread still writes fails the run, and not the process."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast
from unittest.mock import MagicMock

import pyarrow as pa
import pytest

from flows.stores import lake
from flows.stores.lake import Lake
from flows.tlc.clean import Chunk, rejects_table
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import TripMonth, staged_key

MONTH = TripMonth("green", 2021, 1)
ROWS = 1_000


class Endless:
    """Chunks of trips without values, each with a rejected row and one column that the schema does not know."""

    trip_month = MONTH

    def __iter__(self) -> Iterator[Chunk]:
        schema = arrow_schema(MONTH.color)
        trips = pa.table([pa.nulls(ROWS, field.type) for field in schema], schema=schema)
        extra = pa.table({"row_number": pa.arange(0, ROWS), "new": pa.nulls(ROWS, pa.string())})
        while True:
            yield Chunk(trips, rejects_table([(1, "not a number", "x")]), ROWS + 1, extra=extra)


def writers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ahead")}


def test_files_are_closed_after_the_thread_that_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "_ROW_GROUP", 2 * ROWS)
    before = writers()
    alive_at_close: list[bool] = []

    @contextmanager
    def writer(key: str) -> Iterator[IO[bytes]]:
        if key == staged_key(MONTH.key, "run"):
            yield MagicMock(write=MagicMock(side_effect=[None, None, OSError("the bucket is gone")]))
        else:
            try:
                yield io.BytesIO()
            finally:
                alive_at_close.append(bool(writers() - before))

    ours = Lake.__new__(Lake)
    ours.bucket = MagicMock(writer=writer)
    with pytest.raises(OSError, match="the bucket is gone"):
        ours._write(cast("Any", Endless()), "run")
    assert alive_at_close == [False, False]
