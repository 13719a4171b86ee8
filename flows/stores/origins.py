"""Where a store's months come from: a source on the web, an edition in the lake's raw zone, the lake, or their own files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from flows.connectors.known_months import known_publication
from flows.connectors.web import published_at, source_of
from flows.stores import STORES, MonthStore
from flows.tlc.addresses import escaped
from flows.tlc.catalog import refusal
from flows.tlc.errors import NotPublished, TripDataError, UnknownEdition, VerificationFailed
from flows.tlc.manifest import Manifest, Present, RawFile
from flows.tlc.sources import Ending, PublishedFile, Source
from flows.tlc.trips import EDITION_DIGITS, Terms, TripMonth


class LookedUp(BaseModel):
    """The result of looking up a month: what a run has to load, if anything."""

    model_config = ConfigDict(frozen=True)

    present: Present
    found: PublishedFile | RawFile | Manifest
    """A file to fetch, a file already fetched, or the manifest of a month in the lake."""
    unchanged: Manifest | None = None
    """The store's manifest of the month, if there is nothing to do."""
    why: str = ""
    """Why there is nothing to do: the rest of a sentence that begins with the month's name."""
    lost: str = ""
    """What a person decided about the month and this run cannot keep, as text."""
    terms: Terms = Terms()
    sha256: str = ""
    """The SHA-256 that the file must have; "" if any edition is accepted."""

    def loaded_from(self, raw: RawFile | Manifest) -> Manifest | None:
        """Return the store's manifest with this run's pin if the month was made from exactly the bytes of `raw`; else None."""
        manifest = self.present.manifest
        again = isinstance(raw, RawFile) and not self.sha256 and self.present.has_bytes(raw, self.terms.rows)
        return manifest.model_copy(update={"pinned": self.terms.pinned}) if manifest and again else None

    @property
    def why_same_bytes(self) -> str:
        """Return the text for `why` if the store's month was made from the same bytes."""
        before = self.present.manifest.pinned if self.present.manifest else ""
        if self.terms.pinned:
            return f"has edition {self.terms.pinned} already, and is pinned to it now; no row was changed"
        if before:
            return f"is not pinned to edition {before} any more; its source has the same bytes, so no row was changed"
        return "was published again with the same bytes; nothing to do"


@dataclass(frozen=True)
class Web:
    """A source that publishes files."""

    source: Source
    terms: Terms
    unattended: bool = False
    """Whether nobody named the month. Then a pin or a withdrawal, which a person decided, stays."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Ask the source for the month. Raise `NotPublished`, or `RefusedMonth` if it was published before."""
        present = store.present(trip_month)
        last: Manifest | None = None
        if self.unattended:
            last = present.manifest or next(reversed(store.history(trip_month)), None)
        if last and (last.withdrawn_at or (last.pinned and present.manifest)):
            why = f"was {'withdrawn from' if last.withdrawn_at else 'pinned in'} {STORES[store.name].title} during this run"
            return LookedUp(present=present, found=last, unchanged=last, why=f"{why}; it is not updated")
        terms, lost = self.terms, ""
        if last and not present.manifest:  # the month vanished
            terms = Terms(last.rule, last.schema_rule)
            if last.pinned:
                try:
                    return FromEdition(last.pinned, terms).look_up(trip_month, store)
                except UnknownEdition as error:
                    lost = f"the month vanished, and so did the edition that it was pinned to; it is not pinned any more: {error}"
        published = _published(trip_month, self.source.url(trip_month), self.source.ending, store, present.manifest)
        pinned = present.manifest.pinned if present.manifest else ""
        if present.covers(published, self.terms.rows) and not pinned:  # this run removes a pin
            new = present.manifest.new_columns if present.manifest else ()
            accepted = f"; its new columns ({escaped(', '.join(new))}) were accepted" if new else ""
            why = f"is unchanged at its source and in {STORES[store.name].title}{accepted}; nothing to do"
            return LookedUp(present=present, found=published, unchanged=present.manifest, why=why)
        return LookedUp(present=present, found=published, terms=terms, lost=lost)


