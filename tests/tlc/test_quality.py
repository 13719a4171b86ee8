"""A profile has the sums of a month, its trips per day, and the counts of odd trips by rule."""

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flows.tlc import quality
from flows.tlc.manifest import Profile
from flows.tlc.quality import RULES, Profiler, Rule, money
from flows.tlc.schema import TRIP_COLUMNS, arrow_schema
from flows.tlc.trips import COLORS, TripMonth

MAY = TripMonth("green", 2023, 5)
NOON = dt.datetime(2023, 5, 10, 12)


def trips(*rows: dict[str, object], trip_month: TripMonth = MAY) -> pa.Table:
    """Return ordinary trips, one per dict, with the values of the dict."""
    pickup, dropoff = quality.pickup(trip_month.color), quality.dropoff(trip_month.color)
    ordinary = {
        "VendorID": 2, pickup: NOON, dropoff: NOON + dt.timedelta(minutes=9), "passenger_count": 1, "payment_type": 1,
        "trip_distance": 2.5, "RatecodeID": 1, "fare_amount": 10.1, "total_amount": 12.2, "file_month": trip_month.file_month,
    }  # fmt: skip
    schema = arrow_schema(trip_month.color)
    return pa.Table.from_pylist(
        [{n: v for n, v in (ordinary | row).items() if n in schema.names} for row in rows], schema
    )


def profile(*tables: pa.Table, trip_month: TripMonth = MAY) -> Profile:
    profiler = Profiler(trip_month)
    for table in tables:
        profiler.add(table)
    return profiler.profile()


ODD: list[tuple[str, dict[str, object]]] = [
    ("picked up in another month", {"lpep_pickup_datetime": dt.datetime(2008, 12, 31, 23)}),
    ("dropped off before the pickup", {"lpep_dropoff_datetime": NOON - dt.timedelta(seconds=1)}),
    ("longer than a day", {"lpep_dropoff_datetime": NOON + dt.timedelta(days=1, seconds=1)}),
    (
        "VendorID 6 with the month for a minute",
        {"VendorID": 6, "lpep_pickup_datetime": NOON.replace(minute=5)},
    ),
    ("negative total (refund or correction)", {"total_amount": -0.01}),
    ("total above 1,000 US$", {"total_amount": 1000.01}),
    ("no payment_type (dispatched, not hailed)", {"payment_type": None}),
    ("passenger_count of zero", {"passenger_count": 0}),
    ("RatecodeID 99", {"RatecodeID": 99}),
    ("distance of zero", {"trip_distance": 0.0}),
    ("distance above 200 miles", {"trip_distance": 293_931.0}),
]


@pytest.mark.parametrize(("name", "odd"), ODD, ids=[name for name, _ in ODD])
def test_an_odd_trip_is_counted_under_its_rule(name: str, odd: dict[str, object]) -> None:
    ordinary = profile(trips({}, {})).quality
    assert set(ordinary.values()) == {0}
    assert profile(trips({}, odd, {}), trips(odd)).quality[name] == 2


def test_every_rule_for_taxis_is_tested_here() -> None:
    assert {rule.name for rule in RULES if "green" in rule.colors.split()} == {name for name, _ in ODD}


@pytest.mark.parametrize("color", COLORS)
def test_every_color_can_be_profiled_with_its_own_rules_and_sums(color: str) -> None:
    month = TripMonth(color, 2023, 5)
    found = profile(trips({}, {}, trip_month=month), trip_month=month)
    assert list(found.quality) == [rule.name for rule in RULES if color in rule.colors.split()]
    assert list(found.sums) == money(color)
    assert found.days == {NOON.date(): 2}
    assert set(money(color)) < {column.name for column in TRIP_COLUMNS[color] if column.kind == "number"} | {""}


@pytest.mark.slow
def test_sums_of_many_trips_are_exact_to_the_cent() -> None:
    found = profile(*[trips(*[{"fare_amount": 0.1, "total_amount": None}] * 1000) for _ in range(30)])
    assert found.sums["fare_amount"] == 3000.0
    assert found.sums["total_amount"] == 0.0


def test_a_sum_that_overflows_is_omitted_and_the_profile_can_be_read_back() -> None:
    made = profile(trips({"total_amount": 1e308}, {"total_amount": 1e308}, {"total_amount": 5.0, "extra": 1.25}))
    assert "total_amount" not in made.sums
    assert made.sums["extra"] == 1.25
    assert Profile.model_validate_json(made.model_dump_json()) == made


def test_days_are_counted_in_the_files_month_and_other_months_separately() -> None:
    days = [
        dt.datetime(2023, 5, 1),
        dt.datetime(2023, 5, 31, 23, 59, 59),
        dt.datetime(2023, 6, 1),
        dt.datetime(2023, 6, 2),
    ]
    found = profile(trips(*[{"lpep_pickup_datetime": day} for day in [*days, *days[:1], None]]))
    assert found.days == {dt.date(2023, 5, 1): 2, dt.date(2023, 5, 31): 1}
    assert found.elsewhere == {"2023-06": 2}


def test_an_added_rule_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Rule("a round fare", "note", lambda: pc.field("fare_amount") == 10, "green")
    monkeypatch.setattr(quality, "RULES", (*RULES, mine))
    assert profile(trips({"fare_amount": 10.0}, {})).quality["a round fare"] == 1


def test_a_month_without_a_trip_has_an_empty_profile() -> None:
    found = profile(trips())
    assert (found.days, found.elsewhere, set(found.quality.values()), set(found.sums.values())) == ({}, {}, {0}, {0.0})
    assert Profile.model_validate_json(found.model_dump_json()) == found
