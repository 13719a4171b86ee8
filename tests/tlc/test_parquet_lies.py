"""An inconsistent Parquet file is refused. The error names the row group and the column, and no trip gets another's value."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc.errors import SchemaMismatch, UnreadableFile
from flows.tlc.parquet_footer import read_footer
from flows.tlc.reading_parquet import parquet_chunks
from tests.tlc.parquet_edit import BINARY, I64, Edited, set_value
from tests.tlc.published import GREEN, TRIP, parquet_file, read_parquet, table

ROWS, GROUP, PAGE = 300, 100, 20
FARE = list(TRIP).index("fare_amount")
VENDOR = 0
# All fares differ and half of the flags are null, so the tests detect a value in a wrong row.
TRIPS = table(
    ROWS,
    VendorID=range(ROWS),
    fare_amount=[n / 4 for n in range(ROWS)],
    store_and_fwd_flag=[f"N{n}" if n % 2 else None for n in range(ROWS)],
)
WRITTEN: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none", "use_dictionary": False, "write_statistics": False},
    "dictionary": {"compression": "gzip", "write_statistics": False},
    "version 2": {"compression": "zstd", "data_page_version": "2.0", "write_statistics": False},
}


def edited(how: str = "plain", **options: Any) -> Edited:
    """Return the trips as a file with three row groups of 100 rows and five pages in each column chunk."""
    layout = {"row_group_size": GROUP, "write_batch_size": PAGE, "max_rows_per_page": PAGE, "data_page_size": 1}
    return Edited(parquet_file(TRIPS, **(layout | WRITTEN[how] | options)))


def data_pages(file: Edited, group: int) -> list[int]:
    """Return the positions of the data pages of a group's fares."""
    return [place for place, page in enumerate(file.chunks[group][FARE]) if 7 not in page.header]


def lose_a_page(file: Edited) -> None:
    del file.chunks[1][FARE][data_pages(file, 1)[2]]


def double_a_page(file: Edited) -> None:
    place = data_pages(file, 1)[1]
    file.chunks[1][FARE].insert(place, file.chunks[1][FARE][place])


def lose_one_and_double_another(file: Edited) -> None:
    double_a_page(file)
    del file.chunks[2][FARE][data_pages(file, 2)[-1]]


def lie_in_a_page_header(file: Edited) -> None:
    header = file.chunks[1][FARE][data_pages(file, 1)[0]].header
    set_value(header[8 if 8 in header else 5][1], 1, PAGE - 1)


def count_fewer_rows_everywhere(file: Edited) -> None:
    set_value(file.footer, 3, ROWS - 1)
    set_value(file.group(1), 3, GROUP - 1)
    for column in range(file.columns):
        set_value(file.about(1, column), 5, GROUP - 1)


def count_fewer_values(file: Edited) -> None:
    set_value(file.about(1, FARE), 5, GROUP - 1)


def count_fewer_rows_in_a_group(file: Edited) -> None:
    set_value(file.footer, 3, ROWS - 1)
    set_value(file.group(1), 3, GROUP - 1)


def name_another_column(file: Edited) -> None:
    set_value(file.about(1, FARE), 3, [(BINARY, b"total_amount")])


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lose_a_page, "row group 2 of 3, column 'fare_amount': its pages have 80 values, the footer says 100"),
        (double_a_page, "row group 2 of 3, column 'fare_amount': its pages have 120 values, the footer says 100"),
        (lose_one_and_double_another, "row group 2 of 3, column 'fare_amount': its pages have 120 values"),
        (lie_in_a_page_header, "row group 2 of 3, column 'fare_amount': "),
        (count_fewer_rows_everywhere, "row group 2 of 3, column 'VendorID': its pages have 100 values"),
        (count_fewer_values, "row group 2 of 3, column 'fare_amount': it has 99 values, its row group 100 rows"),
        (count_fewer_rows_in_a_group, "row group 2 of 3, column 'VendorID': it has 100 values, its row group 99 rows"),
        (name_another_column, "its footer names 'total_amount' where column 'fare_amount' belongs"),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_inconsistent_counts_and_names_are_refused(lie: Callable[[Edited], None], message: str, how: str) -> None:
    file = edited(how)
    assert read_parquet(file.data).values("fare_amount") == TRIPS["fare_amount"].to_pylist()
    assert len(data_pages(file, 1)) == GROUP // PAGE
    lie(file)
    with pytest.raises(UnreadableFile) as refused:
        read_parquet(file.data)
    assert f"green 2021-01: the Parquet file is damaged ({message}" in str(refused.value)
    assert "Nothing was loaded; fetch it again." in str(refused.value)
    assert "take the month from another source" in str(refused.value)


