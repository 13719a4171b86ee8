"""The months in the lake, and how a source differs from them: `python flows/catalog.py --against official --since 2019`."""

import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prefect import flow, get_run_logger

from blocks import GCS_BUCKET
from flows.connectors.web import source_of
from flows.stores import Target
from flows.tasks.command import run_as_program
from flows.tasks.months import named
from flows.tasks.survey import ask_source, entries_of, list_months, print_catalog, report_catalog
from flows.tlc.catalog import Entry, months_between
from flows.tlc.trips import COLORS, Bound, Color

_COLORS: list[Color] = list(COLORS)


@flow(name="catalog", flow_run_name=named("catalog: {colors}"))
def catalog(
    colors: list[Color] = _COLORS,
    since: Bound = "",
    until: Bound = "",
    against: str = "",
    block_name: str = GCS_BUCKET,
) -> list[Entry]:
    """List the months in the lake, and how they differ from a source. Nothing is loaded.

    Args:
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        since: First month to list, such as 2019-01 or 2019; empty for TLC's first.
        until: Last month to list, such as 2021-12 or 2021; empty for the current month.
        against: Source to compare with: official, mirror, or a URL template as in etl-web-gcs; empty for no comparison.
        block_name: Name of the GcsBucket block that is the lake.
    """
    months = months_between(colors, since, until)
    source = source_of(against or "official")
    in_lake = list_months.submit(Target("lake", block_name), colors).result()
    answers = ask_source.submit(source, months).result() if against else {}
    entries = entries_of(months, in_lake, answers, source)
    report_catalog("catalog", entries)
    there, differ = (sum(map(bool, column)) for column in ([e.listed for e in entries], [e.differs for e in entries]))
    get_run_logger().info("%s months are in the lake, %s months differ", there, differ)
    return entries


if __name__ == "__main__":
    run_as_program(catalog, print_catalog)
