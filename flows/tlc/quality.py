"""Profile a month's trips: sums of money, trips by day, and trips that meet each data-quality rule. Change no value.

A rule is a row of `RULES`; add a row to add a rule. `pickups.py` decides whether a file's trips are of its month at all.
"""

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import acero
from pydantic import BaseModel, ConfigDict

from flows.tlc.pickups import Pickups, pickup
from flows.tlc.schema import TRIP_COLUMNS
from flows.tlc.trips import COLORS, TripMonth


@dataclass(frozen=True)
class Rule:
    """A rule: count the trips that meet `condition` under `name`.

    The condition names canonical columns. `pickup` and `dropoff` are the two datetimes of every color.
    """

    name: str
    severity: Literal["note", "warning"]
    condition: pc.Expression
    colors: str


_TAXIS, _ALL = "yellow green", " ".join(COLORS)
_field = pc.field
_month = pc.year(_field("pickup")) * 12 + pc.month(_field("pickup"))
_file_month = pc.year(_field("file_month")) * 12 + pc.month(_field("file_month"))
_DAY = pa.scalar(dt.timedelta(days=1), pa.duration("us"))

# TLC's own files have trips that meet each of these rules.
RULES = (
    Rule("picked up in another month", "note", _month != _file_month, _ALL),
    Rule("dropped off before the pickup", "warning", _field("dropoff") < _field("pickup"), _ALL),
    Rule("longer than a day", "warning", (_field("dropoff") - _field("pickup")) > _DAY, _ALL),
    Rule(  # some times of this vendor are damaged: they have the number of the month in place of the minute
        "VendorID 6 with the month for a minute",
        "warning",
        (_field("VendorID") == 6) & (pc.minute(_field("pickup")) == pc.month(_field("file_month"))),
        _TAXIS,
    ),
    Rule("negative total (refund or correction)", "note", _field("total_amount") < 0, _TAXIS),
    Rule("total above 1,000 US$", "warning", _field("total_amount") > 1000, _TAXIS),
    Rule("no payment_type (dispatched, not hailed)", "note", pc.is_null(_field("payment_type")), _TAXIS),
    Rule("passenger_count of zero", "note", _field("passenger_count") == 0, _TAXIS),
    Rule("RatecodeID 99", "note", _field("RatecodeID") == 99, _TAXIS),
    Rule("distance of zero", "note", _field("trip_distance") == 0, _TAXIS),
    Rule("distance above 200 miles", "warning", _field("trip_distance") > 200, _TAXIS),
    Rule("negative fare (refund or correction)", "note", _field("base_passenger_fare") < 0, "fhvhv"),
    Rule("distance above 200 miles", "warning", _field("trip_miles") > 200, "fhvhv"),
)


class Profile(BaseModel):
    """What the loaded trips of a month look like."""

    model_config = ConfigDict(frozen=True)

    sums: dict[str, float] = {}  # of each column of money, in US$, rounded to cents; one that is not finite is absent
    days: dict[dt.date, int] = {}  # trips on each day of the file's month
    elsewhere: dict[str, int] = {}  # trips in each other month
    quality: dict[str, int] = {}  # trips that meet each of the `RULES` of the day when the month was loaded


def money(color: str) -> list[str]:
    """Return the columns in US$."""
    return [column.name for column in TRIP_COLUMNS[color] if column.unit == "US$"]


def dropoff(color: str) -> str:
    """Return the name of the column with the time when a trip ended."""
    return next(c.name for c in TRIP_COLUMNS[color] if c.name.lower().endswith("dropoff_datetime"))


class Profiler:
    """Computes the profile of a month from its trips, chunk by chunk."""

    def __init__(self, trip_month: TripMonth) -> None:
        color = trip_month.color
        self._trip_month = trip_month
        self._rules = [rule for rule in RULES if color in rule.colors.split()]
        named = {"pickup": _field(pickup(color)), "dropoff": _field(dropoff(color))}
        own = {name: _field(name) for name in (*(column.name for column in TRIP_COLUMNS[color]), "file_month")}
        counts = {rule.name: rule.condition.cast(pa.int64()) for rule in self._rules}
        sums = {name: _field(name) for name in money(color)}
        totals = acero.AggregateNodeOptions([(name, "sum", None, name) for name in (*counts, *sums)])
        self._steps = [_project(own | named), _project(counts | sums), acero.Declaration("aggregate", totals)]
        self._totals: Counter[str] = Counter()
        self.pickups = Pickups(trip_month)

    def add(self, trips: pa.Table) -> None:
        """Count these trips."""
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(trips))
        [totals] = acero.Declaration.from_sequence([source, *self._steps]).to_table(use_threads=False).to_pylist()
        self._totals.update({name: total for name, total in totals.items() if total is not None})
        self.pickups.add(trips)

    def profile(self) -> Profile:
        """Return the profile of all trips so far."""
        sums = {name: self._totals[name] for name in money(self._trip_month.color)}
        return Profile(
            sums={name: round(total, 2) for name, total in sums.items() if isfinite(total)},
            days=self.pickups.within,
            elsewhere=self.pickups.elsewhere,
            quality={rule.name: int(self._totals[rule.name]) for rule in self._rules},
        )


def _project(columns: dict[str, Any]) -> acero.Declaration:
    return acero.Declaration("project", acero.ProjectNodeOptions(list(columns.values()), list(columns)))
