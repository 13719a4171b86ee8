"""Turn published rows into canonical trips. Convert each row without loss or reject it with a reason; count it once."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.convert import convert, is_text, without_nan
from flows.tlc.errors import NotReconciled, SchemaMismatch, TooManyRejects
from flows.tlc.foreign import Stretch
from flows.tlc.matching import Shape
from flows.tlc.schema import CODINGS, KEY, QUARANTINE_SCHEMA, Coding, Kind, arrow_schema
from flows.tlc.trips import Rows, TripMonth

# A sound file has next to no rejected rows. Above this share the file is damaged or its era is wrong.
MAX_REJECTED_SHARE = 0.01
# No month may have more, whatever its size. The largest known month has 23.9 million rows (known_months.csv).
MAX_REJECTED = 300_000
MAX_ROWS = 100_000_000
_LONGEST_QUOTE = 300  # characters of a row in a message
_MOSTLY = 0.9  # share of the rejected rows that one word explains
_LONGEST_WORD = 20  # characters
_LONGEST_ORIGINAL = 4_000  # characters of a row in quarantine; a sound one has about 200 in a CSV, 600 as JSON
_WITHOUT_SECONDS = r"\d[-/.]\d{1,2}[-/.]\d{1,4} \d{1,2}:\d\d(?![:\d])"

REASONS: dict[Kind, str] = {
    "integer": "not a whole number",
    "number": "not a number",
    "datetime": "not a datetime",
    "text": "not a text",
}


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file: canonical trips, rejected rows in `QUARANTINE_SCHEMA`, and counts."""

    trips: pa.Table
    rejects: pa.Table
    source_rows: int
    filtered: Counter[str] = field(default_factory=Counter)  # trips dropped, by filter
    shape: Shape | None = None
    share: float = (
        0.0  # of the file, from 0 to 1: what was read when this chunk was made, or a little more; 0 if unknown
    )
    extra: pa.Table | None = None  # the columns that the schema does not know, for the same trips
    # If all rejected values of a column are one word: the word and its count. It most likely means a missing value.
    misfits: Counter[str] = field(default_factory=Counter)
    # Only for a CSV: the bytes of the chunk and of each rejected line; the longest part of the file so far without rows; and a
    # row in a repeated part, with the same row in the first copy.
    size: int = 0
    reject_sizes: Sequence[int] = ()
    stretch: Stretch | None = None
    repeated: tuple[int, int] | None = None


