"""What a source publishes against what the stores hold, month by month: the differences, as values."""

import csv
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from flows.tlc.addresses import shown
from flows.tlc.errors import NotPublished, RefusedMonth, UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import FIRST_MONTH, Store, TripMonth, bound_of

# How a month at its source stands to a store's.
Standing = Literal[
    "new",
    "re-published",
    "other source",
    "unchanged",
    "gone",
    "refused",
    "not published",
    "no answer",
    "behind the lake",
]
_LAGS: tuple[Standing, ...] = ("new", "re-published", "other source", "behind the lake")
_FORBIDDEN = 403  # by HTTP: the server, or a proxy before it, does not say whether the file is there
_WAY: tuple[Store, ...] = get_args(Store)


def months_between(colors: Iterable[str], since: str, until: str, today: dt.date | None = None) -> list[TripMonth]:
    """Every month that can exist of `colors`, from `since` to `until`, both included, oldest first.

    A bound is a month such as 2019-01, a whole year such as 2019, or "": TLC's first month, or today's.

    Raises:
        UnknownMonth: A bound is no month, or there is no month of any of the colors between them.
    """
    now = today or dt.datetime.now(dt.UTC).date()
    first = bound_of("since", since, 1) if since else min(FIRST_MONTH.values())
    named = bound_of("until", until, 12) if until else (now.year, now.month)
    if first > named and until:
        raise UnknownMonth(f"until ({until}) is before since ({since or '{}-{:02d}'.format(*first)}).")
    last = min(named, (now.year, now.month))
    if first > last:
        raise UnknownMonth(f"since ({since}) is in the future.")
    asked = list(dict.fromkeys(colors))
    found = [
        TripMonth(color, year, month)
        for year in range(first[0], last[0] + 1)
        for month in range(1, 13)
        for color in asked
        if max(first, FIRST_MONTH[color]) <= (year, month) <= last
    ]
    if asked and not found:
        begin = ", ".join("{} {}-{:02d}".format(color, *FIRST_MONTH[color]) for color in asked)
        raise UnknownMonth(
            f"until {last[0]}-{last[1]:02d} there is no month that could be published: TLC's files begin with {begin}."
        )
    return found


def oldest_first(trip_months: Iterable[TripMonth]) -> list[TripMonth]:
    """Each month once, by time, then by color."""
    return sorted(set(trip_months), key=lambda trip_month: (trip_month.file_month, trip_month.color))


def months_ago(count: int, today: dt.date | None = None) -> str:
    """The month so many months before this one, as a bound of `months_between`."""
    now = today or dt.datetime.now(dt.UTC).date()
    year, month = divmod(now.year * 12 + now.month - 1 - count, 12)
    return f"{year}-{month + 1:02d}"


def months_since(trip_month: TripMonth, today: dt.date | None = None) -> int:
    """Return how many months ago a month was."""
    now = today or dt.datetime.now(dt.UTC).date()
    return (now.year - trip_month.year) * 12 + now.month - trip_month.month


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
    """Return whether a store holds this edition; where no version can be compared, the size alone tells."""
    same = published.same_edition(held.published)
    return published.size == held.size if same is None else same


@dataclass(frozen=True)
class Found:
    """A month as its source and the stores that matter were found: `held` has a key for each of those stores."""

    trip_month: TripMonth
    url: str
    answer: PublishedFile | Exception
    held: Mapping[Store, Manifest | None]
    unfinished: bool = False  # the lake's month is there, but the run that published it died before its end
    known: str = ""  # that the month is known to be published at `url`, in words

    @property
    def unanswered(self) -> Exception | None:
        """Why it is not known whether the month is published."""
        return None if isinstance(self.answer, PublishedFile | NotPublished) else self.answer

    @property
    def wrong(self) -> Exception | None:
        """Why the source has to be looked into: it gave no answer, or refuses a month that is known to be published."""
        if isinstance(self.answer, NotPublished):
            return refusal(self.trip_month, self.url, self.answer, self.known, self.held)
        return self.unanswered

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


