"""Encode the row groups of one Parquet file in several threads, and join them without decoding.

pyarrow encodes one column after another, in one thread: https://github.com/apache/arrow/issues/50866. So each row group is
encoded as a file of its own. The joined file has the pages of these files as they are, and one footer, which states where each
column begins. Its fields are numbered as in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

import pyarrow as pa

from flows.tlc.pipeline import mapped
from flows.tlc.thrift import Place, integer, places, varint

# A file is: magic, pages, footer, the footer's length in 4 bytes, magic.
_MAGIC, _LENGTH = b"PAR1", 4
_TAIL = _LENGTH + len(_MAGIC)
_MOST_VALUES = 100_000  # in the footer of one row group; one of 28 columns has about 1,300
_ROWS, _GROUPS = (3,), (4,)  # FileMetaData.num_rows and row_groups
# RowGroup.file_offset, and data_page_offset, index_page_offset and dictionary_page_offset of ColumnMetaData.
_POSITIONS = {(4, 5), (4, 1, 3, 9), (4, 1, 3, 10), (4, 1, 3, 11)}
_DEPRECATED = (4, 1, 2)  # ColumnChunk.file_offset; Arrow writes 0
# RowGroup.ordinal, ColumnMetaData.bloom_filter_offset, and offset_index_offset and column_index_offset of ColumnChunk.
_NOT_JOINED = {(4, 7), (4, 1, 3, 14), (4, 1, 4), (4, 1, 6)}
_STRUCT = 12  # the type of a list's elements


def row_groups(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the rows of one or more tables in tables of `size` rows, and then the rest. If there are no rows, yield one table."""
    waiting: list[pa.Table] = []
    rows, done = 0, False
    for table in tables:
        waiting.append(table)
        rows += table.num_rows
        del table  # while a group is encoded, this generator keeps only the rest
        while rows >= size:
            whole = pa.concat_tables(waiting)
            rows, done = rows - size, True
            waiting = [whole[:size], whole[size:]] if rows else [whole]
            del whole
            yield waiting.pop(0)
    if rows or not done:
        yield pa.concat_tables(waiting)


def joined(
    groups: Iterable[pa.Table], encode: Callable[[pa.Table], pa.Buffer], threads: int
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a Parquet file with these row groups, in order, while so many threads encode.

    `encode` returns a table as a Parquet file with one row group. It uses the same options for each table, and writes neither
    page indexes nor Bloom filters.
    """
    footer = _Footer()
    yield _MAGIC
    with closing(mapped(encode, groups, threads)) as files:
        for file in files:
            data = memoryview(file)
            end = len(data) - _TAIL
            start = end - int.from_bytes(data[end : end + _LENGTH], "little")
            footer.add(bytes(data[start:end]), pages=start - len(_MAGIC))
            yield data[len(_MAGIC) : start]
    whole = footer.whole()
    yield whole + len(whole).to_bytes(_LENGTH, "little") + _MAGIC


class _Footer:
    """The footer of the joined file, made from those of its row groups."""

    def __init__(self) -> None:
        self._rows = 0
        self._groups: list[bytes] = []
        self._pages = 0  # bytes of all pages so far
        self._first: tuple[bytes, Place, Place]  # the first footer, and where its number of rows and its row groups are

    def add(self, footer: bytes, pages: int) -> None:
        """Add the footer of a file with one row group and so many bytes of pages."""
        found = places(footer, _MOST_VALUES)
        [(rows, rows_at)] = [(value, place) for path, value, place in found if path == _ROWS]
        [(groups, groups_at)] = [(value, place) for path, value, place in found if path == _GROUPS]
        if len(groups) != 1 or any(path in _NOT_JOINED or (path == _DEPRECATED and value) for path, value, _ in found):
            raise ValueError(
                "a row group was not encoded as it must be; please report this, with the version of pyarrow"
            )
        if not self._groups:
            self._first = footer, rows_at, groups_at
        edited, at = b"", groups_at.start + len(_list_head(1))
        for path, value, place in found:
            if path in _POSITIONS:
                edited += footer[at : place.start] + integer(value + self._pages)
                at = place.end
        self._groups.append(edited + footer[at : groups_at.end])
        self._rows += rows
        self._pages += pages

    def whole(self) -> bytes:
        """Return the footer of the joined file."""
        footer, rows, groups = self._first
        before = footer[: rows.start] + integer(self._rows) + footer[rows.end : groups.start]
        return before + _list_head(len(self._groups)) + b"".join(self._groups) + footer[groups.end :]


def _list_head(size: int) -> bytes:
    """Return the bytes before the elements of a list of structs."""
    return bytes([size << 4 | _STRUCT]) if size < 15 else bytes([0xF0 | _STRUCT]) + varint(size)
