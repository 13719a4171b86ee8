"""From rows as published to canonical trips: convert losslessly or set aside with the reason, count everything once."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.eras import Shape
from flows.tlc.errors import NotReconciled, TooManyRejects
from flows.tlc.schema import KINDS, QUARANTINE_SCHEMA, Kind, arrow_schema
from flows.tlc.trips import Rows, TripMonth

# A sound file has next to none; above this share the file is damaged or its era is wrong.
MAX_REJECTED_SHARE = 0.01

REASONS: dict[Kind, str] = {
    "integer": "not a whole number",
    "number": "not a number",
    "datetime": "not a datetime",
    "text": "not a text",
}


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a file: canonical trips, what was set aside (`QUARANTINE_SCHEMA`), and the counts."""

    trips: pa.Table
    rejects: pa.Table
    source_rows: int
    filtered: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """Running counts of a month; every source row is in exactly one of loaded, filtered, quarantined."""

    source_rows: int = 0
    loaded: int = 0
    filtered: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)

    def add(self, chunk: Chunk) -> None:
        """Count one chunk."""
        self.source_rows += chunk.source_rows
        self.loaded += chunk.trips.num_rows
        self.filtered.update(chunk.filtered)
        self.quarantined.update(chunk.rejects.column("reason").to_pylist())

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
        if set_aside > MAX_REJECTED_SHARE * self.source_rows:
            worst = ", ".join(f"{count} × {reason}" for reason, count in self.quarantined.most_common(5))
            hint = (
                " Dates without seconds are what a spreadsheet leaves; fetch the original file."
                if any(reason.endswith(REASONS["datetime"]) for reason in self.quarantined)
                else " Compare the file with its source; it may be damaged."
            )
            raise TooManyRejects(
                f"{trip_month}: {set_aside} of {self.source_rows} rows do not fit ({worst});"
                f" more than {MAX_REJECTED_SHARE:.0%} stops the month. Nothing was published.{hint}"
            )


_EARLIEST = pa.scalar(-62_135_596_800_000_000, pa.timestamp("us"))  # 0001-01-01, the first day every store can hold
_LATEST = pa.scalar(253_402_300_799_999_999, pa.timestamp("us"))  # 9999-12-31


def _to_integer(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        trimmed = pc.utf8_trim_whitespace(values)
        try:
            return trimmed.cast(pa.int64())
        except pa.ArrowInvalid:
            return trimmed.cast(pa.float64()).cast(pa.int64())
    return values.cast(pa.int64())


def _to_number(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    numbers = values.cast(pa.float64())
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise pa.ArrowInvalid("NaN or infinite")
    return numbers


def _to_datetime(values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        # Arrow would take a bare date, or a time without seconds, for midnight or :00: that would be invented data.
        if not pc.all(
            pc.match_substring_regex(values, r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,6})?$"), min_count=0
        ).as_py():
            raise pa.ArrowInvalid("not YYYY-MM-DD HH:MM:SS")
    moments = values.cast(pa.timestamp("us"))
    span = pc.min_max(moments)
    if span["min"].is_valid and not (_EARLIEST.value <= span["min"].value and span["max"].value <= _LATEST.value):
        raise pa.ArrowInvalid("outside the years 1 to 9999")
    return moments


def _to_text(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    if pc.any(pc.match_substring(texts, "\x00"), min_count=0).as_py():
        raise pa.ArrowInvalid("NUL, which Postgres cannot hold")
    return texts


_CONVERT: dict[Kind, Callable[[pa.Array], pa.Array]] = {
    "integer": _to_integer,
    "number": _to_number,
    "datetime": _to_datetime,
    "text": _to_text,
}


def _convert_or_reject(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """Convert, and tell the positions that will not; halving finds a few bad values among many in few steps."""
    try:
        return _CONVERT[kind](values), []
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, KINDS[kind].arrow), [0]
    middle = len(values) // 2
    left, bad_left = _convert_or_reject(values[:middle], kind)
    right, bad_right = _convert_or_reject(values[middle:], kind)
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
    for name, column in zip(shape.published, shape.canonical, strict=True):
        values = _as_array(published.column(name))
        by_name[column.name], positions = _convert_or_reject(values, column.kind)
        for position in positions:
            bad.setdefault(position, f"{column.name}: {REASONS[column.kind]}")

    count = published.num_rows
    by_name["file_month"] = pa.repeat(pa.scalar(trip_month.file_month, pa.date32()), count)
    by_name["row_number"] = row_numbers
    schema = arrow_schema(trip_month.color)
    trips = pa.table([by_name.get(f.name, pa.nulls(count, f.type)) for f in schema], schema=schema)
    if not bad:
        return Chunk(trips, NO_REJECTS, count)

    def as_json(position: int) -> str:
        return json.dumps(published.slice(position, 1).to_pylist()[0], default=str, ensure_ascii=False)

    rejects = rejects_table(
        (row_numbers[position].as_py(), reason, (original or as_json)(position)) for position, reason in bad.items()
    )
    keep = pa.array([position not in bad for position in range(count)])
    return Chunk(trips.filter(keep), rejects, count)


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
        yield Chunk(trips, chunk.rejects, chunk.source_rows, dropped)
