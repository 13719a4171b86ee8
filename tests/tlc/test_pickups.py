"""A file with trips of another month is refused, and the error names the cause. TLC's own files are accepted."""

import datetime as dt
from collections.abc import Sequence

import pyarrow as pa
import pytest

from flows.tlc.errors import WrongMonth
from flows.tlc.pickups import FEW, OWN_SHARE, Pickups, pickup
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import COLORS, TripMonth
from tests.real_files import DATA, needs_real_files
from tests.tlc.test_real_files import CSVS, HEADS, OFFICIAL, month_of, read

MAY = TripMonth("green", 2022, 5)
Time = dt.datetime | None


def counted(*times: Sequence[Time], month: TripMonth = MAY) -> Pickups:
    """Return the pickups of a file with these chunks."""
    pickups = Pickups(month)
    schema = arrow_schema(month.color)
    for chunk in times:
        column = pa.array(chunk, pa.timestamp("us"))
        pickups.add(
            pa.table(
                [column if f.name == pickup(month.color) else pa.nulls(len(chunk), f.type) for f in schema], schema
            )
        )
    return pickups


def days(first: str, count: int) -> list[Time]:
    """Return noon of `count` days from the first on."""
    return [dt.datetime.fromisoformat(first) + dt.timedelta(days=n, hours=12) for n in range(count)]


def refused(pickups: Pickups) -> str:
    with pytest.raises(WrongMonth) as error:
        pickups.check()
    return str(error.value)


WRONG: dict[str, tuple[list[Time], str]] = {
    "another month": (
        days("2021-01-01", 31),
        "31 of 31 trips are of 2021-01: this is the file of another month. Check the source's address, and get the file of"
        " 2022-05. Nothing was published.",
    ),
    "the month before": (days("2022-04-01", 30), "30 of 30 trips are of 2022-04: this is the file of another month."),
    "another month, its own strangers": (
        [*days("2021-01-01", 31), *days("2021-02-01", 2)],
        "33 of 33 trips are of 2021-01 (31), 2021-02 (2): this is the file of another month.",
    ),
    "another year": (days("2021-05-01", 31), "31 of 31 trips are of 2021-05: this is the file of another year."),
    "a whole year": (
        days("2022-01-01", 365),
        "334 of 365 trips are of 2022-01 (31), 2022-02 (28), 2022-03 (31), 2022-04 (30), 2022-06 (30), 2022-07 (31),"
        " 2022-08 (31), 2022-09 (30), 2022-10 (31), 2022-11 (30), 2022-12 (31): it has several months, or its times"
        " are shifted. Get the file of 2022-05.",
    ),
    "four years": (days("2019-01-01", 1461), "and 35 more months: it has several months"),
    "mostly of the next month": (
        days("2022-05-18", 31),
        "17 of 31 trips are of 2022-06: it has several months, or its times are shifted.",
    ),
    "milliseconds": (
        [dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=1_651_363_200_000 + n) for n in range(31)],
        "31 of 31 trips are of 1970-01: its times are in another unit (1970-01): milliseconds or seconds where microseconds"
        " belong. Write them in microseconds, or get the file of 2022-05.",
    ),
    "seconds": (
        [dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=1_651_363_200 + n) for n in range(31)],
        "its times are in another unit (1970-01)",
    ),
    "a month as a day": (
        [dt.datetime(2022, n % 12 + 1, 5) for n in range(36)],
        "day and month are swapped in its times. Write them as 2021-01-31 23:59:59, or get the file of 2022-05.",
    ),
    "one day of every year": ([dt.datetime(y, 1, 1) for y in range(1, 32)], "and 19 more months: it has several"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_error_for_trips_of_another_month_names_the_cause(name: str) -> None:
    times, expected = WRONG[name]
    message = refused(counted(times))
    assert message.startswith("green 2022-05: ")
    assert expected in message
    assert refused(counted(times[:7], [], times[7:])) == message  # the chunks make no difference


@pytest.mark.parametrize("color", COLORS)
def test_at_least_half_of_the_pickups_must_be_of_the_month(color: str) -> None:
    month = TripMonth(color, 2022, 5)
    assert OWN_SHARE == 0.5
    own, other = days("2022-05-01", 30), days("2022-07-01", 30)
    counted(own, other, month=month).check()
    counted(own, [None] * 500, month=month).check()
    assert "30 of 59 trips are of 2022-07" in refused(counted(own[1:], other, [None] * 500, month=month))


def test_a_very_small_file_is_refused_only_if_no_trip_is_of_the_month() -> None:
    own, other = days("2022-05-01", 1), days("2022-07-01", FEW)
    counted(own, other[1:]).check()
    refused(counted(other))
    refused(counted(own, other))


def test_a_file_without_any_pickup_is_refused() -> None:
    assert "green 2022-05: none of its 40 trips has a lpep_pickup_datetime" in refused(counted([None] * 40))


def test_a_file_without_trips_passes_this_check() -> None:
    counted([]).check()


@needs_real_files
@pytest.mark.parametrize(
    "name", [*(f"official/{name}" for name in OFFICIAL), *CSVS, *(str(path.relative_to(DATA)) for path in HEADS)]
)
def test_a_real_file_passes_this_check(name: str) -> None:
    path = DATA / name
    month = month_of(path)
    data = path.read_bytes()
    if path.parent.name.startswith("heads"):
        data = data[: data.rindex(b"\n") + 1]  # the last line may be incomplete
    pickups = Pickups(month)
    for chunk in read(path, data).chunks:
        pickups.add(chunk.trips)
    pickups.check()
