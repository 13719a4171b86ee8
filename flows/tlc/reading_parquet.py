"""Parquet as published, read as a stream of chunks: batches of rows. Memory is bounded by their size.

The functions take an open file and never open one.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from flows.tlc.clean import Chunk, clean
from flows.tlc.eras import Shape, match
from flows.tlc.errors import UnreadableFile
from flows.tlc.pipeline import ahead
from flows.tlc.trips import SchemaRule, TripMonth

BATCH = 64 << 10  # rows of Parquet converted at once


def _values(batch: pa.RecordBatch) -> pa.Table:
    """The batch, with values in place of numbers into a dictionary."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.table(columns, names=batch.schema.names)


def parquet_chunks(
    trip_month: TripMonth,
    file: BinaryIO | pa.NativeFile,
    on_shape: Callable[[Shape], None],
    rule: SchemaRule = "strict",
) -> Generator[Chunk, None, None]:
    """Chunks of an open, seekable Parquet file."""
    try:
        # INT96 is what Spark writes, in microseconds; as nanoseconds, years outside 1677 to 2262 would wrap around.
        parquet = pq.ParquetFile(
            file, buffer_size=1 << 20, coerce_int96_timestamp_unit="us", page_checksum_verification=True
        )
        schema = parquet.schema_arrow
        shape = match(trip_month, ".parquet", schema.names, schema.types, rule)
        on_shape(shape)

        def batches() -> Iterator[Chunk]:
            row = 1
            for batch in parquet.iter_batches(BATCH):
                numbers = pa.arange(row, row + batch.num_rows)
                row += batch.num_rows
                chunk = clean(trip_month, shape, _values(batch), numbers)
                yield replace(chunk, share=(row - 1) / max(parquet.metadata.num_rows, 1))
            # Arrow reads a column cut short without a word, and goes on with the next row group's values beside it.
            if row - 1 != parquet.metadata.num_rows:
                raise pa.ArrowInvalid(f"{row - 1} rows where its footer promises {parquet.metadata.num_rows}")

        with closing(ahead(batches())) as chunks:
            yield from chunks
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(
            f"{trip_month}: the Parquet file is damaged ({error}). Nothing was loaded; fetch it again."
        ) from error
