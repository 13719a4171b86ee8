"""The stores of months: the interface of a store, the list of stores, and the function that opens each.

To add a store, write a module here and add a row to `STORES`: see docs/extending.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.connectors.growing_file import GrowingFile
from flows.tlc.catalog import Also, ListedMonth
from flows.tlc.manifest import Manifest, Outcome, Present, RawFile, StagedMonth
from flows.tlc.pipeline import Add
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Rows, Store, Terms, TripMonth, Via


class MonthStore(Protocol):
    """A store of months. A month is complete in the store, or absent.

    `stage` and `publish` are two steps. Each can be retried alone. No reader sees a staged month.
    """

    name: Store

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the store can be used."""

    def present(self, trip_month: TripMonth) -> Present:
        """Return the state of a month in the store."""

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return a month's current manifest, or None. Reports compare a new edition or the next month with it."""

    def months(self, colors: Iterable[str], also: Also = "") -> dict[TripMonth, ListedMonth]:
        """Return every month of the colors that the store has. If `also` is "withdrawn", add those withdrawn from it."""

    def history(self, trip_month: TripMonth) -> list[Manifest]:
        """Return the manifest of each publication and withdrawal of a month, oldest first."""

    def stage(self, raw: Any, terms: Terms, run: str, add: Add) -> Any:
        """Write a month to staging, where no reader sees it. Count its rows and check it."""

    def publish(self, staged: Any, present: Present, run_id: str, by: str = "") -> Outcome:
        """Publish a staged month atomically, and write its manifest.

        Args:
            staged: What `stage` returned.
            present: The state that the run found at its start.
            run_id: The flow run's id, for the manifest.
            by: Who started the flow run, for the manifest.
        """

    def withdraw(self, trip_month: TripMonth, run_id: str, by: str = "") -> Outcome:
        """Delete a month's rows and mark its manifest as withdrawn, atomically for readers.

        Change nothing if it is withdrawn already. A load that names the month restores it.

        Raises:
            TripDataError: The store does not have the month.
        """

    def page(self, manifest: Manifest) -> str:
        """Return the URL of a web page about the month; "" if there is none."""


class FileStore(MonthStore, Protocol):
    """A store that is loaded from published files."""

    def extract(self, published: PublishedFile, add: Add, growing: GrowingFile | None = None) -> RawFile:
        """Copy a published file, byte for byte, to where `stage` reads it. Let another thread read it as `growing` meanwhile."""

    def stage(self, raw: Any, terms: Terms, run: str, add: Add, growing: GrowingFile | None = None) -> Any:
        """Write a month to staging. Read the bytes from `growing` if it is given: then only `raw.published` is set."""

    def discard(self, staged: StagedMonth) -> None:
        """Delete the staging of a month that will not be published."""

    def has(self, raw: RawFile) -> bool:
        """Return whether an extracted file still exists."""

    def raw_of(self, manifest: Manifest) -> RawFile | None:
        """Return the published file that a month was made from; None if it must be fetched again."""

    def edition(self, trip_month: TripMonth, name: str) -> RawFile:
        """Return an edition of a month's file from the lake, by the first digits of its sha256, for `stage` to read."""

    def remember(self, manifest: Manifest) -> None:
        """Write the manifest of a month without changing its rows."""


@dataclass(frozen=True)
class Target:
    """A store, and the names of the blocks that open it."""

    store: Store
    lake_block: str = GCS_BUCKET
    credentials_block: str = GCP_CREDENTIALS
    dataset: str = DATASET
    database_block: str = POSTGRES
    via: Via = "load_job"

    @property
    def title(self) -> str:
        """Return the store's name as it is used in sentences."""
        return STORES[self.store].title

    @property
    def bucket_block(self) -> str:
        """Return the name of the bucket block that keeps this store's published files; "" if this machine keeps them."""
        return self.lake_block if STORES[self.store].files == "bucket" else ""

    def with_store(self, store: Store) -> "Target":
        """Return another store, opened with the same blocks."""
        return replace(self, store=store)


LoadBlock = Callable[[str, str], Any]
"""Loads a Prefect block, given its type's slug and its name."""


@dataclass(frozen=True)
class Kind:
    """One row of `STORES`."""

    title: str
    open: Callable[[Target, LoadBlock], Any]
    rows: Rows = "all"
    """Which rows are loaded by default."""
    files: Literal["bucket", "machine", "lake"] = "machine"
    """Where its published files are kept: in its bucket, in this machine's scratch folder, or in the lake it is loaded from."""
    exclusive: bool = False
    """Whether a run must claim a month before it loads it: `claim(trip_month, on_wait)` of the store locks the month."""


# A store's module is imported when the store is opened, because its client library is slow to import.


def _lake(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.lake import Lake

    return Lake(load_block("gcs-bucket", target.lake_block))


def _warehouse(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.warehouse import Warehouse

    credentials = load_block("gcp-credentials", target.credentials_block)
    return Warehouse(credentials, target.dataset, _lake(target, load_block), target.via)


def _database(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.database import Database

    block = load_block("sqlalchemy-connector", target.database_block)
    # Only a run that loads an earlier edition needs the lake.
    return Database.from_block(block, target.database_block, lambda: _lake(target, load_block))


STORES: Mapping[Store, Kind] = {
    "lake": Kind("the lake", _lake, files="bucket"),
    "warehouse": Kind("BigQuery", _warehouse, files="lake"),
    "database": Kind("Postgres", _database, rows="with_passengers", exclusive=True),
}


def with_lake(named: Iterable[Store]) -> list[Store]:
    """Return the named stores in the order of loading. Add the lake if a store is loaded from it."""
    wanted = set(named)
    return [s for s in STORES if s in wanted or (s == "lake" and any(STORES[each].files == "lake" for each in wanted))]
