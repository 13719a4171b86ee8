"""A value is converted exactly, or its row is quarantined with the reason. Every row is counted once."""

import datetime as dt
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc import convert
from flows.tlc.clean import Chunk, Tally, clean, filtered, rejects_table
from flows.tlc.errors import NotReconciled, SchemaMismatch, TooManyRejects
from flows.tlc.matching import match
from flows.tlc.schema import MISSING, QUARANTINE_SCHEMA, arrow_schema
from flows.tlc.trips import Rows, TripMonth
from tests.tlc.published import FHV, FHV_HEADER, GREEN, TRIP, table

REASON = {
    "VendorID": "VendorID: not a whole number",
    "fare_amount": "fare_amount: not a number",
    "lpep_pickup_datetime": "lpep_pickup_datetime: not a datetime",
    "store_and_fwd_flag": "store_and_fwd_flag: not a text",
}


def cleaned(**columns: Any) -> Chunk:
    rows = len(next(iter(columns.values())))
    published = table(rows, **columns)
    shape = match(GREEN, ".parquet", published.column_names, published.schema.types)
    return clean(GREEN, shape, published, pa.array(range(1, rows + 1), pa.int64()))


def outcome(column: str, value: Any, kind: pa.DataType) -> Any:
    """Clean a value between two valid ones. Return the converted value, or the reason why its row is quarantined."""
    chunk = cleaned(**{column: pa.array([None, value, None], kind)})
    assert chunk.source_rows == chunk.trips.num_rows + chunk.rejects.num_rows == 3
    if chunk.rejects.num_rows:
        assert chunk.rejects.column("row_number").to_pylist() == [2]
        assert chunk.trips.column("row_number").to_pylist() == [1, 3]
        return chunk.rejects.column("reason")[0].as_py()
    return chunk.trips.column(column)[1].as_py()


NULL = object()  # a missing value, which is loaded as null; None means a quarantined row

