"""Read a Parquet file as a stream of chunks.

Each chunk is a batch of rows. The size of a batch bounds the memory. The functions take an open file and never open one.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.tlc.clean import MAX_REJECTED_SHARE, Chunk, clean
from flows.tlc.convert import is_text
from flows.tlc.errors import SchemaMismatch, TripDataError, UnreadableFile
from flows.tlc.matching import Shape, match
from flows.tlc.missing import Missing
from flows.tlc.parquet_footer import (
    INT96,
    LONGEST_FOOTER,
    LONGEST_TEXT,
    MOST_VALUES,
    ColumnChunk,
    Footer,
    Group,
    TooMuch,
    Unsupported,
    batches_of,
    read_footer,
)
from flows.tlc.parquet_pages import Contradiction
from flows.tlc.pipeline import ahead
from flows.tlc.trips import SchemaRule, TripMonth

BATCH = 64 << 10  # rows of Parquet converted at once
# A batch may have `_FREE_TEXT` bytes of text, and `_TEXT_PER_ROW` more for each row. TLC's rows have fewer than 100 bytes.
_TEXT_PER_ROW = 4 << 10
_FREE_TEXT = 16 << 20
_ORIGINALS = 100  # rejected rows that keep their original, at least
_LONGEST_QUOTE = 300  # characters of the reader's own message, quoted in ours


# What to do about a Parquet file that cannot be read, and what is wrong with it.
_DAMAGED = (
    "the Parquet file is damaged ({}). Nothing was loaded; fetch it again. If the new copy has the same error, the publisher's"
    " own file is damaged: take the month from another source."
)
_EXCESSIVE = "the Parquet file needs more than a month of trips can: {}. Nothing was loaded; get TLC's own file."
_UNSUPPORTED = (
    "the Parquet file uses something that cannot be read here ({}). Nothing was loaded; get TLC's own file, or save this one"
    " again without encryption and with Snappy, gzip or Zstandard."
)


def _explained(trip_month: TripMonth, error: Exception) -> UnreadableFile:
    """Return the error to raise for an error of the reader; its message says what to do."""
    words = " ".join(str(error).split()) or type(error).__name__
    message = _DAMAGED
    if isinstance(error, TooMuch | MemoryError):
        message = _EXCESSIVE
    elif isinstance(error, Unsupported):
        message = _UNSUPPORTED
    words = words if len(words) <= _LONGEST_QUOTE else f"{words[:_LONGEST_QUOTE]}…"
    return UnreadableFile(f"{trip_month}: {message.format(words)}")


def _text(values: pa.Array) -> pa.Array:
    """Return texts as `string` or `large_string`, without checking that they are UTF-8: `clean` does. Return others as given."""
    if pa.types.is_binary_view(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.binary())
    if pa.types.is_large_binary(values.type):
        return values.view(pa.large_string())
    return values.view(pa.string()) if pa.types.is_binary(values.type) else values


def _plain(values: pa.Array) -> pa.Array:
    """Return a column without dictionary encoding, texts as `string` or `large_string`; raise `TooMuch` if a text is too long."""
    if pa.types.is_dictionary(values.type):
        values = pa.DictionaryArray.from_arrays(values.indices, _text(values.dictionary)).dictionary_decode()
    values = _text(values)
    if is_text(values.type):
        longest = pc.max(pc.binary_length(values)).as_py() or 0
        if longest > LONGEST_TEXT:
            raise TooMuch(f"it has a text of {longest:,} bytes, the limit is {LONGEST_TEXT:,}")
    return values


def _without_empty_texts(values: pa.Array) -> pa.Array:
    """Return the texts with null in place of empty ones. A CSV cannot distinguish the two."""
    lengths = pc.binary_length(values)
    if pc.min(lengths).as_py() != 0:
        return values
    return pc.if_else(pc.equal(lengths, 0), pa.scalar(None, values.type), values)


def _values(batch: pa.RecordBatch, group: Group, new: tuple[str, ...]) -> pa.Table:
    """Return the batch in the few types that `clean` takes. Keep empty texts in `new` columns: they are stored as published."""
    columns = []
    size = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            plain = _plain(column)
        except TooMuch as much:
            raise TooMuch(f"{group.place()}, column {name[:60]!r}: {much}") from None
        if is_text(plain.type):
            size += plain.nbytes
            plain = plain if name in new else _without_empty_texts(plain)
        columns.append(plain)
    if size > _FREE_TEXT + _TEXT_PER_ROW * batch.num_rows:
        raise TooMuch(f"{group.place()}: {batch.num_rows:,} rows have {size >> 20} MB of text")
    return pa.table(columns, names=batch.schema.names)


_COMPARABLE = (pa.int64(), pa.int32(), pa.int16(), pa.int8(), pa.float64())


def _comparable(kind: pa.DataType) -> bool:
    """Return whether the footer's bounds are numbers in the same unit as the values."""
    if pa.types.is_timestamp(kind):
        return bool(kind.unit != "s")  # seconds are stored as milliseconds
    return kind in _COMPARABLE


def _plain_columns(group: Group) -> list[ColumnChunk]:
    """Return the column chunks that are not part of a nested or repeated column."""
    return [chunk for chunk in group.columns if chunk.leaf.flat and len(chunk.leaf.path) == 1]


