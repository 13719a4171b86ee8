"""The months that exist, and each month's names: its file, its URL, its keys, its partitions."""

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from flows.tlc.errors import ImpossibleDataset, UnknownMonth

Color = Literal["yellow", "green", "fhv", "fhvhv"]
Rows = Literal["all", "with_passengers"]
SchemaRule = Literal["strict", "accept_new_columns"]
Via = Literal["load_job", "dataframe"]
Store = Literal["lake", "warehouse", "database"]
Order = Literal["oldest", "newest"]
Spread = Literal["here", "queue", "dask"]

_LAST_YEAR = 2100
# The UI's form checks these limits during input. `trip_months` checks them for every caller, with fuller messages.
Year = Annotated[int, Field(json_schema_extra={"minimum": 2009, "maximum": _LAST_YEAR})]
Month = Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": 12})]
AtLeastOne = Annotated[int, Field(json_schema_extra={"minimum": 1})]
AtLeastZero = Annotated[int, Field(json_schema_extra={"minimum": 0})]
# For flows that also take `since` and `until`. The form shows a plain field, not a choice between a value and "null".
OptionalYear = Annotated[Year | None, WithJsonSchema({"type": "integer", "minimum": 2009, "maximum": _LAST_YEAR})]
OptionalMonths = Annotated[
    list[Month] | None, WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 12}})
]
# A bound of a range of months, such as 2019-02 or 2019; "" means none. `-p since=2019` and YAML pass a number.
Bound = Annotated[
    str,
    BeforeValidator(lambda bound: str(bound) if isinstance(bound, int) else bound),
    Field(json_schema_extra={"pattern": r"^(\d{4}(-\d{1,2})?)?$"}),
]


# An edition is named by the first digits of its file's sha256, at least this many.
EDITION_DIGITS = 12
EditionName = Annotated[str, Field(json_schema_extra={"pattern": f"^([0-9a-f]{{{EDITION_DIGITS},64}})?$"})]


def dataset_named(name: str) -> str:
    """Return the name if BigQuery accepts it for a dataset, else raise `ImpossibleDataset`.

    The name is put between backticks in SQL, so an unchecked one could inject SQL.
    """
    if not re.fullmatch(_DATASET, name):
        raise ImpossibleDataset(
            f"dataset {name!r} is not a valid BigQuery dataset name: use letters, digits and underscores, 1024 of them at most."
            " Nothing was started."
        )
    return name


_DATASET = "[A-Za-z0-9_]{1,1024}"
Dataset = Annotated[str, AfterValidator(dataset_named), Field(json_schema_extra={"pattern": f"^{_DATASET}$"})]


@dataclass(frozen=True)
class Terms:
    """How a file is loaded: which rows, and by which rule for its columns."""

    rows: Rows = "all"
    schema: SchemaRule = "strict"
    pinned: str = ""
    """The edition that a person chose, as in `Manifest.pinned`; "" for whatever the source publishes."""


COLORS: tuple[Color, ...] = get_args(Color)

# https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page
FIRST_MONTH: dict[str, tuple[int, int]] = {
    "yellow": (2009, 1),
    "green": (2013, 8),
    "fhv": (2015, 1),
    "fhvhv": (2019, 2),
}


