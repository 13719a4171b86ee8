"""Foreign bytes anywhere in a CSV either stop the month or are counted as quarantined rows."""

import base64
import datetime as dt
import gzip
import random
import re
from collections.abc import Callable
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flows.tlc import foreign, gunzip, reading_csv
from flows.tlc.clean import MAX_REJECTED, Tally
from flows.tlc.errors import TooManyRejects, TripDataError, UnreadableFile
from flows.tlc.reading_csv import csv_chunks
from tests.tlc.published import GREEN, HEADER, Read, csv_file, line, read_csv

ROWS = 3_000


def _trip(number: int) -> str:
    moment = dt.datetime(2021, 1, 1) + dt.timedelta(seconds=811 * number)
    return line(
        lpep_pickup_datetime=f"{moment:%Y-%m-%d %H:%M:%S}",
        lpep_dropoff_datetime=f"{moment + dt.timedelta(minutes=9):%Y-%m-%d %H:%M:%S}",
        trip_distance=f"{number / 100:.2f}",
    )


MONTH = csv_file(*map(_trip, range(ROWS)))
HTML = b"<!DOCTYPE html>\n<html>\n<head><title>502 Bad Gateway</title></head>\n<body>\n<center>nginx</center>\n</body>\n</html>\n"
_RANDOM = random.Random(0)  # noqa: S311 - damage, not a secret

