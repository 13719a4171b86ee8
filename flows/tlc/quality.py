"""Profile a month's trips: sums of money, trips by day, and trips that meet each data-quality rule. Change no value.

A rule is a row of `RULES`; add a row to add a rule. `pickups.py` decides whether a file's trips are of its month at all.
"""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.manifest import Profile
from flows.tlc.pickups import Pickups, pickup
from flows.tlc.schema import TRIP_COLUMNS, Column
from flows.tlc.trips import COLORS, TripMonth


@dataclass(frozen=True)
class Rule:
    """A rule: count the trips that meet `condition` under `name`.

    The condition names canonical columns. `pickup` and `dropoff` are the two datetimes of every color.
    """

    name: str
    severity: Literal["note", "warning"]
    condition: Callable[[], pc.Expression] | Literal["counted by Pickups"]
    """Returns the condition. Arrow imports pandas to make one; a run that reads no trips needs no pandas.

    `Pickups` counts the trips of other months anyway.
    """
    colors: str


_TAXIS, _ALL = "yellow green", " ".join(COLORS)
_field = pc.field


def _a_day() -> pa.Scalar:
    return pa.scalar(dt.timedelta(days=1), pa.duration("us"))


# TLC's own files have trips that meet each of these rules.
RULES = (
    Rule("picked up in another month", "note", "counted by Pickups", _ALL),
    Rule("dropped off before the pickup", "warning", lambda: _field("dropoff") < _field("pickup"), _ALL),
    Rule("longer than a day", "warning", lambda: (_field("dropoff") - _field("pickup")) > _a_day(), _ALL),
    Rule(  # some times of this vendor are wrong: the minute is the number of the month
        "VendorID 6 with the month for a minute",
        "warning",
        lambda: (_field("VendorID") == 6) & (pc.minute(_field("pickup")) == pc.month(_field("file_month"))),
        _TAXIS,
    ),
    Rule("negative total (refund or correction)", "note", lambda: _field("total_amount") < 0, _TAXIS),
    Rule("total above 1,000 US$", "warning", lambda: _field("total_amount") > 1000, _TAXIS),
    Rule("no payment_type (dispatched, not hailed)", "note", lambda: pc.is_null(_field("payment_type")), _TAXIS),
    Rule("passenger_count of zero", "note", lambda: _field("passenger_count") == 0, _TAXIS),
    Rule("RatecodeID 99", "note", lambda: _field("RatecodeID") == 99, _TAXIS),
    Rule("distance of zero", "note", lambda: _field("trip_distance") == 0, _TAXIS),
    Rule("distance above 200 miles", "warning", lambda: _field("trip_distance") > 200, _TAXIS),
    Rule("negative fare (refund or correction)", "note", lambda: _field("base_passenger_fare") < 0, "fhvhv"),
    Rule("distance above 200 miles", "warning", lambda: _field("trip_miles") > 200, "fhvhv"),
)


def money(color: str) -> list[str]:
    """Return the columns in US$."""
    return [column.name for column in TRIP_COLUMNS[color] if column.unit == "US$"]


def dropoff(color: str) -> str:
    """Return the name of the column with the time when a trip ended."""
    return next(c.name for c in TRIP_COLUMNS[color] if c.name.lower().endswith("dropoff_datetime"))


class Profiler:
    """Computes the profile of a month from its trips, chunk by chunk."""

    def __init__(self, trip_month: TripMonth) -> None:
        self._money = money(trip_month.color)
        self._rules = tuple(rule for rule in RULES if trip_month.color in rule.colors.split())
        self._totals_of = _totals_of(trip_month.color, TRIP_COLUMNS[trip_month.color], self._rules)
        self._totals: Counter[str] = Counter()
        self.pickups = Pickups(trip_month)

    def add(self, trips: pa.Table) -> None:
        """Count these trips."""
        self._totals.update({name: total for name, total in self._totals_of(trips).items() if total is not None})
        self.pickups.add(trips)

    def profile(self) -> Profile:
        """Return the profile of all trips so far."""
        sums = {name: self._totals[name] for name in self._money}
        elsewhere = self.pickups.elsewhere
        counts = {rule.name: int(self._totals[rule.name]) for rule in self._rules if callable(rule.condition)}
        return Profile(
            sums={name: round(total, 2) for name, total in sums.items() if isfinite(total)},
            days=self.pickups.within,
            elsewhere=elsewhere,
            quality={rule.name: counts.get(rule.name, sum(elsewhere.values())) for rule in self._rules},
        )


@cache
def _totals_of(
    color: str, columns: tuple[Column, ...], rules: tuple[Rule, ...]
) -> Callable[[pa.Table], dict[str, Any]]:
    """Return a function that counts the trips of a table that meet each rule, and sums each column in US$."""
    from pyarrow import acero  # it imports pandas

    def project(columns: dict[str, Any]) -> acero.Declaration:
        return acero.Declaration("project", acero.ProjectNodeOptions(list(columns.values()), list(columns)))

    named = {"pickup": _field(pickup(color)), "dropoff": _field(dropoff(color))}
    own = {name: _field(name) for name in (*(column.name for column in columns), "file_month")}
    counts = {rule.name: rule.condition().cast(pa.int64()) for rule in rules if callable(rule.condition)}
    sums = {name: _field(name) for name in money(color)}
    totals = acero.AggregateNodeOptions([(name, "sum", None, name) for name in (*counts, *sums)])
    steps = [project(own | named), project(counts | sums), acero.Declaration("aggregate", totals)]

    def totals_of(trips: pa.Table) -> dict[str, Any]:
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(trips))
        [row] = acero.Declaration.from_sequence([source, *steps]).to_table(use_threads=False).to_pylist()
        return dict(row)

    return totals_of
