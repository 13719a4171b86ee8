"""Generate made-up trips of any month in batches, with plausible fares, times and zones, and with TLC's quirks by name.

The same month and seed give the same trips, whatever the file format.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt

from local.trip_files.editions import Ints, Mask, rows_of_edition, touched
from local.trip_files.layouts import COLORS, Color

Quirk = Literal[
    "dispatch_block",
    "refunds",
    "identical_trips",
    "other_months",
    "vendor_six",
    "zero_passengers",
    "crowds",
    "odd_zones",
    "huge_distances",
    "extreme_fares",
    "rate_code_99",
    "blank_zones",
    "trailing_blanks",
    "single_space",
    "ragged_rows",
    "null_typed_columns",
]
ALL_QUIRKS: frozenset[Quirk] = frozenset(get_args(Quirk))
NO_QUIRKS: frozenset[Quirk] = frozenset()

Masked: TypeAlias = "np.ma.MaskedArray[Any, Any]"


class Trips(dict[str, Masked]):
    """One masked array per field. Times are seconds since 1970, money and distances are hundredths, words are codes.

    A field without generated values is 0 in every trip.
    """

    def __missing__(self, field: str) -> Masked:
        return np.ma.zeros_like(self["pickup"])


# Rows per batch. This limits the memory. Each batch has its own random generator, which depends only on the batch's number.
BATCH_ROWS = 1 << 16


_T = TypeVar("_T")
_ONE_SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class _Tariff:
    """A taxi's prices in cents: at the start, per fifth of a mile or slow minute, flat to the airport, and surcharges."""

    flag_fall: int
    step: int
    airport_flat: int
    night: int
    rush: int
    improvement: int
    toll: int
    airport_fee: int


@dataclass(frozen=True)
class _TextCodes:
    """Words for codes: vendors 1 to 3, and for each vendor payments 1 to 4."""

    vendors: tuple[str, str, str]
    payments: tuple[tuple[str, str, str, str], ...]


