"""What a source publishes against what the stores hold, month by month: the differences, as values."""

import csv
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from flows.tlc.errors import NotPublished, UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import FIRST_MONTH, Store, TripMonth, bound_of

# How a month at its source stands to a store's.
Standing = Literal[
    "new", "re-published", "other source", "unchanged", "gone", "not published", "no answer", "behind the lake"
]
_LAGS: tuple[Standing, ...] = ("new", "re-published", "other source", "behind the lake")
_WAY: tuple[Store, ...] = get_args(Store)


def months_between(colors: Iterable[str], since: str, until: str, today: dt.date | None = None) -> list[TripMonth]:
    """Every month that can exist of `colors`, from `since` to `until`, both included, oldest first.

    A bound is a month such as 2019-01, a whole year such as 2019, or "": TLC's first month, or today's.
    """
    now = today or dt.datetime.now(dt.UTC).date()
    first = bound_of("since", since, 1) if since else min(FIRST_MONTH.values())
    last = min(bound_of("until", until, 12), (now.year, now.month)) if until else (now.year, now.month)
    if first > last:
        raise UnknownMonth(
            "from {}-{:02d} to {}-{:02d} there is no month that could be published.".format(*first, *last)
        )
    return [
        TripMonth(color, year, month)
        for year in range(first[0], last[0] + 1)
        for month in range(1, 13)
        for color in dict.fromkeys(colors)
        if max(first, FIRST_MONTH[color]) <= (year, month) <= last
    ]


def oldest_first(trip_months: Iterable[TripMonth]) -> list[TripMonth]:
    """Each month once, by time, then by color."""
    return sorted(set(trip_months), key=lambda trip_month: (trip_month.file_month, trip_month.color))


def months_ago(count: int, today: dt.date | None = None) -> str:
    """The month so many months before this one, as a bound of `months_between`."""
    now = today or dt.datetime.now(dt.UTC).date()
    year, month = divmod(now.year * 12 + now.month - 1 - count, 12)
    return f"{year}-{month + 1:02d}"


def standing(url: str, published: PublishedFile | None, held: Manifest | None) -> Standing:
    """How a store's month stands to what its source publishes at `url` (None: nothing)."""
    if published is None:
        return "gone" if held and held.url == url else "not published"
    if held is None:
        return "new"
    if _same_file(published, held):
        return "unchanged"
    return "re-published" if held.url == url else "other source"


def _same_file(published: PublishedFile, held: Manifest) -> bool:
    """By the version its publisher gives it; where there is none, by its time, else by its size."""
    if published.size not in (held.size, None):
        return False
    for now, then in ((published.etag, held.etag), (published.last_modified, held.last_modified)):
        if now and then:
            return now == then
    return published.size == held.size


@dataclass(frozen=True)
class Found:
    """A month as its source and the stores that matter were found: `held` has a key for each of those stores."""

    trip_month: TripMonth
    url: str
    answer: PublishedFile | Exception
    held: Mapping[Store, Manifest | None]
    unfinished: bool = False  # the lake's month is there, but the run that published it died before its end

    @property
    def unanswered(self) -> Exception | None:
        """Why it is not known whether the month is published."""
        return None if isinstance(self.answer, PublishedFile | NotPublished) else self.answer

    def stands(self, store: Store) -> Standing:
        """How a store's month stands to the source's; for BigQuery, which is loaded from the lake, to the lake's."""
        held = self.held[store]
        if store != "warehouse":
            return standing(self.url, self.answer if isinstance(self.answer, PublishedFile) else None, held)
        lake = self.held["lake"]
        if lake is None or self.stands("lake") in _LAGS:
            return self.stands("lake")
        return "unchanged" if held and held.same_rows(lake) else "behind the lake"

    @property
    def behind(self) -> list[Store]:
        """The stores to be brought up to date, in the order in which that has to be done."""
        if self.unanswered:
            return []
        lag = [store for store in _WAY if store in self.held and self.stands(store) in _LAGS]
        lake = self.held.get("lake")
        # BigQuery takes only what has today's schema.
        outdated = "warehouse" in lag and lake and lake.schema_version != SCHEMA_VERSION
        again = isinstance(self.answer, PublishedFile) and (outdated or self.unfinished)
        return ["lake", *lag] if again and "lake" not in lag else lag


@dataclass(frozen=True)
class KnownFile:
    """A published file as it was when somebody counted it."""

    rows: int
    size: int
    last_modified: str


def known_files(lines: Iterable[str]) -> dict[str, KnownFile]:
    """Known files by name, from CSV with the columns file, rows, bytes, last_modified; lines that begin with # are skipped."""
    return {
        row["file"]: KnownFile(int(row["rows"]), int(row["bytes"]), row["last_modified"])
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    }


@dataclass(frozen=True)
class Held:
    """A month that is in the lake now, and the bytes of its Parquet there."""

    manifest: Manifest
    size: int
    finished: bool = True


@dataclass(frozen=True)
class Entry:
    """A line of the catalog: what the lake holds of a month, how its source stands to that (None: not asked), what is known.

    `published` is what the source has now: None if it has nothing, gave no answer or was not asked.
    """

    trip_month: TripMonth
    held: Held | None
    source: Standing | None
    published: PublishedFile | None
    known: KnownFile | None

    @property
    def differs(self) -> list[str]:
        """What is not as its source has it, or as it was last known, in words."""
        words: list[str] = [self.source] if self.source in (*_LAGS, "gone", "no answer") else []
        if self.recounted and self.known:
            words.append(f"{self.known.rows:,} rows were known on {self.known.last_modified[:10]}")
        return words

    @property
    def recounted(self) -> bool:
        """Whether the file that is held has not as many rows as were known of it."""
        return bool(self.held and self.known and self.held.manifest.source_rows != self.known.rows)


def entry_of(
    trip_month: TripMonth,
    held: Held | None,
    known: KnownFile | None,
    answer: PublishedFile | Exception | None,
    url: str,
) -> Entry:
    """The catalog's line of a month; `answer` is what the source at `url` said, None if it was not asked."""
    source: Standing | None = None
    if answer is not None:
        found = Found(trip_month, url, answer, {"lake": held.manifest if held else None})
        source = "no answer" if found.unanswered else found.stands("lake")
    return Entry(trip_month, held, source, answer if isinstance(answer, PublishedFile) else None, known)
