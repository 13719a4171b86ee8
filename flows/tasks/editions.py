"""Editions of published files: list, compare and delete them. Withdraw months, and read their history."""

import datetime as dt
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from rich import box
from rich.console import Console
from rich.table import Table

from flows.stores import STORES, Target
from flows.tasks.bring import claim
from flows.tasks.policy import RETRIES, started_by, submit, this_run
from flows.tasks.report import as_cell, markdown_table
from flows.tasks.stores import open_store
from flows.tlc.addresses import shown
from flows.tlc.compare import compare
from flows.tlc.errors import TripDataError, UnknownEdition
from flows.tlc.manifest import Manifest, Outcome
from flows.tlc.quality import money
from flows.tlc.trips import EDITION_DIGITS, TripMonth

if TYPE_CHECKING:  # importing them takes a second
    from flows.stores.lake import Lake
    from flows.stores.raw_zone import Edition
    from flows.tlc.catalog import ListedMonth
    from flows.tlc.stream import MonthStream


@dataclass(frozen=True)
class Listing:
    """A table to show: title, names of columns, and rows as text. The last `numbers` columns are aligned to the right."""

    title: str
    names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: int = 0


def report_listing(key: str, listing: Listing) -> Listing:
    """Report a listing in the UI, and return it."""
    lines = [f"# {listing.title}", *markdown_table(listing.names, listing.rows, listing.numbers)]
    create_markdown_artifact("\n".join(lines), key=key, description=listing.title)
    return listing


