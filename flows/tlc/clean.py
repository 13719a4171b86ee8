"""From rows as published to canonical trips: convert losslessly or set aside with the reason, count everything once."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.eras import Shape
from flows.tlc.errors import NotReconciled, SchemaMismatch, TooManyRejects
from flows.tlc.foreign import Stretch
from flows.tlc.schema import CODINGS, KEY, KINDS, QUARANTINE_SCHEMA, Coding, Kind, arrow_schema
from flows.tlc.trips import Rows, TripMonth

# A sound file has next to none; above this share the file is damaged or its era is wrong.
MAX_REJECTED_SHARE = 0.01
# No month may have more, whatever its size: the largest known has 23.9 million rows (known_months.csv).
MAX_REJECTED = 300_000
MAX_ROWS = 100_000_000
_TOLD = 300  # characters of a row in a message
_WITHOUT_SECONDS = r"\d[-/.]\d{1,2}[-/.]\d{1,4} \d{1,2}:\d\d(?![:\d])"

REASONS: dict[Kind, str] = {
    "integer": "not a whole number",
    "number": "not a number",
    "datetime": "not a datetime",
    "text": "not a text",
}


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a file: canonical trips, what was set aside (`QUARANTINE_SCHEMA`), and the counts.

    `extra` has the columns that the schema does not know, of the same trips, if the file has any and they are wanted.
    Of a CSV, `size` is the chunk's bytes, `reject_sizes` those of each rejected line, `stretch` the largest of the file so far
    that is no rows, and `repeated` a row up to which a part of the file stands there again, and where it stood before.
    """

    trips: pa.Table
    rejects: pa.Table
    source_rows: int
    filtered: Counter[str] = field(default_factory=Counter)
    share: float = 0.0  # of the file that has been read by the end of this chunk, as far as it is known
    extra: pa.Table | None = None
    size: int = 0
    reject_sizes: Sequence[int] = ()
    stretch: Stretch | None = None
    repeated: tuple[int, int] | None = None


@dataclass
class Tally:
    """Running counts of a month; every source row is in exactly one of loaded, filtered, quarantined."""

    source_rows: int = 0
    loaded: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    first: str = ""  # of the quarantined rows
    size: int = 0  # bytes of all rows, if they are text
    reject_sizes: Counter[int] = field(default_factory=Counter)  # bytes of a rejected line to how many there are
    stretch: Stretch | None = None
    repeated: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> None:
        """Count one chunk; raise `TooManyRejects` as soon as no month could be forgiven so many."""
        self.source_rows += chunk.source_rows
        self.loaded += chunk.trips.num_rows
        self.filtered.update(chunk.filtered)
        self.quarantined.update(chunk.rejects.column("reason").to_pylist())
        self.size += chunk.size
        self.reject_sizes.update(chunk.reject_sizes)
        self.stretch = chunk.stretch or self.stretch
        self.repeated = chunk.repeated or self.repeated
        if chunk.rejects.num_rows and not self.first:
            [reject] = chunk.rejects.slice(0, 1).to_pylist()
            self.first = f"row {reject['row_number']}: {_printable(reject['original'][:_TOLD])}"
        if self.quarantined.total() > MAX_REJECTED:
            raise TooManyRejects(self._too_many(f"more than {MAX_REJECTED:,} stop any month, and reading"))
        if self.source_rows > MAX_ROWS:
            raise TooManyRejects(
                f"more than {MAX_ROWS:,} rows, which no month has. Nothing was published; check the source."
            )

    @property
    def lost(self) -> float:
        """Rows that the rejected ones could have been: text as long as five rows counts as five."""
        count, size = self.reject_sizes.total(), sum(n * size for size, n in self.reject_sizes.items())
        sound = self.source_rows - count
        mean = (self.size - size) / sound if sound else 0.0
        return self.quarantined.total() + sum(
            n * (size / mean - 1) for size, n in self.reject_sizes.items() if mean and size > mean
        )

    def check(self, trip_month: TripMonth) -> None:
        """Raise unless every row is accounted for and the file is sound."""
        set_aside = self.quarantined.total()
        if self.source_rows != self.loaded + self.filtered.total() + set_aside:
            raise NotReconciled(
                f"{trip_month}: {self.source_rows} rows read, but {self.loaded} loaded + {self.filtered.total()} filtered"
                f" + {set_aside} quarantined. Nothing was published; please report this."
            )
        if self.source_rows == 0:
            raise TooManyRejects(f"{trip_month}: the file has a header and no trips. Nothing was published.")
        if self.stretch:
            sizes = sum(n * size for size, n in self.reject_sizes.items())
            self.stretch.require_short(trip_month, max(0, self.size - sizes - self.stretch.size) / self.source_rows)
        lost = self.lost
        if lost > MAX_REJECTED_SHARE * (self.source_rows + lost - set_aside):
            also = f" (their text is as long as {lost:,.0f} rows)" if round(lost) > set_aside else ""
            raise TooManyRejects(
                f"{trip_month}: " + self._too_many(f"more than {MAX_REJECTED_SHARE:.0%} stops the month", also)
            )

    def _too_many(self, limit: str, also: str = "") -> str:
        worst = ", ".join(f"{count} × {reason}" for reason, count in self.quarantined.most_common(5))
        hint = next(hint for pattern, hint in _HINTS if re.search(pattern, f"{worst}\n{self.first}"))
        return (
            f"{self.quarantined.total()} of {self.source_rows} rows do not fit{also} ({worst}); {limit}. Nothing was"
            f" published. {hint} The first is {self.first}"
        )


