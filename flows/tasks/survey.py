"""Survey the source and the stores: list their months, and report the differences. No trip is loaded."""

import sys
from collections.abc import Iterator, Mapping, Sequence

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich import box
from rich.console import Console
from rich.table import Column, Table

from flows.connectors.known_months import known_file, known_publication
from flows.connectors.web import look_up_all
from flows.stores import Target
from flows.tasks.policy import RETRIES, TIMEOUT
from flows.tasks.report import as_cell, markdown_table, plain_rows
from flows.tasks.stores import open_store
from flows.tlc.catalog import Also, Entry, Found, ListedMonth, entry_of
from flows.tlc.errors import NotPublished
from flows.tlc.manifest import Outcome, total
from flows.tlc.sources import PublishedFile, Source
from flows.tlc.trips import COLORS, Store, TripMonth


@task(name="ask the source", task_run_name="ask the source", timeout_seconds=TIMEOUT)
def ask_source(source: Source, trip_months: Sequence[TripMonth]) -> dict[TripMonth, PublishedFile | Exception]:
    """Return the source's published file of each month, or the error that it answered with."""
    return look_up_all(source, trip_months)


@task(name="list months", task_run_name="list {target.title}", **RETRIES)
def list_months(target: Target, colors: Sequence[str], also: Also = "") -> dict[TripMonth, ListedMonth]:
    """Return every month of the colors that a store has. If `also` is "withdrawn", add the months withdrawn from it."""
    store = open_store(target)
    store.check()
    months: dict[TripMonth, ListedMonth] = store.months(colors, also)
    return months


def report_stores(
    key: str,
    found: Sequence[Found],
    waiting: Sequence[TripMonth],
    did: Mapping[TripMonth, Mapping[Store, str]],
    failed: Mapping[str, str],
    done: Sequence[Outcome],
) -> None:
    """Report a run over several stores: the state of each month before the run, its outcome, and its warnings."""
    warnings = {outcome.trip_month: " ".join(outcome.warnings) for outcome in done}

    def status(month: Found) -> str:
        if reason := failed.get(str(month.trip_month)):
            return f"failed: {reason}"
        if month.trip_month in waiting:
            return "waits for the next run"
        if month.trip_month in did:
            return "brought up to date"
        if decided := pinned_or_withdrawn(month):
            return decided
        return "not published" if isinstance(month.answer, NotPublished) else "unchanged"

    rows = [
        {"month": str(month.trip_month), "status": status(month)}
        | {
            store: did[month.trip_month].get(store, "") if month.trip_month in did else month.status(store)
            for store in month.manifests
            if not month.unanswered
        }
        | {"warnings": warnings.get(month.trip_month, "")}
        for month in found
    ]
    sums = f"; {total(done)}" if done else ""
    create_table_artifact(plain_rows(rows), key=key, description=f"Months that were checked{sums}")


def pinned_or_withdrawn(month: Found) -> str:
    """Return as text in which stores a month is pinned or withdrawn; "" if in none."""
    return ", ".join(f"{decided} in the {store}" for store in month.manifests if (decided := month.decided(store)))


def entries_of(
    trip_months: Sequence[TripMonth],
    listed: Mapping[TripMonth, ListedMonth],
    answers: Mapping[TripMonth, PublishedFile | Exception],
    source: Source,
) -> list[Entry]:
    """Return the catalog's entries, by color and month: all months in the lake or at the source."""

    def line(trip_month: TripMonth) -> Entry:
        here, url = listed.get(trip_month), source.url(trip_month)
        known = known_file(here.manifest.url if here else url)
        return entry_of(trip_month, here, known, answers.get(trip_month), url, known_publication(trip_month, url))

    every = (line(trip_month) for trip_month in sorted(trip_months))
    return [entry for entry in every if entry.listed or entry.differs]