# Values as text, as in CSV files and in TLC's oldest Parquet files.
TEXTS: dict[str, dict[str, Any]] = {
    "VendorID": {
        "1": 1, " 1": 1, "1\t": 1, "+1": 1, "-1": -1, "-0": 0, "007": 7, "1.0": 1, "2.": 2, "+3.000": 3, "10": 10,
        "100.00": 100,
        "9223372036854775807": 2**63 - 1, "-9223372036854775808": -(2**63), "9007199254740993.0": 2**53 + 1,
        "9223372036854775808": None, "1.5": None, "1.0000000000000000000001": None, "1e3": None, "0x10": None,
        "00009223372036854775807": 2**63 - 1, "9223372036854775807.00": 2**63 - 1,
        "-9223372036854775809": None, "-09223372036854775808.0": -(2**63), "10000000000000000000": None,
        "0XFFFFFFFFFFFFFFFF": None, "1_000": None, "1,000": None, "abc": None, "nan": NULL, "inf": None, "--1": None, "-": None,
        " ": None, ".0": None, "٣": None, "1\u00a0": None, "1 2": None, '"1"': None, "TRUE": None, "VTS": None,
    },
    "fare_amount": {
        ".79": 0.79, "-.5": -0.5, "5.": 5.0, "5": 5.0, "+5": 5.0, " 5.25 ": 5.25, "007.5": 7.5, "1e3": 1000.0, "1E-2": 0.01,
        "2.6299999999999999": 2.63, "0.30000000000000004": 0.1 + 0.2, "-500": -500.0,
        "1.7976931348623157e308": 1.7976931348623157e308, "5e-324": 5e-324, "1e400": None, "-1e400": None,
        "NaN": NULL, "nan": NULL, "-nan": None, "inf": None, "Infinity": None,
        "$5": None, "5,5": None, "1.2.3": None, "1e": None, "e1": None, ".": None, "": NULL, "0x10": None,
        "1d3": None, "٣": None,
        "1_0": None, "N/A": NULL, "--1": None,
    },
    "lpep_pickup_datetime": {
        "2021-01-31 23:59:59": dt.datetime(2021, 1, 31, 23, 59, 59), " 2021-01-01 00:00:00 ": dt.datetime(2021, 1, 1),
        "2021-01-01T00:00:01": dt.datetime(2021, 1, 1, 0, 0, 1),
        "2021-01-01 00:00:00.5": dt.datetime(2021, 1, 1, 0, 0, 0, 500_000),
        "2021-01-01 00:00:00.123456": dt.datetime(2021, 1, 1, 0, 0, 0, 123_456),
        "2020-02-29 12:00:00": dt.datetime(2020, 2, 29, 12), "0001-01-01 00:00:00": dt.datetime(1, 1, 1),
        "9999-12-31 23:59:59": dt.datetime(9999, 12, 31, 23, 59, 59),
        "2021-01-01": None, "2021-01-01 00:30": None, "01/01/2021 0:30": None, "1/1/2021 0:30": None,
        "2021-13-01 00:00:00": None,
        "2021-00-01 00:00:00": None, "2021-02-29 00:00:00": None, "2021-02-30 00:00:00": None, "2021-04-31 00:00:00": None,
        "2021-01-32 00:00:00": None, "2021-01-01 24:00:00": None, "2021-01-01 23:60:00": None, "2016-12-31 23:59:60": None,
        "0000-01-01 00:00:00": None, "10000-01-01 00:00:00": None, "21-01-01 00:00:00": None, "2021-1-1 0:0:0": None,
        "2021-01-0100:00:00": None, "2021-01-01  00:00:00": None, "2021-01-01 00:00:00Z": None, "2021-01-01 00:00+05": None,
        "2021-01-01 00:00:00+05:00": None, "2021-01-01 00:00:00.1234567": None, "٢021-01-01 00:00:00": None, "NULL": NULL,
        "1609459200": None, "2000-02-29 00:00:00": dt.datetime(2000, 2, 29), "1900-02-29 00:00:00": None,
        "2100-02-29 00:00:00": None, "2024-02-29T23:59:59.9": dt.datetime(2024, 2, 29, 23, 59, 59, 900_000),
    },
    "store_and_fwd_flag": {
        "N": "N", " ": " ", "N ": "N ", "N/A": "N/A", "nan": "nan", "null": "null", "é": "é", "🚕": "🚕", 'a"b': 'a"b',
        "\x00": None, "Y\x00": None,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [(column, text, value) for column, cases in TEXTS.items() for text, value in cases.items()],
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_a_text_is_converted_exactly_or_quarantined(column: str, text: str, value: Any, kind: pa.DataType) -> None:
    got = outcome(column, text, kind)
    expected = None if value is NULL else REASON[column] if value is None else value
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize("word", MISSING)
@pytest.mark.parametrize("column", [column for column in REASON if column != "store_and_fwd_flag"])
def test_a_word_for_a_missing_value_is_null_except_in_text_columns(column: str, word: str) -> None:
    assert outcome(column, word, pa.string()) is None
    assert outcome(column, f"{word}?", pa.string()) == REASON[column]


@pytest.mark.parametrize(
    ("column", "kind", "value", "expected"),
    [
        ("VendorID", pa.float64(), 1.0, 1),
        ("VendorID", pa.float64(), -(2.0**63), -(2**63)),
        ("VendorID", pa.float64(), 2.0**63, None),
        ("VendorID", pa.float64(), 1.5, None),
        ("VendorID", pa.float64(), 1e300, None),
        ("VendorID", pa.float64(), math.nan, NULL),
        ("VendorID", pa.float64(), math.inf, None),
        ("VendorID", pa.int32(), -5, -5),
        ("VendorID", pa.uint64(), 2**63 - 1, 2**63 - 1),
        ("VendorID", pa.uint64(), 2**63, None),
        ("fare_amount", pa.int64(), 2**53, 2.0**53),
        ("fare_amount", pa.int64(), 2**53 + 1, None),
        ("fare_amount", pa.float32(), 0.5, 0.5),
        ("fare_amount", pa.float32(), -13.35, -13.35),
        ("fare_amount", pa.float32(), 123456.78, 123456.78),
        ("fare_amount", pa.float32(), math.nan, NULL),
        ("fare_amount", pa.float32(), math.inf, None),
        ("fare_amount", pa.float64(), -0.01, -0.01),
        ("fare_amount", pa.float64(), math.nan, NULL),
        ("fare_amount", pa.float16(), 0.5, 0.5),
        ("fare_amount", pa.float16(), math.nan, NULL),
        ("VendorID", pa.float16(), 2.0, 2),
        ("lpep_pickup_datetime", pa.float64(), math.nan, NULL),
        ("store_and_fwd_flag", pa.float64(), math.nan, NULL),
        ("VendorID", pa.int64(), -(2**63), -(2**63)),
        ("fare_amount", pa.int64(), -(2**63), None),
        ("fare_amount", pa.uint64(), 2**64 - 1, None),
        ("fare_amount", pa.decimal128(10, 2), Decimal("12.35"), 12.35),
        ("fare_amount", pa.decimal32(5, 2), Decimal("-0.01"), -0.01),
        ("fare_amount", pa.decimal64(18, 10), Decimal(0), 0.0),
        ("fare_amount", pa.decimal128(38, 10), Decimal("1E-10"), 1e-10),
        ("fare_amount", pa.decimal128(20, 2), Decimal("123456789012345678.91"), None),
        ("fare_amount", pa.decimal256(60, 2), Decimal("9007199254740993"), None),
        ("VendorID", pa.decimal128(38, 0), Decimal(43), 43),
        ("VendorID", pa.decimal32(5, 2), Decimal("2.00"), 2),
        ("VendorID", pa.decimal128(38, 10), Decimal(0), 0),
        ("VendorID", pa.decimal128(10, 2), Decimal("2.50"), None),
        ("VendorID", pa.decimal128(38, 0), Decimal(2**63), None),
        ("fare_amount", pa.float64(), -math.inf, None),
        ("lpep_pickup_datetime", pa.timestamp("s"), 1, dt.datetime(1970, 1, 1, 0, 0, 1)),
        ("lpep_pickup_datetime", pa.timestamp("ms"), -1, dt.datetime(1969, 12, 31, 23, 59, 59, 999_000)),
        ("lpep_pickup_datetime", pa.timestamp("us"), 1, dt.datetime(1970, 1, 1, 0, 0, 0, 1)),
        ("lpep_pickup_datetime", pa.timestamp("ns"), 1_000, dt.datetime(1970, 1, 1, 0, 0, 0, 1)),
        ("lpep_pickup_datetime", pa.timestamp("ns"), 1_001, None),
        ("lpep_pickup_datetime", pa.timestamp("us"), -62_135_596_800_000_001, None),
        ("lpep_pickup_datetime", pa.timestamp("us"), -62_135_596_800_000_000, dt.datetime(1, 1, 1)),
        ("lpep_pickup_datetime", pa.timestamp("us"), 253_402_300_800_000_000, None),
        ("lpep_pickup_datetime", pa.timestamp("ms"), 2**62, None),
        ("lpep_pickup_datetime", pa.timestamp("s"), 2**62, None),
        ("store_and_fwd_flag", pa.large_string(), "Y", "Y"),
    ],
)
def test_a_typed_value_is_converted_exactly_or_quarantined(
    column: str, kind: pa.DataType, value: Any, expected: Any
) -> None:
    got = outcome(column, value, kind)
    assert got == (None if expected is NULL else REASON[column] if expected is None else expected)


@pytest.mark.parametrize("column", list(REASON))
@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.large_string()], ids=str)
def test_null_stays_null_for_every_published_type(column: str, kind: pa.DataType) -> None:
    assert outcome(column, None, kind) is None


