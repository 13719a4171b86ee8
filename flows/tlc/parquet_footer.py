"""Check a Parquet file's footer and page headers before decoding a page: counts must agree, sizes must be plausible.

Arrow's reader trusts a footer. It joins columns with different numbers of values, and reserves any size that a page states.
Fields are numbered as in https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from flows.tlc.parquet_pages import UNCOMPRESSED, Contradiction, Page, longest_text, pages
from flows.tlc.thrift import BadThrift, TooManyValues, number, read_struct

LONGEST_TEXT = 64 << 10  # bytes; TLC's longest text, a base's license number, has 6
# The largest published month has 23.9 million rows (fhv 2018-12, flows/tlc/known_months.csv).
MOST_ROWS = 100_000_000
LONGEST_FOOTER = 16 << 20  # bytes; the footer of a month with 1,000 row groups has 4 MiB
MOST_VALUES = 2_000_000  # in a footer; the footer of a month with 1,000 row groups has half as many
_MOST_PAGES = 1_000_000  # in a file; writers make one page per 20,000 rows or per MiB of a column
_MOST_TEXTS = 50_000_000  # in the dictionaries of a file; examining so many takes some twenty seconds
_PER_TEXT = 24  # bytes in Arrow's memory of a text in a dictionary, besides its own
_PER_VALUE = 16  # bytes of a number in a page, with its definition level
_LZO = 3  # a codec of the format's specification
_MOST_AT_ONCE = 256 << 20  # bytes of pages and dictionaries in memory while one row group is read
_MOST_DECODED = 64 << 20  # bytes of rows decoded at once
_WIDEST_NUMBER = 16  # bytes in Arrow's memory of a value that is not a text
_MAGIC, _LENGTH = b"PAR1", 4
_ENCRYPTION = 8  # field of the footer of a file with encrypted columns: FileMetaData.encryption_algorithm
_INT32, _INT64, INT96, _DOUBLE, _BYTE_ARRAY = 1, 2, 3, 5, 6  # Type
_REPEATED = 2  # FieldRepetitionType
_FORMATS = {_INT32: "<i", _INT64: "<q", _DOUBLE: "<d"}  # of the bounds in statistics


class TooMuch(Exception):
    """The file is consistent, but needs more memory or has more rows than a month of trips can."""


class Unsupported(Exception):
    """The file is valid, but uses a feature that this project does not read."""


class Leaf(NamedTuple):
    """A column of the schema that has values, not children. It is `flat` if it has one value per row."""

    path: tuple[str, ...]
    type: int
    width: int  # bytes of a value of fixed length, or 0
    flat: bool

    def __str__(self) -> str:
        return repr(".".join(self.path)[:60])


class ColumnChunk(NamedTuple):
    """One column of one row group. `nulls` and `bounds` are None if the footer does not state them."""

    leaf: Leaf
    values: int
    codec: int
    start: int
    size: int
    nulls: int | None
    bounds: tuple[float, float] | None


class Group(NamedTuple):
    """A row group: its position `number`, counted from 0, in a file with `total` row groups."""

    number: int
    total: int
    rows: int
    columns: tuple[ColumnChunk, ...]

    def place(self, chunk: ColumnChunk | None = None) -> str:
        """Return the name of the row group, or of one of its columns, for a message."""
        return f"row group {self.number + 1} of {self.total}" + (f", column {chunk.leaf}" if chunk else "")


class Footer(NamedTuple):
    """A footer whose counts and names agree."""

    rows: int
    leaves: tuple[Leaf, ...]
    groups: tuple[Group, ...]


def read_footer(file: BinaryIO | pa.NativeFile) -> Footer:
    """Return the footer of an open Parquet file; raise `Contradiction` or `TooMuch` if it is not that of a month of trips."""
    size = file.seek(0, 2)
    end = size - _LENGTH - len(_MAGIC)
    if end < len(_MAGIC):
        raise Contradiction(f"it has {size} bytes")
    file.seek(end)
    tail = bytes(file.read(_LENGTH + len(_MAGIC)))
    length = int.from_bytes(tail[:_LENGTH], "little")
    if not tail.endswith(_MAGIC):
        raise Contradiction("it does not end with a Parquet footer")
    if length > end - len(_MAGIC):
        raise Contradiction(f"its footer would have {length:,} bytes, the file has {size:,}")
    if length > LONGEST_FOOTER:
        raise TooMuch(f"its footer has {length >> 20} MB, the limit is {LONGEST_FOOTER >> 20} MB")
    file.seek(end - length)
    try:
        fields, _ = read_struct(bytes(file.read(length)), MOST_VALUES)
        return _footer(fields, end - length)
    except TooManyValues as many:
        raise TooMuch(f"its footer has more than {MOST_VALUES:,} values") from many
    except BadThrift as bad:
        raise Contradiction(f"its footer cannot be read: {bad}") from bad


def _structs(fields: dict[int, Any], field: int, what: str) -> list[dict[int, Any]]:
    found = fields.get(field)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadThrift(f"it has no {what}")
    return found


def _footer(fields: dict[int, Any], stop: int) -> Footer:
    """Return the footer with these fields. The data of the file ends at `stop`."""
    if _ENCRYPTION in fields:
        raise Unsupported("its columns are encrypted")
    rows = number(fields, 3, "number of rows")
    schema = iter(_structs(fields, 2, "schema"))
    root = next(schema, {})
    leaves = tuple(_leaves(schema, number(root, 5, "number of children") if 5 in root else 0, (), True))
    if next(schema, None) is not None:
        raise BadThrift("its schema has more columns than it states")
    written = _structs(fields, 4, "row groups")
    groups = []
    for place, group in enumerate(written):
        chunks = _structs(group, 1, "columns")
        if len(chunks) != len(leaves):
            raise Contradiction(
                f"row group {place + 1} of {len(written)} has {len(chunks)} columns, the file has {len(leaves)}"
            )
        columns = tuple(map(_chunk, chunks, leaves))
        groups.append(Group(place, len(written), number(group, 3, "number of rows"), columns))
        _require_counts(groups[-1], stop)
    if (counted := sum(group.rows for group in groups)) != rows:
        raise Contradiction(f"its footer states {rows:,} rows, its row groups have {counted:,}")
    if rows > MOST_ROWS:
        raise TooMuch(f"it says that it has {rows:,} rows, the limit is {MOST_ROWS:,}")
    return Footer(rows, leaves, tuple(groups))


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else ""


def _leaves(elements: Iterator[dict[int, Any]], count: int, above: tuple[str, ...], flat: bool) -> Iterator[Leaf]:
    """Yield the leaf columns of the next `count` branches of a schema, a tree that is written with parents before children."""
    for element in islice(elements, count):
        children = number(element, 5, "number of children") if 5 in element else 0
        path, once = (*above, _text(element.get(4))), flat and element.get(3) != _REPEATED
        if children:
            yield from _leaves(elements, children, path, once)
        else:
            width = number(element, 2, "length") if 2 in element else 0
            yield Leaf(path, number(element, 1, "type"), width, once)


def _chunk(fields: dict[int, Any], leaf: Leaf) -> ColumnChunk:
    about = fields.get(3)
    if not isinstance(about, dict):
        raise BadThrift("a column is encrypted, or has no description")
    path = tuple(_text(part) for part in about.get(3) or ())
    if path != leaf.path or about.get(1) != leaf.type:
        raise Contradiction(f"its footer names {'.'.join(path)[:60]!r} where column {leaf} belongs")
    if fields.get(1):
        raise Contradiction(f"its footer places column {leaf} in another file")
    start, dictionary = number(about, 9, "place of its data"), about.get(11)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    statistics = about.get(12)
    if not isinstance(statistics, dict):
        statistics = {}
    number(about, 6, "size")
    codec = number(about, 4, "codec")
    if codec == _LZO:  # Arrow's error is of the class that it raises for damage
        raise Unsupported("it is compressed with LZO")
    return ColumnChunk(
        leaf,
        values=number(about, 5, "number of values"),
        codec=codec,
        start=start,
        size=number(about, 7, "size"),
        nulls=number(statistics, 3, "number of missing values") if 3 in statistics else None,
        bounds=_bounds(statistics, leaf),
    )


def _bounds(statistics: dict[int, Any], leaf: Leaf) -> tuple[float, float] | None:
    """Return the bounds in a chunk's statistics, or None if they are not numbers in order. Prefer the newer fields."""
    if leaf.type not in _FORMATS:
        return None
    for fields in ((6, 5), (2, 1)):
        try:
            low, high = (struct.unpack(_FORMATS[leaf.type], statistics.get(field) or b"")[0] for field in fields)
        except (struct.error, TypeError):
            continue
        return (low, high) if low <= high else None
    return None


