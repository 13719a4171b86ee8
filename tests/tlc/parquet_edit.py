"""Edit Parquet files: parse footers and page headers, change single fields, and encode the file again."""

from dataclasses import dataclass
from typing import Any

from flows.tlc.thrift import integer, varint

# Thrift's compact protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12

Field = tuple[int, Any]  # type and value
Struct = dict[int, Field]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    def value(self, kind: int) -> Any:
        if kind in (I16, I32, I64):
            number = self.varint()
            return (number >> 1) ^ -(number & 1)
        if kind == STRUCT:
            return self.struct()
        if kind == LIST:
            head = self.data[self.at]
            self.at += 1
            size = head >> 4 if head >> 4 < 15 else self.varint()
            return [(head & 15, self.value(head & 15)) for _ in range(size)]
        size = {BYTE: 1, DOUBLE: 8}.get(kind) or (self.varint() if kind == BINARY else 1)
        self.at += size
        return self.data[self.at - size : self.at]

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self.data[self.at]:
            self.at += 1
            assert head >> 4, (
                "a field number is more than 15 above the one before it, which this reader does not support"
            )
            number += head >> 4
            fields[number] = (head & 15, None if head & 15 in (TRUE, FALSE) else self.value(head & 15))
        self.at += 1
        return fields


def _encode(kind: int, value: Any) -> bytes:
    if kind in (I16, I32, I64):
        return integer(value)
    if kind == STRUCT:
        return encode(value)
    if kind == LIST:
        inside = value[0][0] if value else STRUCT
        head = bytes([len(value) << 4 | inside]) if len(value) < 15 else bytes([0xF0 | inside]) + varint(len(value))
        return head + b"".join(_encode(*one) for one in value)
    if kind == BINARY:
        return varint(len(value)) + value
    return value if kind in (BYTE, DOUBLE) else b""


def encode(struct: Struct) -> bytes:
    """Return a struct in Thrift's compact encoding."""
    out, before = bytearray(), 0
    for number, (kind, value) in sorted(struct.items()):
        out += bytes([(number - before) << 4 | kind]) + _encode(kind, value)
        before = number
    return bytes(out) + b"\0"


@dataclass
class Page:
    """The header's fields and the bytes of one page."""

    header: Struct
    body: bytes

    @property
    def data(self) -> bytes:
        return encode(self.header) + self.body


class Edited:
    """A parsed Parquet file. Change `footer` or `chunks`, then read the new file from `data`."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[-8:-4], "little")
        self.footer = _Reader(data[-8 - length : -8]).struct()
        self.chunks = [
            [self._pages(data, self.about(group, column)) for column in range(self.columns)]
            for group in range(self.groups)
        ]

    @staticmethod
    def _pages(data: bytes, about: Struct) -> list[Page]:
        start = min(about[9][1], about[11][1]) if 11 in about else about[9][1]
        stop = start + about[7][1]
        pages = []
        while start < stop:
            reader = _Reader(data[start:stop])
            header = reader.struct()
            begin = start + reader.at
            start = begin + header[3][1]
            pages.append(Page(header, data[begin:start]))
        return pages

    @property
    def groups(self) -> int:
        return len(self.footer[4][1])

    @property
    def columns(self) -> int:
        return len(self.group(0)[1][1])

    def group(self, group: int) -> Struct:
        """Return the fields of a row group."""
        fields: Struct = self.footer[4][1][group][1]
        return fields

    def about(self, group: int, column: int) -> Struct:
        """Return the fields of a column chunk's metadata."""
        fields: Struct = self.group(group)[1][1][column][1][3][1]
        return fields

    @property
    def data(self) -> bytes:
        """The bytes of the file. The footer gets the present offset and size of each chunk."""
        out = bytearray(b"PAR1")
        for group in range(self.groups):
            for column in range(self.columns):
                about, pages = self.about(group, column), self.chunks[group][column]
                dictionary = 7 in pages[0].header
                first = len(out)
                out += b"".join(page.data for page in pages)
                about[7] = I64, len(out) - first
                about[9] = I64, first + (len(pages[0].data) if dictionary else 0)
                if dictionary:
                    about[11] = I64, first
        return self.with_footer(bytes(out))

    def with_footer(self, data: bytes) -> bytes:
        """Return `data` followed by the present footer, unchanged."""
        footer = encode(self.footer)
        return data + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def set_value(struct: Struct, field: int, value: Any) -> None:
    """Change one field and keep its type."""
    struct[field] = struct[field][0], value
