"""Read a CSV file, plain or gzip, as a stream of chunks.

Each chunk is a block of the file that ends at a line end. The size of a block, and the number of blocks that are parsed ahead,
bound the memory. The functions take bytes and never open a file.
"""

import csv
import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import cache
from itertools import chain

import pyarrow as pa
import pyarrow.csv as pa_csv

from flows.tlc.clean import MAX_REJECTED, Chunk, clean, rejects_table
from flows.tlc.eras import meant_by
from flows.tlc.errors import UnreadableFile
from flows.tlc.foreign import (
    LONGEST_LINE,
    Foreign,
    fields_of,
    has_lone_return,
    lines_of,
    refuse_joined,
    require_no_header,
)
from flows.tlc.gunzip import DamagedGzip, ImplausibleGzip, beginning, inflated
from flows.tlc.matching import Shape, match
from flows.tlc.missing import Missing
from flows.tlc.pipeline import ahead, closing_if_open, mapped
from flows.tlc.reading import recognise
from flows.tlc.schema import KINDS
from flows.tlc.sources import Ending
from flows.tlc.trips import SchemaRule, TripMonth

BLOCK = 3 << 20  # bytes of CSV parsed at once by one thread
_PARSERS = min(4, pa.cpu_count())  # threads; the stages after them use the other cores of a larger machine
_SNIFFED = 64 << 10  # bytes of CSV that show how many fields a row has
_DISK_BLOCK = 512  # bytes; the block size of a disk is this or a multiple of it
_LONGEST_HEADER = 16 << 10  # bytes; TLC's longest header has about 400
_HEAD = 512  # bytes of inflated text that show what it is


# How a message about damaged bytes ends.
_FETCH_AGAIN = (
    " Nothing was loaded; fetch it again. If the new copy has the same error, the publisher's own file is damaged: take the month"
    " from another source."
)


