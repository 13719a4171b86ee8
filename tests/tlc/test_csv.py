"""Valid, odd, truncated and damaged CSV files: every line becomes a trip or is quarantined unchanged, at any block size."""

import csv
import datetime as dt
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.tlc import gunzip, reading_csv
from flows.tlc.clean import Chunk
from flows.tlc.errors import SchemaMismatch, TooManyRejects, UnreadableFile
from flows.tlc.reading import recognise
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.schema import arrow_schema
from flows.tlc.sources import ENDINGS, Ending
from flows.tlc.trips import TripMonth
from tests.tlc.published import FHV, FHV_HEADER, FHV_LINE, GREEN, HEADER, TRIP, Read, csv_file, line, read_csv

VALID = line()
FIRST_TRIP = {
    "VendorID": 2,
    "lpep_pickup_datetime": dt.datetime(2021, 1, 1, 0, 15, 56),
    "lpep_dropoff_datetime": dt.datetime(2021, 1, 1, 0, 19, 52),
    "store_and_fwd_flag": "N",
    "RatecodeID": 1,
    "PULocationID": 43,
    "DOLocationID": 151,
    "passenger_count": 1,
    "trip_distance": 1.01,
    "fare_amount": 5.5,
    "extra": 0.5,
    "mta_tax": 0.5,
    "tip_amount": 0.0,
    "tolls_amount": 0.0,
    "ehail_fee": None,
    "improvement_surcharge": 0.3,
    "total_amount": 6.8,
    "payment_type": 2,
    "trip_type": 1,
    "congestion_surcharge": 0.0,
    "cbd_congestion_fee": None,
    "request_source": None,
    "pickup_longitude": None,
    "pickup_latitude": None,
    "dropoff_longitude": None,
    "dropoff_latitude": None,
    "file_month": dt.date(2021, 1, 1),
    "row_number": 1,
}


def test_a_line_becomes_a_trip_of_the_canonical_schema() -> None:
    read = read_csv(csv_file(VALID))
    assert read.trips.schema == arrow_schema("green")
    assert read.trips.to_pylist() == [FIRST_TRIP]
    [shape] = read.shapes
    assert (shape.era.name, shape.published) == ("green csv since 2019-01", tuple(TRIP))


def test_empty_fields_of_a_dispatch_row_are_null() -> None:
    blank = ["VendorID", "store_and_fwd_flag", "RatecodeID", "passenger_count", "payment_type", "congestion_surcharge"]
    [trip] = read_csv(csv_file(line(**dict.fromkeys(blank, "")))).trips.to_pylist()
    assert trip == FIRST_TRIP | dict.fromkeys(blank)


def _quoted(text: str) -> str:
    return ",".join(f'"{field}"' for field in text.split(","))


@pytest.mark.parametrize(
    "data",
    [
        csv_file(VALID, VALID, end="\n"),
        csv_file(VALID, VALID, end="\r\n"),
        f"{HEADER}\n{VALID}\r\n{VALID}\r\n".encode(),
        f"{HEADER}\r\n\r\n{VALID}\r\n{VALID}\r\n".encode(),
        f"{HEADER}\n\r\n{VALID}\r\n{VALID}\r\n".encode(),
        f"\r\n\n{HEADER}\n{VALID}\n{VALID}\n".encode(),
        b"\xef\xbb\xbf" + csv_file(VALID, VALID),
        csv_file(VALID, VALID).rstrip(),
        csv_file(VALID, VALID)[:-1],
        csv_file(VALID, "", "", VALID, "", ""),
        csv_file(VALID, VALID, end="\r\r\n"),
        csv_file(_quoted(VALID), _quoted(VALID), header=_quoted(HEADER)),
        csv_file(VALID, _quoted(VALID), end="\n"),
        csv_file(VALID, VALID, header=HEADER.replace(",", " , ")),
        csv_file(line(VendorID="2.0"), line(VendorID="+2", fare_amount=" 5.50 ")),
        csv_file(line(VendorID='"2"', fare_amount='"5.5"'), line(store_and_fwd_flag='"N"')),
    ],
    ids=[
        "LF", "CRLF", "LF header, CRLF data", "blank second line", "blank second line, LF header", "blank first lines", "BOM",
        "no final newline", "only CR at the end", "blank lines", "CR CR LF", "quoted everything", "quoted in part",
        "spaced names",        "spelled otherwise", "a quoted field here and there",
    ],
)  # fmt: skip
def test_every_csv_dialect_gives_the_same_trips(data: bytes) -> None:
    read = read_csv(data)
    assert read.trips.to_pylist() == [FIRST_TRIP, FIRST_TRIP | {"row_number": 2}]
    assert read.rejects == []


