"""Published files, read as a stream of chunks: CSV in blocks cut at line ends, Parquet in batches. Memory is bounded by both.

The functions take bytes or an open file and never open one.
"""

import csv
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from flows.tlc.clean import Chunk, clean, rejects_table
from flows.tlc.eras import Shape, match
from flows.tlc.errors import UnreadableFile
from flows.tlc.pipeline import ahead
from flows.tlc.schema import KINDS
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth

BLOCK = 6 << 20  # bytes of CSV parsed at once
BATCH = 64 << 10  # rows of Parquet converted at once

_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"


def recognise(trip_month: TripMonth, ending: Ending, head: bytes, url: str) -> None:
    """Raise `UnreadableFile` if a file that begins with `head` is not what its ending says (≥ 64 bytes tell most)."""
    start = head.lstrip().lower()
    what = ""
    if not head:
        what = "it is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "it is a Git LFS pointer, not the file: download it with Git LFS or from its publisher"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "it is an HTML or XML page, most likely an error message: open the address in a browser"
    elif start.startswith((b"<<<<<<<", b">>>>>>>", b"=======")):
        what = "it begins with merge-conflict markers: get the original file"
    elif ending == ".parquet" and not head.startswith(_PARQUET_MAGIC):
        what = "it is not Parquet (no PAR1 at the beginning)"
    elif ending == ".csv.gz" and not head.startswith(_GZIP_MAGIC):
        what = "it is not gzip"
    elif ending == ".csv" and (head.startswith((_GZIP_MAGIC, _PARQUET_MAGIC)) or b"\x00" in head):
        what = "it is binary, not CSV text; the source's ending must tell the format"
    if what:
        raise UnreadableFile(f"{trip_month}: {url} cannot be read: {what}. Nothing was loaded.")


def recognise_end(trip_month: TripMonth, ending: Ending, tail: bytes, url: str) -> None:
    """Raise `UnreadableFile` if a Parquet file that ends with `tail` lacks its footer."""
    if ending == ".parquet" and not tail.endswith(_PARQUET_MAGIC):
        raise UnreadableFile(
            f"{trip_month}: {url} is truncated: the Parquet footer is missing. Nothing was loaded; fetch the file again."
        )


def _gunzip(trip_month: TripMonth, compressed: Iterable[bytes]) -> Iterator[bytes]:
    """The text of a gzip file, of one member or many."""
    inflate = zlib.decompressobj(wbits=31)
    begun = False
    try:
        for data in compressed:
            while data:
                if inflate.eof:
                    data = data.lstrip(b"\x00")  # noqa: PLW2901 - padding between members is legal
                    if not data:
                        break
                    inflate = zlib.decompressobj(wbits=31)
                begun = True
                yield inflate.decompress(data)
                data = inflate.unused_data  # noqa: PLW2901
    except zlib.error as error:
        raise UnreadableFile(
            f"{trip_month}: the gzip data is damaged ({error}). Nothing was loaded; fetch it again."
        ) from error
    if begun and not inflate.eof:
        raise UnreadableFile(f"{trip_month}: the gzip file is truncated. Nothing was loaded; fetch it again.")


def _plain(_trip_month: TripMonth, data: Iterable[bytes]) -> Iterator[bytes]:
    return iter(data)


def _blocks(data: Iterable[bytes], size: int = BLOCK) -> Iterator[bytes]:
    """The same bytes, cut at line ends into blocks of about `size`."""
    parts: list[bytes] = []
    held = 0
    for part in data:
        parts.append(part)
        held += len(part)
        if held >= size and b"\n" in part:
            block = b"".join(parts)
            cut = block.rindex(b"\n") + 1
            yield block[:cut]
            parts = [block[cut:]]
            held = len(parts[0])
    if rest := b"".join(parts):
        yield rest


def _split_header(trip_month: TripMonth, block: bytes) -> tuple[list[str], bytes]:
    header, _, rest = block.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")
    try:
        return next(csv.reader([header.decode().rstrip("\r")])), rest
    except (UnicodeDecodeError, StopIteration, csv.Error) as error:
        raise UnreadableFile(
            f"{trip_month}: the file has no readable CSV header ({error}). Nothing was loaded."
        ) from error


def _convert_options(shape: Shape, *, typed: bool) -> pa_csv.ConvertOptions:
    types = [KINDS[column.kind].arrow if typed else pa.string() for column in shape.canonical]
    return pa_csv.ConvertOptions(
        column_types=dict(zip(shape.published, types, strict=True)),
        null_values=[""],  # "N/A" and "nan" are texts here, not nulls
        strings_can_be_null=True,
        timestamp_parsers=["%Y-%m-%d %H:%M:%S"],  # ISO8601 would take a bare date for midnight
    )


