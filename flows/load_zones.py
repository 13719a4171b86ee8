"""Taxi zones → one or more stores: `python flows/load_zones.py lake warehouse database`."""

import gc
import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.stores import Target
from flows.tasks.command import run_as_program
from flows.tasks.months import named
from flows.tasks.policy import flow_options, submit
from flows.tasks.stores import require_usable
from flows.tasks.zones import extract_zones, load_zones_into, report_zones
from flows.tlc.errors import TripDataError
from flows.tlc.trips import Dataset, Store
from flows.tlc.zones import ZonesOutcome


@flow(name="load-zones", flow_run_name=named("zones → {stores}"), **flow_options())
def load_zones(
    stores: list[Store],
    source: str = "official",
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
) -> list[ZonesOutcome]:
    """Load TLC's taxi zone lookup into the stores as the table `zones`, exactly once, to join trips with.

    Args:
        stores: Stores to load: lake (zones/zones.parquet), warehouse (BigQuery), database (Postgres; needs no Google account).
        source: official (TLC's file), or the http(s):// or file:// URL of another file.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset; created in the bucket's location if it does not exist.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
    """
    if not stores:
        raise TripDataError("stores is empty; name at least one of lake, warehouse, database.")
    target = Target("lake", block_name, credentials_block, dataset, postgres_block)
    targets = [target.with_store(store) for store in dict.fromkeys(stores)]
    require_usable(*targets)
    file = submit(extract_zones, source).result()
    loading = [submit(load_zones_into, file, into) for into in targets]
    states = [future.wait() for future in loading]
    outcomes = [state.result() for state in states if state.is_completed()]
    if outcomes:
        report_zones(outcomes)
    for state in states:
        state.result()  # raises the error of a store after all other stores are loaded
    return outcomes


if __name__ == "__main__":
    run_as_program(load_zones)