def _require_counts(group: Group, stop: int) -> None:
    """Raise `Contradiction` unless each column chunk has one value per row of the group, and ends before `stop`."""
    for chunk in group.columns:
        if chunk.leaf.flat and chunk.values != group.rows:
            raise Contradiction(
                f"{group.place(chunk)}: it has {chunk.values:,} values, its row group {group.rows:,} rows"
            )
        if group.rows and chunk.start + chunk.size > stop:
            raise Contradiction(f"{group.place(chunk)}: it extends beyond the end of the data")


def _require_order(groups: tuple[Group, ...]) -> None:
    """Raise `Contradiction` unless each column chunk begins after the end of the one before, by group and column.

    Every writer stores chunks in this order. Another order means that the footer gives one chunk the position of another.
    """
    after, group_before, before = len(_MAGIC), None, None
    for group in groups:
        for chunk in group.columns if group.rows else ():
            if chunk.start < after:
                where = group_before.place(before) if group_before else "the beginning"
                raise Contradiction(f"{group.place(chunk)}: it does not come after {where}")
            after, group_before, before = chunk.start + chunk.size, group, chunk


def batches_of(footer: Footer, file: BinaryIO | pa.NativeFile, most: int) -> list[int]:
    """Return for each row group how many rows may be decoded at once: `most` or fewer.

    Raises:
        Contradiction: A column chunk is in the wrong place, or its pages have more or fewer values than the footer states.
        TooMuch: A text, a page or the number of pages is larger than trips can need.
    """
    reader = _PageReader(footer, file)
    widths = [reader.width(group) for group in footer.groups]
    _require_order(footer.groups)
    return [max(1, min(most, _MOST_DECODED // max(width, 1))) for width in widths]


class _PageReader:
    """Reads page headers. Counts pages and dictionary texts against the limits for the whole file."""

    def __init__(self, footer: Footer, file: BinaryIO | pa.NativeFile) -> None:
        self._file = file
        self._pages_left = _MOST_PAGES
        # More than values: pandas writes each category into the dictionary of each row group, used or not.
        self._texts = min(_MOST_PAGES + footer.rows * len(footer.leaves), _MOST_TEXTS)
        self._texts_left = self._texts

    def width(self, group: Group) -> int:
        """Return the most bytes that a row of the group takes, according to its pages."""
        width = at_once = 0
        # Some writers put a whole column into one page, so allow the bytes that all its values can need.
        most = max(_MOST_AT_ONCE, min(_PER_VALUE * group.rows * len(group.columns), 4 * _MOST_AT_ONCE))
        for chunk in group.columns if group.rows else ():
            try:
                wide, large = self._chunk(chunk)
            except (Contradiction, TooMuch) as error:
                raise type(error)(f"{group.place(chunk)}: {error}") from error
            width, at_once = width + wide, at_once + large
            if at_once > most:
                raise TooMuch(
                    f"{group.place()}: its pages need more than {most >> 20} MB at the same time; row groups of 100,000 rows need"
                    " less"
                )
        return width

    def _chunk(self, chunk: ColumnChunk) -> tuple[int, int]:
        """Return two sizes in bytes of a column chunk, according to its pages.

        The first is the most that a value takes: the largest mean over a page, or the longest dictionary text. The second is the
        size in memory of the largest page and the dictionary together.
        """
        textual = chunk.leaf.type == _BYTE_ARRAY
        width = max(_WIDEST_NUMBER, chunk.leaf.width)
        dictionary: Page | None = None
        largest = values = 0
        for page in pages(self._file, chunk.start, chunk.size):
            self._pages_left -= 1
            if self._pages_left < 0:
                raise TooMuch(f"the file has more than {_MOST_PAGES:,} pages up to here")
            if chunk.codec == UNCOMPRESSED and page.compressed != page.uncompressed:
                raise Contradiction("a page that is not compressed has different sizes with and without compression")
            if page.is_dictionary:
                dictionary = page
                continue
            values += page.values
            largest = max(largest, page.uncompressed)
            if textual:
                width = max(width, page.text_width)
        if values != chunk.values:
            raise Contradiction(f"its pages have {values:,} values, the footer says {chunk.values:,}")
        if dictionary:
            largest += dictionary.uncompressed + (_PER_TEXT * dictionary.values if textual else 0)
            if textual and largest <= _MOST_AT_ONCE:
                width = max(width, self._longest(dictionary, chunk.codec))
        return width, largest

    def _longest(self, dictionary: Page, codec: int) -> int:
        self._texts_left -= dictionary.values
        if self._texts_left < 0:
            raise TooMuch(f"the dictionaries up to here have more than {self._texts:,} texts")
        longest = longest_text(dictionary, self._file, codec)
        if longest is None:
            return dictionary.uncompressed
        if longest > LONGEST_TEXT:
            raise TooMuch(f"it has a text of {longest:,} bytes, the limit is {LONGEST_TEXT:,}")
        return longest
