"""Row groups that threads encode one by one give the same bytes as one writer that encodes them all."""

import datetime as dt
import io
import random
import threading
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.stores import lake
from flows.stores.lake import parquet_writer
from flows.tlc.parquet_joining import joined
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import COLORS

SIZE = 100  # rows of a row group


def trips(color: str, rows: int) -> pa.Table:
    """Return made-up values: the first column has none, the others have some nulls, and their texts have up to 6,000 bytes."""
    drawn = random.Random(rows)  # noqa: S311 - data, not a secret
    schema = arrow_schema(color)
    columns = []
    for place, field in enumerate(schema):
        values: tuple[object, ...] = (None, 0, -1, 2**40, *range(rows))
        if pa.types.is_string(field.type):
            values = (None, "", "N", *("ß" * drawn.randrange(1, 3000) for _ in range(9)))
        elif pa.types.is_floating(field.type):
            values = (None, 0.0, -1e300, 0.1, drawn.random())
        elif pa.types.is_temporal(field.type):
            values = tuple(dt.datetime(2021, 1, 1) + dt.timedelta(days=day, seconds=day) for day in range(31))
        columns.append(pa.array([drawn.choice(values if place else (None,)) for _ in range(rows)], field.type))
    return pa.table(columns, schema=schema)


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "_ROW_GROUP", SIZE)
    monkeypatch.setattr(lake, "_ENCODERS", 3)


def encoded(table: pa.Table, **more: bool) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with parquet_writer(sink, table.schema) if not more else pq.ParquetWriter(sink, table.schema, **more) as parquet:
        parquet.write_table(table, SIZE)
    return sink.getvalue()


def file_of(tables: Iterable[pa.Table]) -> bytes:
    tables = [*tables]
    return b"".join(lake.parquet_pieces(tables, tables[0].schema))


def cut(table: pa.Table, length: int) -> list[pa.Table]:
    return [table[at : at + length] for at in range(0, table.num_rows, length)] or [table]


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 1_400, 1_500, 1_501, 13_000])
@pytest.mark.parametrize("color", COLORS)
def test_joined_row_groups_are_byte_for_byte_the_file_of_one_writer(color: str, rows: int) -> None:
    whole = trips(color, rows)
    for length in (37, 100, 350):
        assert file_of(cut(whole, length)) == encoded(whole).to_pybytes()


def test_the_rows_of_many_tables_are_in_full_row_groups() -> None:
    parquet = pq.ParquetFile(io.BytesIO(file_of(cut(trips("green", 350), 37))))
    assert [parquet.metadata.row_group(group).num_rows for group in range(4)] == [100, 100, 100, 50]
    assert parquet.read().equals(trips("green", 350))


def test_tables_without_rows_add_no_row_group() -> None:
    table = trips("green", 100)
    assert file_of([table[:0], table, table[:0]]) == encoded(table).to_pybytes()


def test_several_row_groups_are_encoded_at_once() -> None:
    both = threading.Barrier(2)

    def encode(table: pa.Table) -> pa.Buffer:
        both.wait(timeout=30)
        return encoded(table)

    table = trips("green", 400)
    assert b"".join(joined(cut(table, SIZE), encode, threads=2)) == encoded(table).to_pybytes()


def test_an_error_while_encoding_or_reading_reaches_the_caller() -> None:
    table = trips("green", 250)

    def interrupted() -> Iterable[pa.Table]:
        yield table
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        b"".join(lake.parquet_pieces(interrupted(), table.schema))
    with pytest.raises(ZeroDivisionError):
        b"".join(joined([trips("green", 1)], lambda table: 1 // 0, threads=2))


@pytest.mark.parametrize(("rows", "options"), [(2 * SIZE, {}), (1, {"write_page_index": True})])
def test_a_part_that_cannot_be_joined_is_an_error(rows: int, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="was not encoded as it must be"):
        b"".join(joined([trips("green", rows)], lambda table: encoded(table, **options), threads=1))
