"""Refuse a CSV file with bytes that are not trips: holes, parts of other documents, lost line ends.

A reader that rejects odd lines one by one would count a hole of a megabyte as one rejected row.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NoReturn

from flows.tlc.eras import meanings_of
from flows.tlc.errors import UnreadableFile
from flows.tlc.trips import COLORS, TripMonth

LONGEST_LINE = 4 << 10  # bytes; the longest row of TLC's has about 400
_FILL = 64  # repetitions of one byte; the longest in TLC's files are 22 commas, in a row without any value
_BLANK_LINES = 8  # consecutive empty lines; TLC's files have one, below the header
_LONG = 256  # bytes; a shorter stretch does not count
_ROWS_LOST = 5  # rows of mean size; a stretch of foreign text as long as these refuses the file
_SPAN = 1 << 10  # bytes, about ten rows: equal stretches of this length do not occur by chance
_ONE_IN = 64  # one in so many lines is compared; this finds a repeated part of some hundred rows
_MOST_COMPARED = 1_000_000  # places; the largest month has 370,000, but a hostile file can make each line one
_HEADER_NAMES = 3  # a line with at least so many column names is a header

_FILLS = {
    0: "NUL bytes",
    255: "0xFF bytes",
    32: "blanks",
    44: "commas",
    34: "quotes",
    13: "carriage returns",
    9: "tabs",
}
_DATETIME = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d")
_LETTERS = re.compile(rb"[A-Za-z]{3}")  # every column's name has three letters in succession


@dataclass(frozen=True)
class Look:
    """A kind of text that does not belong among trips. If `alone`, a single line of it is enough to refuse the file."""

    name: str
    pattern: re.Pattern[bytes]
    alone: bool = False
    count: int = 1  # matches of the pattern that the text must have

    def matches(self, text: bytes) -> bool:
        """Return whether the text looks like this kind."""
        return sum(1 for _ in islice(self.pattern.finditer(text), self.count)) == self.count


_BINARY = Look("binary data", re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]"), count=8)

# The first look that matches a text names it.
_LOOKS = (
    Look(
        "a merge-conflict marker, and the rows around it may be in the file twice",
        re.compile(rb"^(<{7}|>{7}|\|{7}) "),
        True,
    ),
    Look(
        "HTML or XML, like an error page",
        re.compile(
            rb"(?i)<(!doctype |\?xml |!--|/?(html|head|title|meta|link|body|div|span|script|style|table|t[rd]|center|pre|p|a"
            rb"|h[1-6]|error|code|message)( [a-z]+=|>))"
        ),
        True,
    ),
    Look(
        "the beginning of another file",
        re.compile(rb"PAR1|\x1f\x8b\x08|PK\x03\x04|%PDF-|\x89PNG|version https://git-lfs"),
        True,
    ),
    Look("rows that lost their line ends", _DATETIME, count=3),
    Look("base64", re.compile(rb"[A-Za-z0-9+/=]{60}")),
    _BINARY,
    Look("text that is not a row", re.compile(rb"")),
)


_ALONE = tuple(look for look in _LOOKS if look.alone)


def look_of(text: bytes) -> str:
    """Return a name for a text that is not a row, by its look."""
    return next(look.name for look in _LOOKS if look.matches(text))


@dataclass(frozen=True)
class Stretch:
    """Consecutive lines that are not rows, or one line that is far too long: its first row, its size, and its kind of text."""

    row_number: int
    size: int
    looks: str

    def require_short(self, trip_month: TripMonth, mean: float) -> None:
        """Raise `UnreadableFile` if the stretch is as long as `_ROWS_LOST` rows of `mean` bytes."""
        if self.size >= max(_LONG, _ROWS_LOST * mean):
            _refuse(
                trip_month,
                self.row_number,
                f"is followed by {self.size:,} bytes that are not trips, as long as {self.size / max(mean, 1):,.0f} rows:"
                f" they look like {self.looks}",
            )


def _refuse(trip_month: TripMonth, row_number: int, what: str, advice: str = "get the original file") -> NoReturn:
    raise UnreadableFile(f"{trip_month}: the file is damaged: row {row_number} {what}. Nothing was loaded; {advice}.")


def lines_of(block: bytes) -> list[bytes]:
    """Return the lines of a block that are not empty, without their line ends."""
    return [line for line in (line.rstrip(b"\r") for line in block.split(b"\n")) if line]


def has_lone_return(block: bytes) -> bool:
    """Return whether the block has a CR without LF, which Arrow takes for a line end."""
    import numpy as np  # imported here for a faster start: only reading a CSV needs it

    if b"\r" not in block:
        return False
    text = np.frombuffer(block, np.uint8)  # three times as fast as a regular expression if every line ends with CRLF
    lone = text[:-1] == ord("\r")
    lone &= text[1:] != ord("\n")
    return block.endswith(b"\r") or bool(lone.any())


def fields_of(line: bytes) -> list[str]:
    """Return the fields of a line of CSV, or none if it is not CSV."""
    try:
        return next(csv.reader([line.decode(errors="replace").lstrip("\ufeff")]), [])
    except csv.Error:
        return []


class Foreign:
    """Checks the lines of one file in order. Raises `UnreadableFile` at bytes that cannot be part of a trip file."""

    def __init__(self, trip_month: TripMonth) -> None:
        self._trip_month = trip_month
        self._blank_lines = 0  # at the end of the bytes checked so far
        self._run = (0, 0, b"")  # the current stretch of lines that are not rows: first row, bytes, beginning
        self._largest: Stretch | None = None
        self._seen: dict[int, int] = {}  # the row of each compared place, by the hash of its last `_SPAN` bytes
        self.repeated: tuple[int, int] | None = None  # a row, and an earlier one whose last `_SPAN` bytes are the same

    def look_at(self, block: bytes, row_number: int) -> None:
        """Check a block of whole lines. `row_number` is the number of its first row."""

        def refuse(at: int, what: str) -> NoReturn:
            _refuse(self._trip_month, row_number + len(lines_of(block[: block.rfind(b"\n", 0, at) + 1])), what)

        for byte in (b"\x00", b"\xff"):
            # A search for one byte runs at the speed of memory; a search for four is slower.
            if byte in block and (at := block.find(byte * 4)) >= 0:
                refuse(at, f"begins a run of {_FILLS[byte[0]]}, as in a hole")
        ends = _line_ends(block)
        self._look_for_repetition(block, ends, row_number)
        at, size, blank = _longest_line(block, ends)
        self._count_blank_lines(block, row_number, inside=blank)
        if (filled := _filled(block)) >= 0:
            byte_name = _FILLS.get(block[filled], repr(chr(block[filled])))
            refuse(filled, f"has a run of at least {_FILL} {byte_name}, as in a hole")
        if size > LONGEST_LINE:
            line = block[at : at + size]
            more = "" if line.endswith(b"\n") else " or more"
            refuse(at, f"is a line of {size:,} bytes{more}, and looks like {look_of(line)}")
        if size >= _LONG:
            number = row_number + len(lines_of(block[:at]))
            self._remember(number, size, block[at : at + size])

    def _look_for_repetition(self, block: bytes, ends: Any, row_number: int) -> None:
        """Record the first place where `_SPAN` bytes repeat earlier ones, as after a download that resumed too early."""
        for line, end in _places(block, ends):
            row, span = row_number + line, block[end - _SPAN : end]
            earlier = self._seen.get(hash(span))
            if earlier is None:
                if len(self._seen) < _MOST_COMPARED:
                    self._seen[hash(span)] = row
            elif earlier != row and not self.repeated and not _mostly_equal_lines(span):
                self.repeated = (row, earlier)

    def _count_blank_lines(self, block: bytes, row_number: int, *, inside: bool) -> None:
        text = block.lstrip(b"\r\n")
        leading = self._blank_lines + block[: len(block) - len(text)].count(b"\n")
        runs = [(leading, row_number)]
        if inside:
            runs += [
                (run[0].count(b"\n") - 1, row_number + len(lines_of(text[: run.start()])))
                for run in re.finditer(rb"\n(?:\r*\n){%d,}" % _BLANK_LINES, text)
            ]
        for count, number in runs:
            if count > _BLANK_LINES:
                _refuse(
                    self._trip_month,
                    number,
                    f"comes after {count:,} empty lines or more, as in a hole",
                    "get the original file, or remove the empty lines if they are intended",
                )
        self._blank_lines = text[len(text.rstrip(b"\r\n")) :].count(b"\n") - 1 if text else leading

    def row(self) -> None:
        """Record that a line is a row. This ends the current stretch."""
        if self._run[1]:
            self._remember(*self._run)
            self._run = (0, 0, b"")

    def foreign_line(self, row_number: int, line: bytes) -> None:
        """Record that a line is not a row. Raise `UnreadableFile` if this line alone shows that the file is damaged."""
        for look in _ALONE:
            if look.pattern.search(line):
                _refuse(self._trip_month, self._run[0] or row_number, f"is {look.name}")
        require_no_header(self._trip_month, row_number, line)
        if _DATETIME.search(line) and not _BINARY.matches(line):  # a row with the wrong number of fields
            self.row()
            return
        number, size, begin = self._run
        more = line + b"\n" if len(begin) < _LONG else b""
        self._run = (number or row_number, size + len(line) + 1, begin + more)

    @property
    def largest(self) -> Stretch | None:
        """The longest stretch so far."""
        self._remember(*self._run)
        return self._largest

    def _remember(self, row_number: int, size: int, begin: bytes) -> None:
        if size >= _LONG and (self._largest is None or size > self._largest.size):
            self._largest = Stretch(row_number, size, look_of(begin))


def refuse_joined(trip_month: TripMonth, row_number: int) -> NoReturn:
    """Raise `UnreadableFile` because a row is a header: the file may contain trips twice."""
    raise UnreadableFile(
        f"{trip_month}: row {row_number} is the header once more: the file consists of several files, and may contain trips"
        " twice. Nothing was loaded; get the original file."
    )


def require_no_header(trip_month: TripMonth, row_number: int, line: bytes) -> None:
    """Raise `UnreadableFile` if a line that is not a trip has column names of any color, in upper or lower case."""
    if not _LETTERS.search(line):
        return
    if sum(field.strip().casefold() in _names() for field in fields_of(line)[:_FILL]) >= _HEADER_NAMES:
        refuse_joined(trip_month, row_number)


@cache
def _names() -> frozenset[str]:
    return frozenset().union(*map(meanings_of, COLORS))


def _line_ends(block: bytes) -> Any:
    """Return the positions of the line ends of a block."""
    import numpy as np  # as above

    return np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))


def _longest_line(block: bytes, ends: Any) -> tuple[int, int, bool]:
    """Return where the longest line of a block begins, its bytes with its line end, and whether there may be empty lines."""
    import numpy as np  # as above

    sizes = np.diff(ends, prepend=-1, append=len(block) - 1)
    longest = int(sizes.argmax())
    begins = int(ends[longest - 1]) + 1 if longest else 0
    return begins, int(sizes[longest]), bool((sizes[:-1] <= len("\r\n")).any())


def _places(block: bytes, ends: Any) -> Iterator[tuple[int, int]]:
    """Yield the number and the end of some lines of a block: about one in `_ONE_IN`.

    A hash of a line's last bytes chooses it, so the same line is chosen wherever it occurs.
    """
    import numpy as np  # as above

    first = int(np.searchsorted(ends, _SPAN))
    chosen = ends[first:]
    # The eight bytes from each position on.
    words = np.ndarray(max(0, len(block) - 7), np.dtype("<u8"), block, strides=(1,))
    marks = np.zeros(len(chosen), np.uint64)
    for back in range(12, 76, 16):
        marks = (marks ^ words[chosen - back]) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing spreads the values
    (taken,) = np.nonzero(marks < np.uint64(2**64 // _ONE_IN))
    for line in taken.tolist():
        yield first + line, int(chosen[line])


def _mostly_equal_lines(span: bytes) -> bool:
    """Return whether most lines of `span` are equal, which sound files have too."""
    return len(set(span.split(b"\n"))) <= span.count(b"\n") // 2


def _filled(block: bytes) -> int:
    """Return where the same byte occurs `_FILL` times in succession, or -1."""
    import numpy as np  # as above

    step = _FILL // 8
    samples = np.frombuffer(block, np.uint8)[::step]  # a run contains eight samples, all the same
    same = (samples[1:] == samples[:-1]).tobytes()
    at = -1
    while (at := same.find(b"\x01" * 7, at + 1)) >= 0:
        place = at * step
        byte = block[place : place + 1]
        around = block[max(0, place - _FILL) : place + _FILL]
        if byte * _FILL in around:
            first: int = max(0, place - _FILL)
            return first + around.index(byte * _FILL)
    return -1