def test_missing_columns_are_null_and_the_key_is_added() -> None:
    chunk = cleaned(VendorID=[1, 2])
    assert chunk.trips.schema == arrow_schema("green")
    assert chunk.trips.column("cbd_congestion_fee").to_pylist() == [None, None]
    assert chunk.trips.column("file_month").to_pylist() == [dt.date(2021, 1, 1)] * 2
    assert chunk.trips.column("row_number").to_pylist() == [1, 2]


def test_a_quarantined_row_has_its_values_as_json_and_the_first_reason() -> None:
    chunk = cleaned(
        RatecodeID=pa.array([1, 1.5, math.inf]),
        lpep_pickup_datetime=pa.array([0, 253_402_300_800_000_000, 0], pa.timestamp("us")),
        fare_amount=pa.array([1, 2.25, math.inf]),
    )
    assert chunk.rejects.schema == QUARANTINE_SCHEMA
    assert [(r["row_number"], r["reason"]) for r in chunk.rejects.to_pylist()] == [
        (2, "lpep_pickup_datetime: not a datetime"),
        (3, "RatecodeID: not a whole number"),
    ]
    year_10000, infinite = (
        json.loads(text, parse_constant=pytest.fail) for text in chunk.rejects["original"].to_pylist()
    )
    assert list(year_10000) == list(TRIP)
    assert year_10000["lpep_pickup_datetime"] == "10000-01-01 00:00:00.000000"
    assert year_10000["RatecodeID"] == 1.5
    assert year_10000["fare_amount"] == 2.25
    assert year_10000["store_and_fwd_flag"] == "N"
    assert year_10000["ehail_fee"] is None
    assert (infinite["RatecodeID"], infinite["fare_amount"]) == ("inf", "inf")


