"""Lake → warehouse: `python flows/etl_gcs_bq.py green 2021 1 2 3`."""

import gc
import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET
from flows.stores import Target
from flows.stores.origins import FromLake
from flows.tasks.bring import bring
from flows.tasks.command import run_as_program
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.policy import flow_options
from flows.tasks.stores import require_usable
from flows.tlc.manifest import Outcome
from flows.tlc.trips import (
    AtLeastOne,
    Bound,
    Color,
    Dataset,
    Month,
    OptionalMonths,
    OptionalYear,
    TripMonth,
    Via,
    Year,
    trip_months,
)


@flow(
    name="etl-gcs-bq",
    flow_run_name="{color} {year}-{month:02d} via {via}",
    **flow_options(),
)
def etl_gcs_bq(
    color: Color,
    year: Year,
    month: Month,
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    via: Via = "load_job",
    dataset: Dataset = DATASET,
) -> Outcome:
    """Bring one month of trips from the lake into BigQuery, exactly once.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the file's name.
        month: Month of the file's name, 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        via: load_job (BigQuery reads the bucket itself) or dataframe (through this machine, if BigQuery cannot read the bucket).
        dataset: BigQuery dataset; created in the bucket's location if it does not exist.
    """
    [trip_month] = trip_months(color, year, [month])
    return bring(trip_month, FromLake(), Target("warehouse", block_name, credentials_block, dataset, via=via))


@flow(
    name="etl-gcs-bq-parent-flow",
    flow_run_name=named_for_months(" via {via}"),
    **flow_options(),
)
def etl_gcs_bq_parent_flow(
    color: Color,
    year: OptionalYear = None,
    months: OptionalMonths = None,
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    via: Via = "load_job",
    dataset: Dataset = DATASET,
    at_once: AtLeastOne = 2,
    since: Bound = "",
    until: Bound = "",
) -> list[Outcome]:
    """Bring months of trips from the lake into BigQuery, exactly once. A month that fails does not stop the others.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        via: load_job (BigQuery reads the bucket itself) or dataframe (through this machine, if BigQuery cannot read the bucket).
        dataset: BigQuery dataset; created in the bucket's location if it does not exist.
        at_once: How many months are processed at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until. Wins over the stored year and months of a deployment.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    require_usable(Target("warehouse", block_name, credentials_block, dataset, via=via))

    def load(trip_month: TripMonth) -> Outcome:
        return etl_gcs_bq(color, trip_month.year, trip_month.month, block_name, credentials_block, via, dataset)

    return each_month("etl-gcs-bq", chosen, at_once, load)


if __name__ == "__main__":
    run_as_program(etl_gcs_bq_parent_flow)
