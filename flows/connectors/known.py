"""What is known of published files from before: counted once, and shipped with this package."""

from functools import cache
from importlib.resources import files

from flows.tlc.catalog import KNOWN_RANGES, KnownFile, known_files
from flows.tlc.manifest import Manifest
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import TripMonth


@cache
def _known() -> dict[str, KnownFile]:
    return known_files((files("flows.tlc") / "known_months.csv").read_text("utf-8").splitlines())


def known_file(url: str) -> KnownFile | None:
    """Return what was last known of the file at this address; None for any file that is not at TLC's own address."""
    place, _, name = url.rpartition("/")
    return _known().get(name) if place == TEMPLATES["official"].rpartition("/")[0] else None


def last_known_rows(url: str, before: Manifest | None) -> int | None:
    """Return the rows of the edition before: as the store remembers it, or else as they are known of TLC's own file."""
    if before and before.url == url:
        return before.source_rows
    known = known_file(url)
    return known.rows if known else None


def known_publication(trip_month: TripMonth, url: str) -> str:
    """Return in words that the month is known to be published at this address; "" if that is not known."""
    if file := known_file(url):
        return f"{file.rows:,} rows on {file.last_modified[:10]}"
    for known in KNOWN_RANGES:
        if known.covers(trip_month) and url == trip_month.url(TEMPLATES[known.source]):
            return known.evidence
    return ""
