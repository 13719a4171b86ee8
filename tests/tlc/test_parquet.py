"""Parquet files: every type that TLC has used is read, damage is found, and no value moves to another row."""

import base64
import datetime as dt
import io
import json
import math
import re
import threading
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flows.tlc import reading_parquet
from flows.tlc.errors import SchemaMismatch, TooManyRejects, UnreadableFile
from flows.tlc.reading import recognise_end
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.schema import arrow_schema
from tests.tlc.published import GREEN, TRIP, parquet_file, read_parquet, table
from tests.tlc.test_csv import FIRST_TRIP

ROWS = 300
MANY = table(ROWS, VendorID=range(ROWS), fare_amount=[n / 4 for n in range(ROWS)])


def test_a_row_becomes_a_trip_of_the_canonical_schema() -> None:
    read = read_parquet(parquet_file(table()))
    assert read.trips.schema == arrow_schema("green")
    assert read.trips.to_pylist() == [FIRST_TRIP]
    [shape] = read.shapes
    assert (shape.era.name, shape.published) == ("green parquet since 2014-01", tuple(TRIP))


@pytest.mark.parametrize(
    "columns",
    [
        {"ehail_fee": pa.nulls(1)},
        {"VendorID": pa.array([2], pa.int32()), "passenger_count": pa.array([1], pa.int64())},
        {"VendorID": pa.array([2.0])},
        {"trip_distance": pa.array([1.01], pa.float64()), "tip_amount": pa.array([0], pa.int8())},
        {"store_and_fwd_flag": pa.array(["N"], pa.large_string())},
        {"lpep_pickup_datetime": pa.array(["2021-01-01 00:15:56"])},
        {"lpep_pickup_datetime": pa.array([FIRST_TRIP["lpep_pickup_datetime"]], pa.timestamp("ms"))},
        {"lpep_pickup_datetime": pa.array([FIRST_TRIP["lpep_pickup_datetime"]], pa.timestamp("ns"))},
        {"cbd_congestion_fee": pa.nulls(1, pa.float64())},
        {"fare_amount": None, "FARE_amount": pa.array([5.5])},
    ],
    ids=lambda columns: " ".join(f"{k} {getattr(v, 'type', None)}" for k, v in columns.items()),
)
def test_every_type_that_tlc_has_used_gives_the_same_trip(columns: dict[str, Any]) -> None:
    read = read_parquet(parquet_file(table(**columns)))
    assert read.trips.to_pylist() == [FIRST_TRIP]


