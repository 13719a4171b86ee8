"""What a store holds of a month, and where it came from: the lake's catalog entry, and a row of every `loads` table."""

import datetime as dt
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from flows.tlc.clean import Tally
from flows.tlc.quality import Profile
from flows.tlc.schema import SCHEMA_VERSION, Column
from flows.tlc.sources import Ending, PublishedFile, ending_of
from flows.tlc.trips import Rows, SchemaRule, Store, TripMonth


def package_version() -> str:
    """The version of this package, for manifests."""
    try:
        return version("nyc-taxi-flows")
    except PackageNotFoundError:  # run from a bare checkout
        return "unknown"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


# How the bytes that came were compared with what the server promised of them: a digest, their number, or nothing.
Verified = Literal["", "length", "crc32c", "md5", "sha256"]


class RawFile(_Value):
    """A published file as the lake (or a scratch folder) keeps it, byte for byte."""

    published: PublishedFile
    key: str
    generation: int
    size: int
    sha256: str
    verified: Verified = ""


class Manifest(_Value):
    """One month in one store. No secrets, nothing of the machine that loaded it."""

    color: str
    file_month: dt.date
    url: str
    etag: str | None
    last_modified: str | None
    size: int
    sha256: str
    era: str
    columns: tuple[str, ...]
    rule: Rows
    source_rows: int
    loaded: int
    filtered: dict[str, int]
    quarantined: dict[str, int]
    profile: Profile = Profile()
    inserted: int = 0
    updated: int = 0
    removed: int = 0
    key: str = ""
    generation: int = 0
    replaces: int = 0
    quarantine_key: str = ""
    new_columns: tuple[str, ...] = ()
    extra_key: str = ""
    schema_version: int
    package_version: str
    flow_run_id: str
    started_at: dt.datetime
    published_at: dt.datetime
    known_rows: int | None = None
    """Rows that were last known of this file, before it was loaded; for people, and in no `loads` table."""
    repeated: tuple[int, int] | None = None
    """The row where a repeated part of a CSV ends, and the row where its first copy ends; in no `loads` table either."""
    verified: Verified = ""
    """How the transfer was checked; "" also where an older version of this package loaded the file. In no `loads` table."""

    @property
    def trip_month(self) -> TripMonth:
        """The month this is about."""
        return TripMonth(self.color, self.file_month.year, self.file_month.month)

    @property
    def published(self) -> PublishedFile:
        """The file it was made of, as its source told of it then."""
        return PublishedFile(
            trip_month=self.trip_month,
            url=self.url,
            # Older versions judged the whole address, with its query.
            ending=cast(Ending, ending_of(self.url) or ending_of(self.url.replace("?", "/"))),
            etag=self.etag,
            last_modified=self.last_modified,
            size=self.size,
        )

    @property
    def schema_rule(self) -> SchemaRule:
        """The rule by which this file's columns can be loaded again."""
        return "accept_new_columns" if self.new_columns else "strict"

    @property
    def recount(self) -> str:
        """That the file's rows are not as many as were last known, in words; "" if they are, or nothing was known."""
        if self.known_rows in (None, self.source_rows):
            return ""
        return (
            f"re-published: {self.source_rows:,} rows, {self.known_rows:,} were last known"
            f" ({self.source_rows - self.known_rows:+,})"
        )

    def row(self) -> dict[str, Any]:
        """The same facts, flat, as a row of a `loads` table."""
        facts = self.model_dump() | {"profile": self.profile.model_dump(mode="json")}
        return {
            column.name: json.dumps(facts[column.name]) if column.name in _JSON else facts[column.name]
            for column in LOADS_COLUMNS
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Manifest":
        """The manifest that `row()` made."""
        facts = {name: json.loads(value) if name in _JSON and value else value for name, value in row.items()}
        return cls.model_validate(
            {name: value for name, value in facts.items() if value is not None or name in _NULLABLE}
        )

    def covers(self, published: PublishedFile, rule: Rows) -> bool:
        """Whether the store already holds exactly this file, under this rule and today's schema."""
        same = published.url == self.url and published.same_edition(self.published)
        return bool(same) and self._same_terms(rule)

    def holds(self, raw: RawFile, rule: Rows) -> bool:
        """Whether the store already holds these bytes; for sources that tell no version, and for a touched file."""
        return raw.sha256 == self.sha256 and self._same_terms(rule)

    def seen_at(self, raw: RawFile) -> "Manifest":
        """The same month, now known to be what `raw` was published as."""
        published = raw.published
        return self.model_copy(
            update={
                "url": published.url,
                "etag": published.etag,
                "last_modified": published.last_modified,
                "verified": raw.verified or self.verified,
            }
        )

    def same_rows(self, lake: "Manifest") -> bool:
        """Whether a store loaded from the lake, of which this tells, still holds the rows that the lake does.

        It does if it was loaded from that very object, or the object took that one's place without changing a row.
        """
        idle = lake.replaces == self.generation and not (lake.inserted or lake.updated or lake.removed)
        terms = ("sha256", "rule", "schema_version")
        return (self.generation == lake.generation or idle) and all(getattr(self, t) == getattr(lake, t) for t in terms)

    def _same_terms(self, rule: Rows) -> bool:
        return (self.rule, self.schema_version) == (rule, SCHEMA_VERSION)


_JSON = {"columns", "filtered", "quarantined", "profile"}
_NULLABLE = {"etag", "last_modified"}  # null in another column: loaded before `loads` had it

# The `loads` table of BigQuery and Postgres: a row a month, committed with the data.
LOADS_COLUMNS = (
    Column("color", "text", "TLC's file prefix"),
    Column("file_month", "date", "first day of the month in the file's name"),
    Column("url", "text", "where the file was published"),
    Column("etag", "text", "its version, by its publisher"),
    Column("last_modified", "text", "its time, by its publisher"),
    Column("size", "integer", "bytes as published"),
    Column("sha256", "text", "of the bytes as published"),
    Column("era", "text", "which row of flows/tlc/eras.py it is like"),
    Column("columns", "text", "column names as published, JSON"),
    Column("rule", "text", "which rows were wanted: all, or with_passengers"),
    Column("source_rows", "integer", "rows in the file = loaded + filtered + quarantined"),
    Column("loaded", "integer", "rows in this store"),
    Column("filtered", "text", "rows left out by the rule, JSON: rule to count"),
    Column("quarantined", "text", "rows that did not fit, JSON: reason to count"),
    Column("profile", "text", "sums of money, trips by day, data-quality counts, JSON: see flows/tlc/quality.py"),
    Column("inserted", "integer", "rows that publishing it added to the month"),
    Column("updated", "integer", "rows that publishing it changed"),
    Column("removed", "integer", "rows that publishing it took away"),
    Column("key", "text", "the object in the lake these rows came from, if they did"),
    Column("generation", "integer", "its generation"),
    Column("quarantine_key", "text", "the object in the lake that holds the quarantined rows, if any"),
    Column("schema_version", "integer", "version of the canonical schema"),
    Column("package_version", "text", "version of this package"),
    Column("flow_run_id", "text", "the Prefect flow run that published it"),
    Column("started_at", "instant", "when the month was begun"),
    Column("published_at", "instant", "when it was published"),
)


class StagedMonth(_Value):
    """A month written where nobody reads it yet, counted and checked, ready to publish."""

    raw: RawFile
    rule: Rows
    era: str
    columns: tuple[str, ...]
    source_rows: int
    loaded: int
    filtered: dict[str, int]
    quarantined: dict[str, int]
    profile: Profile
    key: str
    generation: int = 0
    quarantine_key: str = ""
    new_columns: tuple[str, ...] = ()
    extra_key: str = ""
    repeated: tuple[int, int] | None = None
    started_at: dt.datetime

    @classmethod
    def of(  # noqa: D102 - a constructor
        cls,
        raw: RawFile,
        rule: Rows,
        era: str,
        columns: tuple[str, ...],
        tally: Tally,
        profile: Profile,
        started_at: dt.datetime,
        *,
        key: str,
        generation: int = 0,
        quarantine_key: str = "",
        new_columns: tuple[str, ...] = (),
        extra_key: str = "",
    ) -> "StagedMonth":
        tally.check(raw.published.trip_month)
        return cls(
            raw=raw,
            rule=rule,
            era=era,
            columns=columns,
            source_rows=tally.source_rows,
            loaded=tally.loaded,
            filtered={rule: count for rule, count in tally.filtered.items() if count},
            quarantined=dict(tally.quarantined),
            profile=profile,
            key=key,
            generation=generation,
            quarantine_key=quarantine_key,
            new_columns=new_columns,
            extra_key=extra_key,
            repeated=tally.repeated,
            started_at=started_at,
        )

    def manifest(
        self,
        flow_run_id: str,
        *,
        key: str = "",
        generation: int = 0,
        quarantine_key: str = "",
        extra_key: str = "",
    ) -> Manifest:
        """What is to be said of this month once it is published, at this moment."""
        published = self.raw.published
        return Manifest(
            color=published.trip_month.color,
            file_month=published.trip_month.file_month,
            url=published.url,
            etag=published.etag,
            last_modified=published.last_modified,
            size=self.raw.size,
            sha256=self.raw.sha256,
            verified=self.raw.verified,
            era=self.era,
            columns=self.columns,
            rule=self.rule,
            source_rows=self.source_rows,
            loaded=self.loaded,
            filtered=self.filtered,
            quarantined=self.quarantined,
            profile=self.profile,
            key=key,
            generation=generation,
            quarantine_key=quarantine_key,
            new_columns=self.new_columns,
            extra_key=extra_key,
            repeated=self.repeated,
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            flow_run_id=flow_run_id,
            started_at=self.started_at,
            published_at=dt.datetime.now(dt.UTC),
        )


Status = Literal["loaded", "replaced", "unchanged"]


class Outcome(_Value):
    """What a run did to one month in one store."""

    trip_month: TripMonth
    store: Store
    status: Status
    loaded: int
    source_rows: int
    filtered: dict[str, int]
    quarantined: dict[str, int]
    inserted: int = 0
    updated: int = 0
    removed: int = 0
    warnings: tuple[str, ...] = ()
    """What a person should look at, in sentences: see attention.py."""

    @classmethod
    def of(
        cls,
        store: Store,
        status: Status,
        manifest: Manifest,
        warnings: tuple[str, ...] = (),
        **changes: int,
    ) -> "Outcome":
        """What became of the month that `manifest` tells of."""
        return cls(
            trip_month=manifest.trip_month,
            store=store,
            status=status,
            loaded=manifest.loaded,
            source_rows=manifest.source_rows,
            filtered=manifest.filtered,
            quarantined=manifest.quarantined,
            warnings=warnings,
            **changes,
        )

    def __str__(self) -> str:
        counts = [f"{self.source_rows:,} rows published", f"{self.loaded:,} in the {self.store}"]
        counts += [f"{count:,} left out ({rule})" for rule, count in self.filtered.items()]
        counts += [f"{count:,} quarantined ({reason})" for reason, count in self.quarantined.items()]
        if self.status == "replaced":
            counts.append(f"{self.inserted:,} inserted, {self.updated:,} updated, {self.removed:,} removed")
        return f"{self.trip_month}: {self.status}; {', '.join(counts)}"


def total(outcomes: Sequence[Outcome]) -> str:
    """Return the rows of several months in words, such as 14,851,920 rows in 2 months; store by store if they differ."""
    by_store: dict[Store, list[Outcome]] = {}
    for outcome in outcomes:
        by_store.setdefault(outcome.store, []).append(outcome)
    sums = []
    for store, of in by_store.items():
        published, loaded = sum(o.source_rows for o in of), sum(o.loaded for o in of)
        months = "1 month" if len(of) == 1 else f"{len(of)} months"
        if published != loaded:
            sums.append(f"{published:,} rows published, {loaded:,} in the {store}, in {months}")
        else:
            sums.append(f"{loaded:,} rows in {months}" + (f" in the {store}" if len(by_store) > 1 else ""))
    return "; ".join(sums)