def test_columns_are_read_by_name_in_any_order() -> None:
    names = list(TRIP)[::-1]
    assert read_csv(csv_file(",".join(TRIP[n] for n in names), header=",".join(names))).trips.to_pylist() == [
        FIRST_TRIP
    ]


# A bad line and the reason for its quarantine. The quarantine must keep the line unchanged.
ODD_LINES = {
    "too few fields": (VALID.rpartition(",")[0], "wrong number of fields"),
    "too many fields": (VALID + ",", "wrong number of fields"),
    "a word": ("rubbish", "wrong number of fields"),
    "only blanks": ("   ", "wrong number of fields"),
    "half a number": (line(RatecodeID="1.5"), "RatecodeID: not a whole number"),
    "a vendor's name": (line(VendorID="VTS"), "VendorID: not a whole number"),
    "hexadecimal": (line(VendorID="0x2"), "VendorID: not a whole number"),
    "hexadecimal beyond 2^63": (line(VendorID="0XFFFFFFFFFFFFFFFF"), "VendorID: not a whole number"),
    "infinite": (line(fare_amount="-inf"), "fare_amount: not a number"),
    "overflowing": (line(fare_amount="1e999"), "fare_amount: not a number"),
    "from Excel": (line(lpep_pickup_datetime="01/01/2021 0:30"), "lpep_pickup_datetime: not a datetime"),
    "without seconds": (line(lpep_pickup_datetime="2021-01-01 00:30"), "lpep_pickup_datetime: not a datetime"),
    "a bare date": (line(lpep_pickup_datetime="2021-01-01"), "lpep_pickup_datetime: not a datetime"),
    "month 13": (line(lpep_pickup_datetime="2021-13-01 00:00:00"), "lpep_pickup_datetime: not a datetime"),
    "February 30": (line(lpep_pickup_datetime="2021-02-30 00:00:00"), "lpep_pickup_datetime: not a datetime"),
    "a leap second": (line(lpep_pickup_datetime="2021-01-01 00:00:60"), "lpep_pickup_datetime: not a datetime"),
    "hour 24": (line(lpep_pickup_datetime="2021-01-01 24:00:00"), "lpep_pickup_datetime: not a datetime"),
    "the year 0": (line(lpep_pickup_datetime="0000-01-01 00:00:00"), "lpep_pickup_datetime: not a datetime"),
    "NUL": (line(store_and_fwd_flag="\x00"), "store_and_fwd_flag: not a text"),
    "NUL in a number": (line(VendorID="2\x00"), "VendorID: not a whole number"),
    "two wrong values": (line(fare_amount="x", VendorID="x"), "VendorID: not a whole number"),
    "a quote left open": ('"' + VALID, "not CSV"),
    "more after a quote": (line(VendorID='"2"1'), "not CSV"),
    "a quote in a number": (line(VendorID='2"'), "VendorID: not a whole number"),
    "a return inside": (line(store_and_fwd_flag="N\rN"), "not CSV"),
    "merge-conflict middle": ("=======", "wrong number of fields"),
}


