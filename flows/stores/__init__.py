"""The stores of months: what a store must do, which stores there are, and how each is opened.

To add a store, write a module here and a row of `STORES`: see docs/extending.md.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.tlc.catalog import Held
from flows.tlc.manifest import Manifest, Outcome, Present, RawFile
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Rows, Store, Terms, TripMonth, Via

Add = Callable[[int, float], None]
"""Gets how many rows or bytes more are done, and the share of the month that is done by now."""


class MonthStore(Protocol):
    """A store of months. Each month is in it whole, or not at all.

    `stage` and `publish` are two steps, so that each can be retried alone: what is staged, no reader sees.
    """

    name: Store

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the store can be used."""

    def claim(self, trip_month: TripMonth, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold a month for one run where the store needs that; call `on_wait` once if another run holds it."""

    def present(self, trip_month: TripMonth) -> Present:
        """Return what the store has of a month."""

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the manifest of a month, to compare another one with; None if there is none."""

    def months(self, colors: Iterable[str]) -> dict[TripMonth, Held]:
        """Return every month that the store has of the colors."""

    def stage(self, raw: Any, terms: Terms, run: str, add: Add) -> Any:
        """Write a month where nobody reads it yet, count it and check it."""

    def publish(self, staged: Any, present: Present, run_id: str) -> Outcome:
        """Make a staged month the month, atomically, and write its manifest. `present` is what the run found at its start."""

    def page(self, manifest: Manifest) -> str:
        """Return the URL where a person sees the month; "" if there is none."""


class FileStore(MonthStore, Protocol):
    """A store that is loaded from published files."""

    block: Any
    """The Prefect block that keeps task results where every machine finds them; None: they stay on this machine."""

    def forget_result(self, key: str) -> None:
        """Delete a task's result that `block` keeps, if there is one."""

    def extract(self, published: PublishedFile, add: Add) -> RawFile:
        """Bring a published file, byte for byte, to where `stage` reads it."""

    def has(self, raw: RawFile) -> bool:
        """Return whether an extracted file is still there."""

    def raw_of(self, manifest: Manifest) -> RawFile | None:
        """Return the file that a month was made of; None if it has to be fetched again."""

    def remember(self, manifest: Manifest) -> None:
        """Write the manifest of a month whose rows are as they were."""


@dataclass(frozen=True)
class Target:
    """A store, by the names of the blocks that lead to it."""

    store: Store
    lake_block: str = GCS_BUCKET
    credentials_block: str = GCP_CREDENTIALS
    dataset: str = DATASET
    database_block: str = POSTGRES
    via: Via = "load_job"

    @property
    def title(self) -> str:
        """The store's name in sentences."""
        return STORES[self.store].title

    @property
    def file_key(self) -> str:
        """What tells where this store's published files are kept from where another's are; "" for this machine."""
        return self.lake_block if STORES[self.store].files == "bucket" else ""

    def of(self, store: Store) -> "Target":
        """Return another store by the same blocks."""
        return replace(self, store=store)


LoadBlock = Callable[[str, str], Any]
"""Loads a Prefect block by its type's slug and its name."""


@dataclass(frozen=True)
class Kind:
    """One row of `STORES`."""

    title: str
    open: Callable[[Target, LoadBlock], Any]
    rows: Rows = "all"
    """Which rows it is loaded with by default."""
    files: Literal["bucket", "machine", "lake"] = "machine"
    """Where its published files are kept: in its bucket, in this machine's scratch folder, or in the lake it is loaded from."""


# A store's module is imported when the store is opened: each brings a client that takes a while to load.


def _lake(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.lake import Lake

    return Lake(load_block("gcs-bucket", target.lake_block))


def _warehouse(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.warehouse import Warehouse

    credentials = load_block("gcp-credentials", target.credentials_block)
    return Warehouse(credentials, target.dataset, _lake(target, load_block), target.via)


def _database(target: Target, load_block: LoadBlock) -> Any:
    from flows.stores.database import Database

    return Database.of(load_block("sqlalchemy-connector", target.database_block), target.database_block)


STORES: Mapping[Store, Kind] = {
    "lake": Kind("the lake", _lake, files="bucket"),
    "warehouse": Kind("BigQuery", _warehouse, files="lake"),
    "database": Kind("Postgres", _database, rows="with_passengers"),
}