def test_a_text_that_is_not_utf_8_is_quarantined() -> None:
    stray = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"N\xff\xfe")]
    )
    chunk = cleaned(store_and_fwd_flag=stray)
    assert chunk.trips.column("store_and_fwd_flag").to_pylist() == ["N"]
    [reject] = chunk.rejects.to_pylist()
    assert reject["reason"] == REASON["store_and_fwd_flag"]
    assert json.loads(reject["original"])["store_and_fwd_flag"] == r"\xff\xfe"


def test_a_number_in_text_that_is_not_utf_8_is_quarantined() -> None:
    stray = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"5\xff\xfe")]
    )
    assert cleaned(VendorID=stray).rejects.column("reason").to_pylist() == [REASON["VendorID"]]


@pytest.mark.parametrize("column", ["store_and_fwd_flag", "lpep_pickup_datetime"])
def test_a_float_in_a_text_or_time_column_stops_the_month(column: str) -> None:
    with pytest.raises(
        SchemaMismatch, match=rf"green 2021-01: {column} has the type double and the value 5\.0 in row 2"
    ):
        cleaned(**{column: pa.array([math.nan, 5.0])})


# For each published type, a value that cannot be converted. The test fills a batch with it.
HOPELESS = {
    "fractions": ("RatecodeID", pa.array([1.5])),
    "infinite": ("fare_amount", pa.array([math.inf])),
    "beyond 64 bits": ("VendorID", pa.array(["99999999999999999999"])),
    "beyond 64 bits, of one length": ("VendorID", pa.array(["9223372036854775808"])),
    "unsigned": ("VendorID", pa.array([2**64 - 1], pa.uint64())),
    "beyond a double": ("fare_amount", pa.array(["1e999"])),
    "integers beyond a double": ("fare_amount", pa.array([2**62])),
    "inexact decimals": ("fare_amount", pa.array([Decimal("123456789012345678.91")])),
    "words": ("fare_amount", pa.array(["abc"])),
    "days that do not exist": ("lpep_pickup_datetime", pa.array(["2021-02-30 00:00:00"])),
    "fractions of a microsecond": ("lpep_pickup_datetime", pa.array([1_001], pa.timestamp("ns"))),
    "years beyond 9999": ("lpep_pickup_datetime", pa.array([2**62], pa.timestamp("ms"))),
    "NUL": ("store_and_fwd_flag", pa.array(["\x00"])),
    "no UTF-8": ("store_and_fwd_flag", pa.array([b"\xff"]).view(pa.string())),
}


@pytest.mark.parametrize(("column", "value"), HOPELESS.values(), ids=HOPELESS)
@pytest.mark.slow
def test_a_column_without_a_valid_value_needs_no_search_for_the_bad_rows(column: str, value: pa.Array) -> None:
    rows = 64 << 10
    values = value.take(pa.array([0] * (rows - 1) + [None], pa.int64()))
    with patch.object(convert, "_halve", side_effect=convert._halve) as halved:
        chunk = cleaned(**{column: values})
    assert (chunk.trips.num_rows, chunk.rejects.num_rows, chunk.source_rows) == (1, rows - 1, rows)
    assert chunk.rejects["reason"].unique().to_pylist() == [chunk.rejects["reason"][0].as_py()]
    assert halved.call_count <= 1


def test_the_number_of_stored_originals_is_limited_and_every_bad_row_is_counted() -> None:
    published = table(5, VendorID=["x"] * 5, store_and_fwd_flag=["y" * 10_000] * 5)
    shape = match(GREEN, ".parquet", published.column_names, published.schema.types)
    chunk = clean(GREEN, shape, published, pa.array(range(1, 6)), originals=2)
    assert [len(text) for text in chunk.rejects["original"].to_pylist()] == [4_000, 4_000, 0, 0, 0]
    assert chunk.rejects["row_number"].to_pylist() == [1, 2, 3, 4, 5]


def test_a_column_in_many_chunks_is_read_as_one() -> None:
    pieces = pa.chunked_array([pa.array([1, 2]), pa.array([], pa.int64()), pa.array([3])])
    assert cleaned(VendorID=pieces).trips.column("VendorID").to_pylist() == [1, 2, 3]


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+(\.0*)?", text):
        raise ValueError
    whole = int(Decimal(text))
    if not -(2**63) <= whole < 2**63:
        raise ValueError
    return whole


def _number(text: str) -> float:
    if not re.fullmatch(r"[0-9.eE+-]+", text) or not math.isfinite(float(text)):
        raise ValueError
    return float(text)