_TARIFFS = (
    ("*", "2009-01", _Tariff(250, 40, 4500, 50, 100, 0, 415, 0)),
    ("*", "2012-09", _Tariff(250, 50, 5200, 50, 100, 0, 533, 0)),
    ("*", "2015-01", _Tariff(250, 50, 5200, 50, 100, 30, 554, 0)),
    ("*", "2019-01", _Tariff(250, 50, 5200, 50, 100, 30, 612, 0)),
    ("*", "2022-01", _Tariff(250, 50, 5200, 50, 100, 30, 655, 125)),
    ("*", "2023-01", _Tariff(300, 70, 7000, 100, 250, 100, 655, 175)),
    ("*", "2024-01", _Tariff(300, 70, 7000, 100, 250, 100, 694, 175)),
)
# Fields without values in a month's file: color, field, since, until. Seen in headers and footers, except rows marked †.
_EMPTY_FIELDS = (
    ("yellow", "rate_code", "2009-01", "2010-01"),
    ("yellow", "flag", "2009-01", "2010-01"),
    ("yellow", "mta_tax", "2009-01", "2010-01"),
    ("yellow", "improvement", "2009-01", "2015-01"),
    ("yellow", "congestion", "2009-01", "2019-02"),
    ("yellow", "airport", "2009-01", "2021-01"),
    ("yellow", "cbd", "2009-01", "2025-01"),
    ("yellow", "ehail", "2009-01", "9999-12"),
    ("green", "trip_type", "2013-08", "2014-06"),
    ("green", "improvement", "2013-08", "2015-01"),
    ("green", "congestion", "2013-08", "2019-02"),
    ("green", "airport", "2013-08", "9999-12"),
    ("green", "cbd", "2013-08", "2025-01"),
    ("green", "ehail", "2013-08", "9999-12"),
    ("fhv", "shared", "2019-03", "2023-02"),
    ("fhvhv", "airport", "2019-02", "2021-01"),  # †
    ("fhvhv", "cbd", "2019-02", "2025-01"),
)
# The share of booked trips in a month's rows: measured for green, from records for yellow.
_DISPATCH_SHARES = (
    ("yellow", "2009-01", 0.0),
    ("yellow", "2019-01", 0.01),
    ("yellow", "2020-04", 0.08),
    ("yellow", "2021-01", 0.072),
    ("yellow", "2022-01", 0.03),
    ("yellow", "2025-01", 0.15),
    ("green", "2013-08", 0.0),
    ("green", "2019-01", 0.1),
    ("green", "2020-04", 0.313),
    ("green", "2020-08", 0.423),
    ("green", "2021-01", 0.471),
    ("green", "2022-01", 0.101),
    ("green", "2023-01", 0.07),
    ("green", "2024-01", 0.037),
    ("fhv", "2015-01", 0.0),
    ("fhvhv", "2019-02", 0.0),
)
_VENDORS = (
    ("yellow", "2009-01", {2: 0.52, 1: 0.4, 3: 0.08}),
    ("yellow", "2011-01", {2: 0.55, 1: 0.45}),
    ("yellow", "2015-01", {2: 0.66, 1: 0.34}),
    ("green", "2013-08", {2: 0.88, 1: 0.12}),
)
TEXT_CODES: tuple[tuple[str, str, _TextCodes | None], ...] = (
    ("*", "2009-01", None),
    (
        "yellow",
        "2009-01",
        _TextCodes(
            ("CMT", "VTS", "DDS"),
            (
                ("Credit", "Cash", "No Charge", "Dispute"),
                ("Credit", "CASH", "No Charge", "Dispute"),
                ("CREDIT", "CASH", "No Charge", "Dispute"),
            ),
        ),
    ),
    (
        "yellow",
        "2010-01",
        _TextCodes(
            ("CMT", "VTS", "DDS"),
            (("Cre", "Cas", "No ", "Dis"), ("Cre", "CAS", "No ", "Dis"), ("CRE", "CAS", "No ", "Dis")),
        ),
    ),
    ("yellow", "2010-10", _TextCodes(("CMT", "VTS", "DDS"), (("CRD", "CSH", "NOC", "DIS"),) * 3)),
    ("yellow", "2015-01", None),
)
_BUSY_WEEKDAYS = (0.92, 0.98, 1.02, 1.07, 1.12, 1.06, 0.83)
_BUSY_HOURS = (20, 12, 8, 6, 6, 10, 24, 42, 52, 50, 48, 50, 54, 54, 57, 58, 52, 60, 70, 68, 60, 56, 50, 36)
_BUSY_WEEKEND = (50, 42, 34, 26, 18, 10, 12, 18, 26, 36, 46, 52, 56, 56, 56, 56, 54, 56, 60, 58, 52, 50, 52, 48)
_MILES_PER_HOUR = (16, 17, 18, 19, 20, 19, 16, 12, 10, 10, 10, 9, 9, 9, 9, 9, 9, 9, 10, 11, 12, 13, 14, 15)

_TIMES = {"pickup", "dropoff", "request", "on_scene"}
_DEGREES = {"pickup_lon", "pickup_lat", "dropoff_lon", "dropoff_lat"}
_MONEY = {
    *("fare", "extra", "mta_tax", "tip", "tolls", "ehail", "improvement", "congestion", "airport", "cbd", "total"),
    *("black_car_fund", "sales_tax", "driver_pay"),
}
_WHOLE = {"passengers", "rate_code", "payment", "trip_type", "pickup_zone", "dropoff_zone"}
_BASES = tuple(f"B{number:05d}" for number in (*range(2510, 2540), *range(1, 3000, 11)))
_YES_NO = ("N", "Y")
WORDS: Mapping[str, tuple[str, ...]] = {
    "flag": _YES_NO,
    "base": _BASES,
    "affiliated_base": _BASES,
    "originating_base": _BASES,
    "license": ("HV0002", "HV0003", "HV0004", "HV0005"),
    "shared_request": _YES_NO,
    "shared_match": _YES_NO,
    "access_a_ride": (" ", "N"),
    "wheelchair_request": _YES_NO,
    "wheelchair_match": _YES_NO,
    "request_source": ("street", "app"),
}
FIELDS_OF_KIND: Mapping[str, set[str]] = {
    "time": _TIMES,
    "degrees": _DEGREES,
    "money": _MONEY,
    "distance": {"distance"},
    "word": set(WORDS),
    "whole": {*_WHOLE, "vendor", "shared", "seconds", "row"},
}
# A made-up place for each zone, inside the city.
_ZONE_CENTERS = (
    np.random.default_rng(265).uniform(-74.01, -73.86, 266),
    np.random.default_rng(266).uniform(40.64, 40.84, 266),
)