@dataclass(frozen=True, order=True)
class TripMonth:
    """The trips of one published file, and their names: in files and addresses, in the lake, as partitions."""

    color: str
    year: int
    month: int

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise UnknownMonth(f"color {self.color!r} is unknown; use one of {', '.join(COLORS)}.")
        if not 1 <= self.month <= 12:
            raise UnknownMonth(f"month {self.month} does not exist; months are 1 to 12.")
        if self.year > _LAST_YEAR:
            raise UnknownMonth(f"{self.color} {self.year}-{self.month:02d} is in the future.")
        if (self.year, self.month) < FIRST_MONTH[self.color]:
            first = "{}-{:02d}".format(*FIRST_MONTH[self.color])
            raise UnknownMonth(
                f"{self.color} {self.year}-{self.month:02d}: TLC's {self.color} files begin with {first}."
            )

    def __str__(self) -> str:
        return f"{self.color} {self.year}-{self.month:02d}"

    @property
    def stem(self) -> str:
        """Return TLC's file name without its ending."""
        return f"{self.color}_tripdata_{self.year}-{self.month:02d}"

    @property
    def file_month(self) -> dt.date:
        """Return the first day of the month in the file's name: one half of every row's primary key."""
        return dt.date(self.year, self.month, 1)

    @property
    def previous(self) -> "TripMonth | None":
        """Return the month before, or None for the first one ever published."""
        year, month = self.year - (self.month == 1), (self.month - 2) % 12 + 1
        return TripMonth(self.color, year, month) if (year, month) >= FIRST_MONTH[self.color] else None

    @property
    def partition(self) -> str:
        """Return BigQuery's partition id, such as 202101 in `yellow$202101`."""
        return f"{self.year}{self.month:02d}"

    @property
    def postgres_partition(self) -> str:
        """Return the name of the Postgres table with this month's rows."""
        return f"{self.color}_{self.year}_{self.month:02d}"

    def raw_key(self, ending: str) -> str:
        """Return the lake's key of the file as published."""
        return f"raw/{self.color}/{self.stem}{ending}"

    @property
    def key(self) -> str:
        """Return the lake's key of the canonical trips."""
        return f"{self.color}/{self.stem}.parquet"

    @property
    def quarantine_key(self) -> str:
        """Return the lake's key of the quarantined rows, with their reasons."""
        return f"quarantine/{self.color}/{self.stem}.parquet"

    @property
    def extra_key(self) -> str:
        """Return the lake's key of the columns that the schema does not know, as published."""
        return f"extra/{self.color}/{self.stem}.parquet"

    @property
    def manifest_key(self) -> str:
        """Return the lake's key of the month's manifest, which is written last."""
        return f"manifests/{self.color}/{self.stem}.json"

    def history_key(self, entry: str) -> str:
        """Return the lake's key of one entry of the month's history; the prefix of all of them if `entry` is ""."""
        return f"history/{self.color}/{self.stem}/" + (f"{entry}.json" if entry else "")

    @property
    def results_key(self) -> str:
        """Return the lake's key of a flow run's cached result for this month. Prefect fills in the run's id."""
        return f"results/{self.stem}-{{flow_run.id}}.json"

    def url(self, template: str) -> str:
        """Return the month's address from a template with `{color}`, `{year}` and `{month}`."""
        return template.format(color=self.color, year=self.year, month=self.month)


def staged_key(key: str, run: str) -> str:
    """Return the lake's key of the object that run `run` stages to publish under `key`."""
    stem, dot, ending = key.partition(".")
    return f"staging/{stem}-{run}{dot}{ending}"


def edition_key(raw_key: str, sha256: str) -> str:
    """Return the lake's key of an edition of the file that is published at `raw_key`."""
    folder, _, name = raw_key.rpartition("/")
    stem, dot, ending = name.partition(".")
    return f"{folder}/editions/{stem}-{sha256[:EDITION_DIGITS]}{dot}{ending}"


# The prefixes of the lake's keys with temporary objects.
TEMPORARY_KEYS = ("staging/", "results/")
# A run is named by the id of its flow run, or "local". An upload is named by the digits of such an id.
_RUN = "[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}|local"


