"""Encode Arrow tables in PostgreSQL's binary COPY format. Binary saves printing and parsing numbers. Rejects are written as CSV.

https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY: each row has its number of fields; each field has its
length (-1: null) and its bytes, big-endian.
"""

from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_EPOCH = 946_684_800_000_000  # PostgreSQL counts microseconds from 2000-01-01
_LARGEST = 64 << 20  # most bytes in one array of rows, each as wide as the widest row

Bytes = npt.NDArray[np.uint8]


def encode(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    """Yield all rows of `tables` as COPY … (FORMAT binary) reads them.

    Args:
        tables: Columns of integers, doubles, timestamps in microseconds, or strings.
    """
    yield _HEADER
    for table in tables:
        yield from _pieces(table)
    yield _TRAILER


def write_rejects(rejects: pa.Table, out: IO[bytes]) -> None:
    """Append quarantined rows to `out` as COPY … (FORMAT csv) reads them. Write NUL, which PostgreSQL cannot store, as \\x00."""
    plain = [
        pc.replace_substring(column, "\0", r"\x00") if pa.types.is_string(column.type) else column
        for column in rejects.columns
    ]
    csv.write_csv(pa.table(plain, rejects.schema.names), out, csv.WriteOptions(include_header=False))


def _pieces(table: pa.Table) -> Iterator[bytes]:
    if table.num_rows == 0:
        return
    fields = [_field(column) for column in table.columns]
    width = 2 + sum(4 + values.shape[1] for _, values in fields)
    if width * table.num_rows > _LARGEST and table.num_rows > 1:  # one very long string makes every row as wide
        middle = table.num_rows // 2
        yield from _pieces(table.slice(0, middle))
        yield from _pieces(table.slice(middle))
        return
    rows = np.zeros((table.num_rows, width), np.uint8)
    used = np.ones(rows.shape, bool)  # bytes that nulls and shorter strings do not fill are cut out
    rows[:, :2] = np.array([len(fields)], ">i2").view(np.uint8)
    at = 2
    for lengths, values in fields:
        size = values.shape[1]
        rows[:, at : at + 4] = lengths.astype(">i4").view(np.uint8).reshape(-1, 4)
        rows[:, at + 4 : at + 4 + size] = values
        if lengths.min() < size:
            used[:, at + 4 : at + 4 + size] = np.arange(size) < lengths[:, None]
        at += 4 + size
    yield rows.tobytes() if used.all() else rows[used].tobytes()


def _field(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], Bytes]:
    """Return the length of every value of a column (-1: null), and its bytes, padded to the longest value."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count == len(array):
        return np.full(len(array), -1, np.int32), np.empty((len(array), 0), np.uint8)
    if pa.types.is_string(array.type):
        return _texts(array)
    if pa.types.is_timestamp(array.type):
        array = pc.subtract(array.cast(pa.int64()), _EPOCH)
    numbers: npt.NDArray[Any] = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
    kind = ">f8" if pa.types.is_floating(array.type) else ">i8"
    lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), 8, -1).astype(np.int32)
    return lengths, numbers.astype(kind).view(np.uint8).reshape(-1, 8)


def _texts(array: pa.StringArray) -> tuple[npt.NDArray[np.int32], Bytes]:
    lengths = pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False).astype(np.int32)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array)]
    letters = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    # Positions after a string's end take bytes of the next string; the length cuts them out.
    return lengths, letters.take(starts[:, None] + np.arange(max(int(lengths.max()), 0)), mode="clip")