@dataclass
class Tally:
    """Running counts of a month. Each source row is counted in exactly one of loaded, filtered and quarantined."""

    trip_month: TripMonth | None = None
    source_rows: int = 0
    loaded: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    first: str = ""  # the first quarantined row, for messages
    misfits: Counter[str] = field(default_factory=Counter)
    size: int = 0  # bytes of all rows of a CSV
    reject_sizes: Counter[int] = field(default_factory=Counter)  # number of rejected lines, by their size in bytes
    stretch: Stretch | None = None
    repeated: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> None:
        """Count one chunk. Raise `TooManyRejects` when the rows or the rejected rows exceed the limits."""
        self.source_rows += chunk.source_rows
        self.loaded += chunk.trips.num_rows
        self.filtered.update(chunk.filtered)
        self.quarantined.update(chunk.rejects.column("reason").to_pylist())
        self.misfits.update(chunk.misfits)
        self.size += chunk.size
        self.reject_sizes.update(chunk.reject_sizes)
        self.stretch = chunk.stretch or self.stretch
        self.repeated = chunk.repeated or self.repeated
        if chunk.rejects.num_rows and not self.first:
            [reject] = chunk.rejects.slice(0, 1).to_pylist()
            self.first = f"row {reject['row_number']}: {_printable(reject['original'][:_LONGEST_QUOTE])}"
        month = f"{self.trip_month}: " if self.trip_month else ""
        if self.quarantined.total() > MAX_REJECTED:
            raise TooManyRejects(month + self._too_many(f"more than {MAX_REJECTED:,} stop any month, and reading"))
        if self.source_rows > MAX_ROWS:
            raise TooManyRejects(
                f"{month}more than {MAX_ROWS:,} rows, which no month has. Nothing was published; check the source."
            )

    @property
    def _reject_bytes(self) -> int:
        return sum(size * lines for size, lines in self.reject_sizes.items())

    @property
    def lost(self) -> float:
        """The estimated number of rejected rows: a text as long as five mean rows counts as five."""
        sound = self.source_rows - self.reject_sizes.total()
        mean = (self.size - self._reject_bytes) / sound if sound else 0.0
        long = {size: lines for size, lines in self.reject_sizes.items() if mean and size > mean}
        return self.quarantined.total() + sum(lines * (size // mean - 1) for size, lines in long.items())

    def check(self, trip_month: TripMonth) -> None:
        """Raise an error unless each row is counted once, the file has trips, and few rows are rejected."""
        rejected = self.quarantined.total()
        if self.source_rows != self.loaded + self.filtered.total() + rejected:
            raise NotReconciled(
                f"{trip_month}: {self.source_rows} rows read, but {self.loaded} loaded + {self.filtered.total()} filtered"
                f" + {rejected} quarantined. Nothing was published; please report this."
            )
        if self.source_rows == 0:
            raise TooManyRejects(f"{trip_month}: the file has a header and no trips. Nothing was published.")
        if self.stretch:
            sound_bytes = max(0, self.size - self._reject_bytes - self.stretch.size)
            self.stretch.require_short(trip_month, sound_bytes / self.source_rows)
        lost = self.lost
        if lost > MAX_REJECTED_SHARE * (self.source_rows + lost - rejected):
            also = f" (their text is as long as {lost:,.0f} rows)" if round(lost) > rejected else ""
            raise TooManyRejects(
                f"{trip_month}: " + self._too_many(f"more than {MAX_REJECTED_SHARE:.0%} stops the month", also)
            )

    def _too_many(self, limit: str, also: str = "") -> str:
        worst = ", ".join(f"{count} × {reason}" for reason, count in self.quarantined.most_common(5))
        hint = next(hint for pattern, hint in _HINTS if re.search(pattern, f"{worst}\n{self.first}"))
        [(word, times)] = self.misfits.most_common(1) or [("", 0)]
        if times >= _MOSTLY * self.quarantined.total():
            hint = (
                f"If {word!r} means a missing value, save the file with empty fields instead;"
                " otherwise compare the file with its source."
            )
        return (
            f"{self.quarantined.total()} of {self.source_rows} rows do not fit{also} ({worst}); {limit}. Nothing was"
            f" published. {hint} The first is {self.first}"
        )


# Advice about rejected rows. The first pattern that matches the reasons and the first rejected row gives the advice.
_HINTS = (
    (
        rf"{REASONS['datetime']}.*\n.*{_WITHOUT_SECONDS}",
        "Dates without seconds come from a spreadsheet; get the original file.",
    ),
    (REASONS["datetime"], "Datetimes are not as TLC writes them, 2021-01-31 23:59:59; get the original file."),
    (
        "wrong number of fields|not CSV|not UTF-8",
        "The rows do not fit their header; compare the file with its source.",
    ),
    (
        "",
        "Compare the first row with docs/schema.md: the file was changed, or TLC has given the column another meaning.",
    ),
)


def _printable(text: str) -> str:
    """Return the text with its control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _as_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def rejects_table(rejects: Iterable[tuple[int, str, str]]) -> pa.Table:
    """Return a table for quarantine, by row number, from tuples of row number, reason and the row as published."""
    rows = sorted(rejects)
    return pa.table(
        [pa.array([row[i] for row in rows], kind.type) for i, kind in enumerate(QUARANTINE_SCHEMA)],
        schema=QUARANTINE_SCHEMA,
    )


def _as_json(rows: pa.Table) -> list[str]:
    """Return each row as JSON. Values that Python, JSON or UTF-8 cannot represent become text: year 10000, NaN, stray bytes."""
    names = rows.column_names
    columns = [_readable(_as_array(column)) for column in rows.columns]
    return [
        json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False) for values in zip(*columns, strict=True)
    ]


def _readable(values: pa.Array) -> list[str | float | None]:
    if pa.types.is_timestamp(values.type):
        return cast("list[str | float | None]", values.cast(pa.string()).to_pylist())
    if is_text(values.type):
        texts = values.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode(errors="backslashreplace") for text in texts]
    return [
        value if value is None or (isinstance(value, int | float) and math.isfinite(value)) else str(value)
        for value in values.to_pylist()
    ]


def _decode(values: pa.Array, coding: Coding) -> tuple[pa.Array, dict[str, pa.Array]]:
    """Return texts as TLC's codes, still as text, and the texts that have no code.

    A text that is neither a word with a code nor a number goes to the column `coding.original`. If that is "", the text
    stays in its own column.
    """
    texts = values.cast(pa.string())
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    codes = pa.array([str(code) for code in coding.codes.values()], pa.string())
    code = codes.take(pc.index_in(plain, value_set=pa.array(list(coding.codes), pa.string())))
    number = pc.match_substring_regex(plain, r"^-?[0-9]+(\.0*)?$")
    if not coding.original:  # the column itself is text, and keeps words that have no code
        return pc.coalesce(code, texts), {}
    decoded = pc.coalesce(code, pc.if_else(number, plain, pa.scalar(None, pa.string())))
    return decoded, {coding.original: pc.if_else(pc.is_valid(decoded), pa.scalar(None, pa.string()), texts)}


def _first_value(values: pa.Array | pa.ChunkedArray, row_numbers: pa.Array) -> str:
    """Return the first value and its row for a message, such as `1.5 in row 7`, or "" if there is none."""
    filled = pc.indices_nonzero(pc.is_valid(values))
    return f"{values[filled[0].as_py()].as_py()!r} in row {row_numbers[filled[0].as_py()]}" if len(filled) else ""


def _require_no_trip_data(trip_month: TripMonth, shape: Shape, published: pa.Table, row_numbers: pa.Array) -> None:
    """Raise `SchemaMismatch` if an empty column has a value, or a column without a name does not count upwards."""
    for name in shape.empty:
        if found := _first_value(published.column(name), row_numbers):
            raise SchemaMismatch(
                f"{trip_month}: {name} is empty in all files known so far, but has {found}: the columns may have shifted. Nothing"
                " was loaded. Compare the row with the header; if they agree, add an era to flows/tlc/eras.py."
            )
    for name in shape.counting:
        counted, bad = convert(_as_array(published.column(name)), "integer")
        upwards = pc.all(pc.greater(counted[1:], counted[:-1]), min_count=0).as_py()  # pandas leaves gaps if it filters
        if bad or counted.null_count or not upwards:
            raise SchemaMismatch(
                f"{trip_month}: the first column has no name, and does not count upwards from row {row_numbers[0]} on: it may be"
                " the index that pandas and R write, with the rows in another order, or something else. Nothing was loaded; save"
                " the file without it (pandas: index=False; R: row.names=FALSE)."
            )


def _empty_rows(columns: Sequence[pa.Array | pa.ChunkedArray]) -> list[int]:
    """Return the positions of rows without any value, such as the lines of commas that a spreadsheet leaves at the end."""
    if not all(column.null_count for column in columns):
        return []
    empty = reduce(pc.and_, (column.is_null() for column in columns))
    return [position.as_py() for position in pc.indices_nonzero(empty)]


def _only_text(values: pa.Array, positions: Sequence[int]) -> str:
    """Return the word that is the value at all of these positions, without blanks around it, or ""."""
    if not positions or not is_text(values.type):
        return ""
    texts = pc.unique(values.take(pa.array(positions, pa.int64())).cast(pa.large_binary()))
    text = (texts[0].as_py() or b"") if len(texts) == 1 else b""
    is_word = len(text) <= _LONGEST_WORD and not re.search(rb"\d", text)
    return text.decode(errors="replace").strip() if is_word else ""


def clean(
    trip_month: TripMonth,
    shape: Shape,
    published: pa.Table,
    row_numbers: pa.Array,
    original: Callable[[int], str] | None = None,
    originals: int | None = None,
) -> Chunk:
    """Return published rows as canonical trips. Reject rows that do not convert.

    `original` returns the row at a position as it was published; by default this is JSON of its values. At most `originals`
    rejected rows keep their original; by default all do. Each is counted in any case.
    """
    _require_no_trip_data(trip_month, shape, published, row_numbers)
    by_name: dict[str, pa.Array] = {}
    bad: dict[int, str] = {}
    misfits: Counter[str] = Counter()
    for name, column in zip(shape.published, shape.canonical, strict=True):
        values = without_nan(_as_array(published.column(name)))
        positions: list[int] = []
        coded, kind = shape.coded(column), column.kind
        if pa.types.is_floating(values.type) and kind in ("text", "datetime") and not coded:
            # pandas makes a column without any value float.
            if found := _first_value(values, row_numbers):
                raise SchemaMismatch(
                    f"{trip_month}: {name} has the type {values.type} and the value {found}; it must be a {kind}. Nothing was"
                    f" loaded; save the column as a {kind}, or get TLC's own file."
                )
            values = pa.nulls(len(values))
        if coded:
            if is_text(values.type):
                values, positions = convert(values, "text")  # texts that are not UTF-8 cannot be looked up
            values, words = _decode(values, CODINGS[column.name])
            by_name |= words
        by_name[column.name], more = convert(values, kind)
        if word := _only_text(values, more):
            misfits[word] += len(more)
        for position in positions + more:
            bad.setdefault(position, f"{column.name}: {REASONS[kind]}")

    for position in _empty_rows([*by_name.values(), *published.select(shape.new).columns]):
        bad.setdefault(position, "nothing in it")

    count = published.num_rows
    by_name["file_month"] = pa.repeat(pa.scalar(trip_month.file_month, pa.date32()), count)
    by_name["row_number"] = row_numbers
    schema = arrow_schema(trip_month.color)
    trips = pa.table([by_name[f.name] if f.name in by_name else pa.nulls(count, f.type) for f in schema], schema=schema)
    extra = None
    if shape.new:
        extra = published.select(shape.new).add_column(0, KEY[1].name, row_numbers).replace_schema_metadata()
    if not bad:
        return Chunk(trips, rejects_table([]), count, extra=extra)

    positions = sorted(bad)
    kept = positions[:originals]
    texts = [original(place) for place in kept] if original else _as_json(published.take(pa.array(kept, pa.int64())))
    texts += [""] * (len(positions) - len(kept))
    reasons = (bad[position] for position in positions)
    shortened = (text[:_LONGEST_ORIGINAL] for text in texts)
    rejects = rejects_table(zip(row_numbers.take(positions).to_pylist(), reasons, shortened, strict=True))
    keep = pa.array([position not in bad for position in range(count)])
    return Chunk(trips.filter(keep), rejects, count, extra=extra and extra.filter(keep), misfits=misfits)


def _with_passengers(trips: pa.Table) -> pa.Table:
    """Return the trips without those whose passenger_count is 0. Keep trips whose passenger_count is missing."""
    if "passenger_count" not in trips.column_names:
        return trips
    kept = pc.fill_null(pc.not_equal(trips.column("passenger_count"), 0), True)
    # Choosing nulls would take as long as choosing values: a column without any value is shortened instead.
    filled = [
        name for name, column in zip(trips.column_names, trips.columns, strict=True) if column.null_count < len(column)
    ]
    chosen = trips.select(filled).filter(kept)
    columns = [chosen[name] if name in filled else trips[name][: len(chosen)] for name in trips.column_names]
    return pa.table(columns, trips.schema)


# The filters that each choice of `rows` applies: the name to count dropped trips under, and the trips to keep.
FILTERS: dict[Rows, dict[str, Callable[[pa.Table], pa.Table]]] = {
    "all": {},
    "with_passengers": {"zero_passengers": _with_passengers},
}


def filtered(chunk: Chunk, rows: Rows) -> Chunk:
    """Return the chunk without the rows that the rule `rows` drops, and with their count."""
    trips = chunk.trips
    dropped: Counter[str] = Counter()
    for name, keep in FILTERS[rows].items():
        kept = keep(trips)
        dropped[name] = trips.num_rows - kept.num_rows
        trips = kept
    extra = chunk.extra
    if extra is not None and dropped.total():
        extra = extra.filter(pc.is_in(extra.column(KEY[1].name), value_set=trips.column(KEY[1].name)))
    return replace(chunk, trips=trips, filtered=dropped, extra=extra)
