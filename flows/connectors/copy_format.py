"""Encode Arrow tables as PostgreSQL's COPY reads them: trips in the binary format, quarantined rows as CSV.

The binary format saves printing and parsing numbers: https://www.postgresql.org/docs/current/sql-copy.html
"""

from collections.abc import Iterable, Iterator
from typing import IO

import pgpq
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

_ROWS = 16_384  # encoded at once: about 5 MB


def encode(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[bytes]:
    """Yield all rows of `tables` as COPY … (FORMAT binary) reads them.

    Args:
        tables: Tables of this schema.
        schema: Columns of integers, doubles, timestamps in microseconds, or strings.
    """
    encoder = pgpq.ArrowToPostgresBinaryEncoder(schema)
    yield encoder.write_header()
    for table in tables:
        for batch in table.to_batches(_ROWS):
            yield encoder.write_batch(batch)
    yield encoder.finish()


def fields(copied: bytes) -> Iterator[tuple[bytes | None, ...]]:
    """Yield the fields of each row of a COPY in the binary format, as PostgreSQL sends them; None for null."""
    at = 11 + 4 + 4  # the signature, the flags, the length of an empty header extension
    while (count := int.from_bytes(copied[at : at + 2], "big", signed=True)) >= 0:
        at += 2
        row: list[bytes | None] = []
        for _ in range(count):
            length = int.from_bytes(copied[at : at + 4], "big", signed=True)
            at += 4
            row.append(copied[at : at + length] if length >= 0 else None)
            at += max(length, 0)
        yield tuple(row)


def write_rejects(rejects: pa.Table, out: IO[bytes]) -> None:
    """Append quarantined rows to `out` as COPY … (FORMAT csv) reads them. Write NUL, which PostgreSQL cannot store, as \\x00."""
    plain = [
        pc.replace_substring(column, "\0", r"\x00") if pa.types.is_string(column.type) else column
        for column in rejects.columns
    ]
    csv.write_csv(pa.table(plain, rejects.schema.names), out, csv.WriteOptions(include_header=False))
