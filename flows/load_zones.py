"""Taxi zones → any store: `python flows/load_zones.py lake warehouse database`."""

import sys
from pathlib import Path

if not __package__:  # run as a file: Python searches its folder for modules, and not the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prefect import flow

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.tasks.command import run_as_program
from flows.tasks.notify import notifications
from flows.tasks.policy import task_runner
from flows.tasks.stores import lake_of, postgres_of
from flows.tasks.zones import (
    extract_zones,
    load_zones_to_bigquery,
    load_zones_to_lake,
    load_zones_to_postgres,
    report_zones,
)
from flows.tlc.errors import TripDataError
from flows.tlc.trips import Dataset, Store
from flows.tlc.zones import ZonesOutcome


@flow(name="load-zones", flow_run_name="zones → {stores}", task_runner=task_runner(), **notifications())
def load_zones(
    stores: list[Store],
    source: str = "official",
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
) -> list[ZonesOutcome]:
    """Bring TLC's taxi zone look-up into stores as the table `zones`, exactly once, to join trips with.

    Args:
        stores: Where to: lake (zones/zones.parquet), warehouse (BigQuery), database (Postgres, no Google anything).
        source: official (TLC's file), or the http(s):// or file:// URL of another.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset; made in the bucket's location if it is not there.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
    """
    if not stores:
        raise TripDataError("stores is empty; name at least one of lake, warehouse, database.")
    if {"lake", "warehouse"} & set(stores):
        lake_of(block_name).check()
    if "database" in stores:
        postgres_of(postgres_block).check()
    file = extract_zones.submit(source).result()
    load = {
        "lake": lambda: load_zones_to_lake.submit(file, block_name),
        "warehouse": lambda: load_zones_to_bigquery.submit(file, block_name, credentials_block, dataset),
        "database": lambda: load_zones_to_postgres.submit(file, postgres_block),
    }
    loading = [load[store]() for store in dict.fromkeys(stores)]
    states = [future.wait() for future in loading]
    outcomes = [state.result() for state in states if state.is_completed()]
    if outcomes:
        report_zones(outcomes)
    for state in states:
        state.result()  # raises what went wrong, after all that could be done
    return outcomes


if __name__ == "__main__":
    run_as_program(load_zones)
