"""Any month of TLC trips as a file, made up but TLC-shaped: every era of `local.shapes`, every quirk, any size.

Same arguments, same bytes; `damaged` spoils them in the ways that people met. The trips of a month are the same in every
format; only what TLC itself wrote differently (a dispatch block's VendorID, an era's columns) differs. Nothing here knows the
product: tests compare the two.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from local.shapes import CsvShape, ParquetShape, csv_shape, parquet_shape
from local.trips import (
    ALL,
    NONE,
    TEXT_CODES,
    WORDS,
    Color,
    Ints,
    Masked,
    Month,
    Quirk,
    Trips,
    batches,
    kind_of,
    rows_of_edition,
    since,
    touched,
)

__all__ = [
    "ALL",
    "DAMAGES",
    "NONE",
    "Changes",
    "Color",
    "Damage",
    "Faults",
    "Quirk",
    "Written",
    "changes",
    "damaged",
    "rows_of_edition",
    "write_month",
    "write_zones",
]

Array: TypeAlias = "pa.Array[Any]"
Decimals = Literal["exact", "noisy"]

_ARROW_TEXT = {"string": pa.string(), "large_string": pa.large_string()}
_HUNDREDTHS = tuple(f"{number:02d}" for number in range(100))
_BOROUGHS = ("Manhattan", "Queens", "Brooklyn", "Bronx", "Staten Island")
_ZONE_NAMES = {
    1: '"EWR","Newark Airport","EWR"',
    **dict.fromkeys((56, 57), '"Queens","Corona","Boro Zone"'),
    **dict.fromkeys((103, 104, 105), '"Manhattan","Governor\'s Island/Ellis Island/Liberty Island","Yellow Zone"'),
    132: '"Queens","JFK Airport","Airports"',
    138: '"Queens","LaGuardia Airport","Airports"',
    264: '"Unknown","N/A","N/A"',
    265: '"N/A","Outside of NYC","N/A"',
}
# What no reader can convert, by field.
_NONSENSE = {"pickup": "not a time", "passengers": "many", "total": "free", "pickup_zone": "JFK"}


Damage = Literal["html", "lfs_pointer", "truncated", "conflict_markers", "excel_dates", "gzip_members"]
"""What people met under a trip file's name, but for the last, which is sound: gzip of several members."""
DAMAGES: tuple[Damage, ...] = get_args(Damage)


@dataclass(frozen=True)
class Faults:
    """Rows a reader must set aside, per kind; they replace sound trips, so a month keeps its number of rows."""

    unconvertible: int = 0
    too_many_fields: int = 0
    too_few_fields: int = 0

    def total(self) -> int:
        """How many rows are faulty."""
        return self.unconvertible + self.too_many_fields + self.too_few_fields


@dataclass(frozen=True)
class Written:
    """What a file holds: its rows, how many rows each quirk and fault touched, and which rows (from 1) are faulty."""

    rows: int
    counts: Mapping[str, int]
    faulty_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Changes:
    """Rows by which one edition of a month differs from another, with the position in the file as the key."""

    inserted: int
    updated: int
    removed: int


def write_month(
    path: Path,
    color: Color,
    year: int,
    month: int,
    *,
    rows: int,
    seed: int = 0,
    quirks: frozenset[Quirk] = ALL,
    edition: int = 1,
    faults: Faults = Faults(),
) -> Written:
    """Write one month as TLC would have, in the format of path's ending: .parquet, .csv or .csv.gz.

    `rows` is the first edition's; a later one differs from it by what `changes` says. Memory is bounded by a batch, for
    Parquet by one row group of the era. ValueError for a month, a format or a fault that TLC's files cannot have.
    """
    writer = next((make for ending, make in _WRITERS.items() if path.name.endswith(ending)), None)
    if writer is None:
        raise ValueError(f"{path.name}: a trip file ends in one of {', '.join(_WRITERS)}")
    if edition > 1 and faults.total():
        raise ValueError("faults are for the first edition: which rows they hit is not the same in another")
    if rows < 1 or edition < 1:
        raise ValueError(f"rows={rows}, edition={edition}: both count from 1")
    file_format: Literal["csv", "parquet"] = "parquet" if path.name.endswith(".parquet") else "csv"
    return writer(path, Month(color, year, month, rows, seed, quirks, file_format), edition, faults)