def _parse(shape: Shape, block: bytes, *, typed: bool) -> pa.Table:
    return pa_csv.read_csv(
        pa.BufferReader(block),
        pa_csv.ReadOptions(use_threads=False, column_names=list(shape.published), block_size=len(block) + 1),
        convert_options=_convert_options(shape, typed=typed),
    )


def _parse_line_by_line(trip_month: TripMonth, shape: Shape, block: bytes, first_row: int) -> Chunk:
    """The careful way, for a block that holds something odd: every line is either a trip or set aside as it stands."""
    lines = [line for line in (line.rstrip(b"\r") for line in block.split(b"\n")) if line]
    whole: list[int] = []
    rejects = []
    for position, line in enumerate(lines):
        try:
            fields = next(csv.reader([line.decode()], strict=True))
            reason = "" if len(fields) == len(shape.published) else "wrong number of fields"
        except UnicodeDecodeError:
            reason = "not UTF-8"
        except (csv.Error, StopIteration):
            reason = "not CSV"
        if reason:
            rejects.append((first_row + position, reason, line.decode(errors="backslashreplace")))
        else:
            whole.append(position)
    text = b"\n".join(lines[position] for position in whole) + b"\n" if whole else b""
    if not text:
        return Chunk(
            clean(trip_month, shape, _empty(shape), pa.array([], pa.int64())).trips, rejects_table(rejects), len(lines)
        )
    chunk = clean(
        trip_month,
        shape,
        _parse(shape, text, typed=False),
        pa.array([first_row + position for position in whole], pa.int64()),
        lambda i: lines[whole[i]].decode(),
    )
    return Chunk(chunk.trips, pa.concat_tables([chunk.rejects, rejects_table(rejects)]), len(lines))


def _empty(shape: Shape) -> pa.Table:
    return pa.table([pa.array([], pa.string())] * len(shape.published), names=list(shape.published))


def _has_spelled_number(table: pa.Table) -> bool:
    """Whether a number column holds NaN or an infinity, which Arrow reads from text and no store should."""
    return any(
        pa.types.is_floating(column.type) and not pa.compute.all(pa.compute.is_finite(column), min_count=0).as_py()
        for column in table.columns
    )


def csv_chunks(
    trip_month: TripMonth, ending: Ending, data: Iterable[bytes], on_shape: Callable[[Shape], None]
) -> Generator[Chunk, None, None]:
    """Chunks of a CSV file given as pieces of bytes; inflating, parsing and the caller overlap."""
    text = (_gunzip if ending == ".csv.gz" else _plain)(trip_month, data)
    blocks = ahead(_blocks(text))
    first = next(blocks, b"")
    names, first = _split_header(trip_month, first)
    shape = match(trip_month, ending, names)
    on_shape(shape)

    def parsed() -> Iterator[Chunk]:
        row = 1
        for block in _with(first, blocks):
            try:
                table = _parse(shape, block, typed=True) if block.strip(b"\r\n") else _empty(shape)
                if _has_spelled_number(table):
                    raise pa.ArrowInvalid("NaN or infinite")
                numbers = pa.array(range(row, row + table.num_rows), pa.int64())
                chunk = clean(trip_month, shape, table, numbers)
            except pa.ArrowInvalid:
                chunk = _parse_line_by_line(trip_month, shape, block, row)
            row += chunk.source_rows
            yield chunk

    yield from ahead(parsed())


def _with(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def parquet_chunks(
    trip_month: TripMonth, file: BinaryIO | pa.NativeFile, on_shape: Callable[[Shape], None]
) -> Generator[Chunk, None, None]:
    """Chunks of an open, seekable Parquet file."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=1 << 20)
        schema = parquet.schema_arrow
        shape = match(trip_month, ".parquet", schema.names, schema.types)
        on_shape(shape)

        def batches() -> Iterator[Chunk]:
            row = 1
            for batch in parquet.iter_batches(BATCH):
                numbers = pa.array(range(row, row + batch.num_rows), pa.int64())
                row += batch.num_rows
                yield clean(trip_month, shape, pa.Table.from_batches([batch]), numbers)

        yield from ahead(batches())
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableFile(
            f"{trip_month}: the Parquet file is damaged ({error}). Nothing was loaded; fetch it again."
        ) from error
