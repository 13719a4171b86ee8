"""The zones: fetched once, then loaded into each store by itself. The file is small enough to be handed from task to task."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from flows.connectors import web
from flows.connectors.lake import Lake
from flows.connectors.postgres import Postgres
from flows.connectors.warehouse import Warehouse
from flows.tasks.policy import RETRIES, this_run
from flows.tasks.stores import lake_of, postgres_of, warehouse_of
from flows.tlc.addresses import shown
from flows.tlc.zones import COLUMNS, KEY, RAW_KEY, TABLE, ZoneFile, ZonesOutcome, changed, read_zones


@task(name="extract zones", task_run_name="extract zones", **RETRIES)
def extract_zones(source: str) -> ZoneFile:
    """Fetch the zone look-up and make sure that it is one, before any store is touched."""
    file = web.zone_file(source)
    zones = read_zones(file)
    get_run_logger().info("zones: %d in %s", zones.num_rows, shown(file.url))
    return file


@task(name="load zones to lake", task_run_name="load zones → lake", **RETRIES)
def load_zones_to_lake(file: ZoneFile, block_name: str) -> ZonesOutcome:
    """Keep the file in the lake as published, and its table as Parquet."""
    return _told(publish_in_lake(lake_of(block_name), file, this_run()))


@task(name="load zones to BigQuery", task_run_name="load zones → BigQuery", **RETRIES)
def load_zones_to_bigquery(file: ZoneFile, block_name: str, credentials_block: str, dataset: str) -> ZonesOutcome:
    """Replace the table `zones` of the dataset; the lake's block tells where a new dataset has to be."""
    warehouse = warehouse_of(credentials_block, dataset)
    return _told(publish_in_bigquery(warehouse, lake_of(block_name), file, this_run()))


@task(name="load zones to Postgres", task_run_name="load zones → Postgres", **RETRIES)
def load_zones_to_postgres(file: ZoneFile, block_name: str) -> ZonesOutcome:
    """Replace the rows of the table `zones` in one transaction."""
    return _told(publish_in_postgres(postgres_of(block_name), file, this_run()))


def _told(outcome: ZonesOutcome) -> ZonesOutcome:
    get_run_logger().info("%s", outcome)
    return outcome


def publish_in_lake(lake: Lake, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Write the raw file where its bytes are new, then the table where its rows are, with its facts as metadata.

    Raises `Overtaken` if another run writes at the same time; it will then be unchanged, or newer.
    """
    zones = read_zones(file)
    raw, present = lake.stat(RAW_KEY), lake.stat(KEY)
    did = changed(lake.table(present) if present else None, zones)
    facts = file.facts(run_id, did)
    if raw is None or raw.metadata.get("sha256") != file.sha256:
        with lake.writer(RAW_KEY, facts, replaces=raw.generation if raw else 0) as out:
            out.write(file.content)
    outcome = ZonesOutcome.of("lake", zones.num_rows, did)
    if outcome.status != "unchanged":
        with lake.writer(KEY, facts, replaces=present.generation if present else 0) as out:
            pq.write_table(zones, pa.PythonFile(out, mode="w"))
    return outcome


def publish_in_bigquery(warehouse: Warehouse, lake: Lake, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Replace the table where its rows are new, with its facts as description."""
    zones = read_zones(file)
    did = changed(warehouse.table(TABLE, COLUMNS), zones)
    outcome = ZonesOutcome.of("warehouse", zones.num_rows, did)
    if outcome.status != "unchanged":
        warehouse.replace_table(TABLE, COLUMNS, zones, json.dumps(file.facts(run_id, did)), lake.location)
    return outcome


def publish_in_postgres(postgres: Postgres, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Write what differs, with its facts as the table's comment."""
    rows = [tuple(zone.values()) for zone in read_zones(file).to_pylist()]
    did = postgres.replace_table(TABLE, COLUMNS, rows, lambda changes: json.dumps(file.facts(run_id, changes)))
    return ZonesOutcome.of("database", len(rows), did)


def report_zones(outcomes: Sequence[ZonesOutcome]) -> None:
    """Tell of a run: every store with what became of its zones."""
    create_table_artifact([outcome.model_dump() for outcome in outcomes], key="zones", description="Zones of this run")
