"""A small Parquet file that needs very much memory is refused fast and in little memory. A large valid file is loaded."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.tlc import parquet_footer
from flows.tlc.errors import SchemaMismatch, UnreadableFile
from tests.tlc.parquet_edit import BINARY, I32, LIST, STRUCT, Edited, set_value
from tests.tlc.published import TRIP, parquet_file, read_parquet, table

pytestmark = pytest.mark.slow

FLAG = list(TRIP).index("store_and_fwd_flag")
LARGEST = 64 << 10

# Read a file. Print the seconds, the peak memory in MB above the memory after the imports, and the outcome.
PROGRAM = """
import re, sys, time
from pathlib import Path
from flows.tlc.errors import TripDataError
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.trips import TripMonth

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10

before, began = megabytes("VmRSS"), time.monotonic()
outcome = "loaded"
try:
    with open(sys.argv[1], "rb") as file:
        for chunk in parquet_chunks(TripMonth("green", 2021, 1), file):
            pass
except TripDataError as error:
    outcome = str(error)
print(f"{time.monotonic() - began:.1f} {megabytes('VmHWM') - before} {outcome}")
"""


def read_apart(path: Path) -> tuple[float, int, str]:
    """Read a file in its own process. Return the seconds, the additional memory in MB, and the outcome."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], cwd=root, capture_output=True, text=True, check=True)
    seconds, size, outcome = done.stdout.split(" ", 2)
    return float(seconds), int(size), outcome


def flags(text: str, rows: int) -> pa.Table:
    """Return trips that all have this flag, with only one copy of it in memory."""
    trips = table(1)
    repeated = {
        name: column.combine_chunks().take(pa.array([0] * rows))
        for name, column in zip(TRIP, trips.columns, strict=True)
    }
    flag = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    return pa.table(repeated | {"store_and_fwd_flag": flag})


def repeated(length: int, rows: int) -> Callable[[], bytes]:
    return lambda: parquet_file(flags("x" * length, rows), compression="zstd", dictionary_pagesize_limit=1 << 30)


def spelled_out(encoding: str, length: int, rows: int) -> Callable[[], bytes]:
    def make() -> bytes:
        trips = table(rows, store_and_fwd_flag=["x" * length] * rows)
        options = {"use_dictionary": False, "column_encoding": {"store_and_fwd_flag": encoding}}
        return parquet_file(trips, compression="zstd", write_statistics=False, **options)

    return make


def says_two_gigabytes() -> bytes:
    file = Edited(parquet_file(table(1000), compression="gzip"))
    set_value(file.chunks[0][FLAG][-1].header, 2, 2**31 - 1)
    return file.data


def inflates() -> bytes:
    """Return a file with a page of 400 MB of zeros."""
    rows = 50_000_000
    whole = pa.array([0]).take(pa.array([0] * 1000)).slice(0, 1)
    trips = pa.table(
        {name: column.combine_chunks().slice(0, 0) for name, column in zip(TRIP, table(1).columns, strict=True)}
    )
    assert whole.type == pa.int64()
    small = Edited(parquet_file(table(1), compression="zstd", use_dictionary=False, write_statistics=False))
    body = bytes(8 * rows)
    page = small.chunks[0][0][0]
    page.body = pa.compress(body, "zstd", asbytes=True)
    set_value(page.header, 2, len(body))
    set_value(page.header, 3, len(page.body))
    set_value(page.header[5][1], 1, 1)
    assert trips.num_rows == 0
    return small.data


def empty_texts() -> bytes:
    """Return a file with a dictionary of 12 million empty texts: 48 MB in the file's own format, and 288 MB more in memory."""
    small = Edited(parquet_file(table(1), compression="zstd"))
    page = small.chunks[0][FLAG][0]
    page.body = pa.compress(bytes(4 * 12_000_000), "zstd", asbytes=True)
    set_value(page.header, 2, 4 * 12_000_000)
    set_value(page.header, 3, len(page.body))
    set_value(page.header[7][1], 1, 12_000_000)
    return small.data


def many_columns() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({f"{n}{'x' * 100}": [1] for n in range(20_000)}), out, store_schema=False)
    return out.getvalue()


def many_row_groups() -> bytes:
    """Return a file whose footer has a million row groups without rows and columns."""
    file = Edited(parquet_file(table(1)))
    file.footer[4] = LIST, [(STRUCT, {1: (LIST, []), 3: (6, 0)})] * 700_000
    return file.with_footer(b"PAR1")


def long_metadata() -> bytes:
    file = Edited(parquet_file(table(1)))
    file.footer[5] = LIST, [(STRUCT, {1: (BINARY, b"k"), 2: (BINARY, b"v" * (20 << 20))})]
    return file.data