def temporary_names(endings: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches the lake's temporary keys and no other key. A published file has one of these endings."""
    run, month = "{flow_run.id}", f"{_LAST_YEAR}-12"
    names = []
    for trip_month in (TripMonth(color, _LAST_YEAR, 12) for color in COLORS):
        keys = [trip_month.key, trip_month.quarantine_key, trip_month.extra_key, *map(trip_month.raw_key, endings)]
        names += [trip_month.results_key, *(staged_key(key, run) for key in keys)]
    pattern = "|".join(map(re.escape, names)).replace(re.escape(month), "[0-9]{4}-[0-9]{2}")
    return re.compile(pattern.replace(re.escape(run), f"(?:{_RUN})"))


def trip_months(color: str, year: int, months: Sequence[int], today: dt.date | None = None) -> list[TripMonth]:
    """Return the requested months, each once, in the order given. Raise `UnknownMonth` if one of them cannot exist."""
    if not months:
        raise UnknownMonth("months is empty; name at least one, such as [1, 2, 3]. Nothing was started.")
    latest = today or dt.datetime.now(dt.UTC).date()
    chosen = []
    wrong = []
    for month in dict.fromkeys(months):
        try:
            chosen.append(TripMonth(color, year, month))
            if chosen[-1].file_month > latest:
                wrong.append(f"{chosen[-1]} is in the future.")
        except UnknownMonth as error:
            wrong.append(str(error))
    if wrong:
        raise UnknownMonth(" ".join(dict.fromkeys(wrong)) + " Nothing was started.")
    return chosen


_BOUND = re.compile(r"(\d{4})(?:-(\d{1,2}))?")


def bound_of(name: str, text: str, month: int) -> tuple[int, int]:
    """Return the year and month of a bound called `name`: a month such as 2019-02, or `month` of a year such as 2019."""
    match = _BOUND.fullmatch(text.strip())
    if not match or not 1 <= int(match[2] or month) <= 12:
        raise UnknownMonth(f"{name} is {text!r}; give a month, such as 2019-01, or a year, such as 2019.")
    return int(match[1]), int(match[2] or month)


def month_named(text: str) -> TripMonth:
    """Return the month with this name, such as green 2021-01. Raise `UnknownMonth` if it cannot exist."""
    color, _, date = text.strip().partition(" ")
    if "-" not in date:
        raise UnknownMonth(f"month {text!r} is not a color and a month, such as green 2021-01; in a list, quote each.")
    year, month = bound_of("the month", date, 1)
    return trip_months(color, year, [month])[0]


def requested_months(
    color: str, year: int | None, months: Sequence[int] | None, since: str, until: str, today: dt.date | None = None
) -> list[TripMonth]:
    """Return the months of a run: `months` of `year` in the order given, or every month from `since` to `until`, oldest first.

    If both are given, use the range, because a deployment may have stored year and months. If a bound is a year, such as
    2013, leave out its months that cannot exist. Raise `UnknownMonth` if any other month cannot exist.
    """
    if since or until:
        return _range(color, since, until, today or dt.datetime.now(dt.UTC).date())
    if year is None and not months:
        raise UnknownMonth(
            "no month is named; give a year and months, such as 2021 and [1, 2, 3], or since and until, such as 2021-01 and"
            " 2021-03. Nothing was started."
        )
    if year is None:
        raise UnknownMonth("year is missing; give it with months, or give since and until. Nothing was started.")
    return trip_months(color, year, months or [], today)


def _range(color: str, since: str, until: str, today: dt.date) -> list[TripMonth]:
    if not until:
        raise UnknownMonth(
            f"since is {since}, and until is missing; give the last month too, such as --until {since}. Nothing was started."
            " To load whatever is published since a month, run bring-up-to-date."
        )
    if not since:
        raise UnknownMonth(f"until is {until}, and since is missing; give the first month too. Nothing was started.")
    first, last = bound_of("since", since, 1), bound_of("until", until, 12)
    if first > last:
        raise UnknownMonth(f"until ({until}) is before since ({since}). Nothing was started.")
    for bound, (year, month) in ((since, first), (until, last)):
        if "-" in bound:
            trip_months(color, year, [month], today)
    found = every_month(color, first, min(last, (today.year, today.month)))
    if not found:
        raise UnknownMonth(
            f"{color} has no month from {since} to {until}: TLC's {color} files begin with"
            f" {'{}-{:02d}'.format(*FIRST_MONTH[color])}, and this is {today:%Y-%m}. Nothing was started."
        )
    return found


def every_month(color: str, first: tuple[int, int], last: tuple[int, int]) -> list[TripMonth]:
    """Return a color's months from `first` to `last`, both included, that are not before TLC's first month."""
    begin = max(first, FIRST_MONTH.get(color, first))
    dates = ((year, month) for year in range(begin[0], last[0] + 1) for month in range(1, 13))
    return [TripMonth(color, *date) for date in dates if begin <= date <= last]


def in_words(months: Sequence[TripMonth]) -> str:
    """Return one color's months as a short text: green 2021-01 to 2021-03, or green 2021-01, 2021-05."""
    numbers = [month.year * 12 + month.month for month in months]
    names = [f"{month.year}-{month.month:02d}" for month in months]
    unbroken = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{months[0].color} " + (f"{names[0]} to {names[-1]}" if unbroken and len(names) > 2 else ", ".join(names))