@pytest.mark.parametrize(("odd", "reason"), ODD_LINES.values(), ids=ODD_LINES)
@pytest.mark.parametrize("neighbour", [VALID, _quoted(VALID)], ids=["plain", "quoted"])
def test_only_a_bad_line_is_quarantined_and_its_text_is_unchanged(odd: str, reason: str, neighbour: str) -> None:
    read = read_csv(csv_file(neighbour, odd, "", neighbour))
    assert read.rejects == [{"row_number": 2, "reason": reason, "original": odd}]
    assert read.trips.to_pylist() == [FIRST_TRIP, FIRST_TRIP | {"row_number": 3}]


@pytest.mark.parametrize("written", [str, _quoted], ids=["plain", "quoted"])
def test_joined_files_are_refused_because_trips_may_be_repeated(written: Callable[[str], str]) -> None:
    lines = [written(text) for text in csv_file(VALID, VALID).decode().splitlines()]
    with pytest.raises(UnreadableFile, match="row 3 is the header once more"):
        read_csv("\r\n".join([*lines, *lines]).encode())


def test_a_line_that_is_not_utf_8_is_quarantined_as_readable_text() -> None:
    odd = VALID.encode().replace(b"N", b"\xff\xe9")
    read = read_csv(csv_file(VALID) + odd + b"\r\n" + VALID.encode())
    assert read.rejects == [{"row_number": 2, "reason": "not UTF-8", "original": VALID.replace("N", r"\xff\xe9")}]
    assert read.values("row_number") == [1, 3]


@pytest.mark.parametrize("flag", ["a\nb", "\n", '","\n","', f'","0"\r\n{_quoted(VALID)}\r\n"'], ids=repr)
def test_a_newline_in_quotes_does_not_shift_rows(flag: str) -> None:
    odd = line(store_and_fwd_flag=f'"{flag}"')
    pieces = [piece.strip("\r") for piece in odd.split("\n")]
    read = read_csv(csv_file(VALID, odd, VALID))
    [first, *_, last] = read.trips.to_pylist()
    assert first == FIRST_TRIP
    assert last == FIRST_TRIP | {"row_number": 2 + len(pieces)}
    assert {r["row_number"]: r["original"] for r in read.rejects}.items() <= dict(enumerate(pieces, 2)).items()
    assert read.tally.source_rows == 2 + len(pieces)


def test_texts_keep_commas_quotes_and_blanks() -> None:
    texts = {
        '"a,b"': "a,b",
        '"a""b"': 'a"b',
        'a"b': 'a"b',
        ' "a"': ' "a"',
        " ": " ",
        '""': None,
        "": None,
        "N/A": "N/A",
        '" "': " ",
    }
    read = read_csv(csv_file(*(line(store_and_fwd_flag=text) for text in texts)))
    assert read.values("store_and_fwd_flag") == list(texts.values())
    assert read.rejects == []


def test_quarantined_rows_of_all_kinds_are_in_the_order_of_the_file() -> None:
    lines = [text for text, _ in ODD_LINES.values()]
    read = read_csv(csv_file(VALID, *lines))
    assert [(r["row_number"], r["original"], r["reason"]) for r in read.rejects] == [
        (n, text, reason) for n, (text, reason) in enumerate(ODD_LINES.values(), 2)
    ]


def test_a_file_saved_by_excel_is_refused_with_a_hint() -> None:
    day = {"lpep_pickup_datetime": "01/01/2021 0:30", "lpep_dropoff_datetime": "01/01/2021 0:44"}
    read = read_csv(csv_file(*[line(**day)] * 2000))
    assert read.trips.num_rows == 0
    with pytest.raises(
        TooManyRejects, match=r"2000 of 2000 rows do not fit .* Dates without seconds come from a spreadsheet"
    ):
        read.tally.check(GREEN)