# What to do about rejected rows, by the first pattern that their reasons and the first of them match.
_HINTS = (
    (
        rf"{REASONS['datetime']}.*\n.*{_WITHOUT_SECONDS}",
        "Dates without seconds are what a spreadsheet leaves; get the original file.",
    ),
    (REASONS["datetime"], "Datetimes are not as TLC writes them, 2021-01-31 23:59:59; get the original file."),
    (
        "wrong number of fields|not CSV|not UTF-8",
        "The rows are not as their header says; compare the file with its source.",
    ),
    (
        "",
        "Compare the first row with docs/schema.md: the file was changed on its way, or TLC means another thing by the column.",
    ),
)


def _printable(text: str) -> str:
    """The text with its control characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


_EARLIEST = pa.scalar(-62_135_596_800_000_000, pa.timestamp("us"))  # 0001-01-01, the first day every store can hold
_LATEST = pa.scalar(253_402_300_799_999_999, pa.timestamp("us"))  # 9999-12-31


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# How a value may be spelled where it was published as text. Arrow alone is more generous: it takes 0x10 for 16,
# NaN for a number, and a bare date or a time without seconds for midnight or :00, which would be invented data.
_SPELLED: dict[Kind, str] = {
    "integer": r"^[+-]?[0-9]+(\.0*)?$",
    "number": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$",
    "datetime": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6}0*)?$",
}


def _well_spelled(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """The texts without blanks around them; those spelled otherwise than `kind` may be are made null, and told."""
    values = pc.ascii_trim_whitespace(values)
    fits = pc.fill_null(pc.match_substring_regex(values, _SPELLED[kind]), True)
    return pc.if_else(fits, values, pa.scalar(None, values.type)), pc.indices_nonzero(pc.invert(fits)).to_pylist()


def _to_integer(values: pa.Array) -> pa.Array:
    if _is_text(values.type):  # never by way of a float, which rounds beyond 2^53
        values = pc.replace_substring_regex(values, r"^\+|\.0*$", "")
    return values.cast(pa.int64())


def _to_number(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64())
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise pa.ArrowInvalid("NaN or infinite")
    return numbers


def _to_datetime(values: pa.Array) -> pa.Array:
    moments = values.cast(pa.timestamp("us"))
    span = pc.min_max(moments)
    if span["min"].is_valid and not (_EARLIEST.value <= span["min"].value and span["max"].value <= _LATEST.value):
        raise pa.ArrowInvalid("outside the years 1 to 9999")
    return moments


def _to_text(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    texts.validate(full=True)  # Parquet's reader does not look whether a text is UTF-8
    if pc.any(pc.match_substring(texts, "\x00"), min_count=0).as_py():
        raise pa.ArrowInvalid("NUL, which Postgres cannot hold")
    return texts


_CONVERT: dict[Kind, Callable[[pa.Array], pa.Array]] = {
    "integer": _to_integer,
    "number": _to_number,
    "datetime": _to_datetime,
    "text": _to_text,
}


def _convert(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """Convert, and tell the positions that will not."""
    if kind not in _SPELLED or not _is_text(values.type):
        return _halve(values, kind)
    if kind == "datetime" and pc.all(pc.equal(pc.binary_length(values), 19), min_count=0).as_py():
        # Of texts as long as "2021-01-31 23:59:59", Arrow takes nothing else; asking the pattern costs more than the cast.
        with suppress(pa.ArrowInvalid):
            return _to_datetime(values), []
    values, misspelled = _well_spelled(values, kind)
    if kind == "datetime":  # Arrow takes six digits of a second, and of more all are zeros
        values = pc.replace_substring_regex(values, r"(\.[0-9]{6})0+$", r"\1")
    converted, impossible = _halve(values, kind)
    return converted, misspelled + impossible


def _halve(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """Convert; halving finds a few bad values among many in few steps."""
    try:
        return _CONVERT[kind](values), []
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, KINDS[kind].arrow), [0]
    middle = len(values) // 2
    left, bad_left = _halve(values[:middle], kind)
    right, bad_right = _halve(values[middle:], kind)
    return pa.concat_arrays([left, right]), bad_left + [middle + position for position in bad_right]


def _as_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def rejects_table(rejects: Iterable[tuple[int, str, str]]) -> pa.Table:
    """Quarantine rows: row number, reason, the row as published."""
    rows = sorted(rejects)
    return pa.table(
        [pa.array([row[i] for row in rows], kind.type) for i, kind in enumerate(QUARANTINE_SCHEMA)],
        schema=QUARANTINE_SCHEMA,
    )


NO_REJECTS = rejects_table([])


def _readable(value: pa.Scalar) -> str | float | None:
    """A value as JSON can hold it, also one that Python or UTF-8 cannot: year 10000, NaN, stray bytes."""
    if not value.is_valid:
        return None
    if pa.types.is_timestamp(value.type):
        return str(value.cast(pa.string()).as_py())
    if _is_text(value.type):
        return bytes(value.as_buffer()).decode(errors="backslashreplace")
    plain = value.as_py()
    return plain if isinstance(plain, int | float) and math.isfinite(plain) else str(plain)


def _decode(values: pa.Array, coding: Coding) -> tuple[pa.Array, dict[str, pa.Array]]:
    """Texts as TLC's codes, still as text; those that have none, and are no code themselves, go to a column of their own."""
    texts = values.cast(pa.string())
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    codes = pa.array([str(code) for code in coding.codes.values()], pa.string())
    code = codes.take(pc.index_in(plain, value_set=pa.array(list(coding.codes), pa.string())))
    number = pc.match_substring_regex(plain, r"^-?[0-9]+(\.0*)?$")
    if not coding.original:  # the column itself is text, and can keep what has no code
        return pc.coalesce(code, texts), {}
    decoded = pc.coalesce(code, pc.if_else(number, plain, pa.scalar(None, pa.string())))
    return decoded, {coding.original: pc.if_else(pc.is_valid(decoded), pa.scalar(None, pa.string()), texts)}


