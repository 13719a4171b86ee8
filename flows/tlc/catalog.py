"""Compare a source with the stores, month by month. The differences are returned as values."""

import csv
import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from flows.tlc.addresses import shown, stored
from flows.tlc.errors import NotPublished, RefusedMonth, UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import FIRST_MONTH, Store, TripMonth, bound_of, every_month

# How a month in a store compares with the month at its source.
SyncStatus = Literal[
    "new",
    "re-published",
    "other source",
    "unchanged",
    "gone",
    "refused",
    "not published",
    "no answer",
    "behind the lake",
    "pinned",
    "withdrawn",
    "damaged",
]
# Which months a store's list has besides its own.
Also = Literal["", "withdrawn"]
_LAGS: tuple[SyncStatus, ...] = ("new", "re-published", "other source", "behind the lake", "damaged")
DECIDED_BY_A_PERSON: tuple[SyncStatus, ...] = ("pinned", "withdrawn")
"""A person decided about such a month. `bring-up-to-date` and `backfill` do not change it."""
_FORBIDDEN = 403  # HTTP status: the server, or a proxy, does not say whether the file exists
_IN_ORDER: tuple[Store, ...] = get_args(Store)


def months_between(colors: Iterable[str], since: str, until: str, today: dt.date | None = None) -> list[TripMonth]:
    """Return every month of `colors` that can exist, from `since` to `until`, both included, oldest first.

    A bound is a month such as 2019-01, a year such as 2019, or "": TLC's first month, or the current month. Raise
    `UnknownMonth` if a bound is neither, or if none of the colors has a month between the bounds.
    """
    now = today or dt.datetime.now(dt.UTC).date()
    first = bound_of("since", since, 1) if since else min(FIRST_MONTH.values())
    named = bound_of("until", until, 12) if until else (now.year, now.month)
    if first > named and until:
        raise UnknownMonth(
            f"until ({until}) is before since ({since or '{}-{:02d}'.format(*first)}); give an earlier since or a later until."
        )
    last = min(named, (now.year, now.month))
    if first > last:
        raise UnknownMonth(f"since ({since}) is in the future.")
    asked = list(dict.fromkeys(colors))
    found = [trip_month for color in asked for trip_month in every_month(color, first, last)]
    if asked and not found:
        begin = ", ".join("{} {}-{:02d}".format(color, *FIRST_MONTH[color]) for color in asked)
        raise UnknownMonth(f"these colors have no month up to {last[0]}-{last[1]:02d}: TLC's files begin with {begin}.")
    return sorted(found, key=lambda trip_month: trip_month.file_month)


def oldest_first(trip_months: Iterable[TripMonth]) -> list[TripMonth]:
    """Return each month once, by time, then by color."""
    return sorted(set(trip_months), key=lambda trip_month: (trip_month.file_month, trip_month.color))


def months_ago(count: int, today: dt.date | None = None) -> str:
    """Return the month `count` months before the current one, as a bound for `months_between`."""
    now = today or dt.datetime.now(dt.UTC).date()
    year, month = divmod(now.year * 12 + now.month - 1 - count, 12)
    return f"{year}-{month + 1:02d}"


def months_since(trip_month: TripMonth, today: dt.date | None = None) -> int:
    """Return how many months ago a month was."""
    now = today or dt.datetime.now(dt.UTC).date()
    return (now.year - trip_month.year) * 12 + now.month - trip_month.month


def sync_status(url: str, published: PublishedFile | None, manifest: Manifest | None) -> SyncStatus:
    """Return how a store's month compares with the file that its source publishes at `url` (None: no file)."""
    if manifest is None:
        return "not published" if published is None else "new"
    if manifest.withdrawn_at:
        return "withdrawn"
    return _status_of(manifest, published, url)


def _status_of(manifest: Manifest, published: PublishedFile | None, url: str) -> SyncStatus:
    if manifest.fault and manifest.pinned:  # the edition is in the lake, so the source is not needed to mend it
        return "damaged"
    if published is None:
        return "gone" if manifest.url == stored(url) else "not published"
    if manifest.fault:  # a verification found that the month is not as it was published
        return "damaged"
    same = published.same_edition(manifest.published)
    if published.size == manifest.size if same is None else same:  # without a version to compare, the size decides
        return "unchanged"
    if manifest.pinned:
        return "pinned"
    return "re-published" if manifest.url == stored(url) else "other source"


