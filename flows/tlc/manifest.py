"""The manifest of a month in a store: its rows and their source. A JSON object in the lake, a row of the `loads` tables."""

import base64
import binascii
import datetime as dt
import json
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from flows.tlc.addresses import stored
from flows.tlc.schema import SCHEMA_VERSION, Column, Kind
from flows.tlc.sources import Ending, PublishedFile, ending_of
from flows.tlc.trips import EDITION_DIGITS, Rows, SchemaRule, Store, TripMonth


def package_version() -> str:
    """Return the version of this package, for manifests."""
    try:
        return version("nyc-taxi-flows")
    except PackageNotFoundError:  # run from a bare checkout
        return "unknown"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Profile(_Value):
    """What the loaded trips of a month look like."""

    sums: dict[str, float] = {}  # of each column of money, in US$, rounded to cents; one that is not finite is absent
    days: dict[dt.date, int] = {}  # trips on each day of the file's month
    elsewhere: dict[str, int] = {}  # trips in each other month
    quality: dict[str, int] = {}  # trips that meet each rule of quality.py, as of the time of the load


# How the received bytes were checked against the server's headers: by a digest, by their number, or not at all.
Verified = Literal["", "length", "crc32c", "md5", "sha256"]


class RawFile(_Value):
    """A published file in the lake or in a scratch folder, byte for byte."""

    published: PublishedFile
    key: str
    generation: int
    size: int
    sha256: str
    verified: Verified = ""

    @property
    def trip_month(self) -> TripMonth:
        """Return the month of the file's name."""
        return self.published.trip_month


class Stored(NamedTuple):
    """Mark a fact as a column of every `loads` table."""

    kind: Kind
    meaning: str
    json: bool = False  # it is stored as JSON text


class Changes(_Value):
    """The rows that publishing an edition inserted, updated and removed."""

    inserted: Annotated[int, Stored("integer", "rows inserted by publishing this edition")] = 0
    updated: Annotated[int, Stored("integer", "rows updated by publishing this edition")] = 0
    removed: Annotated[int, Stored("integer", "rows removed by publishing this edition")] = 0

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(**{name: count + getattr(other, name) for name, count in self})


def _without_query(url: str) -> str:
    # Older versions took the ending of the file from the query, if the path had none.
    return stored(url) if ending_of(url) else url


class Origin(_Value):
    """The published file that a month was made from."""

    color: Annotated[str, Stored("text", "TLC's file prefix")]
    file_month: Annotated[dt.date, Stored("date", "first day of the month in the file's name")]
    url: Annotated[str, AfterValidator(_without_query), Stored("text", "where it was published, without the query")]
    etag: Annotated[str | None, Stored("text", "the file's ETag, as its server sent it")]
    last_modified: Annotated[str | None, Stored("text", "the file's Last-Modified time, as its server sent it")]
    size: Annotated[int, Stored("integer", "bytes as published")]
    sha256: Annotated[str, Stored("text", "of the bytes as published")]
    verified: Annotated[Verified, Stored("text", "how its transfer was checked: by digest, by length, or not")] = ""

    @classmethod
    def of(cls, raw: RawFile) -> "Origin":
        """Return the facts about a raw file."""
        return Origin(
            color=raw.trip_month.color,
            file_month=raw.trip_month.file_month,
            **raw.published.model_dump(include={"url", "etag", "last_modified"}),
            **raw.model_dump(include={"size", "sha256", "verified"}),
        )


class Reading(_Value):
    """The facts found by reading a month's file. They are the same in staging, after publishing, and in every store."""

    era: Annotated[str, Stored("text", "the row of flows/tlc/eras.py that describes the file")]
    columns: Annotated[tuple[str, ...], Stored("text", "column names as published, JSON", json=True)]
    rule: Annotated[Rows, Stored("text", "which rows were wanted: all, or with_passengers")]
    source_rows: Annotated[int, Stored("integer", "rows in the file = loaded + filtered + quarantined")]
    loaded: Annotated[int, Stored("integer", "rows in this store")]
    filtered: Annotated[dict[str, int], Stored("text", "rows left out by the rule, JSON: rule to count", json=True)]
    quarantined: Annotated[dict[str, int], Stored("text", "rows that did not fit, JSON: reason to count", json=True)]
    profile: Annotated[
        Profile,
        Stored("text", "sums of money, trips by day, data-quality counts, JSON: see flows/tlc/quality.py", json=True),
    ] = Profile()
    new_columns: tuple[str, ...] = ()
    pinned: Annotated[
        str, Stored("text", "the edition that a person chose: the first digits of its sha256; empty if nobody did")
    ] = ""
    repeated: Annotated[
        tuple[int, int] | None,
        Stored("text", "row numbers where a repeated part of a CSV and its first copy end, JSON", json=True),
    ] = None