def damaged(content: bytes, ending: str, damage: Damage) -> bytes:
    """A trip file's bytes as somebody spoiled them. ValueError for a damage that a file of this ending cannot have."""
    if damage in _REPLACED:
        return _REPLACED[damage]
    if damage == "truncated":
        return content[: len(content) // 2]
    if ending == ".parquet" or (damage == "gzip_members" and ending != ".csv.gz"):
        raise ValueError(f"a {ending} file cannot have {damage}")
    text = gzip.decompress(content) if ending == ".csv.gz" else content
    lines = text.splitlines(keepends=True)
    middle = len(lines) // 2
    if damage == "gzip_members":
        return b"".join(gzip.compress(b"".join(part), 6, mtime=0) for part in (lines[:middle], lines[middle:]))
    if damage == "conflict_markers":
        ours = [b"<<<<<<< HEAD\r\n", lines[middle], b"=======\r\n", lines[middle], b">>>>>>> 21c0f2254e6f\r\n"]
        spoiled = b"".join([*lines[:middle], *ours, *lines[middle + 1 :]])
    else:
        spoiled = _DATETIME.sub(_as_excel_saves, text)
    return gzip.compress(spoiled, 6, mtime=0) if ending == ".csv.gz" else spoiled


_REPLACED: Mapping[Damage, bytes] = {
    "html": b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>\n",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 25031880\n" % (b"4d7a2146" * 8),
}
_DATETIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):\d\d")


def _as_excel_saves(datetime: re.Match[bytes]) -> bytes:
    """1/2/2021 0:30, seconds lost."""
    year, month, day, hour, minute = datetime.groups()
    return b"%d/%d/%s %d:%s" % (int(month), int(day), year, int(hour), minute)


def write_zones(path: Path) -> None:
    """Write a zone look-up as TLC's: 265 ids, names of its that repeat, and N/A that is text; other names made up."""
    lines = ['"LocationID","Borough","Zone","service_zone"']
    for zone in range(1, 266):
        lines.append(f"{zone}," + _ZONE_NAMES.get(zone, f'"{_BOROUGHS[zone % 5]}","Zone {zone}","Boro Zone"'))
    path.write_text("\r\n".join(lines) + "\r\n", newline="")


def changes(rows: int, old: int, new: int) -> Changes:
    """What a store must report when edition `new` of a month of `rows` replaces edition `old`."""
    before, after = rows_of_edition(rows, old), rows_of_edition(rows, new)
    common = min(before, after)
    differing = 0 if old == new else int(np.count_nonzero(_edited(common, rows, old) != _edited(common, rows, new)))
    return Changes(max(0, after - before), differing, max(0, before - after))


def _edited(common: int, rows: int, edition: int) -> Ints:
    """Per row what an edition made of it: 0 as in the first, 1 changed, -edition for a row that the first has not."""
    index = np.arange(common)
    return np.where(index >= rows, -edition, touched(index, edition).astype(np.int64))