def report_catalog(key: str, entries: Sequence[Entry]) -> None:
    """Report the catalog in the UI: totals and a calendar per color, the differences, and the source's files if known."""
    by_color = {color: [e for e in entries if e.trip_month.color == color] for color in COLORS}
    totals = [_total(color, there) for color, every in by_color.items() if (there := [e for e in every if e.listed])]
    names = ("color", "from", "to", "months", "rows", "quarantined", "bytes")
    lines = ["# Months in the lake", *markdown_table(names, totals, numbers=4)]
    for color, every in by_color.items():
        if every:
            lines += [f"## {color}: rows in thousands", *_calendar({e.trip_month: e for e in every})]
    if differ := [(str(e.trip_month), "; ".join(e.differs)) for e in entries if e.differs]:
        lines += ["## What differs", *markdown_table(("month", "difference"), differ, numbers=0)]
    if source := [(str(e.trip_month), *_published(e)) for e in entries if e.published]:
        lines += ["## Months at the source", *markdown_table(("month", "bytes", "last modified"), source, numbers=1)]
    lines += ["Marks: " + ", ".join(f"{mark} {word}" for word, mark in _MARKS.items()) + "; · not in the lake."]
    create_markdown_artifact("\n".join(lines), key=key, description="Months in the lake")


# One character each, so that a year fits on a line.
_MARKS = {
    "new": "+",
    "re-published": "↻",
    "other source": "⇄",
    "gone": "†",
    "refused": "✗",
    "no answer": "?",
    "damaged": "!",
    "other rows than known": "≠",
    "pinned": "⚓",
    "withdrawn": "−",
}


def _published(entry: Entry) -> tuple[str, str]:
    """Return the bytes and time of the source's file; "" for each that is unknown."""
    file = entry.published
    if file is None:
        return "", ""
    return "" if file.size is None else f"{file.size:,}", file.last_modified or ""


def _total(color: str, entries: Sequence[Entry]) -> tuple[str, ...]:
    listed = [e.listed for e in entries if e.listed]
    first, last = (f"{e.trip_month.file_month:%Y-%m}" for e in (entries[0], entries[-1]))
    rows = sum(month.manifest.loaded for month in listed)
    quarantined = sum(sum(month.manifest.quarantined.values()) for month in listed)
    counts = len(listed), rows, quarantined, sum(month.size for month in listed)
    return color, first, last, *(f"{count:,}" for count in counts)


def _calendar(entries: Mapping[TripMonth, Entry]) -> Iterator[str]:
    years = [trip_month.year for trip_month in entries]
    by_date = {(m.year, m.month): e for m, e in entries.items()}
    rows = [
        (f"**{year}**", *(_cell(by_date.get((year, month))) for month in range(1, 13)))
        for year in range(min(years), max(years) + 1)
    ]
    return markdown_table(("", *(f"{month:02d}" for month in range(1, 13))), rows, numbers=12)


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "·"
    rows = f"{entry.listed.manifest.loaded / 1000:,.0f}" if entry.listed else ""
    marks = [_MARKS.get(entry.source or "", ""), _MARKS["other rows than known"] if entry.recounted else ""]
    marks += [_MARKS["withdrawn"]] if entry.withdrawn_at and not entry.source else []
    return " ".join(filter(None, [rows, *marks]))


def print_catalog(entries: Sequence[Entry]) -> None:
    """Print the catalog on a terminal: the months in the lake and, if the source was asked, the source's files."""
    asked = any(e.source for e in entries)
    counts = (Column(name, justify="right") for name in ("rows", "quarantined", "bytes"))
    there = (Column("bytes at the source", justify="right"), "last modified there") if asked else ()
    table = Table("month", *counts, "schema", "published at", *there, "differs", box=box.SIMPLE)
    for e in entries:
        facts = [""] * 5
        if e.listed:
            manifest = e.listed.manifest
            quarantined = sum(manifest.quarantined.values())
            facts = [f"{count:,}" for count in (manifest.loaded, quarantined, e.listed.size)]
            facts += [str(manifest.schema_version), f"{manifest.published_at:%Y-%m-%d %H:%M}"]
        cells = (str(e.trip_month), *facts, *(_published(e) if asked else ()), "; ".join(e.differs))
        table.add_row(*map(as_cell, cells))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table if entries else "nothing: none of these months is in the lake or published by the source.")
