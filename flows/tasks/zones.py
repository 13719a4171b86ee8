"""Fetch the file of zones once, then load it into each store. The file is small, so tasks pass it on as a value."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from flows.connectors import web
from flows.stores import Target
from flows.tasks.policy import RETRIES, this_run
from flows.tasks.report import plain_rows
from flows.tasks.stores import open_store
from flows.tlc.addresses import shown
from flows.tlc.zones import ZoneFile, ZonesOutcome, read_zones


@task(name="extract zones", task_run_name="extract zones", **RETRIES)
def extract_zones(source: str) -> ZoneFile:
    """Fetch the file of zones, and check it before any store is changed."""
    file = web.zone_file(source)
    zones = read_zones(file)
    get_run_logger().info("zones: %d in %s", zones.num_rows, shown(file.url))
    return file


@task(name="load zones", task_run_name="load zones → {into.title}", **RETRIES)
def load_zones_into(file: ZoneFile, into: Target) -> ZonesOutcome:
    """Update a store's table `zones` to the zones of the file."""
    from flows.stores.zones import PUBLISH_ZONES  # it imports the client library of every store

    outcome = PUBLISH_ZONES[into.store](open_store(into), file, this_run())
    get_run_logger().info("%s", outcome)
    return outcome


def report_zones(outcomes: Sequence[ZonesOutcome]) -> None:
    """Report a run: one row per store with the outcome for its zones."""
    rows = plain_rows(outcome.model_dump() for outcome in outcomes)
    create_table_artifact(rows, key="zones", description="Zones of this run")