@pytest.mark.parametrize("marker", ["<<<<<<< HEAD", ">>>>>>> 4d7a214"])
def test_a_file_with_conflict_markers_is_refused_because_rows_may_be_repeated(marker: str) -> None:
    with pytest.raises(UnreadableFile, match="green 2021-01: the file is damaged: row 501 is a merge-conflict marker"):
        read_csv(csv_file(*[VALID] * 500, marker, *[VALID] * 500))


@pytest.mark.parametrize(
    "data", [csv_file(), HEADER.encode(), csv_file("", "")], ids=["a line", "no newline", "blank lines"]
)
def test_a_file_with_a_header_and_no_trips_is_refused(data: bytes) -> None:
    read = read_csv(data)
    assert read.trips.schema == arrow_schema("green")
    with pytest.raises(TooManyRejects, match="a header and no trips"):
        read.tally.check(GREEN)


@pytest.mark.parametrize(
    "data",
    [b"", b"\r\n\n", b"\xef\xbb\xbf", b"\xff\xfe" + HEADER.encode("utf-16-le")],
    ids=["empty", "blank", "only a BOM", "UTF-16"],
)
def test_a_file_without_a_readable_header_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableFile, match="green 2021-01: the file has no readable CSV header"):
        read_csv(data)


@pytest.mark.parametrize("rows", [1, 2_000])
def test_a_file_of_any_length_whose_lines_end_with_cr_alone_is_refused(rows: int) -> None:
    with pytest.raises(UnreadableFile, match="the lines end with CR alone"):
        read_csv(csv_file(*[VALID] * rows, end="\r"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (csv_file(VALID, header=VALID), "no such column"),
        (csv_file(VALID, header=HEADER + ",tip"), r"'tip' +\| field 21 +\| no such column"),
        (csv_file(VALID, header=HEADER.replace("extra,", "")), r"'extra' +\| absent +\| number"),
        (b"No such key", r"'No such key' +\| field 1"),
    ],
)
def test_a_header_that_matches_no_era_is_refused_before_any_row_is_read(data: bytes, message: str) -> None:
    with pytest.raises(SchemaMismatch, match=message):
        next(csv_chunks(GREEN, ".csv", [data]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (csv_file(VALID, end="\r"), "the lines end with CR alone"),
        (csv_file(VALID, header=HEADER.replace(",", ";")), "the fields are separated by ';'"),
        (csv_file(VALID, header=HEADER.replace(",", "\t")), r"the fields are separated by '\\t'"),
        (
            csv_file(VALID) + b"Never ending " * (1 << 20),
            "the file is damaged: row 2 is a line of [0-9,]+ bytes or more",
        ),
    ],
    ids=["returns only", "semicolons", "tabs", "an endless line"],
)
def test_the_error_for_a_file_that_is_not_csv_names_its_format(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableFile, match=f"green 2021-01: {message}"):
        read_csv([data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)])


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (b"<html>503</html>", "it is an HTML or XML page"),
        (b'{"message": "Not Found"}', "it is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (gzip.compress(b"a,b\n"), "it is binary"),
        ("a,b\n".encode("utf-16"), "it is UTF-16 text: save it as UTF-8"),
    ],
    ids=["HTML", "JSON", "LFS pointer", "gzip", "UTF-16"],
)
def test_the_content_of_gzip_is_checked_like_a_file(inside: bytes, message: str) -> None:
    with pytest.raises(UnreadableFile, match=f"green 2021-01: the text in the gzip file cannot be read: {message}"):
        list(csv_chunks(GREEN, ".csv.gz", [gzip.compress(inside)]))


@pytest.mark.parametrize("cut", range(1, len(VALID) + 2))
def test_a_file_truncated_in_its_last_row_is_refused_unless_the_row_is_complete(cut: int) -> None:
    data = csv_file(VALID, VALID)[: -cut - 1]
    last = data.rpartition(b"\n")[2].decode()
    if not last or last.count(",") == HEADER.count(","):
        assert read_csv(data).trips.num_rows == 1 + bool(last)
        return
    with pytest.raises(UnreadableFile, match=r"is truncated: its last row, 2, has no line end"):
        read_csv(data)


