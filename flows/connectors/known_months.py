"""Facts about published files, such as row counts. They are shipped with this package."""

from functools import cache
from importlib.resources import files

from flows.tlc.addresses import stored
from flows.tlc.catalog import KNOWN_RANGES, KnownFile, known_files
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import TripMonth


@cache
def _shipped() -> dict[str, KnownFile]:
    return known_files((files("flows.tlc") / "known_months.csv").read_text("utf-8").splitlines())


def known_file(url: str) -> KnownFile | None:
    """Return the shipped facts about the file at this address, or None. Only files at TLC's own address have facts."""
    place, _, name = url.rpartition("/")
    return _shipped().get(name) if place == TEMPLATES["official"].rpartition("/")[0] else None


def last_known_rows(raw: RawFile, before: Manifest | None) -> int | None:
    """Return the row count of the previous edition: from the store's manifest `before`, or else from the shipped facts."""
    if before and before.url == stored(raw.published.url):
        if before.sha256 != raw.sha256:
            return before.source_rows
        if before.known_rows is not None:
            return before.known_rows
    shipped = known_file(raw.published.url)
    return shipped.rows if shipped else None


def known_publication(trip_month: TripMonth, url: str) -> str:
    """Return the evidence, as text, that the month is published at this address, or ""."""
    if file := known_file(url):
        return f"{file.rows:,} rows on {file.last_modified[:10]}"
    for months in KNOWN_RANGES:
        if months.covers(trip_month) and url == trip_month.url(TEMPLATES[months.source]):
            return months.evidence
    return ""