class Manifest(Changes, Reading, Origin):
    """The facts about one month in one store. No secrets.

    Each fact is declared once. A fact marked `Stored` is also a column of the `loads` tables.
    """

    key: Annotated[str, Stored("text", "the object in the lake that these rows came from, if any")] = ""
    generation: Annotated[int, Stored("integer", "its generation")] = 0
    quarantine_key: Annotated[str, Stored("text", "the object in the lake with the quarantined rows, if any")] = ""
    extra_key: str = ""
    replaces: int = 0
    known_rows: Annotated[
        int | None, Stored("integer", "rows of the previous edition, or the known count of TLC's file")
    ] = None
    fault: Annotated[
        str, Stored("text", "what a verification found wrong with this month; the next run loads the month again")
    ] = ""
    schema_version: Annotated[int, Stored("integer", "version of the canonical schema")]
    package_version: Annotated[str, Stored("text", "version of this package")]
    flow_run_id: Annotated[str, Stored("text", "the Prefect flow run that published it")]
    started_by: Annotated[str, Stored("text", "schedule, deployment or user that started that run")] = ""
    started_at: Annotated[
        dt.datetime, Stored("instant", "when the conversion started; the file may still have been arriving")
    ]
    published_at: Annotated[dt.datetime, Stored("instant", "when the month was published, or withdrawn")]
    withdrawn_at: Annotated[
        dt.datetime | None, Stored("instant", "when the month was withdrawn from this store; null if it is there")
    ] = None

    @property
    def edition(self) -> str:
        """Return the name of the edition that the month was made from."""
        return self.sha256[:EDITION_DIGITS]

    @property
    def trip_month(self) -> TripMonth:
        """Return the month."""
        return TripMonth(self.color, self.file_month.year, self.file_month.month)

    @property
    def changes(self) -> Changes:
        """Return the rows that publishing the month changed in its store."""
        return Changes(**{name: getattr(self, name) for name in Changes.model_fields})

    @property
    def published(self) -> PublishedFile:
        """Return the file that the month was made from, as its source described it then."""
        return PublishedFile(
            trip_month=self.trip_month,
            url=self.url,
            # Older versions took the ending from the whole address, including the query.
            ending=cast(Ending, ending_of(self.url) or ending_of(self.url.replace("?", "/"))),
            etag=self.etag,
            last_modified=self.last_modified,
            size=self.size,
        )

    @property
    def schema_rule(self) -> SchemaRule:
        """Return the rule under which this file's columns can be loaded again."""
        return "accept_new_columns" if self.new_columns else "strict"

    @property
    def recount(self) -> str:
        """Return a text if the file's row count differs from `known_rows`; else ""."""
        if self.known_rows in (None, self.source_rows):
            return ""
        return (
            f"re-published: {self.source_rows:,} rows, {self.known_rows:,} were last known"
            f" ({self.source_rows - self.known_rows:+,})"
        )

    def withdrawn(self, flow_run_id: str, started_by: str = "") -> "Manifest":
        """Return a copy of the manifest, marked as withdrawn now by this flow run."""
        now = dt.datetime.now(dt.UTC)
        gone: dict[str, Any] = {
            **dict(Changes(removed=self.loaded)),
            "pinned": "",
            "fault": "",
            "flow_run_id": flow_run_id,
        }
        gone |= {
            "package_version": package_version(),
            "started_by": started_by,
            "started_at": now,
            "published_at": now,
            "withdrawn_at": now,
        }
        return self.model_copy(update=gone)

    def same_publication(self, flow_run_id: str, generation: int) -> bool:
        """Return whether this flow run published the month from this generation of the lake's object."""
        return (self.flow_run_id, self.generation, self.withdrawn_at) == (flow_run_id, generation, None)

    def row(self) -> dict[str, Any]:
        """Return the facts as a flat row of a `loads` table."""
        facts = self.model_dump() | {"profile": self.profile.model_dump(mode="json")}
        return {
            column.name: json.dumps(facts[column.name]) if column.name in _JSON else facts[column.name]
            for column in LOADS_COLUMNS
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Manifest":
        """Return the manifest that `row()` was called on."""
        facts = {name: json.loads(value) if name in _JSON and value else value for name, value in row.items()}
        return cls.model_validate(
            {name: value for name, value in facts.items() if value is not None or name in _NULLABLE}
        )

    def packed(self, room: int) -> str:
        """Return the manifest as compressed text of at most `room` characters, for the metadata of an object.

        If it is too long, leave out the profile, then all new columns but the first. Return "" if it is too long even then.
        """
        shorter = self.model_copy(update={"profile": Profile()})
        shortest = shorter.model_copy(update={"new_columns": self.new_columns[:1]})  # `schema_rule` stays the same
        for manifest in (self, shorter, shortest):
            packed = zlib.compress(manifest.model_dump_json(exclude_defaults=True).encode())
            if len(text := base64.b64encode(packed).decode()) <= room:
                return text
        return ""

    @classmethod
    def unpacked(cls, text: str) -> "Manifest | None":
        """Return the manifest that `packed()` returned; None for any other text."""
        with suppress(binascii.Error, zlib.error, ValidationError):
            return cls.model_validate_json(zlib.decompress(base64.b64decode(text)))
        return None

    def covers(self, published: PublishedFile, rule: Rows) -> bool:
        """Return whether the store already has exactly this file, under this rule and today's schema, without a fault."""
        same = stored(published.url) == self.url and published.same_edition(self.published)
        return bool(same) and self._same_terms(rule)

    def has_bytes(self, raw: RawFile, rule: Rows) -> bool:
        """Return whether the store already has these bytes: published again, or from a source that sends no version."""
        return raw.sha256 == self.sha256 and self._same_terms(rule)

    def seen_at(self, raw: "RawFile | Manifest") -> "Manifest":
        """Return a copy of the manifest with the address, version and check of `raw`, which has the same bytes."""
        seen = raw.published.model_dump(include={"etag", "last_modified"}) | {"url": stored(raw.published.url)}
        return self.model_copy(update=seen | {"verified": raw.verified or self.verified})

    def same_rows(self, lake: "Manifest") -> bool:
        """Return whether this month, which was loaded from the lake, still has the same rows as the lake.

        The rows are the same if the lake still has that object, or if a newer object changed no row. They are not if a
        verification found a fault.
        """
        idle = lake.replaces == self.generation and not (lake.inserted or lake.updated or lake.removed)
        terms = ("sha256", "rule", "schema_version")
        same = self.generation == lake.generation or idle
        return same and not self.fault and all(getattr(self, t) == getattr(lake, t) for t in terms)

    def _same_terms(self, rule: Rows) -> bool:
        return (self.rule, self.schema_version, self.fault) == (rule, SCHEMA_VERSION, "")


_STORED = {
    name: mark for name, field in Manifest.model_fields.items() for mark in field.metadata if isinstance(mark, Stored)
}
_JSON = {name for name, mark in _STORED.items() if mark.json}
_NULLABLE = {"etag", "last_modified"}  # a null in any other column: the row was written before `loads` had that column

# The `loads` table of BigQuery and Postgres: one row per month, committed with the data.
LOADS_COLUMNS = tuple(Column(name, mark.kind, mark.meaning) for name, mark in _STORED.items())


class StagedMonth(Reading):
    """A month in staging: written, counted, checked, and ready to publish."""

    raw: RawFile
    key: str
    generation: int = 0
    quarantine_key: str = ""
    extra_key: str = ""
    started_at: dt.datetime

    @property
    def trip_month(self) -> TripMonth:
        """Return the month that is staged."""
        return self.raw.published.trip_month

    def manifest(self, flow_run_id: str, **published: Any) -> Manifest:
        """Return the manifest to publish this month with. `published` has the store's own facts, such as `key`."""
        facts: dict[str, Any] = dict(Origin.of(self.raw)) | {name: getattr(self, name) for name in Reading.model_fields}
        return Manifest(
            **facts | published,
            schema_version=SCHEMA_VERSION,
            package_version=package_version(),
            flow_run_id=flow_run_id,
            started_at=self.started_at,
            published_at=dt.datetime.now(dt.UTC),
        )


class StagedCopy(_Value):
    """A month of the lake, staged in a store that is loaded from the lake."""

    manifest: Manifest
    table: str = ""  # the staging table, if there is one

    @property
    def trip_month(self) -> TripMonth:
        """Return the month that is staged."""
        return self.manifest.trip_month


class Present(_Value):
    """The state of a month in a store when a run begins."""

    manifest: Manifest | None = None  # None if the store has nothing, or no valid manifest
    generation: int = 0  # of the month's object in the lake; 0 if there is none
    finished: bool = True  # whether the run that published it wrote the manifest

    def covers(self, published: PublishedFile, rule: Rows) -> bool:
        """Return whether the store already has exactly this file, under this rule and today's schema."""
        return self.manifest is not None and self.finished and self.manifest.covers(published, rule)

    def has_bytes(self, raw: RawFile, rule: Rows) -> bool:
        """Return whether the store already has these bytes: published again, or from a source that sends no version."""
        return self.manifest is not None and self.finished and self.manifest.has_bytes(raw, rule)


def timeline(*manifests: Manifest) -> list[Manifest]:
    """Return a month's manifests, oldest first. If two have the same time of publication, keep the later argument."""
    by_time = {manifest.published_at: manifest for manifest in manifests}
    return [by_time[time] for time in sorted(by_time)]


Status = Literal["loaded", "replaced", "unchanged", "withdrawn"]


class Outcome(_Value):
    """The result of a run for one month in one store."""

    store: Store
    status: Status
    manifest: Manifest
    warnings: tuple[str, ...] = ()  # what a person should look at, in sentences: see attention.py

    @property
    def trip_month(self) -> TripMonth:
        """Return the month."""
        return self.manifest.trip_month

    @property
    def changes(self) -> Changes:
        """Return the rows that this run changed in the store: none if the month is unchanged."""
        return Changes() if self.status == "unchanged" else self.manifest.changes

    @property
    def in_store(self) -> int:
        """Return how many of the month's rows are in the store now."""
        return 0 if self.manifest.withdrawn_at else self.manifest.loaded

    def __str__(self) -> str:
        month = self.manifest
        if month.withdrawn_at:
            again = " before" if self.status == "unchanged" else f"; {month.removed:,} rows removed"
            return f"{self.trip_month}: withdrawn from the {self.store}{again}"
        counts = [f"{month.source_rows:,} rows published", f"{month.loaded:,} in the {self.store}"]
        counts += [f"{count:,} left out ({rule})" for rule, count in month.filtered.items()]
        counts += [f"{count:,} quarantined ({reason})" for reason, count in month.quarantined.items()]
        if self.status == "replaced":
            counts.append(f"{month.inserted:,} inserted, {month.updated:,} updated, {month.removed:,} removed")
        return f"{self.trip_month}: {self.status}; {', '.join(counts)}"


def total(outcomes: Sequence[Outcome]) -> str:
    """Return the rows of several months in words, such as 14,851,920 rows in 2 months; store by store if they differ."""
    by_store: dict[Store, list[Outcome]] = {}
    for outcome in outcomes:
        by_store.setdefault(outcome.store, []).append(outcome)
    sums = []
    for store, every in by_store.items():
        published, loaded = sum(o.manifest.source_rows for o in every), sum(o.in_store for o in every)
        months = "1 month" if len(every) == 1 else f"{len(every)} months"
        if published != loaded:
            sums.append(f"{published:,} rows published, {loaded:,} in the {store}, in {months}")
        else:
            sums.append(f"{loaded:,} rows in {months}" + (f" in the {store}" if len(by_store) > 1 else ""))
    return "; ".join(sums)
