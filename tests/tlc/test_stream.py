"""A published file is one stream of trips. Its facts are complete at its end, and the stream of an invalid file fails."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from flows.tlc.errors import TooManyRejects, WrongMonth
from flows.tlc.manifest import RawFile
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import Ending, PublishedFile
from flows.tlc.stream import MonthStream
from tests.tlc.published import GREEN, csv_file, line, parquet_file, table


class Bytes:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, len(self._data), 1000):
            yield self._data[start : start + 1000]

    @contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        with io.BytesIO(self._data) as file:
            yield file


def raw(data: bytes, ending: Ending) -> RawFile:
    published = PublishedFile(
        trip_month=GREEN, url=f"http://h/x{ending}", ending=ending, etag=None, last_modified=None, size=len(data)
    )
    return RawFile(published=published, key="raw/x", generation=3, size=len(data), sha256="ab" * 32)


CSV = csv_file(*[line()] * 200, line(passenger_count="0"), line(passenger_count="many"))


@pytest.mark.parametrize(
    ("data", "ending"), [(CSV, ".csv"), (parquet_file(table(202)), ".parquet")], ids=[".csv", ".parquet"]
)
def test_the_facts_of_the_month_are_complete_at_the_end_of_the_stream(data: bytes, ending: Ending) -> None:
    seen: list[int] = []
    stream = MonthStream(raw(data, ending), Bytes(data), on_rows=lambda rows, share: seen.append(rows))
    loaded = sum(chunk.trips.num_rows for chunk in stream)
    month = stream.staged(key="staging/x", generation=7)
    assert (month.source_rows, sum(seen), month.loaded) == (202, 202, loaded)
    assert (month.key, month.generation, month.trip_month, month.rule) == ("staging/x", 7, GREEN, "all")
    assert month.quarantined == ({"passenger_count: not a whole number": 1} if ending == ".csv" else {})
    assert sum(month.profile.days.values()) == loaded
    assert month.columns[0] == "VendorID"
    assert month.manifest("run").schema_version == SCHEMA_VERSION


def test_filtered_rows_are_counted_under_their_rule_and_unused_rules_are_omitted() -> None:
    stream = MonthStream(raw(CSV, ".csv"), Bytes(CSV), rows="with_passengers")
    assert sum(chunk.trips.num_rows for chunk in stream) == 200
    month = stream.staged(key="k")
    assert (month.rule, month.filtered, month.loaded) == ("with_passengers", {"zero_passengers": 1}, 200)
    data = csv_file(line())
    stream = MonthStream(raw(data, ".csv"), Bytes(data), rows="with_passengers")
    assert len(list(stream)) == 1
    assert stream.staged(key="k").filtered == {}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (csv_file(), TooManyRejects),
        (csv_file(*[line(passenger_count="many")] * 5), TooManyRejects),
        (csv_file(*[line(lpep_pickup_datetime="2019-05-01 00:00:00")] * 5), WrongMonth),
    ],
    ids=["no trips", "no sound trips", "another month"],
)
def test_the_stream_of_an_invalid_file_fails_before_its_end(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=str(GREEN)):
        list(MonthStream(raw(data, ".csv"), Bytes(data)))
