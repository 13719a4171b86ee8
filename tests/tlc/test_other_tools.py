"""Files that other tools wrote from TLC's trips give the same values as TLC's file, or an error with advice."""

import datetime as dt
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import MISSING
from tests.tlc.published import TRIP, parquet_file, read_csv, read_parquet, table

ROWS = 40
MISSING_TOGETHER = (
    "store_and_fwd_flag",
    "RatecodeID",
    "passenger_count",
    "payment_type",
    "trip_type",
    "congestion_surcharge",
)


def _own() -> pa.Table:
    """Return trips in TLC's layout. Every fourth has the nulls of a dispatched trip, and ehail_fee is always null."""
    start = dt.datetime(2021, 1, 1, 0, 15, 56)
    trips = table(
        ROWS,
        lpep_pickup_datetime=pa.array([start + dt.timedelta(minutes=7 * n) for n in range(ROWS)], pa.timestamp("us")),
        fare_amount=[round(5.1 + n / 100, 2) for n in range(ROWS)],
        PULocationID=range(1, ROWS + 1),
        total_amount=[round(-12.35 + n, 2) for n in range(ROWS)],
    )
    present = pa.array([n % 4 != 3 for n in range(ROWS)])
    for name in MISSING_TOGETHER:
        place = trips.schema.get_field_index(name)
        trips = trips.set_column(place, name, pc.if_else(present, trips[name], pa.scalar(None, trips[name].type)))
    return trips


OWN = _own()
TRIPS = read_parquet(parquet_file(OWN)).trips
Change = Callable[[pa.Table], pa.Table]


def cast(kind: pa.DataType, *names: str) -> Change:
    def change(trips: pa.Table) -> pa.Table:
        for name in names:
            trips = trips.set_column(trips.schema.get_field_index(name), name, trips[name].cast(kind))
        return trips

    return change


def binary(kind: pa.DataType) -> Change:
    return lambda trips: cast(kind, "store_and_fwd_flag")(cast(pa.binary(), "store_and_fwd_flag")(trips))


def money(kind: pa.DataType) -> Change:
    return cast(kind, "fare_amount", "total_amount", "tolls_amount", "trip_distance")


def texts(trips: pa.Table, missing: str = "", flag: str | None = None) -> pa.Table:
    """Return every column as text. `missing` replaces nulls, and `flag` replaces a null store_and_fwd_flag."""
    columns = {}
    for name, column in zip(trips.column_names, trips.columns, strict=True):
        text = (
            pc.strftime(column, "%Y-%m-%d %H:%M:%S") if pa.types.is_timestamp(column.type) else column.cast(pa.string())
        )
        columns[name] = pc.fill_null(text, flag if name == "store_and_fwd_flag" and flag is not None else missing)
    return pa.table(columns)


def nan(trips: pa.Table) -> pa.Table:
    """Return whole numbers as doubles, with NaN for null, as pandas stores them."""
    columns = {
        name: pc.fill_null(column, float("nan")) if pa.types.is_floating(column.type) else column
        for name, column in zip(trips.column_names, trips.columns, strict=True)
    }
    return pa.table(columns)


def first(name: str, start: int = 0) -> Change:
    return lambda trips: trips.add_column(0, name, pa.array(range(start, start + trips.num_rows)))


def as_csv(trips: pa.Table) -> bytes:
    out = io.BytesIO()
    pa_csv.write_csv(trips, out)
    return out.getvalue()


def through_pyarrow_csv(trips: pa.Table) -> pa.Table:
    return pa_csv.read_csv(io.BytesIO(as_csv(trips)))