def _datetime(text: str) -> dt.datetime:
    if not re.fullmatch(r"[0-9-]{10}[ T][0-9:]{8}(\.[0-9]{1,6})?", text):
        raise ValueError
    return dt.datetime.fromisoformat(text)


def _text(text: str) -> str:
    if "\x00" in text:
        raise ValueError
    return text


_PYTHON: dict[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": _number,
    "datetime": _datetime,
    "text": _text,
}


def _model(kind: str, text: str | None) -> Any:
    """Return the value that Python's own conversion gives, or `...` if it fails."""
    if text is not None and kind != "text" and (text == "" or text.strip(" \t\n\r\x0b\x0c") in MISSING[1:]):
        return None
    try:
        return None if text is None else _PYTHON[kind](text if kind == "text" else text.strip(" \t\n\r\x0b\x0c"))
    except ValueError:
        return ...


_SOUND = {
    "integer": st.one_of(st.integers(-(2**64), 2**64).map(str), st.integers(0, 300).map(lambda n: f"{n}.0")),
    "number": st.one_of(
        st.floats().map(repr), st.decimals(-1000, 1000, places=2).map(str), st.floats(width=32).map("{:.17g}".format)
    ),
    "datetime": st.datetimes().map(lambda moment: moment.isoformat(" ")),
    "text": st.text('NY ,é🚕"\x00', max_size=5),
}
_ODD = {
    "integer": st.text("0123456789+-.exX_ \t", min_size=1, max_size=22),
    "number": st.text("0123456789+-.eEinfaN ", min_size=1, max_size=8),
    "datetime": st.tuples(*[st.integers(0, last) for last in (9999, 13, 32, 24, 60, 60)]).map(
        lambda parts: "{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*parts)
    ),
    "text": st.text("\x00\x01\x7f", min_size=1, max_size=3),
}
_COLUMNS = {
    "VendorID": "integer",
    "fare_amount": "number",
    "lpep_pickup_datetime": "datetime",
    "store_and_fwd_flag": "text",
}


@pytest.mark.slow
@given(
    st.sampled_from(list(_COLUMNS)).flatmap(
        lambda column: st.tuples(
            st.just(column),
            st.lists(st.one_of(st.none(), _SOUND[_COLUMNS[column]], _ODD[_COLUMNS[column]]), min_size=1, max_size=40),
        )
    )
)
def test_conversion_agrees_with_pythons_and_every_row_is_loaded_or_quarantined(
    case: tuple[str, list[str | None]],
) -> None:
    column, texts = case
    expected = [_model(_COLUMNS[column], text) for text in texts]
    chunk = cleaned(**{column: pa.array(texts, pa.string())})
    assert chunk.trips.column(column).to_pylist() == [value for value in expected if value is not ...]
    assert chunk.trips.column("row_number").to_pylist() == [n for n, v in enumerate(expected, 1) if v is not ...]
    assert chunk.rejects.column("row_number").to_pylist() == [n for n, v in enumerate(expected, 1) if v is ...]
    assert set(chunk.rejects.column("reason").to_pylist()) <= {REASON[column]}


def _chunk(loaded: int, quarantined: int = 0, source_rows: int | None = None, reason: str = "not CSV") -> Chunk:
    rejects = rejects_table((n, reason, "") for n in range(quarantined))
    rows = loaded + quarantined if source_rows is None else source_rows
    return Chunk(pa.table({"row_number": range(loaded)}), rejects, rows)


def _tally(*chunks: Chunk) -> Tally:
    tally = Tally()
    for chunk in chunks:
        tally.add(chunk)
    return tally


def test_a_tally_adds_up_chunks() -> None:
    tally = _tally(
        _chunk(98, 1), _chunk(2, 1, reason="other"), Chunk(_chunk(3).trips, rejects_table([]), 5, Counter(a=2))
    )
    assert (tally.source_rows, tally.loaded) == (107, 103)
    assert tally.quarantined == {"not CSV": 1, "other": 1}
    assert tally.filtered == {"a": 2}
    with pytest.raises(TooManyRejects):
        tally.check(GREEN)


@pytest.mark.parametrize(("rows", "quarantined"), [(99, 1), (100, 1), (9_900, 100)])
def test_one_percent_of_quarantined_rows_is_allowed(rows: int, quarantined: int) -> None:
    _tally(_chunk(rows, quarantined)).check(GREEN)


