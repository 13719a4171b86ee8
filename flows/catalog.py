"""The months in the lake, their editions and history, and how a source differs: `python flows/catalog.py --against official`."""

import gc
import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.connectors.web import source_of
from flows.stores import Target
from flows.tasks.command import run_as_program
from flows.tasks.editions import (
    Listing,
    compare_editions,
    editions_listing,
    history_listing,
    list_editions,
    print_listing,
    report_listing,
)
from flows.tasks.months import named
from flows.tasks.policy import submit
from flows.tasks.survey import ask_source, entries_of, list_months, print_catalog, report_catalog
from flows.tlc.catalog import Entry, months_between
from flows.tlc.errors import TripDataError
from flows.tlc.trips import COLORS, Bound, Color, Dataset, Store, month_named

_COLORS: list[Color] = list(COLORS)


@flow(name="catalog", flow_run_name=named("catalog: {colors}"))
def catalog(
    colors: list[Color] = _COLORS,
    since: Bound = "",
    until: Bound = "",
    against: str = "",
    block_name: str = GCS_BUCKET,
    editions: str = "",
    changes: str = "",
    history: str = "",
    store: Store = "lake",
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
) -> list[Entry] | Listing:
    """List the months in the lake, and how they differ from a source; or list editions or history of months. Load nothing.

    Args:
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        since: First month to list, such as 2019-01 or 2019; empty for TLC's first.
        until: Last month to list, such as 2021-12 or 2021; empty for the current month.
        against: Source to compare with: official, mirror, or a URL template as in etl-web-gcs; empty for no comparison.
        block_name: Name of the GcsBucket block that is the lake.
        editions: List the editions in the lake's raw zone instead, of a color, a year or a month, such as green 2021-01.
        changes: Compare two editions of a month instead, such as green 2021-01; the names of editions may follow, older first.
        history: List what was published and withdrawn of a month instead, such as green 2021-01.
        store: The store whose history is listed.
        credentials_block: Name of the GcpCredentials block to use BigQuery with; used only for a history.
        dataset: BigQuery dataset; used only for a history.
        postgres_block: Name of the SqlAlchemyConnector block that is the database; used only for a history.
    """
    if sum(map(bool, (editions, changes, history, against))) > 1:
        raise TripDataError("give only one of editions, changes, history and against. Nothing was started.")
    lake = Target("lake", block_name, credentials_block, dataset, postgres_block)
    if editions:
        color, _, bound = editions.strip().partition(" ")
        named_months = months_between([color], bound, bound)
        found = submit(list_editions, lake, named_months).result()
        return report_listing("editions", editions_listing(f"Editions of {editions}", found))
    if changes:
        month, names = " ".join(changes.split()[:2]), changes.split()[2:]
        return report_listing("changes", submit(compare_editions, lake, month_named(month), names).result())
    if history:
        return report_listing("history", history_listing(month_named(history), lake.with_store(store)))
    months = months_between(colors, since, until)
    source = source_of(against or "official")
    in_lake = submit(list_months, lake, colors, "withdrawn").result()
    answers = submit(ask_source, source, months).result() if against else {}
    entries = entries_of(months, in_lake, answers, source)
    report_catalog("catalog", entries)
    there, differ = (sum(map(bool, column)) for column in ([e.listed for e in entries], [e.differs for e in entries]))
    get_run_logger().info("%s months are in the lake, %s months differ", there, differ)
    return entries


def show(found: list[Entry] | Listing) -> None:
    """Print what the flow found."""
    if isinstance(found, Listing):
        print_listing(found)
    else:
        print_catalog(found)


if __name__ == "__main__":
    run_as_program(catalog, show)