def _require_empty(trip_month: TripMonth, name: str, values: pa.ChunkedArray, row_numbers: pa.Array) -> None:
    filled = pc.indices_nonzero(pc.is_valid(values))
    if len(filled):
        first = filled[0].as_py()
        raise SchemaMismatch(
            f"{trip_month}: {name} has never held anything, but holds {values[first].as_py()!r} in row"
            f" {row_numbers[first]}: header and data do not agree, and columns may have shifted. Nothing was loaded."
            " Compare the row with the header, and add an era to flows/tlc/eras.py."
        )


def _empty_rows(published: pa.Table) -> list[int]:
    """Positions of rows without any value, such as the lines of commas that a spreadsheet leaves at the end."""
    if not all(column.null_count for column in published.columns):
        return []
    empty = reduce(pc.and_, (column.is_null() for column in published.columns))
    return [position.as_py() for position in pc.indices_nonzero(empty)]


def clean(
    trip_month: TripMonth,
    shape: Shape,
    published: pa.Table,
    row_numbers: pa.Array,
    original: Callable[[int], str] | None = None,
) -> Chunk:
    """Canonical trips of `published` (columns as in `shape`), with the rows that will not convert set aside.

    `original(i)` gives row i as it was published; by default its values as JSON.
    """
    by_name: dict[str, pa.Array] = {}
    bad: dict[int, str] = {}
    for name in shape.empty:
        _require_empty(trip_month, name, published.column(name), row_numbers)
    for name, column in zip(shape.published, shape.canonical, strict=True):
        values = _as_array(published.column(name))
        if shape.coded(column):
            values, originals = _decode(values, CODINGS[column.name])
            by_name |= originals
        by_name[column.name], positions = _convert(values, column.kind)
        for position in positions:
            bad.setdefault(position, f"{column.name}: {REASONS[column.kind]}")

    for position in _empty_rows(published):
        bad[position] = "nothing in it"

    count = published.num_rows
    by_name["file_month"] = pa.repeat(pa.scalar(trip_month.file_month, pa.date32()), count)
    by_name["row_number"] = row_numbers
    schema = arrow_schema(trip_month.color)
    trips = pa.table([by_name[f.name] if f.name in by_name else pa.nulls(count, f.type) for f in schema], schema=schema)
    extra = None
    if shape.new:
        extra = published.select(shape.new).add_column(0, KEY[1].name, row_numbers).replace_schema_metadata()
    if not bad:
        return Chunk(trips, NO_REJECTS, count, extra=extra)

    def as_json(position: int) -> str:
        row = {name: _readable(published.column(name)[position]) for name in published.column_names}
        return json.dumps(row, ensure_ascii=False)

    rejects = rejects_table(
        (row_numbers[position].as_py(), reason, (original or as_json)(position)) for position, reason in bad.items()
    )
    keep = pa.array([position not in bad for position in range(count)])
    return Chunk(trips.filter(keep), rejects, count, extra=None if extra is None else extra.filter(keep))


def passengers_only(trips: pa.Table) -> pa.Table:
    """Trips that carried somebody, or of which nobody knows: only a passenger_count of 0 is dropped."""
    if "passenger_count" not in trips.column_names:
        return trips
    return trips.filter(pc.fill_null(pc.not_equal(trips.column("passenger_count"), 0), True))


# A rule a name: what a run may leave out on request.
FILTERS: dict[Rows, Sequence[tuple[str, Callable[[pa.Table], pa.Table]]]] = {
    "all": (),
    "with_passengers": (("zero_passengers", passengers_only),),
}


def filtered(chunks: Iterable[Chunk], rows: Rows) -> Iterator[Chunk]:
    """Apply the rule that `rows` names, and count what it drops."""
    for chunk in chunks:
        trips = chunk.trips
        dropped: Counter[str] = Counter()
        for name, keep in FILTERS[rows]:
            kept = keep(trips)
            dropped[name] = trips.num_rows - kept.num_rows
            trips = kept
        extra = chunk.extra
        if extra is not None and dropped.total():
            extra = extra.filter(pc.is_in(extra.column(KEY[1].name), value_set=trips.column(KEY[1].name)))
        yield replace(chunk, trips=trips, filtered=dropped, extra=extra)