PARQUET: dict[str, Change] = {
    "string_view": cast(pa.string_view(), "store_and_fwd_flag"),
    "large_string": cast(pa.large_string(), "store_and_fwd_flag"),
    "binary": binary(pa.binary()),
    "large_binary": binary(pa.large_binary()),
    "binary_view": binary(pa.binary_view()),
    "dictionary": cast(pa.dictionary(pa.int32(), pa.string()), "store_and_fwd_flag"),
    "dictionary of numbers": lambda trips: trips.set_column(0, "VendorID", trips["VendorID"].dictionary_encode()),
    "decimal32": money(pa.decimal32(9, 2)),
    "decimal64": money(pa.decimal64(18, 3)),
    "decimal128": money(pa.decimal128(38, 10)),
    "decimal256": money(pa.decimal256(60, 2)),
    "decimals without a fraction": cast(pa.decimal128(38, 0), "PULocationID", "VendorID", "passenger_count"),
    "decimals with zeros for a fraction": cast(pa.decimal128(24, 4), "PULocationID", "RatecodeID"),
    "float16": cast(pa.float16(), "passenger_count", "mta_tax"),
    "float32": cast(pa.float32(), "passenger_count", "fare_amount", "total_amount", "tolls_amount", "trip_distance"),
    "seconds": cast(pa.timestamp("s"), "lpep_pickup_datetime", "lpep_dropoff_datetime"),
    "milliseconds": cast(pa.timestamp("ms"), "lpep_pickup_datetime"),
    "nanoseconds": cast(pa.timestamp("ns"), "lpep_pickup_datetime"),
    "NaN": nan,
    "all text": texts,
    "all text, views": lambda trips: cast(pa.string_view(), *TRIP)(texts(trips)),
    **{f"all text, {word}": lambda trips, word=word: texts(trips, word, "") for word in MISSING},
    "pyarrow.csv": through_pyarrow_csv,
    "pyarrow.csv with an index": lambda trips: through_pyarrow_csv(first("")(trips)),
    "an index of pandas": lambda trips: trips.append_column("__index_level_0__", [list(range(ROWS))]),
    "index": first("index", 7),
    "Unnamed: 0": first("Unnamed: 0"),
    "pandas, three times": lambda trips: first("Unnamed: 0.1")(first("Unnamed: 0")(trips)),
    "reset_index, of a table with an index": lambda trips: first("index")(first("Unnamed: 0", 5)(trips)),
    "no name, from 0": first(""),
    "no name, from 1": first("", 1),
}  # type: ignore[misc]


@pytest.mark.parametrize("how", PARQUET)
@pytest.mark.parametrize("row_group", [7, ROWS])
def test_parquet_of_another_tool_has_the_values_of_tlcs_file(how: str, row_group: int) -> None:
    read = read_parquet(parquet_file(PARQUET[how](OWN), row_group_size=row_group))
    assert read.rejects == []
    assert read.trips.equals(TRIPS)


def with_index(name: str, start: int) -> Callable[[], bytes]:
    return lambda: as_csv(first(name, start)(texts(OWN)))


CSVS: dict[str, Callable[[], bytes]] = {
    "pandas": lambda: OWN.to_pandas().to_csv().encode(),
    "pandas, without index": lambda: OWN.to_pandas().to_csv(index=False).encode(),
    "pandas, twice": with_index("Unnamed: 0", 0),
    "pandas, three times": lambda: as_csv(first("")(first("Unnamed: 0")(texts(OWN)))),
    "readr": with_index("...1", 1),
    "R": with_index("", 1),
    "pandas, index with a name": with_index("index", 5),
}


@pytest.mark.parametrize("how", CSVS)
def test_csv_of_another_tool_has_the_values_of_tlcs_file(how: str) -> None:
    read = read_csv(CSVS[how]())
    assert read.rejects == []
    assert read.trips.combine_chunks().equals(TRIPS.combine_chunks())


def test_parquet_of_pandas_has_the_values_of_tlcs_file() -> None:
    for trips in (OWN.to_pandas(), OWN.to_pandas().set_index(OWN["PULocationID"].to_pandas() * 3)):
        out = io.BytesIO()
        trips.to_parquet(out)
        assert read_parquet(out.getvalue()).trips.equals(TRIPS)


