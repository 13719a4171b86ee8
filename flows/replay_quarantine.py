"""Quarantine → lake or Postgres, after a rule changed: `python flows/replay_quarantine.py green 2021 1 2`."""

import gc
import sys
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger

from blocks import GCS_BUCKET, POSTGRES
from flows.stores import Target
from flows.stores.origins import Again
from flows.tasks.bring import bring
from flows.tasks.command import run_as_program
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.policy import flow_options
from flows.tasks.stores import require_usable
from flows.tlc.manifest import Outcome
from flows.tlc.trips import AtLeastOne, Bound, Color, OptionalMonths, OptionalYear, TripMonth


@flow(name="replay-quarantine", flow_run_name=named_for_months(), **flow_options())
def replay_quarantine(
    color: Color,
    year: OptionalYear = None,
    months: OptionalMonths = None,
    store: Literal["lake", "database"] = "lake",
    block_name: str = GCS_BUCKET,
    postgres_block: str = POSTGRES,
    at_once: AtLeastOne = 2,
    since: Bound = "",
    until: Bound = "",
) -> list[Outcome]:
    """Load months that have quarantined rows again, from the same published files, with today's rules.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12; months without quarantined rows are skipped.
        store: lake (uses the files kept there) or database (uses this machine's files, or fetches them again).
        block_name: Name of the GcsBucket block that is the lake.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        at_once: How many months are processed at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until. Wins over the stored year and months of a deployment.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    into = Target(store, block_name, database_block=postgres_block)
    require_usable(into)

    def replay(trip_month: TripMonth) -> Outcome:
        outcome = bring(trip_month, Again(), into)
        if outcome.status == "replaced":
            get_run_logger().info(
                "%s: quarantined rows loaded now: %s; still quarantined: %s",
                trip_month, f"{outcome.manifest.inserted:,}", f"{sum(outcome.manifest.quarantined.values()):,}",
            )  # fmt: skip
        return outcome

    return each_month("replay-quarantine", chosen, at_once, replay)


if __name__ == "__main__":
    run_as_program(replay_quarantine)
