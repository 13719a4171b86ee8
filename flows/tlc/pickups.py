"""Count a file's pickups by day. Refuse the file if too few are in its month, and name the likely cause."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping

import pyarrow as pa

from flows.tlc.errors import WrongMonth
from flows.tlc.schema import TRIP_COLUMNS
from flows.tlc.trips import TripMonth

# At least this share of a file's pickups must be in the file's month, not counting trips without a pickup time. If the file has
# `FEW` pickups or fewer, one is enough: the first rows of a file are often odd. Real files are far above one half: nine official
# months and the mirror's green 2020-10 have 99.91 % or more; of the first 9 rows of yellow 2019-01, 4 are in the month.
OWN_SHARE = 0.5
FEW = 10

Days = Mapping[dt.date, int]
_NEARLY_ALL = 0.9


def _share(days: Days, applies: Callable[[dt.date], bool]) -> float:
    return sum(count for day, count in days.items() if applies(day)) / sum(days.values())


def _in_1970(month: dt.date, days: Days) -> bool:
    return _share(days, lambda day: day.year == 1970) >= _NEARLY_ALL


def _swapped(month: dt.date, days: Days) -> bool:
    """Return whether day and month are swapped: in a file of May, 2022-05-01 to 2022-05-12 become 2022-01-05 to 2022-12-05."""
    as_swapped = _share(days, lambda day: (day.year, day.day) == (month.year, month.month))
    return as_swapped >= _NEARLY_ALL and len({day.month for day in days}) > 2


def _of_one_month(month: dt.date, days: Days) -> bool:
    main = max(days, key=lambda day: days[day])
    return _share(days, lambda day: (day.year, day.month) == (main.year, main.month)) >= _NEARLY_ALL


def _of_one_year_before_or_after(month: dt.date, days: Days) -> bool:
    return _of_one_month(month, days) and _share(days, lambda day: day.month == month.month) >= _NEARLY_ALL


# Reasons why a file's pickups are outside its month: a test of the first day of the month and the pickups by day, and the words
# for a message. The first that applies is reported. {months} are the other months with pickups.
_CAUSES: tuple[tuple[Callable[[dt.date, Days], bool], str], ...] = (
    (
        _in_1970,
        "its times are in another unit ({months}): milliseconds or seconds where microseconds belong."
        " Write them in microseconds, or get",
    ),
    (_swapped, "day and month are swapped in its times. Write them as 2021-01-31 23:59:59, or get"),
    (_of_one_year_before_or_after, "this is the file of another year. Check the source's address, and get"),
    (_of_one_month, "this is the file of another month. Check the source's address, and get"),
    (lambda month, days: True, "it has several months, or its times are shifted. Get"),
)
_MOST_MONTHS = 12  # in a message


def pickup(color: str) -> str:
    """Return the name of the column with the time when a trip began."""
    return next(c.name for c in TRIP_COLUMNS[color] if c.name.lower().endswith("pickup_datetime"))


class Pickups:
    """Counts the pickups of a file by day, chunk by chunk."""

    def __init__(self, trip_month: TripMonth) -> None:
        self._trip_month = trip_month
        self._column = pickup(trip_month.color)
        self._days: Counter[dt.date] = Counter()
        self._unknown = 0

    def add(self, trips: pa.Table) -> None:
        """Count the pickups of these trips."""
        times = trips.column(self._column)
        self._unknown += times.null_count
        days = times.drop_null().cast(pa.date32(), safe=False).value_counts()
        self._days.update({pair["values"]: pair["counts"] for pair in days.to_pylist()})

    @property
    def within(self) -> dict[dt.date, int]:
        """The number of pickups on each day of the file's month."""
        return {day: count for day, count in sorted(self._days.items()) if self._is_own(day)}

    @property
    def elsewhere(self) -> dict[str, int]:
        """The number of pickups in each other month, such as 2008-12."""
        months: Counter[str] = Counter()
        for day, count in sorted(self._days.items()):
            if not self._is_own(day):
                months[_name(day)] += count
        return dict(months)

    def _is_own(self, day: dt.date) -> bool:
        return (day.year, day.month) == (self._trip_month.year, self._trip_month.month)

    def check(self) -> None:
        """Raise `WrongMonth` if too few of the pickups are in the file's month, or no trip has a pickup time."""
        month = self._trip_month
        total, own = self._days.total(), sum(self.within.values())
        if not total and self._unknown:
            raise WrongMonth(
                f"{month}: none of its {self._unknown:,} trips has a {self._column}, so their month is unknown."
                " Nothing was published. Compare that column with the source's file."
            )
        if own >= (min(total, 1) if total <= FEW else OWN_SHARE * total):
            return
        words = next(words for applies, words in _CAUSES if applies(month.file_month, self._days))
        raise WrongMonth(
            f"{month}: {total - own:,} of {total:,} trips are of {_listed(self.elsewhere)}:"
            f" {words.format(months=', '.join(self.elsewhere))} the file of {_name(month.file_month)}."
            " Nothing was published."
        )


def _name(day: dt.date) -> str:
    return f"{day.year:04d}-{day.month:02d}"


def _listed(months: Mapping[str, int]) -> str:
    """Return the months with their trips, in words. If there are many, name those with the most trips."""
    if len(months) == 1:
        return next(iter(months))
    most = sorted(sorted(months, key=lambda name: -months[name])[:_MOST_MONTHS])
    more = f" and {len(months) - len(most)} more months" if len(months) > len(most) else ""
    return ", ".join(f"{name} ({months[name]:,})" for name in most) + more