@pytest.mark.parametrize("size", [512, 1024, 4096])
def test_a_last_row_without_a_line_end_is_refused_at_a_size_where_downloads_are_cut(size: int) -> None:
    whole = csv_file(*[line(congestion_surcharge="2.75")] * 60)
    data = whole[: whole.index(b"2.75\r\n", size - 400) + 1]
    padded = data.replace(HEADER.encode(), HEADER.encode() + b" " * (size - len(data) % size))
    assert len(padded) % size == 0
    with pytest.raises(UnreadableFile, match="is truncated"):
        read_csv(padded)
    read_csv(padded + b"\n")


def test_lines_of_commas_are_not_trips() -> None:
    read = read_csv(csv_file(VALID, "," * HEADER.count(","), VALID))
    assert read.rejects == [{"row_number": 2, "reason": "nothing in it", "original": "," * HEADER.count(",")}]
    assert read.values("row_number") == [1, 3]


def test_nanoseconds_are_accepted_only_if_they_are_zero() -> None:
    moments = ["2021-01-01 00:15:56.000000000", "2021-01-01 00:15:56.123456000", "2021-01-01 00:15:56.000000001"]
    read = read_csv(csv_file(*[line(lpep_pickup_datetime=moment) for moment in moments]))
    assert read.values("lpep_pickup_datetime") == [
        dt.datetime(2021, 1, 1, 0, 15, 56),
        dt.datetime(2021, 1, 1, 0, 15, 56, 123456),
    ]
    assert [reject["row_number"] for reject in read.rejects] == [3]


def test_a_bad_byte_does_not_hide_that_rows_have_more_fields_than_the_header() -> None:
    month = TripMonth("green", 2016, 8)
    header = HEADER.replace(",congestion_surcharge", "")
    padded = VALID.rpartition(",")[0] + ",,"
    data = csv_file(*[padded] * 50, header=header) + padded.replace("N", "\xff").encode("latin-1") + b"\r\n"
    read = read_csv([data], month)
    assert read.trips.num_rows == 50
    assert [reject["reason"] for reject in read.rejects] == ["not UTF-8"]


@pytest.mark.parametrize(
    "second", ["\ufeff" + HEADER, HEADER.upper(), " " + HEADER], ids=["BOM", "upper case", "a blank"]
)
def test_a_repeated_header_is_found_in_any_case(second: str) -> None:
    with pytest.raises(UnreadableFile, match="row 2 is the header once more"):
        read_csv(csv_file(VALID) + csv_file(VALID, header=second))
    with pytest.raises(UnreadableFile, match="is the header once more"):
        read_csv(csv_file(VALID).rstrip() + csv_file(VALID))


LINES = [line(VendorID=str(n), fare_amount=f"{n}.25") for n in range(1, 200)]
WHOLE = csv_file(*LINES)


def _members(*parts: bytes) -> bytes:
    return b"".join(gzip.compress(part) for part in parts)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(WHOLE),
        _members(WHOLE[:100], WHOLE[100:5000], b"", WHOLE[5000:]),
        gzip.compress(WHOLE) + b"\x00" * 512,
        _members(WHOLE[:5000]) + b"\x00" * 3 + _members(WHOLE[5000:]),
    ],
    ids=["one member", "many members", "padding", "padding between members"],
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20], ids="pieces of {}".format)
def test_gzip_with_any_number_of_members_is_read_in_chunks_of_any_size(data: bytes, piece: int) -> None:
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    assert read_csv(pieces, ending=".csv.gz").values("VendorID") == list(range(1, 200))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(WHOLE)[:-1], "truncated"),
        (gzip.compress(WHOLE)[:-8], "truncated"),
        (gzip.compress(WHOLE)[:300], "truncated"),
        (gzip.compress(WHOLE)[:5], "truncated"),
        (gzip.compress(WHOLE) + gzip.compress(WHOLE)[:20], "truncated"),
        (b"", "truncated"),
        (gzip.compress(WHOLE)[:-6] + b"\x00" * 6, "damaged"),
        (gzip.compress(WHOLE) + b"<html>", "something was appended"),
        (WHOLE, "damaged .*Invalid gzip"),
    ],
    ids=range(9),  # gzip data contains the time, so two workers would have different ids
)
def test_truncated_or_damaged_gzip_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableFile, match=f"green 2021-01: the gzip .* {message}.* fetch it again"):
        read_csv(data, ending=".csv.gz")