@dataclass(frozen=True)
class MonthSpec:
    """A month to generate: color and date, size, seed, quirks and file format."""

    color: Color
    year: int
    month: int
    rows: int
    seed: int
    quirks: frozenset[Quirk]
    file_format: Literal["csv", "parquet"]

    @property
    def text(self) -> str:
        """Return the month as text, such as 2021-01."""
        return f"{self.year}-{self.month:02d}"

    @property
    def start(self) -> int:
        """Return the month's first midnight in seconds since 1970."""
        return _seconds(self.year, self.month)

    @property
    def regular_rows(self) -> int:
        """Return the row count before the dispatch block, which TLC appends to the file with its own time order."""
        if "dispatch_block" not in self.quirks:
            return self.rows
        return self.rows - round(self.rows * in_force(self.color, self.text, _DISPATCH_SHARES))

    def rng(self, *more: int) -> np.random.Generator:
        """Return a generator for one purpose, given as numbers. Its draws do not change those of other purposes."""
        return np.random.default_rng([self.seed, COLORS.index(self.color), self.year, self.month, *more])


def generate(month: MonthSpec, edition: int, counts: Counter[str]) -> Iterator[Trips]:
    """Yield the trips of one edition in file order. Add the row count of each quirk to `counts`."""
    last = min(month.rows, rows_of_edition(month.rows, edition))
    for number, start in enumerate(range(0, month.rows, BATCH_ROWS)):
        if start >= last:
            break
        index = np.arange(start, min(start + BATCH_ROWS, month.rows))
        trips = _batch(month, index, number, last - start, counts)
        edited = touched(index, edition)
        for name, amount in _EDIT[month.color].items():
            trips[name][edited] += amount
        yield Trips({name: values[: last - start] for name, values in trips.items()})
    extra = rows_of_edition(month.rows, edition) - month.rows
    for number, start in enumerate(range(0, extra, BATCH_ROWS)):
        index = np.arange(month.rows + start, month.rows + min(start + BATCH_ROWS, extra))
        yield _batch(month, index, (edition << 20) + number, extra, counts)


def _batch(month: MonthSpec, index: Ints, number: int, kept: int, counts: Counter[str]) -> Trips:
    in_block = (index >= month.regular_rows) & (index < month.rows)
    made = _MAKERS[month.color](month, index, month.rng(number))
    trips = Trips({name: np.ma.array(values) for name, values in made.items()})
    for name in _empty_fields(month):
        trips[name][:] = np.ma.masked
    if in_block.any():
        _dispatch(trips, in_block, month.rng(number, 1))
        counts["dispatch_block"] += int(np.count_nonzero(in_block[:kept]))
    # Quirks use even rows, and copies read the odd row before. So no quirk changes another quirk's rows or the source of a copy.
    free = np.flatnonzero(~in_block)[2::2]
    free = free[month.rng(number, 2).permutation(len(free))]
    for quirk, row in _ROW_QUIRKS.items():
        if not row.fits(month):
            continue
        share = max(1, round(row.share * len(index)))
        at, free = free[:share], free[share:]
        if quirk in month.quirks and month.file_format in row.formats:
            counts[quirk] += int(np.count_nonzero(row.apply(trips, at, month) < kept))
    return trips