def _gunzip(trip_month: TripMonth, compressed: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text of a gzip file. Raise `UnreadableFile` if it is damaged, or not packed like trips."""
    try:
        yield from inflated(compressed)
    except DamagedGzip as error:
        raise UnreadableFile(f"{trip_month}: {error}.{_FETCH_AGAIN}") from error
    except ImplausibleGzip as error:
        raise UnreadableFile(f"{trip_month}: {error}. Nothing was loaded; check the source.") from error


def _text(trip_month: TripMonth, ending: Ending, data: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text of a CSV file. Check the first bytes of inflated text like those of a plain file."""
    if ending != ".csv.gz":
        yield from data
        return
    head = b""
    pieces = _gunzip(trip_month, data)
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD:
            break
    if head:
        recognise(trip_month, ".csv", head, "the text in the gzip file")
        yield head
    yield from pieces


def _blocks(data: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes in blocks of about `size`, cut at line ends. Cut within a line if it is longer than any row."""
    parts: list[bytes] = []
    length, unbroken = 0, 0  # bytes in `parts`, and after their last line end
    for part in data:
        parts.append(part)
        length += len(part)
        unbroken = len(part) - part.rindex(b"\n") - 1 if b"\n" in part else unbroken + len(part)
        if length >= size and (unbroken < length or unbroken > LONGEST_LINE):
            block = b"".join(parts)
            cut = block.rindex(b"\n") + 1 if unbroken < length else length
            yield block[:cut]
            parts = [block[cut:]]
            length = len(parts[0])
    if rest := b"".join(parts):
        yield rest


_BOM = b"\xef\xbb\xbf"


def _split_header(trip_month: TripMonth, block: bytes) -> tuple[list[str], bytes]:
    header, _, rest = block.removeprefix(_BOM).lstrip(b"\r\n").partition(b"\n")
    if has_lone_return(header[:_LONGEST_HEADER].rstrip(b"\r")):
        raise UnreadableFile(
            f"{trip_month}: the lines end with CR alone, as on old Macs. Nothing was loaded; save the file with LF or CRLF."
        )
    if len(header) > _LONGEST_HEADER:
        raise UnreadableFile(
            f"{trip_month}: the first line has {len(header):,} bytes or more; the header of a trip file has a few hundred."
            " Nothing was loaded; check the source."
        )
    try:
        if not (names := next(csv.reader([header.decode().rstrip("\r")]), [])):
            raise csv.Error("it is empty")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(
            f"{trip_month}: the file has no readable CSV header ({error}). Nothing was loaded; check the source."
        ) from error
    if len(names) == 1 and (separator := next((one for one in ";\t|" if one in names[0]), "")):
        raise UnreadableFile(
            f"{trip_month}: the fields are separated by {separator!r}, not by commas. Nothing was loaded; get the original file."
        )
    return names, rest


# Arrow reads a block as RFC 4180 says if each quote begins or ends a field. This pattern matches such a block.
_PLAINLY_QUOTED = re.compile(rb'(?:(?:"[^"\r\n]*+"|[^",\r\n]*+)(?:,|\r?\n|\Z))*+')
_EMPTY = re.compile(rb"[\r\n]*+")  # unlike `strip`, it copies nothing
_SHAPELESS = _OTHER_FIELDS, _NO_TEXT, _NO_CSV = "wrong number of fields", "not UTF-8", "not CSV"


class _Rows:
    """Turns the blocks of one file into chunks: trips, and rejected lines exactly as published."""

    def __init__(self, trip_month: TripMonth, shape: Shape, missing: Missing) -> None:
        self._trip_month, self._shape, self._missing = trip_month, shape, missing
        self._foreign = Foreign(trip_month)

    def parse_block(self, block: bytes) -> tuple[bytes, pa.Table | None]:
        """Return a block, and its rows if Arrow reads it as any CSV reader would. Any thread may call this, in any order."""
        if has_lone_return(block) or (b'"' in block and not _PLAINLY_QUOTED.fullmatch(block)):
            return block, None
        if _EMPTY.fullmatch(block):
            return block, _table(self._shape, [], ())
        # Arrow reads 0x10 as 16. If the block has an x, or a number in an odd spelling, read all as text: `clean` checks it.
        for typed in (False,) if b"x" in block or b"X" in block else (True, False):
            with suppress(pa.ArrowInvalid):
                return block, self._parse(block, typed=typed)
        return block, None

    def chunk(self, block: bytes, table: pa.Table | None, first_row: int) -> Chunk:
        """Return the chunk of a block. `table` has its rows, or is None: then read line by line. Call it in block order."""
        self._foreign.look_at(block, first_row)
        lines = cache(lambda: lines_of(block))
        if table is None:
            chunk = self._line_by_line(lines(), first_row)
        else:
            if table.num_rows:
                self._foreign.row()
            chunk = self._clean(table, pa.arange(first_row, first_row + table.num_rows), lambda i: lines()[i])
        numbers = chunk.rejects.column("row_number").to_pylist()
        return replace(
            chunk,
            size=len(block),
            reject_sizes=[len(lines()[number - first_row]) for number in numbers],
            stretch=self._foreign.largest,
            repeated=self._foreign.repeated,
        )

    def _parse(self, block: bytes, *, typed: bool) -> pa.Table:
        """Return the block as Arrow reads it. Numbers have numeric types if `typed`; everything else is text.

        Datetimes are always text here: Arrow's CSV parsers read February 30 as March 2, and a bare date as midnight.
        """
        shape, numbers = self._shape, ("integer", "number") if typed else ()
        types = {
            name: KINDS[column.kind].arrow
            for name, column in zip(shape.published, shape.canonical, strict=True)
            if column.kind in numbers and not shape.coded(column)
        }
        return pa_csv.read_csv(
            pa.BufferReader(block),
            pa_csv.ReadOptions(use_threads=False, column_names=list(shape.names), block_size=len(block) + 1),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(shape.names, pa.string()) | types,
                null_values=["", *self._missing.words],
                strings_can_be_null=True,
            ),
        )

    def _line_by_line(self, lines: list[bytes], first_row: int) -> Chunk:
        """Return the rows of a block that Arrow would misread. Each line is a trip, or rejected exactly as published."""
        whole: list[int] = []
        rows = []
        rejects = []
        for position, line in enumerate(lines):
            number = first_row + position
            try:
                fields = next(csv.reader([line.decode()], strict=True))
                reason = "" if len(fields) == len(self._shape.names) else _OTHER_FIELDS
            except UnicodeDecodeError:
                reason = _NO_TEXT
            except csv.Error:
                reason = _NO_CSV
            if reason:
                self._foreign.foreign_line(number, line)
                rejects.append((number, reason, line.decode(errors="backslashreplace")))
                if len(rejects) > MAX_REJECTED:
                    break  # `Tally` refuses any month with so many
            else:
                self._foreign.row()
                whole.append(position)
                rows.append(fields)
        numbers = pa.array([first_row + position for position in whole], pa.int64())
        table = _table(self._shape, rows, self._missing.words)
        chunk = self._clean(table, numbers, lambda i: lines[whole[i]])
        together = pa.concat_tables([chunk.rejects, rejects_table(rejects)]).sort_by("row_number")
        return replace(chunk, rejects=together, source_rows=len(whole) + len(rejects))

    def _clean(self, table: pa.Table, numbers: pa.Array, original: Callable[[int], bytes]) -> Chunk:
        self._missing.look_at(table)
        chunk = clean(self._trip_month, self._shape, table, numbers, lambda i: original(i).decode())
        for reject in chunk.rejects.to_pylist():
            require_no_header(self._trip_month, reject["row_number"], reject["original"].encode())
        return chunk


def _table(shape: Shape, rows: list[list[str]], missing: Collection[str]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(shape.names)
    arrays = [
        pa.array([field if field and field not in missing else None for field in c], pa.string()) for c in columns
    ]
    return pa.table(arrays, names=list(shape.names))


def _unnamed_fields(shape: Shape, first: list[bytes]) -> int:
    """Return how many empty fields the first rows have beyond the header's: none, or the number that the era allows."""
    if not shape.era.unnamed:
        return 0
    expected = len(shape.names) + shape.era.unnamed
    padded = sum(len(fields_of(line)) == expected for line in first)
    return shape.era.unnamed if padded * 2 > len(first) else 0


def csv_chunks(
    trip_month: TripMonth,
    ending: Ending,
    data: Iterable[bytes],
    rule: SchemaRule = "strict",
    size: int = 0,
) -> Generator[Chunk, None, None]:
    """Yield the chunks of a CSV file, and close `data` at the end. Inflating, parsing and the caller's work overlap.

    `size` is the number of bytes in `data`, to compute the share that has been read; 0 if unknown.
    """
    read = 0

    def measured() -> Iterator[bytes]:
        nonlocal read
        for piece in data:
            read += len(piece)
            yield piece

    text = _text(trip_month, ending, measured())
    # The traceback of an error keeps this frame alive. Without `closing`, the threads and the source would stay open as long.
    with closing_if_open(data), closing(ahead(_blocks(text, BLOCK))) as blocks:
        whole = next(blocks, b"")
        names, first = _split_header(trip_month, whole)
        header = whole[: len(whole) - len(first)].removeprefix(_BOM).strip(b"\r\n")
        shape = match(trip_month, ending, names, rule=rule)
        sniffed = lines_of(first if len(first) <= _SNIFFED else first[: first.rfind(b"\n", 0, _SNIFFED) + 1])
        shape = shape.padded(_unnamed_fields(shape, sniffed))

        missing = Missing(trip_month, shape)
        missing.learn_from_lines(sniffed)
        rows = _Rows(trip_month, shape, missing)

        def chunks() -> Iterator[Chunk]:
            row, size_so_far = 1, len(whole) - len(first)
            with closing(mapped(rows.parse_block, chain([first], blocks), _PARSERS)) as parsed_blocks:
                for block, table in parsed_blocks:
                    size_so_far += len(block)
                    if header in block:
                        before = block[: block.rfind(b"\n", 0, block.index(header)) + 1]
                        refuse_joined(trip_month, row + len(lines_of(before)))
                    chunk = rows.chunk(block, table, row)
                    row += chunk.source_rows
                    if block and not block.endswith((b"\n", b"\r")):
                        _require_whole_row(trip_month, chunk, row - 1, size_so_far)
                    yield replace(chunk, shape=shape, share=read / size if size else 0.0)
            missing.require_one_meaning()

        with closing(ahead(chunks())) as ready:
            yield from ready


def _require_whole_row(trip_month: TripMonth, chunk: Chunk, row_number: int, size: int) -> None:
    """Raise `UnreadableFile` if the last row, which has no line end, is cut off or may be. `size` is the bytes of all text.

    A row can look whole and be cut off inside its last value: 3 in place of 32.37. Files are often cut at the end of a disk
    block, so such a row is refused if the file ends there.
    """
    reasons = {reject["row_number"]: reject["reason"] for reject in chunk.rejects.to_pylist()}
    if size % _DISK_BLOCK == 0 or reasons.get(row_number) in _SHAPELESS:
        raise UnreadableFile(
            f"{trip_month}: the file is truncated: its last row, {row_number}, has no line end and may be cut off. Nothing was"
            " loaded; fetch the file again. If the publisher's own file ends like this and is whole, add a line end."
        )


def require_header(trip_month: TripMonth, ending: Ending, head: bytes, url: str) -> None:
    """Raise `UnreadableFile` or `SchemaMismatch` if `head`, the first bytes of a CSV file, has no header of a trip file.

    Accept columns that the schema does not know: the caller that reads the file chooses the rule for them.
    """
    if ending == ".parquet":
        return
    text = head
    if ending == ".csv.gz":
        text = beginning(head, 1 << 20)
        if not text:  # the reader reports damaged gzip data
            return
        recognise(trip_month, ".csv", text, f"the text in {url}")
    names, _ = _split_header(trip_month, text)
    if not any(meant_by(trip_month.color, name) for name in names[:200]):
        raise UnreadableFile(
            f"{trip_month}: {url} does not begin with the header of a trip file: none of its {len(names)} column names is a"
            f" column of {trip_month.color}. Nothing was loaded; check the source."
        )
    match(trip_month, ending, names, rule="accept_new_columns")
