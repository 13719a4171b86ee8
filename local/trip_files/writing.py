"""Write any month of made-up trips as a file of any size, in the layout that TLC gave that month, with TLC's quirks.

The same arguments give the same bytes. The trips of a month are the same in every format, except where TLC wrote them differently
(a dispatch block's VendorID, an era's columns).
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from local.trip_files.layouts import Color, CsvLayout, ParquetLayout, csv_layout, parquet_layout
from local.trip_files.made_up_trips import (
    ALL_QUIRKS,
    TEXT_CODES,
    WORDS,
    Masked,
    MonthSpec,
    Quirk,
    Trips,
    generate,
    in_force,
    kind_of,
)

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


@dataclass(frozen=True)
class BadRows:
    """Numbers of rows that a reader must reject, by kind. They replace good trips, so a month keeps its number of rows."""

    unconvertible: int = 0
    too_many_fields: int = 0
    too_few_fields: int = 0

    def total(self) -> int:
        """Return the number of bad rows."""
        return self.unconvertible + self.too_many_fields + self.too_few_fields


@dataclass(frozen=True)
class Written:
    """The content of a file: its row count, the row count of each quirk, and the positions (from 1) of bad rows."""

    rows: int
    counts: Mapping[str, int]
    bad_row_numbers: tuple[int, ...] = ()


def write_month(
    path: Path,
    color: Color,
    year: int,
    month: int,
    *,
    rows: int,
    seed: int = 0,
    quirks: frozenset[Quirk] = ALL_QUIRKS,
    edition: int = 1,
    bad_rows: BadRows = BadRows(),
) -> Written:
    """Write one month as TLC would, in the format of the path's ending: .parquet, .csv or .csv.gz.

    The memory is limited to one batch of rows; for Parquet, to one row group of the era.

    Args:
        path: The file to write.
        color: The color of the trips.
        year: The year of the month.
        month: The month, from 1.
        rows: The row count of the first edition. `expected_changes` returns how a later edition differs.
        seed: Another seed gives other trips.
        quirks: Oddities of TLC's files to include.
        edition: The edition, from 1.
        bad_rows: Rows that a reader must reject. Only the first edition may have them.

    Raises:
        ValueError: TLC's files cannot have this month, format or fault.
    """
    writer = next((make for ending, make in _WRITERS.items() if path.name.endswith(ending)), None)
    if writer is None:
        raise ValueError(f"{path.name}: a trip file ends in one of {', '.join(_WRITERS)}")
    if edition > 1 and bad_rows.total():
        raise ValueError(
            "bad rows are for the first edition only: a later edition would not have them at the same positions"
        )
    if rows < 1 or edition < 1:
        raise ValueError(f"rows={rows}, edition={edition}: both count from 1")
    file_format: Literal["csv", "parquet"] = "parquet" if path.name.endswith(".parquet") else "csv"
    return writer(path, MonthSpec(color, year, month, rows, seed, quirks, file_format), edition, bad_rows)


def write_zones(path: Path) -> None:
    """Write a zone look-up like TLC's: 265 ids, TLC's repeated names, and N/A as text. Other names are made up."""
    lines = ['"LocationID","Borough","Zone","service_zone"']
    for zone in range(1, 266):
        lines.append(f"{zone}," + _ZONE_NAMES.get(zone, f'"{_BOROUGHS[zone % 5]}","Zone {zone}","Boro Zone"'))
    path.write_text("\r\n".join(lines) + "\r\n", newline="")


def _write_csv(path: Path, month: MonthSpec, edition: int, bad_rows: BadRows) -> Written:
    layout = csv_layout(month.color, month.text)
    counts: Counter[str] = Counter()
    if "ragged_rows" in month.quirks and month.color == "yellow" and month.text in ("2010-02", "2010-03"):
        counts["ragged_rows"] = max(1, month.rows // 20_000)
        bad_rows = BadRows(
            bad_rows.unconvertible, bad_rows.too_many_fields + counts["ragged_rows"], bad_rows.too_few_fields
        )
    spoils = _spread(bad_rows, month.rows)
    rows = 0
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("wb"))
        out = cast(BinaryIO, raw)
        if path.name.endswith(".gz"):
            # No name and no time in the gzip header: the same trips must give the same bytes.
            out = cast(BinaryIO, stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
        out.write(layout.header.encode() + layout.header_end)
        # Compression takes as long as making the rows and releases the GIL, so both run in parallel.
        compressor = stack.enter_context(ThreadPoolExecutor(1))
        pending: Future[int] | None = None
        for trips in generate(month, edition, counts):
            lines = _csv_lines(trips, month, layout)
            lines = _spoil_lines(lines, rows, spoils, layout)
            rows += len(lines)
            if pending:
                pending.result()
            pending = compressor.submit(out.write, _joined(lines))
        if pending:
            pending.result()
    return Written(rows, dict(counts), tuple(row + 1 for row in sorted(spoils)))


def _csv_lines(trips: Trips, month: MonthSpec, layout: CsvLayout) -> Array:
    if "payment" in trips:
        # In the legacy CSV a booked trip has no vendor; in the official file it has one.
        booked = np.ma.getmaskarray(trips["payment"])
        trips["vendor"] = np.ma.array(trips["vendor"], mask=np.ma.getmaskarray(trips["vendor"]) | booked)
    columns: list[Any] = []
    for name, field in layout.columns():
        texts = (
            pa.nulls(len(trips[field]), pa.string())
            if name == layout.never_filled
            else _printed(trips, field, month, layout.decimals)
        )
        if layout.quoting == "all":
            texts = _concatenate('"', texts, '"', "")
        columns.append(texts)
    columns += [""] * layout.empty_tail
    return _concatenate(*columns, ",")


def _concatenate(*columns_and_separator: Any) -> Array:
    joined = pc.binary_join_element_wise(*columns_and_separator, null_handling="replace", null_replacement="")
    return cast(Array, joined)


def _joined(lines: Array) -> memoryview:
    """Return the array's text buffer, with CRLF after each line: the file's bytes without a copy."""
    _, _, text = _concatenate(lines, "\r\n", "").buffers()
    return memoryview(cast(pa.Buffer, text))


def _printed(trips: Trips, field: str, month: MonthSpec, decimals: Decimals) -> Array:
    """Return a field as TLC printed it."""
    values = trips[field]
    codes = in_force(month.color, month.text, TEXT_CODES)
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
    return _concatenate(miles, _taken(_HUNDREDTHS, values % 100, values), ".")


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


def _spread(bad_rows: BadRows, rows: int) -> dict[int, str]:
    """Return row index → kind of fault, spread over odd rows of the file. Quirks and editions use only even rows."""
    total = bad_rows.total()
    if rows < 2 * total:
        raise ValueError(f"{total} bad rows do not fit into {rows}: every other row must be good")
    kinds = [
        *["unconvertible"] * bad_rows.unconvertible,
        *["too_many_fields"] * bad_rows.too_many_fields,
        *["too_few_fields"] * bad_rows.too_few_fields,
    ]
    return {(number * rows // total) | 1: kind for number, kind in enumerate(kinds)}


def _spoil_lines(lines: Array, first: int, spoils: Mapping[int, str], layout: CsvLayout) -> Array:
    here = {row - first: kind for row, kind in sorted(spoils.items()) if first <= row < first + len(lines)}
    if not here:
        return lines
    fields = [field for _, field in layout.columns()]
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
            cells[fields.index(field)] = f'"{text}"' if layout.quoting == "all" else text
        spoiled.append(",".join(cells))
    mask = np.zeros(len(lines), bool)
    mask[list(here)] = True
    return cast(Array, pc.replace_with_mask(lines, pa.array(mask), pa.array(spoiled, lines.type)))


def _write_parquet(path: Path, month: MonthSpec, edition: int, bad_rows: BadRows) -> Written:
    null_typed: Literal["as_published", "never"] = "as_published" if "null_typed_columns" in month.quirks else "never"
    layout = parquet_layout(month.color, month.text, null_typed)
    counts: Counter[str] = Counter()
    if bad_rows.too_many_fields or bad_rows.too_few_fields:
        raise ValueError("a Parquet file cannot have rows with too many or too few fields")
    spoiled_field = _spoilable(layout, month) if bad_rows.unconvertible else ""
    spoils = sorted(_spread(bad_rows, month.rows))
    if null_typed == "as_published":
        counts["null_typed_columns"] = sum(kind == "null" for _, _, kind in layout.columns)
    rows, waiting, schema = 0, 0, layout.schema()
    group: list[pa.RecordBatch] = []
    size = layout.writer.rows_per_group
    with pq.ParquetWriter(
        path,
        schema,
        version=layout.writer.format_version,
        compression=layout.writer.compression,
        # Arrow's default for gzip is level 9, which takes three times as long to save one hundredth of the size.
        compression_level=6 if layout.writer.compression == "gzip" else None,
        write_statistics=layout.writer.statistics == "all",
    ) as writer:
        for trips in generate(month, edition, counts):
            arrays = [_arrow_column(trips, field, kind, month) for _, field, kind in layout.columns]
            here = [row - rows for row in spoils if 0 <= row - rows < len(arrays[0])]
            if here:
                at = [field for _, field, _ in layout.columns].index(spoiled_field)
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


def _arrow_column(trips: Trips, field: str, kind: str, month: MonthSpec) -> Array:
    values = trips[field]
    if kind == "null":
        return pa.nulls(len(values))
    if field == "payment" and month.color == "yellow":
        values = np.ma.array(values.filled(0))  # the official yellow files have 0, "flex fare", for a booked trip
    if kind in _ARROW_TEXT:
        texts = _printed(trips, field, month, "noisy")
        return cast(Array, texts.cast(_ARROW_TEXT[kind]))
    if kind == "timestamp[us]":
        return cast(Array, _array(values, pa.timestamp("s")).cast(pa.timestamp("us")))
    mask = np.ma.getmaskarray(values)
    if kind == "double":
        hundredths = kind_of(field) in ("money", "distance")
        exact = np.round(values.data, 6) if kind_of(field) == "degrees" else values.data / (100 if hundredths else 1)
        return cast(Array, pa.array(exact, mask=mask))
    return cast(Array, pa.array(values.data.astype(kind), mask=mask))


def _spoilable(layout: ParquetLayout, month: MonthSpec) -> str:
    """Return the first field whose column type accepts invalid values, such as half a passenger or text instead of a time."""
    for _, field, kind in layout.columns:
        if (kind, kind_of(field)) in (("double", "whole"), ("string", "time")):
            return field
    raise ValueError(f"{month.color} {month.text} Parquet is typed so tightly that no value in it can fail to convert")


def _spoil_array(array: Array, at: list[int]) -> Array:
    mask = np.zeros(len(array), bool)
    mask[at] = True
    nonsense = _NONSENSE["pickup"] if array.type == pa.string() else 1.5
    return cast(Array, pc.replace_with_mask(array, pa.array(mask), pa.array([nonsense] * len(at), array.type)))


_WRITERS: Mapping[str, Callable[[Path, MonthSpec, int, BadRows], Written]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".csv.gz": _write_csv,
}