@pytest.mark.parametrize(
    ("rows", "quarantined", "reason", "message"),
    [
        (98, 1, "not CSV", "1 of 99 rows do not fit (1 × not CSV); more than 1% stops the month"),
        (0, 3, "wrong number of fields", "The rows do not fit their header; compare the file with its source."),
        (
            9_899,
            101,
            "x: not a datetime",
            "Datetimes are not as TLC writes them, 2021-01-31 23:59:59; get the original file.",
        ),
    ],
)
def test_more_than_one_percent_stops_the_month_with_the_reasons(
    rows: int, quarantined: int, reason: str, message: str
) -> None:
    with pytest.raises(TooManyRejects) as stopped:
        _tally(_chunk(rows, quarantined, reason=reason)).check(GREEN)
    assert message in str(stopped.value)
    assert "green 2021-01" in str(stopped.value)
    assert "Nothing was published." in str(stopped.value)


def test_a_file_without_trips_stops_the_month() -> None:
    with pytest.raises(TooManyRejects, match="green 2021-01: the file has a header and no trips"):
        _tally(_chunk(0)).check(GREEN)


@pytest.mark.parametrize("source_rows", [9, 11])
def test_lost_or_additional_rows_stop_the_month(source_rows: int) -> None:
    with pytest.raises(NotReconciled, match=f"{source_rows} rows read, but 10 loaded"):
        _tally(_chunk(10, source_rows=source_rows)).check(GREEN)


@pytest.mark.parametrize(
    ("rows", "kept", "dropped"),
    [("all", [1, 2, 3, 4, 5], {}), ("with_passengers", [2, 3, 4], {"zero_passengers": 2})],
)
def test_only_trips_with_zero_passengers_are_filtered(rows: Rows, kept: list[int], dropped: dict[str, int]) -> None:
    chunk = filtered(cleaned(passenger_count=pa.array([0.0, 1.0, None, 9.0, 0.0])), rows)
    assert chunk.trips.column("row_number").to_pylist() == kept
    assert chunk.filtered == dropped
    assert chunk.source_rows == 5


def test_quarantined_rows_are_not_also_counted_as_filtered() -> None:
    chunk = filtered(cleaned(passenger_count=["0", "1"], VendorID=["x", "1"]), "with_passengers")
    assert (chunk.trips.num_rows, chunk.rejects.num_rows, chunk.filtered.total()) == (1, 1, 0)


def test_no_trip_is_filtered_for_a_color_without_passenger_counts() -> None:
    fields = FHV_HEADER.split(",")
    published = pa.table({name: pa.array(["1", "1"] if "ID" in name else [None, None], pa.string()) for name in fields})
    chunk = clean(FHV, match(FHV, ".csv", fields), published, pa.array([1, 2]))
    kept = filtered(chunk, "with_passengers")
    assert kept.trips.num_rows == 2
    assert kept.filtered == {"zero_passengers": 0}


@pytest.mark.slow
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["0", "1", "", "x"]), st.sampled_from(["N", "", "\x00"])), max_size=20),
        max_size=5,
    ),
    st.sampled_from(["all", "with_passengers"]),
)
def test_every_source_row_is_loaded_filtered_or_quarantined(batches: list[list[tuple[str, str]]], rows: Rows) -> None:
    month = TripMonth("green", 2021, 1)
    tally = Tally()
    loaded: list[int] = []
    quarantined: list[int] = []
    first = 1
    for batch in batches:
        published = table(
            len(batch),
            passenger_count=pa.array([count or None for count, _ in batch], pa.string()),
            store_and_fwd_flag=pa.array([flag or None for _, flag in batch], pa.string()),
        )
        shape = match(month, ".parquet", published.column_names)
        numbers = pa.array(range(first, first + len(batch)), pa.int64())
        chunk = filtered(clean(month, shape, published, numbers), rows)
        tally.add(chunk)
        loaded += chunk.trips.column("row_number").to_pylist()
        quarantined += chunk.rejects.column("row_number").to_pylist()
        first += len(batch)
    every = [pair for batch in batches for pair in batch]
    bad = {n for n, (count, flag) in enumerate(every, 1) if count == "x" or flag == "\x00"}
    empty = {n for n, (count, _) in enumerate(every, 1) if count == "0"} - bad if rows == "with_passengers" else set()
    assert quarantined == sorted(bad)
    assert loaded == sorted(set(range(1, first)) - bad - empty)
    assert tally.filtered.total() == len(empty)
    assert tally.source_rows == tally.loaded + tally.filtered.total() + tally.quarantined.total() == len(every)
