"""Read the page headers of a Parquet column chunk, and the length of its longest dictionary text, without decoding a page.

Arrow's reader does not expose them. Fields are numbered as those of PageHeader in
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from flows.tlc.thrift import BadThrift, CutOff, number, read_struct

_HEADER = 4 << 10  # bytes first read for a page header; a header with long statistics is longer
_LONGEST_HEADER = 1 << 20
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # PageType
_PARTS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}  # the field of a page header that describes a page of this type
_PLAIN_DICTIONARY, _DELTA_BYTE_ARRAY, _RLE_DICTIONARY = 2, 7, 8  # Encoding
_MOST_VALUES = 1_000  # in a page header; real ones have about 20 at most


class Contradiction(Exception):
    """The file contradicts itself: bytes are lost, foreign or in the wrong place."""


class Page(NamedTuple):
    """One page: how many values it has, how they are encoded and where its bytes are."""

    is_dictionary: bool
    values: int
    encoding: int
    start: int  # position of its bytes in the file, after the header
    compressed: int
    uncompressed: int

    @property
    def text_width(self) -> int:
        """Return the mean bytes of a text in a data page; 0 if it has none, or the texts are in the dictionary.

        With DELTA_BYTE_ARRAY a few bits can repeat the previous text, so return the most bytes that one text can have.
        """
        if not self.values or self.encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
            return 0
        return self.uncompressed if self.encoding == _DELTA_BYTE_ARRAY else -(-self.uncompressed // self.values)


def _read_at(file: BinaryIO | pa.NativeFile, start: int, size: int) -> bytes:
    file.seek(start)
    return bytes(file.read(size))


def _header(file: BinaryIO | pa.NativeFile, start: int, stop: int) -> tuple[dict[int, Any], int]:
    """Return the page header at `start`, and its length."""
    size = _HEADER
    while True:
        try:
            return read_struct(_read_at(file, start, min(size, stop - start)), _MOST_VALUES)
        except CutOff:
            if size >= min(stop - start, _LONGEST_HEADER):
                raise
            size *= 16


def pages(file: BinaryIO | pa.NativeFile, start: int, size: int) -> Iterator[Page]:
    """Yield the pages in the `size` bytes from `start`, without index pages; raise `Contradiction` if a page is not whole."""
    stop = start + size
    while start < stop:
        try:
            fields, length = _header(file, start, stop)
            kind, compressed = number(fields, 1, "type"), number(fields, 3, "size")
            start += length
            if start + compressed > stop:
                raise Contradiction("a page extends beyond the end of its column chunk")
            if kind in _PARTS:
                yield _page(fields, kind, start)
        except BadThrift as bad:
            raise Contradiction(f"a page header cannot be read: {bad}") from bad
        start += compressed


def _page(fields: dict[int, Any], kind: int, start: int) -> Page:
    part = fields.get(_PARTS[kind])
    if not isinstance(part, dict):
        raise Contradiction("a page header lacks the part that its type requires")
    values = number(part, 1, "number of values")
    if kind == _DATA_V2 and number(part, 3, "number of rows") != values:
        raise Contradiction("a page has more or fewer rows than values")
    encoding = number(part, 4 if kind == _DATA_V2 else 2, "encoding")
    return Page(kind == _DICTIONARY, values, encoding, start, fields[3], number(fields, 2, "size"))


# Arrow's names by CompressionCodec. LZ4 (5) is missing: only Parquet's own reader can inflate its Hadoop frames.
UNCOMPRESSED = 0
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}


def longest_text(page: Page, file: BinaryIO | pa.NativeFile, codec: int) -> int | None:
    """Return the length of the longest text in a dictionary page, or None if only Parquet's own reader can inflate it.

    Raises:
        Contradiction: The page has fewer texts than its header says, or cannot be inflated.
    """
    data = _read_at(file, page.start, page.compressed)
    if codec != UNCOMPRESSED:
        if codec not in _CODECS:
            return None
        try:
            data = pa.decompress(data, page.uncompressed, _CODECS[codec], asbytes=True)
        except (pa.ArrowException, OSError) as error:
            raise Contradiction(f"a dictionary cannot be inflated ({error})") from error
    at = longest = 0
    for _ in range(page.values):
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4 + length
        if at > len(data):
            raise Contradiction("a dictionary is shorter than its header says")
        longest = max(longest, length)
    return longest