def test_gzip_with_a_long_run_of_empty_members_is_refused() -> None:
    few = gzip.compress(WHOLE[:5000]) + gzip.compress(b"") * 900 + gzip.compress(WHOLE[5000:])
    assert read_csv(few, ending=".csv.gz").values("VendorID") == list(range(1, 200))
    with pytest.raises(UnreadableFile, match=r"more than 1,000 members in a row without text.* check the source"):
        read_csv(gzip.compress(WHOLE) + gzip.compress(b"") * 2_000, ending=".csv.gz")


def test_gzip_of_many_small_members_takes_little_time() -> None:
    data = gzip.compress(b"a") * 200_000  # 4 MB in one piece; a copy of the rest after each member takes a minute
    began = time.process_time()
    assert sum(map(len, gunzip.inflated([data]))) == 200_000
    assert time.process_time() - began < 10


@given(st.integers(10, 600), st.integers(1, 255))
def test_gzip_with_one_wrong_byte_is_refused_or_gives_the_same_text(at: int, change: int) -> None:
    data = bytearray(gzip.compress(WHOLE))
    at = at % len(data)
    data[at] ^= change
    try:
        read = read_csv(bytes(data), ending=".csv.gz")
    except (UnreadableFile, SchemaMismatch):
        return
    assert at < 10  # the header: times, flags and the operating system's code
    assert read.values("VendorID") == list(range(1, 200))


@pytest.mark.parametrize(
    ("head", "ending", "message"),
    [
        (b"", ".csv.gz", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", ".csv.gz", "it is a Git LFS pointer"),
        (b"version https://git-lfs.github.com/spec/v1\n", ".parquet", "it is a Git LFS pointer"),
        (b"\r\n <!DOCTYPE html><html>", ".parquet", "it is an HTML or XML page"),
        (b"<html><body>", ".csv", "it is an HTML or XML page"),
        (b'<?xml version="1.0"?><Error>', ".csv.gz", "it is an HTML or XML page"),
        (b"<<<<<<< HEAD\nVendorID", ".csv", "it begins with merge-conflict markers"),
        (b"=======\nVendorID", ".csv", "it begins with merge-conflict markers"),
        (b">>>>>>> other\nVendorID", ".csv", "it begins with merge-conflict markers"),
        (b"VendorID,", ".parquet", "it is not Parquet (no PAR1 at the beginning)"),
        (b"\x1f\x8b\x08", ".parquet", "it is not Parquet"),
        (b"VendorID,", ".csv.gz", "it is not gzip"),
        (b"PAR1\x15", ".csv.gz", "it is not gzip"),
        (b"\x1f\x8b\x08", ".csv", "it is binary, not CSV text"),
        (b"PAR1\x15", ".csv", "it is binary, not CSV text"),
        (b"V\x00e\x00", ".csv", "it is binary, not CSV text"),
    ],
)
def test_a_file_whose_first_bytes_do_not_match_its_ending_is_refused(head: bytes, ending: Ending, message: str) -> None:
    with pytest.raises(UnreadableFile) as refused:
        recognise(GREEN, ending, head, "http://h/x")
    assert f"green 2021-01: http://h/x cannot be read: {message}" in str(refused.value)
    assert "Nothing was loaded." in str(refused.value)


def test_valid_files_are_recognised_by_their_first_bytes() -> None:
    for ending, head in zip(ENDINGS, (b"PAR1\x15", b"\x1f\x8b\x08", HEADER.encode()), strict=True):
        recognise(GREEN, ending, head, "http://h/x")


def _in_blocks(data: bytes, block: int, piece: int, parsers: int = 2) -> Read:
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    with patch.object(reading_csv, "BLOCK", block), patch.object(reading_csv, "_PARSERS", parsers):
        return read_csv(pieces, FHV)


def _model(
    body: str, convert: Callable[[list[str]], str | None]
) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str, str]]]:
    """Return the loaded and the quarantined rows that Python's csv and datetime modules give, line by line."""
    loaded, quarantined = [], []
    lines = [text for text in (text.rstrip("\r") for text in body.split("\n")) if text]
    for number, text in enumerate(lines, 1):
        try:
            fields = next(csv.reader([text], strict=True))
        except csv.Error:
            quarantined.append((number, "not CSV", text))
            continue
        reason = convert(fields)
        if reason:
            quarantined.append((number, reason, text))
        else:
            loaded.append((number, fields))
    return loaded, quarantined