def _write_csv(path: Path, month: Month, edition: int, faults: Faults) -> Written:
    shape = csv_shape(month.color, month.text)
    counts: Counter[str] = Counter()
    if "ragged_rows" in month.quirks and month.color == "yellow" and month.text in ("2010-02", "2010-03"):
        counts["ragged_rows"] = max(1, month.rows // 20_000)
        faults = Faults(faults.unconvertible, faults.too_many_fields + counts["ragged_rows"], faults.too_few_fields)
    spoils = _spread(faults, month.rows)
    rows = 0
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("wb"))
        out = cast(BinaryIO, raw)
        if path.name.endswith(".gz"):
            # No name and no time in the header: same trips, same bytes.
            out = cast(BinaryIO, stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
        out.write(shape.header.encode() + shape.header_end)
        # Compressing takes as long as making the rows and lets go of the GIL: the two overlap.
        compressor = stack.enter_context(ThreadPoolExecutor(1))
        pending: Future[int] | None = None
        for trips in batches(month, edition, counts):
            lines = _lines(trips, month, shape)
            lines = _spoil_lines(lines, rows, spoils, shape)
            rows += len(lines)
            if pending:
                pending.result()
            pending = compressor.submit(out.write, _joined(lines))
        if pending:
            pending.result()
    return Written(rows, dict(counts), tuple(row + 1 for row in sorted(spoils)))


def _lines(trips: Trips, month: Month, shape: CsvShape) -> Array:
    if "payment" in trips:
        # In the legacy CSV a booked trip has no vendor; the official file names one.
        booked = np.ma.getmaskarray(trips["payment"])
        trips["vendor"] = np.ma.array(trips["vendor"], mask=np.ma.getmaskarray(trips["vendor"]) | booked)
    columns: list[Any] = []
    for name, field in shape.columns():
        texts = (
            pa.nulls(len(trips[field]), pa.string())
            if name == shape.never_filled
            else _texts(trips, field, month, shape.decimals)
        )
        if shape.quoting == "all":
            texts = _join('"', texts, '"', "")
        columns.append(texts)
    columns += [""] * shape.empty_tail
    return _join(*columns, ",")


def _join(*columns_and_separator: Any) -> Array:
    joined = pc.binary_join_element_wise(*columns_and_separator, null_handling="replace", null_replacement="")
    return cast(Array, joined)


def _joined(lines: Array) -> memoryview:
    """The array's own text buffer, each line ended by CRLF: the file's bytes without a copy."""
    _, _, text = _join(lines, "\r\n", "").buffers()
    return memoryview(cast(pa.Buffer, text))


def _texts(trips: Trips, field: str, month: Month, decimals: Decimals) -> Array:
    """A field as TLC printed it."""
    values = trips[field]
    codes = since(month.color, month.text, TEXT_CODES)
    if codes and field == "vendor":
        return _taken(("", *codes.vendors), values, values)
    if codes and field == "payment":
        words = ("", *(text for texts in codes.payments for text in texts))
        return _taken(words, (trips["vendor"] - 1) * 4 + values, values)
    return _PRINTERS[kind_of(field)](values, field, decimals)


def _print_time(values: Masked, field: str, decimals: Decimals) -> Array:
    return _array(values, pa.timestamp("s")).cast(pa.string())


def _print_degrees(values: Masked, field: str, decimals: Decimals) -> Array:
    # Six decimals in a double at first, a float widened to a double later.
    stored = np.round(values.data, 6) if decimals == "noisy" else values.data.astype(np.float32)
    return _noisy(np.ma.array(stored.astype(np.float64)))


def _print_word(values: Masked, field: str, decimals: Decimals) -> Array:
    return _taken(_vocabulary(field), values, values)


def _print_money(values: Masked, field: str, decimals: Decimals) -> Array:
    return _noisy(values / 100) if decimals == "noisy" else _array(values / 100, pa.string())


def _print_distance(values: Masked, field: str, decimals: Decimals) -> Array:
    """Two decimals and no zero before the point: .79, 3.00."""
    if decimals == "noisy":
        return _noisy(values / 100)
    miles = pc.if_else(pa.array(values.data < 100), "", _array(values // 100, pa.string()))
    return _join(miles, _taken(_HUNDREDTHS, values % 100, values), ".")


def _print_whole(values: Masked, field: str, decimals: Decimals) -> Array:
    return _array(values, pa.string())


_PRINTERS: Mapping[str, Callable[[Masked, str, Decimals], Array]] = {
    "time": _print_time,
    "degrees": _print_degrees,
    "word": _print_word,
    "money": _print_money,
    "distance": _print_distance,
    "whole": _print_whole,
}


def _noisy(values: Masked) -> Array:
    """Doubles as a program that knew no shortest form printed them: 17 significant digits."""
    distinct, which = np.unique(values.data, return_inverse=True)
    return _taken([f"{value:.17g}" for value in distinct.tolist()], which.ravel(), values)


def _array(values: Masked, kind: Any) -> Array:
    return cast(Array, pa.array(values.data, mask=np.ma.getmaskarray(values)).cast(kind))


def _taken(words: Sequence[str], codes: Any, like: Masked) -> Array:
    """The words that codes stand for, null where `like` is."""
    mask = np.ma.getmaskarray(like)
    indices = np.where(mask, 0, np.ma.getdata(codes)).astype(np.int64)
    return cast(Array, pa.array(words).take(cast(Any, pa.array(indices, mask=mask))))


def _vocabulary(field: str) -> list[str]:
    words = WORDS[field]
    return [*words, *(f"{word}          " for word in words)] if field == "base" else list(words)


def _spread(faults: Faults, rows: int) -> dict[int, str]:
    """Row index → kind of fault, spread over the file on odd rows, where neither quirks nor editions are."""
    total = faults.total()
    if rows < 2 * total:
        raise ValueError(f"{total} faulty rows do not fit into {rows}: every other row stays sound")
    kinds = [
        *["unconvertible"] * faults.unconvertible,
        *["too_many_fields"] * faults.too_many_fields,
        *["too_few_fields"] * faults.too_few_fields,
    ]
    return {(number * rows // total) | 1: kind for number, kind in enumerate(kinds)}


def _spoil_lines(lines: Array, first: int, spoils: Mapping[int, str], shape: CsvShape) -> Array:
    here = {row - first: kind for row, kind in sorted(spoils.items()) if first <= row < first + len(lines)}
    if not here:
        return lines
    fields = [field for _, field in shape.columns()]
    targets = [(field, text) for field, text in _NONSENSE.items() if field in fields]
    spoiled = []
    for row, kind in here.items():
        cells = lines[row].as_py().split(",")
        if kind == "too_many_fields":
            cells.append("1")
        elif kind == "too_few_fields":
            cells = cells[: len(fields) - 2]
        else:
            field, text = targets[row // 2 % len(targets)]
            cells[fields.index(field)] = f'"{text}"' if shape.quoting == "all" else text
        spoiled.append(",".join(cells))
    mask = np.zeros(len(lines), bool)
    mask[list(here)] = True
    return cast(Array, pc.replace_with_mask(lines, pa.array(mask), pa.array(spoiled, lines.type)))


def _write_parquet(path: Path, month: Month, edition: int, faults: Faults) -> Written:
    null_typed: Literal["as_published", "never"] = "as_published" if "null_typed_columns" in month.quirks else "never"
    shape = parquet_shape(month.color, month.text, null_typed)
    counts: Counter[str] = Counter()
    if faults.too_many_fields or faults.too_few_fields:
        raise ValueError("a Parquet file cannot hold rows with too many or too few fields")
    spoiled_field = _spoilable(shape, month) if faults.unconvertible else ""
    spoils = sorted(_spread(faults, month.rows))
    if null_typed == "as_published":
        counts["null_typed_columns"] = sum(kind == "null" for _, _, kind in shape.columns)
    rows, waiting, schema = 0, 0, shape.schema()
    group: list[pa.RecordBatch] = []
    size = shape.writer.rows_per_group
    with pq.ParquetWriter(
        path,
        schema,
        version=shape.writer.format_version,
        compression=shape.writer.compression,
        # Level 9 is Arrow's default for gzip: three times the time for one hundredth of the size.
        compression_level=6 if shape.writer.compression == "gzip" else None,
        write_statistics=shape.writer.statistics == "all",
    ) as writer:
        for trips in batches(month, edition, counts):
            arrays = [_column(trips, field, kind, month) for _, field, kind in shape.columns]
            here = [row - rows for row in spoils if 0 <= row - rows < len(arrays[0])]
            if here:
                at = [field for _, field, _ in shape.columns].index(spoiled_field)
                arrays[at] = _spoil_array(arrays[at], here)
            group.append(pa.record_batch(arrays, schema=schema))
            rows += len(arrays[0])
            waiting += len(arrays[0])
            if waiting >= size:
                full = pa.Table.from_batches(group)
                writer.write_table(full.slice(0, size), size)
                group, waiting = full.slice(size).to_batches(), waiting - size
        if group:
            writer.write_table(pa.Table.from_batches(group), size)
    return Written(rows, dict(counts), tuple(row + 1 for row in spoils))


def _column(trips: Trips, field: str, kind: str, month: Month) -> Array:
    values = trips[field]
    if kind == "null":
        return pa.nulls(len(values))
    if field == "payment" and month.color == "yellow":
        values = np.ma.array(values.filled(0))  # the official yellow files say 0, "flex fare", for a booked trip
    if kind in _ARROW_TEXT:
        texts = _texts(trips, field, month, "noisy")
        return cast(Array, texts.cast(_ARROW_TEXT[kind]))
    if kind == "timestamp[us]":
        return cast(Array, _array(values, pa.timestamp("s")).cast(pa.timestamp("us")))
    mask = np.ma.getmaskarray(values)
    if kind == "double":
        hundredths = kind_of(field) in ("money", "distance")
        exact = np.round(values.data, 6) if kind_of(field) == "degrees" else values.data / (100 if hundredths else 1)
        return cast(Array, pa.array(exact, mask=mask))
    return cast(Array, pa.array(values.data.astype(kind), mask=mask))


def _spoilable(shape: ParquetShape, month: Month) -> str:
    """The first column whose type can hold what its meaning cannot: half a passenger, a time that is no time."""
    for _, field, kind in shape.columns:
        if (kind, kind_of(field)) in (("double", "whole"), ("string", "time")):
            return field
    raise ValueError(f"{month.color} {month.text} Parquet is typed so tightly that no value in it can fail to convert")


def _spoil_array(array: Array, at: list[int]) -> Array:
    mask = np.zeros(len(array), bool)
    mask[at] = True
    nonsense = _NONSENSE["pickup"] if array.type == pa.string() else 1.5
    return cast(Array, pc.replace_with_mask(array, pa.array(mask), pa.array([nonsense] * len(at), array.type)))


_WRITERS: Mapping[str, Callable[[Path, Month, int, Faults], Written]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".csv.gz": _write_csv,
}