@pytest.mark.parametrize("how", WRITTEN)
def test_chunks_that_the_footer_swaps_are_refused_even_if_their_counts_agree(how: str) -> None:
    file = edited(how)
    data = file.data
    body = data[: -8 - int.from_bytes(data[-8:-4], "little")]
    for field in (7, 9, 11):
        one, other = file.about(0, FARE), file.about(1, FARE)
        if field in one:
            one[field], other[field] = other[field], one[field]
    with pytest.raises(
        UnreadableFile, match="row group 1 of 3, column 'extra': it does not come after row group 1 of 3"
    ):
        read_parquet(file.with_footer(body))


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("column", ["fare_amount", "VendorID", "lpep_pickup_datetime"])
@pytest.mark.parametrize("wrong", ["above", "below"])
def test_chunks_with_swapped_bytes_are_refused_if_the_footer_has_their_bounds(
    how: str, column: str, wrong: str
) -> None:
    place = list(TRIP).index(column)
    pickups = [TRIPS["lpep_pickup_datetime"][0].as_py().replace(minute=n // 60, second=n % 60) for n in range(ROWS)]
    trips = TRIPS.set_column(1, "lpep_pickup_datetime", [pickups])
    if wrong == "below":
        trips = trips.take(list(range(ROWS))[::-1])
    file = Edited(parquet_file(trips, **(WRITTEN[how] | {"write_statistics": True, "row_group_size": GROUP})))
    assert read_parquet(file.data).tally.loaded == ROWS
    file.chunks[0][place], file.chunks[1][place] = file.chunks[1][place], file.chunks[0][place]
    with pytest.raises(UnreadableFile, match=f"row group 1 of 3, column '{column}': it has values outside the bounds"):
        read_parquet(file.data)


def test_one_value_outside_the_bounds_is_enough() -> None:
    fares = [None, *map(float, range(1, GROUP))]
    trips = TRIPS.set_column(FARE, "fare_amount", [[*fares, *fares[:-1], 1000.0, *fares]])
    file = Edited(parquet_file(trips, write_statistics=True, row_group_size=GROUP))
    assert read_parquet(file.data).tally.loaded == ROWS
    file.chunks[0][FARE], file.chunks[1][FARE] = file.chunks[1][FARE], file.chunks[0][FARE]
    with pytest.raises(
        UnreadableFile, match="row group 1 of 3, column 'fare_amount': it has values outside the bounds"
    ):
        read_parquet(file.data)


@pytest.mark.parametrize("how", WRITTEN)
def test_a_chunk_with_another_null_count_than_the_footer_is_refused(how: str) -> None:
    file = edited(how, write_statistics=True)
    place = list(TRIP).index("store_and_fwd_flag")
    set_value(file.about(2, place)[12][1], 3, GROUP // 2 - 1)
    with pytest.raises(
        UnreadableFile, match="row group 3 of 3, column 'store_and_fwd_flag': 50 values are missing, the footer says 49"
    ):
        read_parquet(file.data)


NESTED = (
    pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    pa.array([{"a": 1, "b": None}] * ROWS),
    pa.array([[1, 2]] * ROWS),
)


@pytest.mark.parametrize("nested", NESTED, ids=lambda nested: str(nested.type))
@pytest.mark.parametrize("place", [0, len(TRIP)])
def test_a_nested_new_column_is_accepted_and_hides_no_inconsistency(nested: pa.Array, place: int) -> None:
    def read(data: bytes) -> int:
        chunks = parquet_chunks(GREEN, io.BytesIO(data), "accept_new_columns")
        return sum(chunk.trips.num_rows for chunk in chunks)

    file = Edited(parquet_file(TRIPS.add_column(place, "new", nested), row_group_size=GROUP))
    assert read(file.data) == ROWS
    flag = [leaf.path for leaf in read_footer(io.BytesIO(file.data)).leaves].index(("store_and_fwd_flag",))
    set_value(file.about(2, flag)[12][1], 3, GROUP // 2 - 1)
    with pytest.raises(UnreadableFile, match="column 'store_and_fwd_flag': 50 values are missing, the footer says 49"):
        read(file.data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS + 1, "its footer states 301 rows, its row groups have 300"),
        (-1, "it has no number of rows, or a negative one"),
        (2**40, "its footer states 1,099,511,627,776 rows, its row groups have 300"),
    ],
)
def test_a_footer_whose_row_count_differs_from_its_groups_is_refused(rows: int, message: str) -> None:
    file = edited()
    set_value(file.footer, 3, rows)
    with pytest.raises(UnreadableFile, match=message):
        read_parquet(file.data)


def test_a_file_with_more_rows_than_any_month_is_refused() -> None:
    file = edited()
    set_value(file.footer, 3, 2**40)
    set_value(file.group(1), 3, 2**40 - 2 * GROUP)
    for column in range(file.columns):
        set_value(file.about(1, column), 5, 2**40 - 2 * GROUP)
    with pytest.raises(UnreadableFile, match=r"it says that it has 1,099,511,627,776 rows, the limit is 100,000,000"):
        read_parquet(file.data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (9, 10**9, "row group 2 of 3, column 'fare_amount': it extends beyond the end of the data"),
        (7, 10**9, "row group 2 of 3, column 'fare_amount': it extends beyond the end of the data"),
        (7, -1, "it has no size, or a negative one"),
        (9, 4, "row group 2 of 3, column 'fare_amount': it does not come after"),
    ],
)
def test_a_chunk_at_an_impossible_position_is_refused(field: int, value: int, message: str) -> None:
    file = edited()
    data = file.data
    file.about(1, FARE)[field] = I64, value
    with pytest.raises(UnreadableFile, match=message):
        read_parquet(file.with_footer(data[: -8 - int.from_bytes(data[-8:-4], "little")]))


def test_a_column_in_another_file_is_refused() -> None:
    file = edited()
    file.group(0)[1][1][FARE][1][1] = BINARY, b"/etc/passwd"
    with pytest.raises(UnreadableFile, match="its footer places column 'fare_amount' in another file"):
        read_parquet(file.data)


def test_a_group_without_a_column_is_refused() -> None:
    file = edited()
    del file.group(2)[1][1][FARE]
    assert pq.ParquetFile(io.BytesIO(edited().data)).metadata.row_group(2).num_columns == file.columns
    with pytest.raises(UnreadableFile, match="row group 3 of 3 has 19 columns, the file has 20"):
        read_parquet(file.with_footer(edited().data[:100_000]))


SMALL = edited("plain", write_statistics=True).data
_FOOTER = len(SMALL) - 8 - int.from_bytes(SMALL[-8:-4], "little")


@pytest.mark.slow
@given(st.integers(4, _FOOTER), st.integers(1, 255))
def test_a_page_header_with_one_wrong_byte_never_shifts_a_column(at: int, change: int) -> None:
    """Without checksums, one changed value cannot be detected. All other values must stay in their rows."""
    data = bytearray(SMALL)
    data[at] ^= change
    try:
        read = read_parquet(bytes(data))
    except (UnreadableFile, SchemaMismatch):
        return
    places = {row: n for n, row in enumerate(read.values("row_number"))}
    assert len(places) + len(read.rejects) == ROWS
    fares, valid = read.values("fare_amount"), TRIPS["fare_amount"].to_pylist()
    assert sum(fares[place] != valid[row - 1] for row, place in places.items()) <= 1