def print_listing(listing: Listing) -> None:
    """Print a listing on a terminal."""
    table = Table(title=listing.title, title_justify="left", box=box.SIMPLE)
    for position, name in enumerate(listing.names):
        table.add_column(name, justify="right" if position >= len(listing.names) - listing.numbers else "left")
    for row in listing.rows:
        table.add_row(*map(as_cell, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


# Withdraw.


def withdraw_month(trip_month: TripMonth, targets: Sequence[Target]) -> Outcome:
    """Withdraw a month from stores, one after the other. Raise `TripDataError` before any change if a store never had it."""
    absent = [target.title for target in targets if not submit(history_of, trip_month, target).result()]
    if absent:
        raise TripDataError(
            f"{trip_month} is not in {' or '.join(absent)}; name only stores that have it. Nothing was changed."
        )
    outcomes = []
    for target in targets:
        with ExitStack() as claims:
            if STORES[target.store].exclusive:
                claim(trip_month, target, claims)
            outcomes.append(submit(withdraw_from_store, trip_month, target, started_by()).result())
        get_run_logger().info("%s", outcomes[-1])
    return next((outcome for outcome in outcomes if outcome.status == "withdrawn"), outcomes[-1])


@task(name="withdraw", task_run_name="withdraw {trip_month} from {target.title}", **RETRIES)
def withdraw_from_store(trip_month: TripMonth, target: Target, by: str) -> Outcome:
    """Withdraw a month from a store."""
    outcome: Outcome = open_store(target).withdraw(trip_month, this_run(), by)
    return outcome


# History.


@task(name="read history", task_run_name="history of {trip_month} in {target.title}", **RETRIES)
def history_of(trip_month: TripMonth, target: Target) -> list[Manifest]:
    """Return the manifest of each publication and withdrawal of a month in a store, oldest first."""
    manifests: list[Manifest] = open_store(target).history(trip_month)
    return manifests


def history_listing(trip_month: TripMonth, target: Target) -> Listing:
    """Return a month's history in a store as a table."""
    names = ("when", "what", "edition", "started by", "flow run", "version", "rows", "inserted", "updated", "removed")

    def row(manifest: Manifest) -> tuple[str, ...]:
        what = "withdrawn" if manifest.withdrawn_at else "pinned" if manifest.pinned else "published"
        counts = (0 if manifest.withdrawn_at else manifest.loaded, *dict(manifest.changes).values())
        who = (manifest.started_by or "unknown", manifest.flow_run_id or "no flow run", manifest.package_version)
        when = f"{manifest.published_at:%Y-%m-%d %H:%M:%S}"
        return when, what, manifest.edition, *who, *(f"{count:,}" for count in counts)

    rows = [row(manifest) for manifest in submit(history_of, trip_month, target).result()]
    return Listing(f"History of {trip_month} in {target.title}", names, rows, numbers=4)


# List.


@task(name="list editions", task_run_name="list editions", **RETRIES)
def list_editions(target: Target, trip_months: Sequence[TripMonth]) -> "list[tuple[Edition, str]]":
    """Return the editions of months in the lake's raw zone, each with its status, the newest first."""
    lake: Lake = open_store(target)
    lake.check()
    colors, found = dict.fromkeys(month.color for month in trip_months), []
    for color in colors:
        listed = lake.months([color], "withdrawn")
        for trip_month, editions in lake.every_edition(color).items():
            now = listed[trip_month].manifest if trip_month in listed else None
            if trip_month in trip_months:
                found += [(edition, _status(edition, now)) for edition in editions]
    return found


def _status(edition: "Edition", now: Manifest | None) -> str:
    if now is None or edition.sha256 != now.sha256:
        return "earlier"
    return "withdrawn" if now.withdrawn_at else "published, pinned" if now.pinned else "published"


def editions_listing(title: str, editions: "Sequence[tuple[Edition, str]]") -> Listing:
    """Return a table of editions, with a status for each."""
    names = ("month", "edition", "status", "last modified", "fetched at", "source", "bytes")

    def row(edition: "Edition", status: str) -> tuple[str, ...]:
        file = edition.raw.published
        times = (file.last_modified or "", edition.fetched_at)
        return str(edition.trip_month), edition.name, status, *times, shown(file.url), f"{file.size:,}"

    return Listing(title, names, [row(*about) for about in editions], numbers=1)


# Compare.


@task(name="compare editions", task_run_name="compare editions of {trip_month}", **RETRIES)
def compare_editions(target: Target, trip_month: TripMonth, named: Sequence[str]) -> Listing:
    """Compare two editions of a month: the rows that differ, and the sums of money. No trip is loaded.

    Both are read by the rule of the lake's month. `named` has the older and the newer edition. Without a newer one, use the
    lake's edition. Without an older one, use the newest other edition.
    """
    from flows.tlc.stream import MonthStream

    lake: Lake = open_store(target)
    current = lake.current(trip_month)
    wanted = [*named] if len(named) > 1 or current is None else [*named, current.sha256]
    if len(wanted) == 1:
        wanted = [*[e.sha256 for e in lake.editions(trip_month) if e.sha256 != wanted[0]][:1], *wanted]
    if len(wanted) != 2:
        there = "; ".join(map(str, lake.editions(trip_month))) or "none"
        raise UnknownEdition(
            f"{trip_month}: two editions are needed for a comparison; the lake's raw zone has: {there}."
        )
    old, new = (lake.edition(trip_month, name) for name in wanted)
    rows = current.rule if current else "all"
    streams = [MonthStream(raw, lake.content(raw), rows, "accept_new_columns") for raw in (old, new)]

    def trips(stream: "MonthStream") -> Iterator[pa.Table]:
        for chunk in stream:
            yield chunk.trips

    changes = compare(*map(trips, streams))
    was, now = (stream.staged(key="") for stream in streams)
    lines = [("rows in the file", f"{was.source_rows:,}", f"{now.source_rows:,}")]
    lines += [(f"rows by the rule {rows}", f"{was.loaded:,}", f"{now.loaded:,}")]
    lines += [(f"rows {what}", "", f"{count:,}") for what, count in changes]
    sums = (was.profile.sums, now.profile.sums)
    lines += [(f"sum of {name}, US$", _money(sums[0], name), _money(sums[1], name)) for name in money(trip_month.color)]
    names = ("", old.sha256[:EDITION_DIGITS], new.sha256[:EDITION_DIGITS])
    return Listing(f"Two editions of {trip_month}", names, lines, numbers=2)


def _money(sums: Mapping[str, float], name: str) -> str:
    return f"{sums[name]:,.2f}" if name in sums else "not finite"


# Prune.


@task(name="choose editions", task_run_name="choose editions to delete", **RETRIES)
def surplus(
    targets: Sequence[Target], trip_months: Sequence[TripMonth], keep: int | None, older_than_days: int
) -> "list[Edition]":
    """Return the earlier editions that the rule does not keep. The first target is the lake.

    An edition counts as earlier only if it is not the lake's current file, no store has it, and it was not withdrawn from any.

    Raises:
        TripDataError: Another store than the lake has no month, so its name is probably wrong.
    """
    lake: Lake = open_store(targets[0])
    colors = list(dict.fromkeys(month.color for month in trip_months))
    listed = {target: open_store(target).months(colors, "withdrawn") for target in targets}
    for target, months in listed.items():
        if not months and target.store != "lake":
            raise TripDataError(
                f"{target.title} has no month of {', '.join(colors)}: name the right database or dataset, or leave the store"
                " out of `stores`. No edition was deleted."
            )
    used = _used(listed.values())
    before = (dt.datetime.now(dt.UTC) - dt.timedelta(days=older_than_days)).isoformat()
    found: list[Edition] = []
    for color in colors:
        for trip_month, editions in lake.every_edition(color).items():
            earlier = [e for e in editions if not e.is_current and (trip_month, e.sha256) not in used]
            if trip_month in trip_months and keep is not None:
                found += earlier[keep:]
            elif trip_month in trip_months and older_than_days:
                found += [edition for edition in earlier if "" < edition.fetched_at < before]
    return found


@task(name="delete editions", task_run_name="delete editions", **RETRIES)
def delete_editions(targets: Sequence[Target], editions: "Sequence[Edition]") -> None:
    """Delete editions from the lake, the first target, except those that one of the targets has been loaded with meanwhile."""
    lake: Lake = open_store(targets[0])
    colors = {edition.trip_month.color for edition in editions}
    used = _used(open_store(target).months(colors, "withdrawn") for target in targets)
    for edition in editions:
        now = lake.current(edition.trip_month)
        if (edition.trip_month, edition.sha256) not in used and (now is None or now.sha256 != edition.sha256):
            lake.delete_edition(edition)


def _used(of_stores: "Iterable[Mapping[TripMonth, ListedMonth]]") -> set[tuple[TripMonth, str]]:
    """Return the editions that stores have, or that were withdrawn from them, given the months of each store."""
    return {(trip_month, month.manifest.sha256) for months in of_stores for trip_month, month in months.items()}