def negative_width() -> bytes:
    file = Edited(parquet_file(table(1)))
    file.footer[2][1][FLAG + 1][1][2] = I32, -1
    return file.data


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "one text of a megabyte, 2,000 times": (
        repeated(1 << 20, 2_000),
        "'store_and_fwd_flag': it has a text of 1,048,576 bytes",
    ),
    "one text of a megabyte, 65,000 times": (
        repeated(1 << 20, 65_000),
        "'store_and_fwd_flag': it has a text of 1,048,576 bytes",
    ),
    "one long text, a million times": (repeated(LARGEST, 1_000_000), "rows have 63 MB of text"),
    "long texts, each of them": (
        spelled_out("PLAIN", 1 << 20, 100),
        "it has a text of 1,048,576 bytes, the limit is 65,536",
    ),
    "long texts like the one before": (spelled_out("DELTA_BYTE_ARRAY", 60_000, 5_000), "MB of text"),
    "a page that says 2 GB": (says_two_gigabytes, "its pages need more than 256 MB at the same time"),
    "a page of 400 MB of zeros": (inflates, "its pages need more than 256 MB at the same time"),
    "12 million empty texts": (empty_texts, "its pages need more than 256 MB at the same time"),
    "20,000 columns": (many_columns, "the file has 20,000 columns"),
    "a million row groups": (many_row_groups, "its footer has more than 2,000,000 values"),
    "20 MB of metadata": (long_metadata, "its footer has 20 MB, the limit is 16 MB"),
    "a column of a negative width": (negative_width, "it has no length, or a negative one"),
}


@pytest.mark.parametrize(("make", "outcome"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_needs_much_memory_is_refused_fast_and_in_little_memory(
    make: Callable[[], bytes], outcome: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.parquet"
    path.write_bytes(make())
    seconds, size, refusal = read_apart(path)
    assert outcome in refusal
    assert "Nothing was loaded" in refusal
    assert "fetch it again" not in refusal or "damaged" in refusal
    assert len(refusal) < 600
    assert size < 400, size
    assert seconds < 30, seconds


def test_the_longest_allowed_text_is_loaded_and_a_longer_one_is_refused() -> None:
    longest = table(3, store_and_fwd_flag=["N", "x" * LARGEST, None])
    for options in ({}, {"use_dictionary": False}):
        assert read_parquet(parquet_file(longest, **options)).values("store_and_fwd_flag")[1] == "x" * LARGEST
        longer = table(3, store_and_fwd_flag=["N", "x" * LARGEST + "x", None])
        with pytest.raises(
            UnreadableFile, match=r"row group 1 of 1, column 'store_and_fwd_flag': it has a text of 65,537 bytes"
        ):
            read_parquet(parquet_file(longer, **options))


def test_dictionaries_with_too_many_texts_are_refused_before_they_are_read() -> None:
    data = parquet_file(table(300, store_and_fwd_flag=[str(n) for n in range(300)]))
    with patch.object(parquet_footer, "_MOST_TEXTS", 299), pytest.raises(UnreadableFile, match="more than 299 texts"):
        read_parquet(data)


def test_a_dictionary_may_have_more_texts_than_its_column_has_values() -> None:
    """Arrow writes all categories of a categorical column into each row group."""
    flag = pa.DictionaryArray.from_arrays(pa.array([7], pa.int32()), pa.array([str(n) for n in range(300)]))
    trips = table(1)
    trips = trips.set_column(FLAG, "store_and_fwd_flag", flag)
    assert read_parquet(parquet_file(trips)).values("store_and_fwd_flag") == ["7"]


def test_a_row_group_with_six_times_the_rows_needs_hardly_more_memory(tmp_path: Path) -> None:
    """TLC's files until 2022 have one row group per month."""
    sizes = []
    for times in (2, 12):
        path = tmp_path / f"{times}.parquet"
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(flags("N", times * 100_000), path, row_group_size=1 << 30, **options)
        assert pq.read_metadata(path).num_row_groups == 1
        _, size, outcome = read_apart(path)
        assert outcome == "loaded\n"
        sizes.append(size)
    assert path.stat().st_size > 150 << 20
    assert sizes[1] - sizes[0] < 70, sizes


FOOTER_OF = parquet_file(table(2))


@pytest.mark.parametrize("length", [0, 1, 7, 100, 2**31])
def test_a_footer_with_a_wrong_length_is_refused_with_a_readable_error(length: int) -> None:
    data = FOOTER_OF[:-8] + length.to_bytes(4, "little") + b"PAR1"
    with pytest.raises((UnreadableFile, SchemaMismatch)) as refused:
        read_parquet(data)
    assert re.match("green 2021-01: ", str(refused.value))
