"""Take months out of stores: `python flows/withdraw.py green 2021 1 --stores lake`."""

import gc
import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.stores import STORES, Target
from flows.tasks.command import run_as_program
from flows.tasks.editions import withdraw_month
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.policy import flow_options
from flows.tasks.stores import require_usable
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Outcome
from flows.tlc.trips import AtLeastOne, Bound, Color, Dataset, OptionalMonths, OptionalYear, Store, TripMonth

_STORES: list[Store] = ["lake", "warehouse"]


@flow(name="withdraw", flow_run_name=named_for_months(", withdrawn"), **flow_options())
def withdraw(
    color: Color,
    year: OptionalYear = None,
    months: OptionalMonths = None,
    stores: list[Store] = _STORES,
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
    at_once: AtLeastOne = 2,
    since: Bound = "",
    until: Bound = "",
) -> list[Outcome]:
    """Take months out of stores. The raw zone keeps their files. etl-web-gcs, etl-gcs-bq and ingest-data restore a month.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        stores: The stores to take the months out of. Each of them must have each month, or have had it before a withdrawal.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        at_once: How many months are processed at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until. Wins over the stored year and months of a deployment.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    if not stores:
        raise TripDataError("stores is empty; name at least one, such as lake. Nothing was started.")
    target = Target("lake", block_name, credentials_block, dataset, postgres_block)
    # The lake comes last: no other store then has a month that the lake has lost.
    in_order = sorted(STORES, key=lambda store: store == "lake")
    targets = [target.with_store(store) for store in in_order if store in stores]
    require_usable(*targets)

    def withdraw_everywhere(trip_month: TripMonth) -> Outcome:
        return withdraw_month(trip_month, targets)

    return each_month("withdraw", chosen, at_once, withdraw_everywhere)


if __name__ == "__main__":
    run_as_program(withdraw)