def _pickup_seconds(month: MonthSpec, index: Ints, rng: np.random.Generator) -> Ints:
    """Return pickup times in file order: sorted by hour only, with the usual number of trips for each hour and weekday."""
    regular = month.regular_rows
    in_block = (index >= regular) & (index < month.rows)
    position = np.where(
        in_block, index - regular, np.where(index >= month.rows, rng.integers(0, regular, len(index)), index)
    )
    section = np.where(in_block, max(1, month.rows - regular), regular)
    days = (_seconds(month.year, month.month + 1) - month.start) // 86400
    weekday = (np.arange(days) + datetime(month.year, month.month, 1).weekday()) % 7
    by_day = np.array(_BUSY_WEEKDAYS)[weekday] * month.rng(0, 3).normal(1, 0.04, days)
    by_hour = np.where(weekday[:, None] >= 5, np.array(_BUSY_WEEKEND), np.array(_BUSY_HOURS))
    weights = (by_day[:, None] * by_hour / by_hour.sum(axis=1, keepdims=True)).ravel()
    edges = np.cumsum(weights) / weights.sum()
    hour = np.minimum(np.searchsorted(edges, (position + 0.5) / section), len(edges) - 1)
    seconds = month.start + hour * 3600 + rng.integers(0, 3600, len(index))
    # Times in the dispatch block are whole minutes in 95 % of the rows.
    return cast(Ints, np.where(in_block & (rng.random(len(index)) < 0.95), seconds // 60 * 60, seconds))


def _zones(color: str, rng: np.random.Generator, n: int) -> Ints:
    weights = 1 / np.arange(1, 264) ** 1.15
    zones = np.random.default_rng(COLORS.index(color)).permutation(np.arange(1, 264))
    return cast(Ints, zones[np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(n)).clip(0, 262)])


def _pick(rng: np.random.Generator, n: int, shares: Mapping[int, float]) -> Ints:
    """Draw n values by their shares. If the shares add up to less than 1, the first value gets the rest."""
    edges = np.cumsum(list(shares.values())[::-1])
    values = np.array([*list(shares)[::-1], next(iter(shares))])
    return cast(Ints, values[np.searchsorted(edges, rng.random(n))])


def _journey(pickup: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return distances in hundredths of a mile and durations in seconds: log-normal, slower by day."""
    n = len(pickup)
    miles = np.exp(rng.normal(math.log(1.75), 0.85, n)).clip(0.1, 60)
    speed = np.array(_MILES_PER_HOUR)[pickup % 86400 // 3600] * np.exp(rng.normal(0, 0.22, n)) + miles * 0.7
    return (miles * 100).astype(np.int64), (40 + miles / speed * 3600).astype(np.int64)


def _taxi(month: MonthSpec, index: Ints, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    n = len(index)
    pickup = _pickup_seconds(month, index, rng)
    distance, seconds = _journey(pickup, rng)
    vendor = _pick(rng, n, in_force(month.color, month.text, _VENDORS))
    distance = np.where(vendor == 1, distance // 10 * 10, distance)
    tariff = in_force(month.color, month.text, _TARIFFS)
    rate_code = np.where(
        (distance > 1500) & (rng.random(n) < 0.5), 2, _pick(rng, n, {1: 0.99, 5: 0.006, 3: 0.001, 4: 0.001})
    )
    metered = tariff.flag_fall + tariff.step * np.rint(distance / 20 * 0.8 + seconds / 60 * 0.35).astype(np.int64)
    fare = np.select([rate_code == 2, rate_code == 5], [tariff.airport_flat, rng.integers(10, 120, n) * 100], metered)
    clock = pickup % 86400 // 3600
    workday = (pickup // 86400 + 3) % 7 < 5
    extra = np.where((clock >= 20) | (clock < 6), tariff.night, np.where(workday & (clock >= 16), tariff.rush, 0))
    pickup_zone, dropoff_zone = _zones(month.color, rng, n), _zones(month.color, rng, n)
    central = (dropoff_zone % 4 > 0) if month.color == "yellow" else (dropoff_zone % 4 == 0)
    money = {
        "fare": fare,
        "extra": extra,
        "mta_tax": np.where(rate_code == 5, 0, 50),
        "improvement": np.full(n, tariff.improvement),
        "tolls": np.where((distance > 700) & (rng.random(n) < 0.35), tariff.toll, 0),
        "ehail": np.zeros(n, np.int64),
        "congestion": np.where(central, 250 if month.color == "yellow" else 275, 0),
        "airport": np.where(np.isin(pickup_zone, (132, 138)), tariff.airport_fee, 0),
        "cbd": np.where(central & (rng.random(n) < 0.9), 75, 0),
    }
    for name in _empty_fields(month):
        if name in money:
            money[name] = np.zeros(n, np.int64)
    payment = _pick(rng, n, {1: 0.72, 2: 0.27, 3: 0.006, 4: 0.004})
    subtotal = sum(money.values(), np.zeros(n, np.int64))
    tip = np.select(
        [payment != 1, (chance := rng.random(n)) < 0.05, chance < 0.60, chance < 0.82],
        [0, 0, subtotal * _pick(rng, n, {20: 0.7, 25: 0.2, 30: 0.1}) // 100, rng.integers(1, 6, n) * 100],
        subtotal * rng.integers(80, 300, n) // 1000,
    )
    lon, lat = _ZONE_CENTERS
    return {
        "vendor": vendor,
        "pickup": pickup,
        "dropoff": pickup + seconds,
        "passengers": _pick(rng, n, {1: 0.74, 2: 0.15, 3: 0.04, 4: 0.02, 5: 0.03, 6: 0.02}),
        "distance": distance,
        "rate_code": rate_code,
        # Until 2014 only CMT's meters recorded whether a trip was stored before it was sent (store_and_fwd_flag).
        "flag": np.ma.array(
            (rng.random(n) < 0.008).astype(np.int64),
            mask=(vendor != 1) & (month.color == "yellow") & (month.text < "2015"),
        ),
        "pickup_zone": pickup_zone,
        "dropoff_zone": dropoff_zone,
        "pickup_lon": lon[pickup_zone] + rng.normal(0, 0.004, n),
        "pickup_lat": lat[pickup_zone] + rng.normal(0, 0.004, n),
        "dropoff_lon": lon[dropoff_zone] + rng.normal(0, 0.004, n),
        "dropoff_lat": lat[dropoff_zone] + rng.normal(0, 0.004, n),
        "payment": payment,
        "trip_type": np.where(rate_code == 5, 2, 1),
        **money,
        "tip": tip,
        "total": subtotal + tip,
        "request_source": _pick(rng, n, {0: 0.8, 1: 0.2}),
        "row": index,
    }


def _dispatch(trips: Trips, block: Mask, rng: np.random.Generator) -> None:
    """Turn trips into booked trips: the fields that come from a meter are all null, and fares have any number of cents."""
    n = int(np.count_nonzero(block))
    for name in ("flag", "rate_code", "passengers", "payment", "trip_type", "congestion", "airport", "cbd"):
        trips[name][block] = np.ma.masked
    for name, values in {
        "fare": trips["fare"][block] * 2 + rng.integers(0, 100, n),
        "extra": np.where(rng.random(n) < 0.38, 275, 0),
        "mta_tax": 0,
        "tolls": np.where(rng.random(n) < 0.1, 612, 0),
        "tip": np.where(rng.random(n) < 0.54, 275, 0),
    }.items():
        trips[name][block] = values
    trips["total"][block] = sum(
        trips[name][block] for name in ("fare", "extra", "mta_tax", "tolls", "tip", "improvement")
    )


def _fhv(month: MonthSpec, index: Ints, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    n = len(index)
    pickup = _pickup_seconds(month, index, rng)
    base = rng.integers(0, len(WORDS["base"]), n)
    return {
        "base": base,
        "affiliated_base": np.where(rng.random(n) < 0.8, base, rng.integers(0, len(WORDS["base"]), n)),
        "pickup": pickup,
        "dropoff": pickup + _journey(pickup, rng)[1],
        "pickup_zone": np.where(rng.random(n) < 0.6, 264, _zones("fhv", rng, n)),
        "dropoff_zone": np.where(rng.random(n) < 0.1, 265, _zones("fhv", rng, n)),
        "shared": np.ma.array(np.ones(n, np.int64), mask=rng.random(n) < 0.9),
    }


def _fhvhv(month: MonthSpec, index: Ints, rng: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    n = len(index)
    pickup = _pickup_seconds(month, index, rng)
    distance, seconds = _journey(pickup, rng)
    uber = rng.random(n) < 0.72
    base = np.where(uber, rng.integers(0, 26, n), 26 + rng.integers(0, 4, n))
    fare = 250 + distance * 175 // 100 + seconds * 45 // 60
    flags = {
        name: (rng.random(n) < share).astype(np.int64)
        for name, share in (("shared_request", 0.02), ("shared_match", 0.01), ("wheelchair_request", 0.002))
    }
    return {
        "license": np.where(uber, 1, np.where(rng.random(n) < 0.03, 2, 3)),
        "base": base,
        "originating_base": np.ma.array(base, mask=~uber),
        "request": pickup - rng.integers(60, 600, n),
        "on_scene": np.ma.array(pickup - rng.integers(0, 60, n), mask=~uber),
        "pickup": pickup,
        "dropoff": pickup + seconds,
        "pickup_zone": _zones("fhvhv", rng, n),
        "dropoff_zone": _zones("fhvhv", rng, n),
        "distance": distance,
        "seconds": seconds,
        "fare": fare,
        "tolls": np.where((distance > 700) & (rng.random(n) < 0.3), 612, 0),
        "black_car_fund": fare * 25 // 1000,
        "sales_tax": fare * 8875 // 100000,
        "congestion": np.where(rng.random(n) < 0.35, 275, 0),
        "airport": np.where(rng.random(n) < 0.07, 250, 0),
        "cbd": np.where(rng.random(n) < 0.25, 150, 0),
        "tip": np.where(rng.random(n) < 0.18, rng.integers(100, 1000, n), 0),
        "driver_pay": fare * rng.integers(65, 85, n) // 100,
        **flags,
        "access_a_ride": np.ones(n, np.int64),
        "wheelchair_match": (rng.random(n) < 0.03).astype(np.int64),
        "shared": np.ma.array(np.ones(n, np.int64), mask=rng.random(n) > 0.02),
    }


_MAKERS: Mapping[str, Callable[[MonthSpec, Ints, np.random.Generator], dict[str, npt.NDArray[Any]]]] = {
    "yellow": _taxi,
    "green": _taxi,
    "fhv": _fhv,
    "fhvhv": _fhvhv,
}
# The amounts that a new edition adds in its changed rows. Every era's file of the color has these fields.
_EDIT: Mapping[str, Mapping[str, int]] = {
    "yellow": {"tip": 100, "total": 100},
    "green": {"tip": 100, "total": 100},
    "fhv": {"pickup": 60},
    "fhvhv": {"pickup": 60},
}


def _copy(trips: Trips, at: Ints, *, sign: int) -> Ints:
    for name, values in trips.items():
        if name != "row":
            values[at] = values[at - 1] * (sign if name in _MONEY else 1)
    return at


def _refunds(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    """Copy the trip before with all money negative."""
    _copy(trips, at, sign=-1)
    trips["payment"][at] = 4
    return at


def _identical_trips(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    return _copy(trips, at, sign=1)


def _other_months(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    """Move trips to 2008-12-31, 2009-01-01, the month before, and up to four months later."""
    strays = [
        _seconds(2008, 12) + 30 * 86400 + 23 * 3600,
        _seconds(2009, 1),
        month.start - 7200,
        *(_seconds(month.year, month.month + ahead) for ahead in (1, 2, 4)),
    ]
    shift = np.array(strays)[np.arange(len(at)) % len(strays)] + trips["pickup"][at] % 3600 - trips["pickup"][at]
    for name in ("pickup", "dropoff", "request", "on_scene"):
        if name in trips:
            trips[name][at] += shift
    return at


def _vendor_six(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    """Set the minute of pickup and dropoff to the month's number, whatever the trip's duration."""
    trips["vendor"][at] = 6
    for name in ("pickup", "dropoff"):
        trips[name][at] = trips[name][at] // 3600 * 3600 + month.month * 60 + trips[name][at] % 60
    return at


def _cycled(field: str, *values: int) -> Callable[[Trips, Ints, MonthSpec], Ints]:
    def apply(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
        trips[field][at] = np.array(values)[np.arange(len(at)) % len(values)]
        return at

    return apply


def _extreme_fares(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    """Set fares to -500 and 4,003 dollars, and change the totals by the same amounts."""
    fares = np.array((-50_000, 400_300))[np.arange(len(at)) % 2]
    trips["total"][at] += fares - trips["fare"][at]
    trips["fare"][at] = fares
    return at


def _odd_zones(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    trips["pickup_zone"][at] = 264
    trips["dropoff_zone"][at] = 264 + np.arange(len(at)) % 2
    return at


def _blank_zones(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    trips["pickup_zone"][at] = np.ma.masked
    trips["dropoff_zone"][at[::2]] = np.ma.masked
    return at


def _trailing_blanks(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    trips["base"][at] += len(WORDS["base"])
    return at


def _single_space(trips: Trips, at: Ints, month: MonthSpec) -> Ints:
    uber = np.flatnonzero(trips["license"] == 1)
    trips["access_a_ride"][uber] = 0
    return uber


@dataclass(frozen=True)
class _RowQuirk:
    """A quirk of rows: their share, the files in which it occurs, and the change."""

    share: float
    apply: Callable[[Trips, Ints, MonthSpec], Ints]
    """Changes trips at the given rows and returns the changed rows."""
    colors: str = "yellow green"
    since: str = "2009-01"
    formats: str = "csv parquet"
    months: str = "all"

    def fits(self, month: MonthSpec) -> bool:
        """Return whether the month reserves rows for the quirk. Both formats do, so that other quirks get the same rows."""
        return (
            month.color in self.colors.split()
            and month.text >= self.since
            and (self.months == "all" or month.month % 2 == 1)
        )


_ROW_QUIRKS: Mapping[Quirk, _RowQuirk] = {
    "refunds": _RowQuirk(0.0015, _refunds),
    "identical_trips": _RowQuirk(0.0003, _identical_trips, " ".join(COLORS)),
    "other_months": _RowQuirk(0.0004, _other_months, " ".join(COLORS)),
    # Vendor 6 is only in the official files: green 2020-04 has 32 rows of it that its CSV lacks.
    "vendor_six": _RowQuirk(0.0008, _vendor_six, since="2020-01", formats="parquet"),
    "zero_passengers": _RowQuirk(0.019, _cycled("passengers", 0)),
    "crowds": _RowQuirk(0.0002, _cycled("passengers", 7, 8, 9)),
    "odd_zones": _RowQuirk(0.01, _odd_zones),
    "huge_distances": _RowQuirk(0.0001, _cycled("distance", 29_393_112, 12_063_184, 7_500_050)),
    "rate_code_99": _RowQuirk(0.0005, _cycled("rate_code", 99)),
    "trailing_blanks": _RowQuirk(0.02, _trailing_blanks, "fhv"),
    # The order matters: each quirk takes its rows from those that the quirks above it left.
    "extreme_fares": _RowQuirk(0.0001, _extreme_fares),
    "single_space": _RowQuirk(0.0, _single_space, "fhvhv"),
    # Months whose location ids are integers have no blank ids.
    "blank_zones": _RowQuirk(0.4, _blank_zones, "fhv", months="odd"),
}


def kind_of(field: str) -> str:
    """Return the kind of a field: time, degrees, money, distance, word or whole. A field that is not listed is money."""
    return next((kind for kind, fields in FIELDS_OF_KIND.items() if field in fields), "money")


def _seconds(year: int, month: int) -> int:
    """Return midnight of a month's first day, New York wall-clock, in seconds since 1970. Month 13 is the next January."""
    first = datetime(year + (month - 1) // 12, (month - 1) % 12 + 1, 1)
    return (first - datetime(1970, 1, 1)) // _ONE_SECOND


def in_force(color: str, month: str, rows: tuple[tuple[str, str, _T], ...]) -> _T:
    """Return the value of the last row for the color (or for any, "*") that starts in the month or before."""
    return [value for row_color, since, value in rows if row_color in (color, "*") and since <= month][-1]


def _empty_fields(month: MonthSpec) -> list[str]:
    """Return the fields without values in a month, even if the file has columns for them."""
    return [
        field for color, field, since, until in _EMPTY_FIELDS if color == month.color and since <= month.text < until
    ]