def refusal(
    trip_month: TripMonth, url: str, answer: NotPublished, known: str, held: Mapping[Store, Manifest | None]
) -> RefusedMonth | None:
    """Return the error for a refused month that is known to be published, or None if nothing is known of it.

    Args:
        trip_month: The month.
        url: Its address at the source.
        answer: What the source answered.
        known: That the month is known to be published at `url`, in words; "" if it is not.
        held: What the stores hold of the month. They count if they have it from `url`.
    """
    evidence = [
        f"{manifest.source_rows:,} rows in the {store}, {manifest.published_at:%Y-%m-%d}"
        for store, manifest in held.items()
        if manifest and manifest.url == url
    ]
    evidence += [known] if known else []
    if not evidence:
        return None
    if answer.status is None:
        why = f"but there is no file at {shown(url)}: it was moved or deleted, or its disk is not mounted."
    else:
        why = (
            f"but {shown(url)} answered HTTP {answer.status}: a proxy or firewall may be blocking this machine, or the publisher"
            " withdrew it. Open the address from another network to find out which."
        )
    return RefusedMonth(
        f"{trip_month} is known to be published ({'; '.join(evidence)}), {why} What the stores hold of the month stays."
    )


def overdue(color: str, found: Iterable[Found], within: int, source: str, today: dt.date | None = None) -> str:
    """Return in words that a color's newest published month is more than `within` months ago; "" if it is not.

    It is "" too where that cannot be judged: not all of those months were asked for, or the source gave no answer about one.
    """
    asked = [month for month in found if month.trip_month.color == color]
    recent = [month for month in asked if months_since(month.trip_month, today) <= within]
    all_refused = all(isinstance(month.answer, NotPublished) for month in recent)
    if not within or len(recent) <= within or not all_refused:
        return ""
    newest = max((m.trip_month for m in asked if isinstance(m.answer, PublishedFile)), default=None)
    place = shown(source)
    what = (
        f"the newest month published at {place} is {newest.file_month:%Y-%m}, more than {within} months ago"
        if newest
        else f"no month since {min(m.trip_month for m in asked).file_month:%Y-%m} is published at {place}"
    )
    return (
        f"{color}: {what}; see whether the publisher is late, and whether this machine reaches the publisher's own, newest files."
        " expect_within takes another number of months, and 0 for any."
    )


@dataclass(frozen=True)
class KnownRange:
    """Range of months that a source publishes; their row counts are unknown. The source ends with them."""

    source: str
    color: str
    first: tuple[int, int]
    last: tuple[int, int]
    evidence: str

    def covers(self, trip_month: TripMonth) -> bool:
        """Return whether the month is one of them."""
        return trip_month.color == self.color and self.first <= (trip_month.year, trip_month.month) <= self.last


_MIRROR = "DataTalksClub's mirror, see https://github.com/DataTalksClub/nyc-tlc-data/releases"
KNOWN_RANGES = (
    KnownRange("mirror", "yellow", (2019, 1), (2021, 7), _MIRROR),
    KnownRange("mirror", "green", (2019, 1), (2021, 7), _MIRROR),
    KnownRange("mirror", "fhv", (2019, 1), (2021, 7), _MIRROR),
    KnownRange("mirror", "fhvhv", (2019, 2), (2021, 7), _MIRROR),
)


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
        words: list[str] = [self.source] if self.source in (*_LAGS, "gone", "refused", "no answer") else []
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
    published_before: str = "",
) -> Entry:
    """Return the catalog's line of a month.

    Args:
        trip_month: The month.
        held: What the lake holds of it.
        known: What is known of the file that is held, or else of the source's.
        answer: What the source said, None if it was not asked.
        url: Its address at the source.
        published_before: That the month is known to be published at `url`, in words.
    """
    source: Standing | None = None
    if answer is not None:
        found = Found(trip_month, url, answer, {"lake": held.manifest if held else None})
        source = "no answer" if found.unanswered else found.stands("lake")
        forbidden = isinstance(answer, NotPublished) and answer.status == _FORBIDDEN
        if (source == "not published" and published_before) or (source == "gone" and forbidden):
            source = "refused"
    return Entry(trip_month, held, source, answer if isinstance(answer, PublishedFile) else None, known)
