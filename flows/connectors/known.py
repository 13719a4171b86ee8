"""What is known of TLC's files from before: rows, bytes and dates, counted once and shipped with this package."""

from functools import cache
from importlib.resources import files

from flows.tlc.catalog import KnownFile, known_files


@cache
def _known() -> dict[str, KnownFile]:
    return known_files((files("flows.tlc") / "known_months.csv").read_text("utf-8").splitlines())


def known_file(url: str) -> KnownFile | None:
    """What was last known of the file at this address, by its name; None if nothing was, as of every CSV."""
    return _known().get(url.rpartition("/")[2])