def test_parquet_of_pandas_that_read_a_csv_has_the_values_of_tlcs_file() -> None:
    nothing = OWN.set_column(3, "store_and_fwd_flag", pa.nulls(ROWS, pa.string()))
    out = io.BytesIO()
    pd.read_csv(io.BytesIO(as_csv(texts(nothing)))).to_parquet(out)
    assert pq.read_schema(out).field("store_and_fwd_flag").type == pa.float64()
    assert read_parquet(out.getvalue()).trips.equals(read_parquet(parquet_file(nothing)).trips)


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "lz4_raw", "brotli", "uncompressed"])
def test_parquet_of_duckdb_has_the_values_of_tlcs_file(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "trips.parquet"
    with duckdb.connect() as connection:
        connection.register("own", texts(OWN))
        connection.register("typed", OWN)
        for select in ("SELECT * FROM own", "SELECT * REPLACE (fare_amount::DECIMAL(18, 2) AS fare_amount) FROM typed"):
            connection.execute(
                f"COPY ({select}) TO '{path}' (FORMAT parquet, COMPRESSION {codec}, ROW_GROUP_SIZE 2048)"
            )
            read = read_parquet(path.read_bytes())
            assert read.rejects == []
            assert read.trips.equals(TRIPS)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dictionary": False, "column_encoding": {"store_and_fwd_flag": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"store_and_fwd_flag": "DELTA_LENGTH_BYTE_ARRAY"}},
        {
            "use_dictionary": False,
            "column_encoding": {"fare_amount": "BYTE_STREAM_SPLIT", "VendorID": "DELTA_BINARY_PACKED"},
        },
        {"write_page_index": True, "write_page_checksum": True},
        {"compression": "lz4", "data_page_version": "2.0"},
    ],
    ids=str,
)
def test_every_encoding_of_parquet_has_the_values_of_tlcs_file(options: dict[str, object]) -> None:
    assert read_parquet(parquet_file(OWN, **options)).trips.equals(TRIPS)


def test_decimals_that_cannot_be_converted_exactly_are_quarantined() -> None:
    fares = pa.array([Decimal("5.50"), Decimal("123456789012345678.91")], pa.decimal128(20, 2))
    zones = pa.array([Decimal("43.5"), Decimal("43.0")], pa.decimal128(5, 1))
    read = read_parquet(parquet_file(table(2, fare_amount=fares, PULocationID=zones)))
    assert [(r["row_number"], r["reason"]) for r in read.rejects] == [
        (1, "PULocationID: not a whole number"),
        (2, "fare_amount: not a number"),
    ]
    assert '"fare_amount": "123456789012345678.91"' in read.rejects[1]["original"]


@pytest.mark.parametrize(
    "values", [[5, 6, 6], [1, 0, 2], [None, 1, 2], ["a", "b", "c"], [4, 3, 2], [0.5, 1.5, 2.5]], ids=str
)
def test_an_unnamed_first_column_that_does_not_count_upwards_is_refused(values: list[object]) -> None:
    for read in (
        lambda: read_parquet(parquet_file(table(3).add_column(0, "", pa.array(values)))),
        lambda: read_csv(as_csv(texts(table(3)).add_column(0, "", pa.array(values)))),
    ):
        with pytest.raises(SchemaMismatch) as refused:
            read()
        assert "green 2021-01: the first column has no name, and does not count upwards" in str(refused.value)
        assert "index=False" in str(refused.value)


def test_an_index_may_have_gaps_because_rows_were_filtered() -> None:
    for read in (
        read_parquet(parquet_file(table(3).add_column(0, "", pa.array([5, 6, 8])))),
        read_csv(as_csv(texts(table(3)).add_column(0, "", pa.array([2, 3, 40])))),
    ):
        assert read.trips.num_rows == 3
        assert read.rejects == []


def test_a_text_column_may_contain_a_word_that_means_missing_in_other_columns() -> None:
    flags = ["NA", "NULL", "nan", "N", ""]
    read = read_parquet(parquet_file(table(5, store_and_fwd_flag=flags)))
    assert read.values("store_and_fwd_flag") == ["NA", "NULL", "nan", "N", None]


def test_a_row_of_empty_texts_is_quarantined_like_a_line_of_commas() -> None:
    trips = texts(table(2))
    emptied = pa.table(
        {name: [column[0].as_py(), ""] for name, column in zip(trips.column_names, trips.columns, strict=True)}
    )
    read = read_parquet(parquet_file(emptied))
    assert [(r["row_number"], r["reason"]) for r in read.rejects] == [(2, "nothing in it")]


@pytest.mark.parametrize("word", ["nan", "None", "NA", r"\N"])
def test_a_word_for_missing_numbers_is_null_in_text_columns_too(word: str) -> None:
    flags = {"store_and_fwd_flag": [word, "N"], "ehail_fee": [word, word]}
    rows = pa.table({name: pa.array(flags.get(name, [text, text])) for name, text in TRIP.items()})
    read = read_parquet(parquet_file(rows))
    assert read.rejects == []
    assert read.values("store_and_fwd_flag") == [None, "N"]
    assert read.values("ehail_fee") == [None, None]