@dataclass(frozen=True)
class FromEdition:
    """One edition in the lake's raw zone. A month that is loaded from it is pinned to it."""

    name: str
    terms: Terms

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Find the edition. If it does not exist, raise `UnknownEdition` with a list of the month's editions."""
        present, raw = store.present(trip_month), store.edition(trip_month, self.name)
        terms = replace(self.terms, pinned=raw.sha256[:EDITION_DIGITS])
        manifest: Manifest | None = present.manifest
        if manifest and manifest.pinned == terms.pinned and present.has_bytes(raw, terms.rows):
            why = f"is pinned to edition {terms.pinned} in {STORES[store.name].title} already; nothing to do"
            return LookedUp(present=present, found=raw, unchanged=manifest, why=why)
        return LookedUp(present=present, found=raw, terms=terms)


def origin_of(source: str, edition: str, terms: Terms, trip_months: Sequence[TripMonth]) -> Web | FromEdition:
    """Return the origin of a run: the named edition of its only month, else the source. Raise an error if it is malformed."""
    web = Web(source_of(source), terms)
    if not edition:
        return web
    name = edition.lower()
    if not re.fullmatch(f"[0-9a-f]{{{EDITION_DIGITS},64}}", name):
        raise UnknownEdition(
            f"edition {edition!r} is not the name of an edition: give the first {EDITION_DIGITS} or more hexadecimal digits of"
            " its sha256. `python flows/catalog.py --editions green 2021-01` lists them. Nothing was started."
        )
    if len(trip_months) != 1:
        raise UnknownEdition(
            f"edition {name} belongs to one month, and {len(trip_months)} months are named; name only that month."
            " Nothing was started."
        )
    return FromEdition(name, terms)


@dataclass(frozen=True)
class FromLake:
    """The lake, from which the warehouse is loaded."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Find the month in the lake. Raise `Gone` if it is missing, `VerificationFailed` if a verification found it damaged."""
        manifest = store.lake.required(trip_month)
        present = store.present(trip_month)
        if present.manifest and present.manifest.same_rows(manifest):
            why = f"is unchanged in the lake and in {STORES[store.name].title}; nothing to do"
            return LookedUp(present=present, found=manifest, unchanged=present.manifest, why=why)
        if manifest.fault:
            raise VerificationFailed(
                f"{trip_month}: the lake's month is damaged ({manifest.fault}); run etl-web-gcs for it first."
            )
        return LookedUp(present=present, found=manifest)


@dataclass(frozen=True)
class Again:
    """The same files again, for a store's months that have quarantined rows."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Find the stored file, or its address to fetch it again. The store must have the month."""
        present = store.present(trip_month)
        before = present.manifest
        if before is None:
            flow = "etl-web-gcs" if store.name == "lake" else "ingest-data"
            raise TripDataError(f"{trip_month} is not in {STORES[store.name].title}; run {flow} for it first.")
        if not before.quarantined:
            why = "has no quarantined rows; it is not loaded"
            return LookedUp(present=present, found=before, unchanged=before, why=why)
        raw = store.raw_of(before) or (store.edition(trip_month, before.pinned) if before.pinned else None)
        found = raw or _published(trip_month, before.url, before.published.ending, store, before)
        terms = Terms(before.rule, before.schema_rule, before.pinned)
        return LookedUp(present=present, found=found, terms=terms, sha256=before.sha256)


Origin = Web | FromEdition | FromLake | Again
"""Where a store's months come from. `look_up` compares the month there with the month in the store."""


def _published(
    trip_month: TripMonth, url: str, ending: Ending, store: MonthStore, manifest: Manifest | None
) -> PublishedFile:
    try:
        return published_at(trip_month, url, ending)
    except NotPublished as error:
        refused = refusal(trip_month, url, error, known_publication(trip_month, url), {store.name: manifest})
        raise refused or error from error.__cause__