@dataclass(frozen=True)
class Found:
    """The state of a month at its source and in the stores of a run.

    `manifests` has a key for each of those stores. It includes the manifest of a withdrawn month.
    """

    trip_month: TripMonth
    url: str
    answer: PublishedFile | Exception
    manifests: Mapping[Store, Manifest | None]
    unfinished: bool = False  # true if the run that published the month in the lake died before it wrote the manifest
    known: str = ""  # the evidence that the month is published at `url`, as text; "" if there is none

    @property
    def published(self) -> PublishedFile | None:
        """Return the source's file, or None."""
        return self.answer if isinstance(self.answer, PublishedFile) else None

    @property
    def unanswered(self) -> Exception | None:
        """Return the source's error if it is unknown whether the month is published, else None."""
        return None if isinstance(self.answer, PublishedFile | NotPublished) else self.answer

    @property
    def source_error(self) -> Exception | None:
        """Return the error if the source gave no answer, or refuses a month that was published before; else None.

        A refusal is no error if a person decided about the month, because the publisher may have withdrawn it: if the month was
        withdrawn and no store of the run has it, or if every store has it pinned or withdrawn. BigQuery has what the lake has.
        """
        if isinstance(self.answer, NotPublished):
            from_files = [manifest for store, manifest in self.manifests.items() if store != "warehouse"]
            there = [manifest for manifest in self.manifests.values() if manifest]
            if there and all(manifest.withdrawn_at for manifest in there):
                return None
            if from_files and all(manifest and (manifest.withdrawn_at or manifest.pinned) for manifest in from_files):
                return None
            return refusal(self.trip_month, self.url, self.answer, self.known, self.manifests)
        return self.unanswered

    def decided(self, store: Store) -> SyncStatus | None:
        """Return "pinned" or "withdrawn" if a run leaves a store's month as it is because a person decided so; else None."""
        manifest = self.manifests.get(store)
        if manifest is None or self.unanswered:
            return None
        status = self.status(store)
        if manifest.pinned and self.published is None and status not in _LAGS:
            return "pinned"
        return status if status in DECIDED_BY_A_PERSON else None

    def status(self, store: Store) -> SyncStatus:
        """Return how a store's month compares with the source. BigQuery's months are compared with the lake's."""
        manifest, lake = self.manifests[store], self.manifests.get("lake")
        if store != "warehouse":
            return sync_status(self.url, self.published, manifest)
        if manifest and manifest.withdrawn_at:
            return "withdrawn"
        if lake and lake.withdrawn_at and manifest:
            return "unchanged"
        if lake is None or lake.withdrawn_at or self.status("lake") in _LAGS:
            return self.status("lake")
        return "unchanged" if manifest and manifest.same_rows(lake) else "behind the lake"

    @property
    def behind(self) -> list[Store]:
        """Return the stores to bring up to date, in the order of loading."""
        if self.unanswered:
            return []
        lag = [store for store in _IN_ORDER if store in self.manifests and self.status(store) in _LAGS]
        lake = self.manifests.get("lake")
        # BigQuery accepts only months with today's schema.
        outdated = "warehouse" in lag and lake and lake.schema_version != SCHEMA_VERSION
        alone = "lake" in self.manifests and self.status("lake") in DECIDED_BY_A_PERSON
        again = self.published and (outdated or self.unfinished) and not alone
        return ["lake", *lag] if again and "lake" not in lag else lag


def refusal(
    trip_month: TripMonth, url: str, answer: NotPublished, known: str, manifests: Mapping[Store, Manifest | None]
) -> RefusedMonth | None:
    """Return the error for a refused month that was published before; None without evidence of that.

    The evidence: the text `known`, and each store's manifest of the month if it was loaded from the same `url`.
    """
    evidence = [
        f"{manifest.source_rows:,} rows in the {store}, {manifest.published_at:%Y-%m-%d}"
        for store, manifest in manifests.items()
        if manifest and manifest.url == stored(url) and not manifest.withdrawn_at
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
        f"{trip_month} was published before ({'; '.join(evidence)}), {why} The stores keep their rows of the month."
    )


