"""Read and edit Thrift's compact protocol, in which Parquet writes footers and page headers: structs as dicts by field number.

The protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Arrow's reader cannot replace
this: it does not expose page headers. It can also crash the process: one wrong byte in a footer is enough, if a program
reads a column's codec or statistics.
"""

from typing import Any, NamedTuple

_DEEPEST = 16  # nested structs and lists
_SIZES = {3: 1, 7: 8}  # bytes by type: a byte, a double


class BadThrift(Exception):
    """The bytes are not valid Thrift, or lack a required field."""


class CutOff(BadThrift):
    """The bytes end inside a struct."""


class TooManyValues(BadThrift):
    """The struct has more values than the limit."""


def read_struct(data: bytes, most: int) -> tuple[dict[int, Any], int]:
    """Return the struct at the beginning of `data`, which may have `most` values, and its length in bytes.

    A struct has integers, booleans, bytes, lists and dicts. Values of other types are None.
    """
    reader = _Reader(data, most)
    return reader.whole(), reader.at


class Place(NamedTuple):
    """Where the encoded value of a field is: its first byte, and the byte after its last."""

    start: int
    end: int


def places(data: bytes, most: int) -> list[tuple[tuple[int, ...], Any, Place]]:
    """Return the path, the value and the place of each field of the struct at the beginning of `data`, inner fields first.

    The path has the numbers of the fields that lead to it. All elements of a list have the path of the list.
    """
    locator = _Locator(data, most)
    locator.whole()
    return locator.found


def integer(number: int) -> bytes:
    """Return an integer as a field's value."""
    return varint(number << 1 if number >= 0 else ~(number << 1))


def varint(number: int) -> bytes:
    """Return a number that is not negative in groups of seven bits, as sizes are written."""
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


class _Reader:
    """Reads values from `at` on. Raises IndexError where the bytes end."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._left, self.at = data, most, 0

    def whole(self) -> dict[int, Any]:
        """Return the struct at the beginning. Raise `CutOff` if the bytes end inside it."""
        try:
            return self.struct(0)
        except IndexError:
            raise CutOff("it is cut off") from None

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 0x0F
            fields[field] = self._field(field, kind, depth)
        return fields

    def _field(self, field: int, kind: int, depth: int) -> Any:
        return self._value(kind, depth)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyValues("it has too many values")

    def _value(self, kind: int, depth: int) -> Any:
        self._count()
        if depth > _DEEPEST:
            raise BadThrift("its structs are nested too deeply")
        if kind in (1, 2):  # in a struct, a boolean's type is its value
            return kind == 1
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._bytes(self._varint())
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            if size > len(self._data) - self.at:  # each element has at least one byte
                raise IndexError
            return [self._element(head & 0x0F, depth + 1) for _ in range(size)]
        if kind not in _SIZES:
            raise BadThrift(f"it has a field of type {kind}")
        self._bytes(_SIZES[kind])
        return None

    def _element(self, kind: int, depth: int) -> Any:
        if kind not in (1, 2):
            return self._value(kind, depth)
        self._count()
        return self._byte() == 1

    def _byte(self) -> int:
        byte = self._data[self.at]
        self.at += 1
        return byte

    def _bytes(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise IndexError
        return self._data[start : self.at]

    def _varint(self) -> int:
        data, at = self._data, self.at
        number = shift = 0
        while (byte := data[at]) >= 0x80:
            number |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if shift > 63:
                raise BadThrift("it has a number that is too long")
        self.at = at + 1
        return number | byte << shift

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)


class _Locator(_Reader):
    """Also records the place of each field."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data, most)
        self.found: list[tuple[tuple[int, ...], Any, Place]] = []
        self._path: tuple[int, ...] = ()

    def _field(self, field: int, kind: int, depth: int) -> Any:
        start, outer = self.at, self._path
        self._path = (*outer, field)
        value = self._value(kind, depth)
        self.found.append((self._path, value, Place(start, self.at)))
        self._path = outer
        return value


def number(fields: dict[int, Any], field: int, what: str) -> int:
    """Return a count, a size or a position. Raise `BadThrift` if the struct lacks it or it is negative."""
    value = fields.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadThrift(f"it has no {what}, or a negative one")
    return value
