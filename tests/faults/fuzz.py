"""Mutate small trip files, read each as a flow does, and compare the accepted rows with those of an independent reader.

Run as a program: `python -m tests.faults.fuzz SEED FIRST LAST` tries the inputs FIRST to LAST - 1 and prints one JSON object with
the outcomes. An input depends on the seed and its number only, so any input can be tried again alone.
"""

import csv
import datetime as dt
import faulthandler
import gzip
import io
import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.tlc.errors import TripDataError
from flows.tlc.manifest import RawFile
from flows.tlc.reading import recognise, recognise_end
from flows.tlc.sources import Ending, PublishedFile
from flows.tlc.stream import MonthStream
from flows.tlc.trips import TripMonth
from local.trip_files.writing import write_month
from tests.real_files import DATA

SECONDS = 30  # for one input
MEGABYTES = 400  # by which one input may raise the process's peak memory
_ROWS = 120  # enough that one bad row does not stop the month


@dataclass(frozen=True)
class Base:
    """A valid file to mutate."""

    name: str
    month: TripMonth
    ending: Ending
    data: bytes


def _month(name: str) -> TripMonth:
    color, _, text = name.partition(".")[0].split("_")
    return TripMonth(color, *map(int, text.split("-")))


def _heads() -> Iterator[tuple[str, bytes]]:
    """Yield CSV files: the first rows of real ones if this machine has them, otherwise generated ones."""
    if DATA.is_dir():
        for path in sorted(DATA.glob("samples-*/*.csv")) + sorted(DATA.glob("heads-100/*.csv"))[::5]:
            yield path.name, b"".join(path.read_bytes().splitlines(keepends=True)[: _ROWS + 1])
        [mirrored] = DATA.glob("mirror/*.csv.gz")
        with gzip.open(mirrored) as file:
            yield (
                mirrored.name.removesuffix(".gz"),
                b"".join(line for line, _ in zip(file, range(_ROWS + 1), strict=False)),
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        for color, year in (("green", 2019), ("yellow", 2020), ("fhv", 2020), ("yellow", 2012)):
            path = Path(folder, f"{color}_tripdata_{year}-03.csv")
            write_month(path, color, year, 3, rows=_ROWS)  # type: ignore[arg-type]
            yield path.name, path.read_bytes()


def _tables() -> Iterator[tuple[str, pa.Table]]:
    """Yield the first rows of Parquet files: real ones if this machine has them, otherwise generated ones."""
    if DATA.is_dir():
        for path in sorted(DATA.glob("official/*.parquet"))[::3]:
            yield path.name, pq.read_table(path).slice(0, _ROWS)
        return
    with tempfile.TemporaryDirectory() as folder:
        for color, year in (("green", 2021), ("yellow", 2023), ("fhv", 2021)):
            path = Path(folder, f"{color}_tripdata_{year}-03.parquet")
            write_month(path, color, year, 3, rows=_ROWS)  # type: ignore[arg-type]
            yield path.name, pq.read_table(path)


@cache
def bases() -> list[Base]:
    """Return the valid files."""
    found = []
    for name, text in _heads():
        found.append(Base(name, _month(name), ".csv", text))
        found.append(Base(f"{name}.gz", _month(name), ".csv.gz", gzip.compress(text, 6, mtime=0)))
    ways: list[dict[str, Any]] = [
        {"compression": "snappy"},
        {"compression": "zstd", "row_group_size": 100},
        {"compression": "gzip", "data_page_version": "2.0", "data_page_size": 512},
        {"compression": "none", "use_dictionary": False, "write_statistics": False},
    ]
    for name, table in _tables():
        for options in ways:
            sink = io.BytesIO()
            pq.write_table(table, sink, **options)
            found.append(Base(f"{name} {options}", _month(name), ".parquet", sink.getvalue()))
    return found


_VALUES = (
    b"", b" ", b"NaN", b"nan", b"inf", b"-inf", b"1e999", b"0x1F", b"-0", b"9223372036854775808", b"NULL", b"\\N", b"NA", b'"',
    b'""', b'"a""b"', b"a\rb", b"\x00", b"\xff\xfe", b"2021-13-01 00:00:00", b"2021-02-30 12:00:00", b"0001-01-01 00:00:00",
    b"9999-12-31 23:59:59", b"'; DROP TABLE loads; --", b"=1+1", b"1,5", b"1.5.2", b"\xef\xbb\xbf", b"0" * 400, b"9" * 40,
)  # fmt: skip


def _span(chance: random.Random, data: bytes) -> tuple[int, int]:
    start = chance.randrange(len(data) + 1)
    return start, min(len(data), start + int(2 ** chance.uniform(0, 12)))


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _flip_near_the_end(chance: random.Random, data: bytes) -> bytes:
    at = max(0, len(data) - int(2 ** chance.uniform(2, 13)))
    return data[:at] + _flip(chance, data[at:])


def _replace(chance: random.Random, data: bytes) -> bytes:
    start, stop = _span(chance, data)
    filler = chance.choice((b"\0", b"\xff", b" ", b",", b'"', b"\n", b"\r", b"1", chance.randbytes(1)))
    return data[:start] + filler * (stop - start) + data[stop:]


def _delete(chance: random.Random, data: bytes) -> bytes:
    start, stop = _span(chance, data)
    return data[:start] + data[stop:]


def _double(chance: random.Random, data: bytes) -> bytes:
    start, stop = _span(chance, data)
    return data[:stop] + data[start:stop] + data[stop:]


def _move(chance: random.Random, data: bytes) -> bytes:
    start, stop = _span(chance, data)
    rest = data[:start] + data[stop:]
    at = chance.randrange(len(rest) + 1)
    return rest[:at] + data[start:stop] + rest[at:]


def _insert(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return (
        data[:at] + chance.choice((*_VALUES, chance.randbytes(16), b"<html>", b"\n" * 9, b"\r\n", b"PAR1")) + data[at:]
    )


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _field(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    fields = lines[at].split(b",")
    fields[chance.randrange(len(fields))] = chance.choice(_VALUES)
    lines[at] = b",".join(fields)
    return b"\n".join(lines)


def _lines(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(4):
        case 0:
            lines[first], lines[second] = lines[second], lines[first]
        case 1:
            lines.insert(first, lines[second])
        case 2:
            del lines[first]
        case _:
            lines.insert(first, b"")
    return b"\n".join(lines)


def _splice(chance: random.Random, data: bytes) -> bytes:
    other = chance.choice(bases()).data
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


_ANY = (_flip, _flip, _flip_near_the_end, _replace, _delete, _double, _move, _insert, _cut, _splice)
_TEXT = (*_ANY, _field, _field, _field, _lines, _lines)
Mutation = Callable[[random.Random, bytes], bytes]


def mutated(seed: int, number: int) -> tuple[Base, bytes, list[str]]:
    """Return the input of a number: its base, its bytes, and the names of its mutations."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - a seed, not a secret
    base = chance.choice(bases())
    data, inside = base.data, base.ending == ".csv.gz" and chance.random() < 0.7
    if inside:
        data = gzip.decompress(data)
    kinds: tuple[Mutation, ...] = _TEXT if inside or base.ending == ".csv" else _ANY
    chosen = [chance.choice(kinds) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    for mutation in chosen:
        data = mutation(chance, data)
    if inside:
        data = gzip.compress(data, 1, mtime=0)
        if chance.random() < 0.1:
            data += chance.choice((b"\0" * 100, gzip.compress(b""), chance.randbytes(8)))
    return base, data, [mutation.__name__ for mutation in chosen]


class _Content:
    """Bytes in memory, in pieces."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data, self._piece = data, piece

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), self._piece):
            yield self._data[start : start + self._piece]

    @contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        with io.BytesIO(self._data) as file:
            yield file


def read(base: Base, data: bytes, piece: int = 1 << 20) -> tuple[int, pa.Table]:
    """Read a file as a flow does: check its beginning and its end, then read all of it. Return the row count and the trips."""
    recognise(base.month, base.ending, data[: 1 << 20], base.name)
    recognise_end(base.month, base.ending, data[-8:], base.name)
    published = PublishedFile(
        trip_month=base.month,
        url=f"http://h/x{base.ending}",
        ending=base.ending,
        etag=None,
        last_modified=None,
        size=len(data),
    )
    raw = RawFile(published=published, key="raw/x", generation=1, size=len(data), sha256="00" * 32)
    stream = MonthStream(raw, _Content(data, piece))
    trips = pa.concat_tables([chunk.trips for chunk in stream])
    month = stream.staged(key="x")
    assert month.source_rows == month.loaded + sum(month.filtered.values()) + sum(month.quarantined.values())
    assert month.loaded == trips.num_rows
    return month.source_rows, trips


class Wrong(Exception):
    """The loaded trips differ from those that an independent reader finds."""


def _require_csv(data: bytes, ending: Ending, rows: int, trips: pa.Table) -> None:
    """Compare with Python's csv module, line by line."""
    if ending == ".csv.gz":
        data = _gunzipped(data)
    lines = [line.rstrip(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").split(b"\n")]
    names = [name.strip().casefold() for name in next(csv.reader([lines[0].decode()]))]
    # A byte order mark alone, where TLC's files have a blank line, is no row either.
    published = [line for at, line in enumerate(lines[1:]) if line and not (at == 0 and line == b"\xef\xbb\xbf")]
    if len(published) != rows:
        raise Wrong(f"{rows} rows counted, {len(published)} lines in the file")
    numbers = trips["row_number"].to_pylist()
    if numbers != sorted(set(numbers)) or (numbers and not 1 <= numbers[0] <= numbers[-1] <= rows):
        raise Wrong("row numbers repeat or exceed the row count")
    fields = {number: _fields(published[number - 1]) for number in numbers}
    for column in trips.schema:
        if column.name.casefold() not in names or names.count(column.name.casefold()) > 1:
            continue
        at, text_column = names.index(column.name.casefold()), _TEXT_COLUMNS.get(column.name, "")
        words = trips[text_column].to_pylist() if text_column in trips.schema.names else [None] * trips.num_rows
        for number, value, word in zip(numbers, trips[column.name].to_pylist(), words, strict=True):
            text = fields[number][at].strip()
            if not _means(text, value) and not (value is None and word is not None and word.strip() == text):
                raise Wrong(f"row {number}, {column.name}: {value!r} loaded, {text!r} published")


@lru_cache(1 << 16)
def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode()]))


# The column that stores the published text of a coded column if the text is not a code.
_TEXT_COLUMNS = {"VendorID": "vendor_text", "payment_type": "payment_text"}
# Words of files up to 2014, and the numbers that later files have instead.
_WORDS = {"cmt": 1, "vts": 2} | {
    word: code
    for code, words in enumerate(("credit crd cre", "cash csh cas", "noc no", "dispute dis", "unknown unk"), 1)
    for word in words.split()
}


@lru_cache(1 << 18, typed=True)  # most values of two inputs are the same
def _means(text: str, value: object) -> bool:
    """Return whether a published text has this value."""
    if text.lower() in _WORDS or text.lower() == "no charge":
        return value in (_WORDS.get(text.lower(), 3), text)
    if value in ("Y", "N"):
        return text.strip('"').strip() in (str(value), *(("1", "1.0") if value == "Y" else ("0", "0.0")))
    if value is None:
        return not text or text.lower() in ("null", "nan", "na", "n/a", "\\n", "none", "-", "#n/a", "nat", "<na>")
    if isinstance(value, dt.datetime):
        return text.replace("T", " ")[:19] == f"{value:%Y-%m-%d %H:%M:%S}" or text[:4] < "1000"
    if isinstance(value, int | float):
        return float(text) == value
    return text.strip('"') == str(value).strip().strip('"')


def _gunzipped(data: bytes) -> bytes:
    """Inflate with zlib. It refuses the header's reserved flags, which change nothing and which the project's library ignores."""
    data, text = data[:3] + bytes([data[3] & 0b11111]) + data[4:], b""
    while data := data.lstrip(b"\0"):
        member = zlib.decompressobj(wbits=31)
        text += member.decompress(data)
        data = member.unused_data
    return text


def _require_parquet(data: bytes, rows: int, trips: pa.Table) -> None:
    """Compare with pyarrow's own reading of the file, column by column."""
    published = pq.read_table(io.BytesIO(data), pre_buffer=False)
    if published.num_rows != rows:
        raise Wrong(f"{rows} rows counted, {published.num_rows} by pyarrow")
    at = [number - 1 for number in trips["row_number"].to_pylist()]
    published_columns = {name.casefold(): published[name] for name in published.column_names}
    for column in trips.schema:
        if column.name.casefold() not in published_columns:
            continue
        expected = published_columns[column.name.casefold()].take(at)
        for value, original in zip(trips[column.name].to_pylist(), expected.to_pylist(), strict=True):
            if isinstance(original, bytes):  # one bit makes a column of texts one of bytes
                original = original.decode()  # noqa: PLW2901
            same = (
                value == original
                or (value is None and isinstance(original, float) and math.isnan(original))
                or str(value) == str(original).strip()
            )
            if not same and not (isinstance(original, str) and _means(original.strip(), value)):
                raise Wrong(f"{column.name}: {value!r} loaded, {original!r} published")


def outcome(base: Base, data: bytes) -> str:
    """Read an input. Return `loaded`, or the name of one of our errors, or what is wrong."""
    try:
        rows, trips = read(base, data)
    except TripDataError as error:
        if not str(error).startswith((str(base.month), base.name)) and str(base.month) not in str(error):
            return f"WRONG: the message does not name the month: {error}"
        return type(error).__name__
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"WRONG: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:200]}"
    try:
        if base.ending == ".parquet":
            _require_parquet(data, rows, trips)
        else:
            _require_csv(data, base.ending, rows, trips)
    except Exception as error:
        return f"WRONG: accepted; {type(error).__name__}: {str(error)[:300]}"
    return "loaded"


def main() -> None:
    """Try a range of inputs, and print the outcomes as JSON."""
    seed, first, last = map(int, sys.argv[1:4])
    progress = os.open(sys.argv[4], os.O_CREAT | os.O_WRONLY)
    outcomes: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    slowest, largest = 0.0, 0
    bases()
    for number in range(first, last):
        os.pwrite(progress, b"%d" % number, 0)
        base, data, mutations = mutated(seed, number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        faulthandler.dump_traceback_later(SECONDS * 3, exit=True)  # also inside of a library
        began = time.process_time()
        what = outcome(base, data)
        spent = time.process_time() - began
        faulthandler.cancel_dump_traceback_later()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        slowest, largest = max(slowest, spent), max(largest, grown)
        if spent > SECONDS or grown > MEGABYTES:
            what = f"WRONG: {spent:.0f} s of processor time and {grown} MB ({what})"
        outcomes["WRONG" if what.startswith("WRONG") else what] += 1
        if what.startswith("WRONG"):
            wrong.append({"number": number, "base": base.name, "mutations": mutations, "what": what})
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "slowest_s": round(slowest, 2), "largest_mb": largest}))


if __name__ == "__main__":
    main()