def overdue(color: str, found: Iterable[Found], within: int, source: str, today: dt.date | None = None) -> str:
    """Return an error text if a color's newest published month is more than `within` months ago; else "".

    Return "" too if this is unknown: the run did not ask for all of those months, or one had no answer.
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
        f"{color}: {what}; check whether the publisher is late, and whether this machine reaches the publisher's newest files."
        " To expect months later, raise expect_within; 0 turns this check off."
    )


@dataclass(frozen=True)
class KnownRange:
    """A range of months that a source publishes for every color. Row counts are unknown. It publishes no later month."""

    source: str
    first: tuple[int, int]
    last: tuple[int, int]
    evidence: str

    def covers(self, trip_month: TripMonth) -> bool:
        """Return whether the month is in the range."""
        return self.first <= (trip_month.year, trip_month.month) <= self.last


_MIRROR = "DataTalksClub's mirror, see https://github.com/DataTalksClub/nyc-tlc-data/releases"
KNOWN_RANGES = (KnownRange("mirror", (2019, 1), (2021, 7), _MIRROR),)


@dataclass(frozen=True)
class KnownFile:
    """The facts about a published file when its rows were counted."""

    rows: int
    size: int
    last_modified: str


def known_files(lines: Iterable[str]) -> dict[str, KnownFile]:
    """Return known files by name, from CSV with the columns file, rows, bytes, last_modified. Skip lines that begin with #."""
    return {
        row["file"]: KnownFile(int(row["rows"]), int(row["bytes"]), row["last_modified"])
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    }


@dataclass(frozen=True)
class ListedMonth:
    """A month in a store's list: its manifest, its size in bytes, and whether the run that published it wrote the manifest."""

    manifest: Manifest
    size: int
    finished: bool = True


@dataclass(frozen=True)
class Entry:
    """An entry of the catalog: one month."""

    trip_month: TripMonth
    listed: ListedMonth | None  # in the lake
    source: SyncStatus | None  # None if the source was not asked
    published: PublishedFile | None  # None without a file, without an answer, or if the source was not asked
    known: KnownFile | None
    withdrawn_at: dt.datetime | None = None

    @property
    def differs(self) -> list[str]:
        """Return texts on how the month differs from its source, or from the known row count."""
        words: list[str] = [self.source] if self.source in (*_LAGS, "gone", "refused", "no answer") else []
        if self.withdrawn_at:
            words.append(f"withdrawn on {self.withdrawn_at:%Y-%m-%d}")
        if self.listed and self.listed.manifest.pinned:
            words.append(f"pinned to edition {self.listed.manifest.pinned}")
        if self.recounted and self.known:
            words.append(f"{self.known.rows:,} rows were known on {self.known.last_modified[:10]}")
        return words

    @property
    def recounted(self) -> bool:
        """Return whether the file's row count in the lake differs from the known one."""
        return bool(self.listed and self.known and self.listed.manifest.source_rows != self.known.rows)


def entry_of(
    trip_month: TripMonth,
    listed: ListedMonth | None,
    known: KnownFile | None,
    answer: PublishedFile | Exception | None,
    url: str,
    published_before: str = "",
) -> Entry:
    """Return the catalog's entry of a month. A withdrawn month has a `withdrawn_at` instead of `listed`.

    `known` has the counts of the lake's file, or else of the source's file. `published_before` is the evidence
    that the month is published at `url`, as text; "" if there is none.
    """
    there = None if listed and listed.manifest.withdrawn_at else listed
    withdrawn_at = listed.manifest.withdrawn_at if listed else None
    if answer is None:
        return Entry(trip_month, there, None, None, known, withdrawn_at)
    found = Found(trip_month, url, answer, {"lake": listed.manifest if listed else None})
    source = "no answer" if found.unanswered else found.status("lake")
    forbidden = isinstance(answer, NotPublished) and answer.status == _FORBIDDEN
    if (source == "not published" and published_before) or (source == "gone" and forbidden):
        source = "refused"
    return Entry(trip_month, there, source, found.published, known, withdrawn_at)