def _require_bounds(group: Group, batch: pa.RecordBatch) -> None:
    """Raise `Contradiction` if a value is not within the bounds that the footer gives for its column."""
    for chunk in _plain_columns(group):
        values = batch.column(chunk.leaf.path[0])
        if chunk.bounds is None or not _comparable(values.type):
            continue
        if pa.types.is_timestamp(values.type):
            values = values.view(pa.int64())
        # NaN and null are neither below nor above. For doubles, which most columns are, `min_max` takes three times as long.
        low, high = chunk.bounds
        if pc.any(pc.or_(pc.less(values, low), pc.greater(values, high)), min_count=0).as_py():
            raise Contradiction(f"{group.place(chunk)}: it has values outside the bounds that the footer gives")


def _batches(parquet: pq.ParquetFile, group: Group, size: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of one row group. Raise `Contradiction` if its rows, nulls or values disagree with the footer."""
    rows = 0
    nulls: Counter[ColumnChunk] = Counter()
    plain = _plain_columns(group)
    for batch in parquet.iter_batches(size, row_groups=[group.number]):
        rows += batch.num_rows
        for chunk in plain:
            nulls[chunk] += batch.column(chunk.leaf.path[0]).null_count
        _require_bounds(group, batch)
        yield batch
    if rows != group.rows:
        raise Contradiction(f"{group.place()} has {rows:,} rows, its footer states {group.rows:,}")
    for chunk in plain:
        if chunk.nulls not in (None, nulls[chunk]):
            raise Contradiction(
                f"{group.place(chunk)}: {nulls[chunk]:,} values are missing, the footer says {chunk.nulls:,}"
            )


def _tables(parquet: pq.ParquetFile, footer: Footer, sizes: Sequence[int], new: tuple[str, ...]) -> Iterator[pa.Table]:
    """Yield the rows of the file. Join small row groups, because each table costs as much time as thousands of rows."""
    waiting: list[pa.Table] = []
    share = 0.0  # of the rows that may be decoded at once
    for group, size in zip(footer.groups, sizes, strict=True):
        for batch in _batches(parquet, group, size):
            if waiting and share + batch.num_rows / size > 1:
                yield pa.concat_tables(waiting)
                waiting, share = [], 0.0
            waiting.append(_values(batch, group, new))
            share += batch.num_rows / size
    if waiting:
        yield pa.concat_tables(waiting)


_SPARK = (
    "write it again as New York wall-clock time without zone: in Spark with spark.sql.session.timeZone=America/New_York,"
    " spark.sql.parquet.outputTimestampType=TIMESTAMP_MICROS and the columns cast to TIMESTAMP_NTZ; in pandas or pyarrow"
    " without use_deprecated_int96_timestamps. Or get TLC's own file."
)


def _require_wall_clock(trip_month: TripMonth, footer: Footer, shape: Shape) -> None:
    """Raise `SchemaMismatch` if times are INT96: Spark, Hive and Impala store instants so, and the type names no time zone."""
    instants = [leaf.path[0] for leaf in footer.leaves if leaf.type == INT96 and leaf.path[0] in shape.published]
    if instants:
        raise SchemaMismatch(
            f"{trip_month}: {', '.join(map(repr, instants))} have the type INT96, as Spark writes it: these are instants,"
            f" hours away from New York's clock. Nothing was loaded; {_SPARK}"
        )


def parquet_chunks(
    trip_month: TripMonth,
    file: IO[bytes] | pa.NativeFile,
    rule: SchemaRule = "strict",
) -> Generator[Chunk, None, None]:
    """Yield the chunks of an open, seekable Parquet file. Check its footer and page headers first.

    Raises:
        UnreadableFile: The file is damaged, contradicts itself, or needs more memory than trips can.
        SchemaMismatch: The columns are not those of the month's era.
    """
    try:
        footer = read_footer(file)
        parquet = pq.ParquetFile(
            file,
            buffer_size=1 << 20,
            pre_buffer=False,  # a reader that buffers ahead keeps every byte that it has read
            coerce_int96_timestamp_unit="us",  # in nanoseconds, years outside 1677 to 2262 would wrap around
            page_checksum_verification=True,
            thrift_string_size_limit=LONGEST_FOOTER,
            thrift_container_size_limit=MOST_VALUES,
        )
        schema = parquet.schema_arrow
        shape = match(trip_month, ".parquet", schema.names, schema.types, rule)
        _require_wall_clock(trip_month, footer, shape)
        sizes = batches_of(footer, file, BATCH)
    except TripDataError:
        raise
    except Exception as error:  # a malicious footer can make the reader raise nearly anything
        raise _explained(trip_month, error) from error

    def chunks() -> Iterator[Chunk]:
        row = 1
        missing = Missing(trip_month, shape)
        # A month with more rejected rows is refused, so the originals of the others are not needed.
        originals = max(_ORIGINALS, int(MAX_REJECTED_SHARE * footer.rows))
        for values in _tables(parquet, footer, sizes, shape.new):
            numbers = pa.arange(row, row + values.num_rows)
            if missing.numbers_are_texts(values):
                missing.look_at(values, first=row == 1)
                values = missing.without_words(values)  # noqa: PLW2901
            row += values.num_rows
            chunk = clean(trip_month, shape, values, numbers, originals=originals)
            originals = max(originals - chunk.rejects.num_rows, 0)
            yield replace(chunk, shape=shape, share=(row - 1) / max(footer.rows, 1))
        missing.require_one_meaning()

    try:
        with closing(ahead(chunks())) as ready:
            yield from ready
    except (
        Contradiction,
        TooMuch,
        Unsupported,
        pa.ArrowException,
        OSError,
        MemoryError,
        UnicodeDecodeError,
    ) as error:
        raise _explained(trip_month, error) from error
