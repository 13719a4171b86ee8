"""Where a store's months come from: a source on the web, the lake, or the very files that its months were made of."""

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from flows.connectors.known import known_publication
from flows.connectors.web import published_at
from flows.stores import STORES, MonthStore
from flows.tlc.catalog import refusal
from flows.tlc.errors import NotPublished, TripDataError
from flows.tlc.manifest import Manifest, Present, RawFile
from flows.tlc.sources import Ending, PublishedFile, Source
from flows.tlc.trips import Terms, TripMonth


class LookedUp(BaseModel):
    """What a run has to do about a month."""

    model_config = ConfigDict(frozen=True)

    present: Present
    found: PublishedFile | RawFile | Manifest
    """A file to fetch, a file that is there, or a month of the lake."""
    unchanged: Manifest | None = None
    """What the store has of the month, if there is nothing to do."""
    why: str = ""
    """Why there is nothing to do, as the rest of a sentence about the month."""
    terms: Terms = Terms()
    sha256: str = ""
    """The digest that the file must have; "" if any edition will do."""

    def held(self, raw: RawFile | Manifest) -> Manifest | None:
        """Return what the store has of the month if it was made of the very bytes of `raw`."""
        again = isinstance(raw, RawFile) and not self.sha256 and self.present.holds(raw, self.terms.rows)
        return self.present.manifest if again else None


class Origin(Protocol):
    """Where a store's months come from."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Compare what there is of a month with what the store has."""


@dataclass(frozen=True)
class Web:
    """A source that publishes files."""

    source: Source
    terms: Terms

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Ask the source.

        Raises:
            RefusedMonth: It refuses a month that is known to be published.
        """
        present = store.present(trip_month)
        published = _published(trip_month, self.source.url(trip_month), self.source.ending, store, present.manifest)
        if present.covers(published, self.terms.rows):
            new = present.manifest.new_columns if present.manifest else ()
            accepted = f"; its new columns ({', '.join(new)}) were accepted" if new else ""
            why = f"is unchanged at its source and in {STORES[store.name].title}{accepted}; nothing to do"
            return LookedUp(present=present, found=published, unchanged=present.manifest, why=why)
        return LookedUp(present=present, found=published, terms=self.terms)


@dataclass(frozen=True)
class FromLake:
    """The lake, from which the warehouse is loaded."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Find the month in the lake; raise `Gone` if it is not there."""
        store.lake.check()
        manifest = store.lake.required(trip_month)
        present = store.present(trip_month)
        if present.manifest and present.manifest.same_rows(manifest):
            why = f"is unchanged in the lake and in {STORES[store.name].title}; nothing to do"
            return LookedUp(present=present, found=manifest, unchanged=present.manifest, why=why)
        return LookedUp(present=present, found=manifest)


@dataclass(frozen=True)
class Again:
    """The very files that a store's months were made of, for months that have quarantined rows."""

    def look_up(self, trip_month: TripMonth, store: Any) -> LookedUp:
        """Find the file, or where it has to be fetched again.

        Raises:
            TripDataError: The store does not have the month.
        """
        present = store.present(trip_month)
        before = present.manifest
        if before is None:
            flow = "etl-web-gcs" if store.name == "lake" else "ingest-data"
            raise TripDataError(f"{trip_month} is not in {STORES[store.name].title}; run {flow} for it first.")
        if not before.quarantined:
            why = "has no quarantined rows; it is left alone"
            return LookedUp(present=present, found=before, unchanged=before, why=why)
        raw = store.raw_of(before)
        found = raw or _published(trip_month, before.url, before.published.ending, store, before)
        terms = Terms(before.rule, before.schema_rule)
        return LookedUp(present=present, found=found, terms=terms, sha256=before.sha256)


def _published(
    trip_month: TripMonth, url: str, ending: Ending, store: MonthStore, held: Manifest | None
) -> PublishedFile:
    try:
        return published_at(trip_month, url, ending)
    except NotPublished as error:
        refused = refusal(trip_month, url, error, known_publication(trip_month, url), {store.name: held})
        raise refused or error from error.__cause__
