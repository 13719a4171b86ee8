"""Bytes in a CSV file that are no trips: holes, other documents, lost line ends. What can be seen of them is refused here.

A reader that sets odd lines aside one by one would count a hole of a megabyte as one rejected row.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, NoReturn

from flows.tlc.eras import names_of
from flows.tlc.errors import UnreadableFile
from flows.tlc.trips import COLORS, TripMonth

LONGEST_LINE = 4 << 10  # bytes; the longest row of TLC's has about 400
_FILL = 64  # times the same byte; the longest run in TLC's files are 22 commas of a row without any value
_BLANK_LINES = 8  # one after another; TLC's files have one, below the header
_LONG = 256  # bytes; shorter lines are not looked at one by one
_ROWS_LOST = 5  # mean rows that foreign text may take the place of
_SPAN = 1 << 10  # bytes that stand twice in a file by no chance: some ten rows
_ONE_IN = 64  # lines, looked for again; so a repeated span of some hundred rows is found
_HEADER_NAMES = 3  # names of columns that make a line a header

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
_LETTERS = re.compile(rb"[A-Za-z]{3}")  # every column's name has so many


@dataclass(frozen=True)
class Look:
    """Text of a kind that has no place among trips; `alone`: a single line of it is enough to refuse the file."""

    name: str
    pattern: re.Pattern[bytes]
    alone: bool = False
    count: int = 1  # of places that match

    def of(self, text: bytes) -> bool:
        """Return whether the text looks so."""
        return sum(1 for _ in islice(self.pattern.finditer(text), self.count)) == self.count


_BINARY = Look("binary data", re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xff]"), count=8)

# The first that matches names what the text looks like.
LOOKS = (
    Look(
        "a merge-conflict marker, and the rows about it may be there twice", re.compile(rb"^(<{7}|>{7}|\|{7}) "), True
    ),
    Look(
        "HTML or XML, as an error page is",
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
    Look("text that is no row", re.compile(rb"")),
)


_ALONE = tuple(look for look in LOOKS if look.alone)


def look_of(text: bytes) -> str:
    """Return what a piece of a file looks like that is no row."""
    return next(look.name for look in LOOKS if look.of(text))


@dataclass(frozen=True)
class Stretch:
    """Consecutive lines that are no rows, or one line far too long: the row where it begins, its bytes, what it looks like."""

    row_number: int
    size: int
    looks: str

    def require_short(self, trip_month: TripMonth, mean: float) -> None:
        """Raise `UnreadableFile` if as many bytes hold more than a few rows of `mean` bytes."""
        if self.size >= max(_LONG, _ROWS_LOST * mean):
            _refuse(
                trip_month,
                self.row_number,
                f"is followed by {self.size:,} bytes that are no trips, as long as {self.size / max(mean, 1):,.0f} rows:"
                f" they look like {self.looks}",
            )


def _refuse(trip_month: TripMonth, row_number: int, what: str, advice: str = "get the original file") -> NoReturn:
    raise UnreadableFile(f"{trip_month}: the file is damaged: row {row_number} {what}. Nothing was loaded; {advice}.")


def lines_of(block: bytes) -> list[bytes]:
    """The lines of a block that are not empty, each without its line end."""
    return [line for line in (line.rstrip(b"\r") for line in block.split(b"\n")) if line]


class Foreign:
    """Looks at the lines of one file in order, and raises `UnreadableFile` where they cannot be those of a trip file."""

    def __init__(self, trip_month: TripMonth) -> None:
        self._trip_month = trip_month
        self._blank_lines = 0  # at the end of what has been looked at
        self._run = (0, 0, b"")  # lines one after another that are no rows: the first one's number, bytes, beginning
        self._largest: Stretch | None = None
        self._seen: dict[int, int] = {}  # some places of the file, by the bytes before them, and their rows
        self.repeated: tuple[int, int] | None = None  # a row, and an earlier one with the same bytes before it

    def look_at(self, block: bytes, row_number: int) -> None:
        """Look at the bytes of a block of whole lines, whose first row has this number."""

        def refuse(at: int, what: str) -> NoReturn:
            _refuse(self._trip_month, row_number + len(lines_of(block[: block.rfind(b"\n", 0, at) + 1])), what)

        for byte in (b"\x00", b"\xff"):
            # One byte is found at the speed of memory, four are not.
            if byte in block and (at := block.find(byte * 4)) >= 0:
                refuse(at, f"begins a run of {_FILLS[byte[0]]}, as a hole leaves them")
        ends = _line_ends(block)
        self._look_for_repetition(block, ends, row_number)
        at, size, blank = _longest_line(block, ends)
        self._count_blank_lines(block, row_number, inside=blank)
        if (filled := _filled(block)) >= 0:
            byte_name = _FILLS.get(block[filled], repr(chr(block[filled])))
            refuse(filled, f"has a run of at least {_FILL} {byte_name}, as a hole does")
        if size > LONGEST_LINE:
            line = block[at : at + size]
            more = "" if line.endswith(b"\n") else " or more"
            refuse(at, f"is a line of {size:,} bytes{more}, and looks like {look_of(line)}")
        if size >= _LONG:
            number = row_number + len(lines_of(block[:at]))
            self._remember(number, size, block[at : at + size])

    def _look_for_repetition(self, block: bytes, ends: Any, row_number: int) -> None:
        """Note the first place whose last `_SPAN` bytes were in the file before, as in a download resumed too early."""
        for line, end in _places(block, ends):
            row, span = row_number + line, block[end - _SPAN : end]
            if len(set(span.split(b"\n"))) <= span.count(b"\n") // 2:
                continue  # equal rows do come one after another
            earlier = self._seen.setdefault(hash(span), row)
            if earlier != row and not self.repeated:
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
                    f"comes after {count:,} empty lines or more, as a hole leaves them",
                    "get the original file, or remove the empty lines if the file is meant so",
                )
        self._blank_lines = text[len(text.rstrip(b"\r\n")) :].count(b"\n") - 1 if text else leading

    def row(self) -> None:
        """Note that a line is a row, which ends a stretch of others."""
        if self._run[1]:
            self._remember(*self._run)
            self._run = (0, 0, b"")

    def no_row(self, row_number: int, line: bytes) -> None:
        """Note that a line is no row; raise if a single line like it shows that the file is damaged."""
        for look in _ALONE:
            if look.pattern.search(line):
                _refuse(self._trip_month, self._run[0] or row_number, f"is {look.name}")
        require_no_header(self._trip_month, row_number, line)
        if _DATETIME.search(line) and not _BINARY.of(line):  # what a row with a field too many has
            self.row()
            return
        number, size, begin = self._run
        more = line + b"\n" if len(begin) < _LONG else b""
        self._run = (number or row_number, size + len(line) + 1, begin + more)

    @property
    def largest(self) -> Stretch | None:
        """The largest stretch so far."""
        self._remember(*self._run)
        return self._largest

    def _remember(self, row_number: int, size: int, begin: bytes) -> None:
        if size >= _LONG and (self._largest is None or size > self._largest.size):
            self._largest = Stretch(row_number, size, look_of(begin))


def refuse_joined(trip_month: TripMonth, row_number: int) -> NoReturn:
    """Raise because a header is among the rows: the file may contain trips twice."""
    raise UnreadableFile(
        f"{trip_month}: row {row_number} is the header once more: this is several files in one, and trips may be there twice."
        " Nothing was loaded; get the original file."
    )


def require_no_header(trip_month: TripMonth, row_number: int, line: bytes) -> None:
    """Raise if a line that is no trip names columns that trip files of any color have, in whatever letters."""
    if not _LETTERS.search(line):
        return
    fields: Sequence[str] = ()
    with suppress(CsvError):
        fields = next(reader([line.decode(errors="replace").lstrip("\ufeff")]), [])
    if sum(field.strip().casefold() in _names() for field in fields[:_FILL]) >= _HEADER_NAMES:
        refuse_joined(trip_month, row_number)


@cache
def _names() -> frozenset[str]:
    return frozenset().union(*map(names_of, COLORS))


def _line_ends(block: bytes) -> Any:
    """Where the line ends of a block are."""
    import numpy as np  # start-up: only who reads a CSV needs it

    return np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))


def _longest_line(block: bytes, ends: Any) -> tuple[int, int, bool]:
    """Where the longest line of a block begins, its bytes with its line end, and whether there may be empty lines."""
    import numpy as np  # as above

    sizes = np.diff(ends, prepend=-1, append=len(block) - 1)
    longest = int(sizes.argmax())
    begins = int(ends[longest - 1]) + 1 if longest else 0
    return begins, int(sizes[longest]), bool((sizes[:-1] <= len("\r\n")).any())


def _places(block: bytes, ends: Any) -> Iterator[tuple[int, int]]:
    """Some lines of a block, by number, and where they end: those whose last bytes choose them, wherever they are."""
    import numpy as np  # as above

    first = int(np.searchsorted(ends, _SPAN))
    chosen = ends[first:]
    words = np.ndarray(max(0, len(block) - 7), np.dtype("<u8"), block, strides=(1,))  # eight bytes from every place on
    marks = np.zeros(len(chosen), np.uint64)
    for back in range(12, 76, 16):
        marks = (marks ^ words[chosen - back]) * np.uint64(0x9E3779B97F4A7C15)  # of Fibonacci hashing: it spreads them
    (taken,) = np.nonzero(marks < np.uint64(2**64 // _ONE_IN))
    for line in taken.tolist():
        yield first + line, int(chosen[line])


def _filled(block: bytes) -> int:
    """Where the same byte comes `_FILL` times one after another, or -1."""
    import numpy as np  # as above

    step = _FILL // 8
    samples = np.frombuffer(block, np.uint8)[::step]  # a run holds eight of them, all the same
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