@pytest.mark.parametrize(
    "options",
    [
        {"row_group_size": 7},
        {"row_group_size": 100, "compression": "zstd", "write_statistics": False},
        {"compression": "gzip", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "none", "write_page_checksum": True, "data_page_size": 64},
        {"store_schema": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 64, 1000], ids="batches of {}".format)
def test_rows_keep_their_order_across_row_groups_and_batches(options: dict[str, Any], batch: int) -> None:
    with patch.object(reading_parquet, "BATCH", batch):
        read = read_parquet(parquet_file(MANY, **options))
    assert read.values("row_number") == list(range(1, ROWS + 1))
    assert read.values("VendorID") == list(range(ROWS))
    assert read.values("fare_amount") == [n / 4 for n in range(ROWS)]


def test_a_row_with_a_bad_value_is_quarantined_as_json() -> None:
    read = read_parquet(parquet_file(table(3, RatecodeID=[1.0, 1.5, None])))
    assert read.values("row_number") == [1, 3]
    assert read.values("RatecodeID") == [1, None]
    [reject] = read.rejects
    assert (reject["row_number"], reject["reason"]) == (2, "RatecodeID: not a whole number")
    original = json.loads(reject["original"])
    assert list(original) == list(TRIP)
    assert (original["RatecodeID"], original["VendorID"], original["ehail_fee"]) == (1.5, 2, None)
    assert original["lpep_pickup_datetime"] == "2021-01-01 00:15:56.000000"


def test_nanoseconds_are_quarantined_and_not_rounded() -> None:
    read = read_parquet(parquet_file(table(2, lpep_pickup_datetime=pa.array([1_000, 1_001], pa.timestamp("ns")))))
    assert read.values("lpep_pickup_datetime") == [dt.datetime(1970, 1, 1, 0, 0, 0, 1)]
    [reject] = read.rejects
    assert "1970-01-01 00:00:00.000001001" in reject["original"]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_int96_times_are_refused_because_spark_writes_instants_with_them(zone: str | None) -> None:
    pickups = pa.array([dt.datetime(2021, 1, 1, 5, 15, 56)], pa.timestamp("us", zone))
    old = parquet_file(table(lpep_pickup_datetime=pickups), use_deprecated_int96_timestamps=True, store_schema=False)
    assert pq.ParquetFile(io.BytesIO(old)).schema.column(1).physical_type == "INT96"
    with pytest.raises(SchemaMismatch) as refused:
        read_parquet(old)
    message = str(refused.value)
    assert (
        "green 2021-01: 'lpep_pickup_datetime', 'lpep_dropoff_datetime' have the type INT96, as Spark writes it"
        in message
    )
    for advice in ("spark.sql.session.timeZone=America/New_York", "TIMESTAMP_NTZ", "use_deprecated_int96_timestamps"):
        assert advice in message


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (
            {"lpep_pickup_datetime": pa.array([0], pa.timestamp("us", "America/New_York")), "VendorID": [True]},
            [
                r"'VendorID' +\| bool +\| integer",
                r"'lpep_pickup_datetime' +\| timestamp\[us, tz=America/New_York\] \| New York wall-clock, without zone",
            ],
        ),
        (
            {"trip": [0], "tip": [0]},
            [r"'trip' +\| int64 +\| no such column", r"'tip' +\| int64 +\| no such column"],
        ),
        ({"extra": None, "mta_tax": None}, [r"'extra' +\| absent +\| number", r"'mta_tax' +\| absent +\| number"]),
        ({"vendorid": [1]}, [r"'VendorID' \| int64, not alone", r"'vendorid' \| int64, not alone"]),
        ({"store_and_fwd_flag": pa.array([1])}, [r"'store_and_fwd_flag' \| int64 +\| text"]),
        (
            {"lpep_pickup_datetime": pa.array([dt.date(2021, 1, 1)])},
            [r"'lpep_pickup_datetime' \| date32.* \| datetime"],
        ),
        ({"extra": pa.array([[1.0]])}, [r"'extra' +\| list<.*> +\| number"]),
    ],
)
def test_wrong_columns_are_refused_with_one_line_each(columns: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        read_parquet(parquet_file(table(**columns)))
    for line in lines:
        assert re.search(f"^{line}", str(refused.value), re.MULTILINE), line


def test_a_file_without_columns_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match=r"'VendorID' +\| absent"):
        read_parquet(parquet_file(pa.table({})))


def test_a_file_without_rows_is_refused() -> None:
    empty = read_parquet(parquet_file(MANY.slice(0, 0)))
    with pytest.raises(TooManyRejects, match="a header and no trips"):
        empty.tally.check(GREEN)


WHOLE = parquet_file(MANY, row_group_size=100)
FOOTER = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        WHOLE[: len(WHOLE) // 2] + b"PAR1",
        WHOLE[: FOOTER // 2] + WHOLE[FOOTER:],
        WHOLE[:4] + bytes(FOOTER - 4) + WHOLE[FOOTER:],
        WHOLE[:-8] + b"\xff\xff\xff\x7f" + b"PAR1",
        b"<html>" * 100,
    ],
    ids=[
        "empty",
        "magic only",
        "cut by one",
        "half",
        "half, then magic",
        "half missing inside",
        "zeroed",
        "long footer",
        "HTML",
    ],
)
def test_a_truncated_or_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableFile, match=r"(?s)green 2021-01: the Parquet file is damaged .* fetch it again"):
        read_parquet(data)


@pytest.mark.parametrize(("tail", "valid"), [(WHOLE[-8:], True), (WHOLE[-9:-1], False), (b"", False), (b"PAR", False)])
def test_a_parquet_file_ends_with_its_magic(tail: bytes, valid: bool) -> None:
    recognise_end(GREEN, ".csv", tail, "http://h/x")
    if valid:
        recognise_end(GREEN, ".parquet", tail, "http://h/x")
        return
    with pytest.raises(
        UnreadableFile,
        match="green 2021-01: http://h/x is truncated, or something was appended to it",
    ):
        recognise_end(GREEN, ".parquet", tail, "http://h/x")


class Keys(pe.KmsClient):
    """A key service that does not encrypt keys."""

    def wrap_key(self, key: bytes, master_key: str) -> bytes:
        return base64.b64encode(key)


def test_the_error_for_an_encrypted_column_names_encryption_and_not_damage() -> None:
    trips = pq.read_table(io.BytesIO(WHOLE))
    configuration = pe.EncryptionConfiguration("key", column_keys={"key": ["VendorID"]}, plaintext_footer=True)
    keys = pe.CryptoFactory(lambda _: Keys()).file_encryption_properties(pe.KmsConnectionConfig(), configuration)
    data = io.BytesIO()
    with pq.ParquetWriter(data, trips.schema, encryption_properties=keys) as writer:
        writer.write_table(trips)
    with pytest.raises(
        UnreadableFile, match=r"cannot be read here \(its columns are encrypted\).*save this one again without"
    ):
        read_parquet(data.getvalue())


