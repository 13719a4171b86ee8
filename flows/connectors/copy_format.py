"""Convert between Arrow tables and the data of PostgreSQL's COPY: trips in the binary format, other rows as CSV.

With the binary format, no number is converted to text and back: https://www.postgresql.org/docs/current/sql-copy.html
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


def table_of(copied: bytes, schema: pa.Schema) -> pa.Table:
    """Return the rows of a COPY … TO STDOUT (FORMAT csv) as a table of this schema."""
    if not copied:
        return schema.empty_table()
    return csv.read_csv(
        pa.BufferReader(copied),
        csv.ReadOptions(column_names=schema.names),
        csv.ParseOptions(newlines_in_values=True),
        # An empty field is null. An empty text is quoted.
        csv.ConvertOptions(
            column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )


def write_rejects(rejects: pa.Table, out: IO[bytes]) -> None:
    """Append quarantined rows to `out` as COPY … (FORMAT csv) reads them. Write NUL, which PostgreSQL cannot store, as \\x00."""
    plain = [
        pc.replace_substring(column, "\0", r"\x00") if pa.types.is_string(column.type) else column
        for column in rejects.columns
    ]
    csv.write_csv(pa.table(plain, rejects.schema.names), out, csv.WriteOptions(include_header=False))