SHAPELESS = ("wrong number of fields", "not CSV")


def _fhv_reason(fields: list[str]) -> str | None:
    if len(fields) != 6:
        return "wrong number of fields"
    if not any(fields):
        return "nothing in it"
    names = ("dispatching_base_num", "pickup_datetime", "dropOff_datetime", "PUlocationID", "DOlocationID", "SR_Flag")
    if "\x00" in fields[0]:
        return f"{names[0]}: not a text"
    for at in (1, 2):
        moment = fields[at].strip(" \t")
        try:
            valid = not fields[at] or (len(moment) == 19 and bool(dt.datetime.strptime(moment, "%Y-%m-%d %H:%M:%S")))
        except ValueError:
            valid = False
        if not valid:
            return f"{names[at]}: not a datetime"
    for at in (3, 4, 5):
        if fields[at] and not fields[at].strip(" \t").isdecimal():
            return f"{names[at]}: not a whole number"
    return None


_FIELDS = st.one_of(
    st.sampled_from(["B00009", "", " ", '"B,1"', '"', '""', 'B"1', '"B"1', "\x00", "x", "é", '"\r"', "B\r1"]),
)
_MOMENTS = st.sampled_from(
    [
        "2021-01-01 00:27:00",
        '"2021-01-01 00:27:00"',
        " 2021-01-01 00:27:00",
        "",
        "2021-02-29 00:00:00",
        "2021-01-01",
        "x",
    ]
)
_ZONES = st.sampled_from(["264", "1", '"2"', " 3", "", "x", "1.5", '"', "0x1", " "])
_LINES = st.one_of(
    st.just(FHV_LINE),
    st.just(_quoted(FHV_LINE)),
    st.tuples(_FIELDS, _MOMENTS, _MOMENTS, _ZONES, _ZONES, _ZONES).map(",".join),
    st.sampled_from(["", "   ", "B1", FHV_LINE + ",", '"', "\r"]),
)