def test_the_error_for_a_codec_that_arrow_lacks_names_it_and_not_damage() -> None:
    snappy = parquet_file(MANY, compression="snappy")
    # The codec follows the column's name. A number n is stored as 2n.
    name, codec = MANY.column_names[0].encode(), b"\x15\x02"
    assert name + codec in snappy
    with pytest.raises(UnreadableFile, match=r"cannot be read here \(it is compressed with LZO\).*with Snappy, gzip"):
        read_parquet(snappy.replace(name + codec, name + b"\x15\x06"))


def test_a_checksummed_page_with_a_wrong_byte_is_refused() -> None:
    data = parquet_file(MANY, compression="none", use_dictionary=False, write_page_checksum=True)
    at = data.index((123).to_bytes(8, "little"))  # a VendorID, in plain encoding
    with pytest.raises(UnreadableFile, match="CRC"):
        read_parquet(data[:at] + b"\x7c" + data[at + 1 :])


@pytest.mark.parametrize(
    ("actual_rows", "stated_rows"), [(300, 299), (300, 301), (100, 99)], ids=["fewer", "more", "fewer in a row group"]
)
def test_a_footer_with_a_wrong_row_count_is_refused(actual_rows: int, stated_rows: int) -> None:
    # The last occurrence of the number in the footer is the row count of the file or of a row group.
    lie = bytearray(WHOLE)
    at = lie.rindex(_varint(actual_rows), FOOTER) if actual_rows == 100 else lie.index(_varint(actual_rows), FOOTER)
    lie[at : at + 2] = _varint(stated_rows)
    metadata = pq.ParquetFile(io.BytesIO(bytes(lie))).metadata
    assert stated_rows in (metadata.num_rows, *(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)))
    with pytest.raises(UnreadableFile, match="damaged"):
        read_parquet(bytes(lie))


def _varint(number: int) -> bytes:
    """Return a number that needs two bytes in Thrift's compact encoding."""
    return bytes([number * 2 & 0x7F | 0x80, number * 2 >> 7])


@given(st.integers(0, len(WHOLE) - FOOTER - 9), st.integers(1, 255))
def test_a_footer_with_one_wrong_byte_never_moves_a_value_to_another_row(at: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[FOOTER + at] ^= change
    try:
        read = read_parquet(bytes(data))
    except (UnreadableFile, SchemaMismatch):
        return
    assume(not read.rejects)  # the footer names another type, so the rows are quarantined
    assert read.values("row_number") == list(range(1, ROWS + 1))
    for name in ("VendorID", "fare_amount"):
        assert read.values(name) == MANY[name].to_pylist()


_RATES = st.one_of(st.none(), st.integers(0, 99).map(float), st.sampled_from([1.5, math.nan, math.inf]))


@pytest.mark.slow
@given(st.lists(_RATES, min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 20))
def test_every_row_is_loaded_or_quarantined_once(rates: list[float | None], row_group: int, batch: int) -> None:
    data = parquet_file(table(len(rates), RatecodeID=pa.array(rates, pa.float64())), row_group_size=row_group)
    with patch.object(reading_parquet, "BATCH", batch):
        read = read_parquet(data)
    plain = [None if rate is not None and math.isnan(rate) else rate for rate in rates]
    valid = {n: rate for n, rate in enumerate(plain, 1) if rate is None or rate.is_integer()}
    assert dict(zip(read.values("row_number"), read.values("RatecodeID"), strict=True)) == valid
    assert {r["row_number"] for r in read.rejects} == set(range(1, len(rates) + 1)) - set(valid)
    assert read.tally.source_rows == read.tally.loaded + read.tally.quarantined.total() == len(rates)


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    with patch.object(reading_parquet, "BATCH", 1):
        chunks = parquet_chunks(GREEN, io.BytesIO(WHOLE))
        next(chunks)
        chunks.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_categories_of_pandas_are_read_as_their_values() -> None:
    flags = pa.array(["N", "Y", None, "N\x00"]).dictionary_encode()
    read = read_parquet(
        parquet_file(table(4, store_and_fwd_flag=flags, VendorID=pa.array([2] * 4).dictionary_encode()))
    )
    assert read.values("store_and_fwd_flag") == ["N", "Y", None]
    assert read.values("VendorID") == [2] * 3
    [reject] = read.rejects
    assert (reject["row_number"], reject["reason"]) == (4, "store_and_fwd_flag: not a text")
