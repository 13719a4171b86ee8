"""Generate any month of TLC trips as a file: made-up trips in TLC's formats (`local.shapes`), with every quirk, of any size.

The same arguments give the same bytes. `damaged` damages them in ways that users have met. The trips of a month are the same in
every format, except where TLC wrote them differently (a dispatch block's VendorID, an era's columns). This module does not import
the product, because tests compare the two.
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
# Values that no reader can convert, by field.
_NONSENSE = {"pickup": "not a time", "passengers": "many", "total": "free", "pickup_zone": "JFK"}


Damage = Literal["html", "lfs_pointer", "truncated", "conflict_markers", "excel_dates", "gzip_members"]
"""Damages that users have met in trip files. The last one is valid: gzip with several members."""
DAMAGES: tuple[Damage, ...] = get_args(Damage)


@dataclass(frozen=True)
class Faults:
    """Numbers of rows that a reader must reject, by kind. They replace good trips, so a month keeps its number of rows."""

    unconvertible: int = 0
    too_many_fields: int = 0
    too_few_fields: int = 0

    def total(self) -> int:
        """Return the number of faulty rows."""
        return self.unconvertible + self.too_many_fields + self.too_few_fields


@dataclass(frozen=True)
class Written:
    """The content of a file: its row count, the row count of each quirk, and the positions (from 1) of faulty rows."""

    rows: int
    counts: Mapping[str, int]
    faulty_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Changes:
    """The row counts by which two editions of a month differ. The key of a row is its position in the file."""

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
    """Write one month as TLC would, in the format of the path's ending: .parquet, .csv or .csv.gz.

    The memory is limited to one batch of rows; for Parquet, to one row group of the era.

    Args:
        path: The file to write.
        color: Whose trips.
        year: The year of the month.
        month: The month, from 1.
        rows: The row count of the first edition. A later edition differs from it as `changes` returns.
        seed: Another seed gives other trips.
        quirks: Oddities of TLC's files to include.
        edition: The edition, from 1.
        faults: Rows that a reader must reject. Only the first edition may have them.

    Raises:
        ValueError: TLC's files cannot have this month, format or fault.
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
    """Return a trip file's bytes with a damage. Raise `ValueError` for a damage that a file of this ending cannot have."""
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
    """Return a time as Excel saves it: 1/2/2021 0:30, without seconds."""
    year, month, day, hour, minute = datetime.groups()
    return b"%d/%d/%s %d:%s" % (int(month), int(day), year, int(hour), minute)


def write_zones(path: Path) -> None:
    """Write a zone look-up like TLC's: 265 ids, TLC's repeated names, and N/A as text. Other names are made up."""
    lines = ['"LocationID","Borough","Zone","service_zone"']
    for zone in range(1, 266):
        lines.append(f"{zone}," + _ZONE_NAMES.get(zone, f'"{_BOROUGHS[zone % 5]}","Zone {zone}","Boro Zone"'))
    path.write_text("\r\n".join(lines) + "\r\n", newline="")


def changes(rows: int, old: int, new: int) -> Changes:
    """Return what a store must report when edition `new` of a month of `rows` rows replaces edition `old`."""
    before, after = rows_of_edition(rows, old), rows_of_edition(rows, new)
    common = min(before, after)
    differing = 0 if old == new else int(np.count_nonzero(_edited(common, rows, old) != _edited(common, rows, new)))
    return Changes(max(0, after - before), differing, max(0, before - after))


def _edited(common: int, rows: int, edition: int) -> Ints:
    """Return for each row: 0 if it is as in the first edition, 1 if it is changed, -edition if the first does not have it."""
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
            # No name and no time in the gzip header: the same trips must give the same bytes.
            out = cast(BinaryIO, stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
        out.write(shape.header.encode() + shape.header_end)
        # Compression takes as long as making the rows and releases the GIL, so both run in parallel.
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
        # In the legacy CSV a booked trip has no vendor; in the official file it has one.
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
    """Return the array's text buffer, with CRLF after each line: the file's bytes without a copy."""
    _, _, text = _join(lines, "\r\n", "").buffers()
    return memoryview(cast(pa.Buffer, text))


def _texts(trips: Trips, field: str, month: Month, decimals: Decimals) -> Array:
    """Return a field as TLC printed it."""
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
    # In the early eras a double with six decimals; later a float converted to a double.
    stored = np.round(values.data, 6) if decimals == "noisy" else values.data.astype(np.float32)
    return _noisy(np.ma.array(stored.astype(np.float64)))


def _print_word(values: Masked, field: str, decimals: Decimals) -> Array:
    return _taken(_vocabulary(field), values, values)


def _print_money(values: Masked, field: str, decimals: Decimals) -> Array:
    return _noisy(values / 100) if decimals == "noisy" else _array(values / 100, pa.string())


def _print_distance(values: Masked, field: str, decimals: Decimals) -> Array:
    """Return distances with two decimals and no zero before the point: .79, 3.00."""
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
    """Return doubles with 17 significant digits, as programs print them that do not search for the shortest form."""
    distinct, which = np.unique(values.data, return_inverse=True)
    return _taken([f"{value:.17g}" for value in distinct.tolist()], which.ravel(), values)


def _array(values: Masked, kind: Any) -> Array:
    return cast(Array, pa.array(values.data, mask=np.ma.getmaskarray(values)).cast(kind))


def _taken(words: Sequence[str], codes: Any, like: Masked) -> Array:
    """Return the words for codes; null where `like` is masked."""
    mask = np.ma.getmaskarray(like)
    indices = np.where(mask, 0, np.ma.getdata(codes)).astype(np.int64)
    return cast(Array, pa.array(words).take(cast(Any, pa.array(indices, mask=mask))))


def _vocabulary(field: str) -> list[str]:
    words = WORDS[field]
    return [*words, *(f"{word}          " for word in words)] if field == "base" else list(words)


def _spread(faults: Faults, rows: int) -> dict[int, str]:
    """Return row index → kind of fault, spread over odd rows of the file. Quirks and editions use only even rows."""
    total = faults.total()
    if rows < 2 * total:
        raise ValueError(f"{total} faulty rows do not fit into {rows}: every other row must be good")
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
        # Arrow's default for gzip is level 9, which takes three times as long to save one hundredth of the size.
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
        values = np.ma.array(values.filled(0))  # the official yellow files have 0, "flex fare", for a booked trip
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
    """Return the first field whose column type accepts invalid values, such as half a passenger or text instead of a time."""
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