@pytest.mark.slow
@settings(max_examples=150)
@given(
    st.lists(_LINES, max_size=25),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 400),
    st.integers(1, 400),
)
@example([FHV_LINE, '"B1\n' + FHV_LINE, FHV_LINE], "\n", True, 1, 1)
@example(['a,"b', 'c",d'], "\n", True, 50, 50)
def test_every_block_size_gives_the_rows_that_pythons_csv_module_reads(
    lines: list[str], end: str, newline_at_end: bool, block: int, piece: int
) -> None:
    body = end.join(lines) + (end if newline_at_end else "")
    data = f"{FHV_HEADER}{end}{body}".encode()
    loaded, quarantined = _model(body, _fhv_reason)
    last = quarantined[-1][1] if len(quarantined) and quarantined[-1][0] == len(loaded) + len(quarantined) else ""
    if body and not body.endswith(("\n", "\r")) and (last in SHAPELESS or len(data) % 512 == 0):
        with pytest.raises(UnreadableFile, match="is truncated"):
            _in_blocks(data, block, piece)
        return
    read = _in_blocks(data, block, piece)
    assert [(r["row_number"], r["reason"], r["original"]) for r in read.rejects] == quarantined
    assert read.values("row_number") == [number for number, _ in loaded]
    for at, column in ((0, "dispatching_base_num"), (3, "PUlocationID"), (5, "SR_Flag")):
        convert: Callable[[str], object] = str if at == 0 else int
        assert read.values(column) == [convert(fields[at]) if fields[at] else None for _, fields in loaded]
    assert read.values("pickup_datetime") == [
        dt.datetime.fromisoformat(fields[1].strip()) if fields[1] else None for _, fields in loaded
    ]
    assert read.tally.source_rows == len(loaded) + len(quarantined)


@pytest.mark.parametrize("parsers", [1, 2, 4])
def test_a_small_block_size_splits_the_file(parsers: int) -> None:
    data = csv_file(*[FHV_LINE] * 100, header=FHV_HEADER)
    many = _in_blocks(data, 300, 100, parsers)
    assert len(many.chunks) > 10
    assert many.values("row_number") == list(range(1, 101))
    assert len(_in_blocks(data, 1 << 20, 100, parsers).chunks) == 1


def test_damage_is_reported_before_the_end_of_a_file_that_is_cut_off() -> None:
    whole = gzip.compress(csv_file(*[VALID] * 200, "\0" * 600, *[VALID] * 200))
    with (
        patch.object(reading_csv, "BLOCK", 1000),
        pytest.raises(UnreadableFile, match=r"row 201 begins a run of NUL bytes"),
    ):
        list(csv_chunks(GREEN, ".csv.gz", [whole[:-4]]))


def _alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("ahead", "mapped"))]


class _Pieces:
    """A source that records whether it was closed."""

    def __init__(self, data: bytes) -> None:
        self.data, self.closed = data, False

    def __iter__(self) -> Iterator[bytes]:
        return (self.data[at : at + 1000] for at in range(0, len(self.data), 1000))

    def close(self) -> None:
        self.closed = True


def test_a_reader_that_stops_early_leaves_no_thread_and_closes_the_source() -> None:
    source = _Pieces(csv_file(*[VALID] * 5000))
    with patch.object(reading_csv, "BLOCK", 1000):
        chunks = csv_chunks(GREEN, ".csv", source)
        assert isinstance(next(chunks), Chunk)
        chunks.close()
    assert source.closed
    assert _alive() == []


def test_a_refused_file_leaves_no_thread_while_its_error_still_exists() -> None:
    source = _Pieces(csv_file(*[VALID] * 5000, header="unknown"))
    with patch.object(reading_csv, "BLOCK", 1000), pytest.raises(SchemaMismatch) as kept:
        next(csv_chunks(GREEN, ".csv", source))
    assert kept.value.__traceback__ is not None
    assert source.closed
    assert _alive() == []


def test_an_error_of_the_source_reaches_the_reader() -> None:
    def broken() -> Iterator[bytes]:
        yield csv_file(VALID)
        raise ConnectionError("the line is dead")

    with pytest.raises(ConnectionError, match="the line is dead"):
        read_csv(broken())
    assert _alive() == []


def test_quarantined_lines_are_stored_as_text_and_not_as_json() -> None:
    [reject] = read_csv(csv_file(VALID, line(VendorID="x"))).rejects
    with pytest.raises(json.JSONDecodeError):
        json.loads(reject["original"])
    assert pa.types.is_string(pa.array([reject["original"]]).type)