# For each kind of damage: a function that returns the bytes that replace `was`, and the description in the error.
FOREIGN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "NUL": (lambda was: bytes(len(was)), "a run of NUL bytes"),
    "0xFF": (lambda was: b"\xff" * len(was), "a run of 0xFF bytes"),
    "blanks": (lambda was: b" " * len(was), "a run of at least 64 blanks"),
    "tabs": (lambda was: b"\t" * len(was), "a run of at least 64 tabs"),
    "commas": (lambda was: b"," * len(was), "a run of at least 64 commas"),
    "quotes": (lambda was: b'"' * len(was), "a run of at least 64 quotes"),
    "CR": (lambda was: b"\r" * len(was), "a run of at least 64 carriage returns"),
    "LF": (lambda was: b"\n" * len(was), "empty lines or more"),
    "CR LF": (lambda was: b"\r\n" * (len(was) // 2), "empty lines or more"),
    "zeros": (lambda was: b"0" * len(was), "a run of at least 64 '0'"),
    "lines of blanks": (lambda was: b" \n" * (len(was) // 2), "text that is not a row|rows do not fit"),
    "base64 in lines": (lambda was: base64.encodebytes(_RANDOM.randbytes(len(was)))[: len(was)], "base64"),
    "base64": (lambda was: base64.b64encode(_RANDOM.randbytes(len(was)))[: len(was)], "base64"),
    "HTML": (lambda was: (HTML * (len(was) // len(HTML) + 1))[: len(was)], "HTML or XML, like an error page"),
    "JSON": (lambda was: (b'{"message": "Not Found"},\n' * len(was))[: len(was)], "text that is not a row"),
    "a log": (lambda was: (b"12:00:01 connection reset by peer\n" * len(was))[: len(was)], "text that is not a row"),
    "gzip": (lambda was: gzip.compress(_RANDOM.randbytes(len(was)))[: len(was)], "another file|binary data"),
    "Parquet": (lambda was: (b"PAR1" + _RANDOM.randbytes(len(was)))[: len(was)], "another file|binary data"),
    "random bytes": (lambda was: _RANDOM.randbytes(len(was)), "binary data"),
    "no line ends": (lambda was: was.replace(b"\r\n", b""), "rows that lost their line ends"),
    "blanks for line ends": (lambda was: was.replace(b"\r\n", b"  "), "rows that lost their line ends"),
}  # fmt: skip


def test_the_number_of_places_that_are_remembered_is_limited() -> None:
    with patch.object(foreign, "_MOST_COMPARED", 5):
        checks = foreign.Foreign(GREEN)
        checks.look_at(MONTH, 1)
        assert len(checks._seen) == 5
        checks.look_at(MONTH, ROWS)  # what is remembered still shows a repetition
        assert checks.repeated


@given(st.text(alphabet="\r\n1", max_size=12))
def test_a_cr_without_lf_is_found_anywhere(text: str) -> None:
    assert foreign.has_lone_return(text.encode()) is bool(re.search(r"\r(?!\n)", text))


def test_many_equal_rows_are_no_repeated_part() -> None:
    assert not read_csv(csv_file(*(_trip(number // 60) for number in range(12_000)))).tally.repeated


def _damaged(kind: str, at: int, size: int) -> bytes:
    make, _ = FOREIGN[kind]
    return MONTH[:at] + make(MONTH[at : at + size]) + MONTH[at + size :]


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize(
    ("place", "size"),
    [("near the beginning", 2_000), ("in the middle", 60_000), ("at line ends", 2_000), ("at the end", 9_000)],
)
def test_a_long_run_of_foreign_bytes_stops_the_month_and_the_error_names_its_row(
    kind: str, place: str, size: int
) -> None:
    at = {"near the beginning": 700, "in the middle": 150_033, "at the end": len(MONTH) - size - 2}.get(place, 0)
    if not at:
        at, end = (MONTH.index(b"\n", near) + 1 for near in (100_000, 100_000 + size))
        size = end - at
    row = MONTH[:at].count(b"\n")
    with pytest.raises(TripDataError) as refused:
        read_csv(_damaged(kind, at, size)).tally.check(GREEN)
    message = str(refused.value)
    assert re.search(FOREIGN[kind][1], message)
    assert len(message) < 1_000
    if isinstance(refused.value, UnreadableFile):
        [named] = re.findall(r"row ([0-9]+) ", message)
        assert row <= int(named) <= row + 2


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.slow
def test_rows_lost_to_a_few_foreign_bytes_are_counted(kind: str) -> None:
    for at in (40_000, 50_011, 60_022, 70_033):
        for size in (3, 20, 130, 400):
            tally = Tally()
            try:
                tally = read_csv(_damaged(kind, at, size)).tally
                tally.check(GREEN)
            except TripDataError:
                continue
            assert ROWS - tally.loaded - tally.lost <= 2.5  # the damage may cut the row before it and the row after it


@pytest.mark.parametrize("at", range(40_000, 50_000, 911))
def test_a_short_run_of_binary_data_stops_the_month(at: int) -> None:
    binary = random.Random(at).randbytes(1_000)  # noqa: S311 - damage, not a secret
    with pytest.raises(UnreadableFile, match=r"begins a run|binary data"):
        read_csv(MONTH[:at] + binary + MONTH[at + len(binary) :]).tally.check(GREEN)


@settings(max_examples=60)
@given(st.sampled_from(sorted(FOREIGN)), st.integers(500, 290_000), st.integers(1, 9_000), st.data())
@example("NUL", 200_000, 1, None)
@pytest.mark.slow
def test_the_outcome_does_not_depend_on_the_sizes_of_chunks_and_blocks(
    kind: str, at: int, size: int, data: st.DataObject | None
) -> None:
    damaged = _damaged(kind, at, size)

    def outcome(piece: int, block: int) -> object:
        pieces = [damaged[place : place + piece] for place in range(0, len(damaged), piece)]
        try:
            with patch.object(reading_csv, "BLOCK", block):
                read = read_csv(pieces)
                read.tally.check(GREEN)
        except TripDataError as error:
            return type(error)
        return read.trips.num_rows, read.rejects

    piece, block = (data.draw(st.integers(1_000, 400_000)) for _ in range(2)) if data else (100_000, 100_000)
    assert outcome(piece, block) == outcome(1 << 20, 3 << 20)


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        HEADER.replace(",congestion_surcharge", ""),
        HEADER.lower(),
        "dispatching_base_num,pickup_datetime,dropoff_datetime,PULocationID,DOLocationID,SR_Flag",
        "vendor_name,Trip_Pickup_DateTime,Trip_Dropoff_DateTime,Passenger_Count",
    ],
    ids=["its own", "of a year before", "in small letters", "of another color", "of another era"],
)
def test_a_header_among_the_rows_stops_the_month(header: str) -> None:
    at = MONTH.index(b"\n", 250_000) + 1
    with pytest.raises(UnreadableFile, match=f"row {MONTH[:at].count(10)} is the header once more"):
        read_csv(MONTH[:at] + header.encode() + b"\r\n" + MONTH[at:])


@pytest.mark.parametrize("length", [5_000, 131_071, 131_073, 20 << 20])
@pytest.mark.parametrize("neighbour", [_trip(1), '"' + _trip(1)], ids=["plain", "an odd quote"])
def test_a_very_long_line_is_refused_with_any_neighbour(length: int, neighbour: str) -> None:
    text = "1234567890" * (length // 10)
    data = csv_file(_trip(0), neighbour, line(trip_distance=text), _trip(3))
    with pytest.raises(UnreadableFile, match=r"row 3 is a line of [0-9,]+ bytes"):
        read_csv([data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)])


def test_rejected_text_counts_as_many_rows_as_its_length_could_contain() -> None:
    mean = len(MONTH) / ROWS
    long = line(store_and_fwd_flag="y" * 63, ehail_fee="what", trip_type="z" * 63) + ",and more" * 9
    assert 2 < len(long) / mean < 4
    read = read_csv(csv_file(*map(_trip, range(1_000)), *[long] * 5))
    assert read.tally.quarantined.total() == 5
    assert read.tally.lost == 5 * (len(long + "\r\n") // mean)
    with pytest.raises(TooManyRejects, match=r"5 of 1005 rows do not fit \(their text is as long as 1[0-9] rows\)"):
        read.tally.check(GREEN)


def _tallied(data: bytes | list[bytes], ending: str = ".csv") -> int:
    tally, chunks = Tally(), 0
    for chunk in csv_chunks(GREEN, ending, [data] if isinstance(data, bytes) else data):  # type: ignore[arg-type]
        tally.add(chunk)
        chunks += 1
    return chunks


@pytest.mark.slow
def test_reading_stops_at_the_number_of_bad_lines_that_stops_any_month() -> None:
    read = 0

    def endless() -> bytes:
        nonlocal read
        read += 1
        return b"a\n" * 500_000

    pieces = iter(endless, b"")
    with pytest.raises(TooManyRejects, match=f"more than {MAX_REJECTED:,} stop any month"):
        _tallied([HEADER.encode() + b"\n", *(next(pieces) for _ in range(8))])


@pytest.mark.parametrize("inside", [b"\n", b"0", b"2,2021-01-01 00:00:00,\n"], ids=["empty lines", "zeros", "lines"])
def test_a_gzip_bomb_is_refused(inside: bytes) -> None:
    bomb = gzip.compress(csv_file(_trip(0)) + inside * ((64 << 20) // len(inside)), compresslevel=1)
    with patch.object(gunzip, "LIMIT", (100, 1 << 20)), pytest.raises(TripDataError):
        _tallied([bomb[at : at + 10_000] for at in range(0, len(bomb), 10_000)], ".csv.gz")


def test_gzip_with_a_very_high_ratio_is_refused() -> None:
    bomb = gzip.compress(csv_file(*[_trip(0)] * 400_000))
    message = r"bytes of gzip contain more than [0-9,]+ bytes of text"
    with patch.object(gunzip, "LIMIT", (100, 1 << 20)), pytest.raises(UnreadableFile, match=message):
        _tallied(bomb, ".csv.gz")


def test_an_endless_header_is_refused_and_not_quoted() -> None:
    for header in (b"," * (15 << 20), b"name," * 100_000, b"x" * 20_000):
        with pytest.raises(UnreadableFile, match=r"the first line has [0-9,]+ bytes") as refused:
            read_csv(header + b"\n" + _trip(0).encode())
        assert len(str(refused.value)) < 300


WORDS = ["NA", "N/A", "NULL", "null", r"\N", "nan", "NaN", "None", "<NA>"]
BLANK = ["VendorID", "store_and_fwd_flag", "RatecodeID", "passenger_count", "ehail_fee", "payment_type", "trip_type"]


def _with_word(word: str) -> Read:
    return read_csv(csv_file(*[line(**dict.fromkeys(BLANK, word)), line(ehail_fee=word), line(ehail_fee=word)]))


@pytest.mark.parametrize("word", [*WORDS, '"NA"', '""'])
def test_the_words_of_other_programs_for_a_missing_value_are_null(word: str) -> None:
    read, empty = _with_word(word), _with_word("")
    assert read.rejects == []
    assert read.trips.to_pylist() == empty.trips.to_pylist()
    assert read.trips.to_pylist()[0]["store_and_fwd_flag"] is None


@pytest.mark.parametrize("odd", ['"', "x", ""], ids=["line by line", "as text", "typed"])
def test_a_word_for_a_missing_value_is_null_on_every_code_path(odd: str) -> None:
    rows = [line(ehail_fee="NA", store_and_fwd_flag="NA"), line(ehail_fee="NA", store_and_fwd_flag=f"{odd}N")]
    assert read_csv(csv_file(*rows)).values("store_and_fwd_flag")[0] is None


def test_a_word_that_occurs_only_in_text_columns_is_text() -> None:
    read = read_csv(csv_file(line(store_and_fwd_flag="NA"), line()))
    assert read.values("store_and_fwd_flag") == ["NA", "N"]


def test_a_word_that_may_be_text_or_missing_stops_the_month_with_advice() -> None:
    late = [line(store_and_fwd_flag="NA"), *[line()] * 2_000, line(trip_type="NA")]
    with pytest.raises(UnreadableFile, match=r"NA means missing numbers .* save the file with empty fields"):
        read_csv(csv_file(*late))


@pytest.mark.parametrize("word", [".", "-", " ? "])
def test_the_error_for_an_unknown_word_for_a_missing_value_gives_advice(word: str) -> None:
    lines = [line(ehail_fee=word, passenger_count=word if n % 3 else "1") for n in range(200)]
    with pytest.raises(
        TooManyRejects, match=re.escape(f"If {word.strip()!r} means a missing value, save the file with")
    ):
        read_csv(csv_file(*lines)).tally.check(GREEN)


def test_different_bad_values_are_not_taken_for_a_missing_value() -> None:
    with pytest.raises(TooManyRejects, match=r"Compare the first row with docs/schema\.md"):
        read_csv(csv_file(*(line(fare_amount=f"${n}") for n in range(200)))).tally.check(GREEN)


def test_a_repeated_part_of_the_file_is_found() -> None:
    assert read_csv(MONTH).tally.repeated is None
    cut = MONTH.index(b"\n", 200_000) + 1
    for size in (60_000, 150_000):
        again = MONTH[:cut] + MONTH[cut - size :]
        for piece in (7_000, 1 << 20):
            tally = read_csv([again[at : at + piece] for at in range(0, len(again), piece)]).tally
            row, earlier = tally.repeated or (0, 0)
            assert row - earlier == pytest.approx(MONTH[cut - size : cut].count(b"\n"), abs=1)
