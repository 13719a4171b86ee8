"""Web → lake: `python flows/etl_web_gcs.py green 2021 1 2 3`."""

import gc
import sys
import warnings
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import GCS_BUCKET
from flows.stores import Target
from flows.stores.origins import origin_of
from flows.tasks.bring import bring
from flows.tasks.command import run_as_program
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.policy import flow_options
from flows.tasks.stores import require_usable
from flows.tlc.manifest import Outcome
from flows.tlc.sources import SourceName
from flows.tlc.trips import (
    AtLeastOne,
    Bound,
    Color,
    EditionName,
    Month,
    OptionalMonths,
    OptionalYear,
    Rows,
    SchemaRule,
    Terms,
    TripMonth,
    Year,
    trip_months,
)

# Prefect makes a pydantic model of a flow's parameters. pydantic warns about a field named `schema`; the flow works all the same.
warnings.filterwarnings("ignore", 'Field name "schema" in', UserWarning)


@flow(name="etl-web-gcs", flow_run_name="{color} {year}-{month:02d}", **flow_options())
def etl_web_gcs(
    color: Color,
    year: Year,
    month: Month,
    block_name: str = GCS_BUCKET,
    source: SourceName = "official",
    rows: Rows = "all",
    schema: SchemaRule = "strict",
    edition: EditionName = "",
) -> Outcome:
    """Bring one month of trips into the lake, exactly once.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the file's name.
        month: Month of the file's name, 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: all, or with_passengers to leave out trips with a passenger_count of zero.
        schema: strict (an unknown column stops the month), or accept_new_columns (unknown columns are kept as published).
        edition: Load this edition from the lake's raw zone instead, and pin the month to it: first 12 digits of its sha256.
    """
    [trip_month] = trip_months(color, year, [month])
    return bring(trip_month, origin_of(source, edition, Terms(rows, schema), [trip_month]), Target("lake", block_name))


@flow(name="etl-parent-flow", flow_run_name=named_for_months(), **flow_options())
def etl_parent_flow(
    color: Color,
    year: OptionalYear = None,
    months: OptionalMonths = None,
    block_name: str = GCS_BUCKET,
    source: SourceName = "official",
    rows: Rows = "all",
    schema: SchemaRule = "strict",
    at_once: AtLeastOne = 2,
    since: Bound = "",
    until: Bound = "",
    edition: EditionName = "",
) -> list[Outcome]:
    """Bring months of trips into the lake, exactly once. A month that fails does not stop the others.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: all, or with_passengers to leave out trips with a passenger_count of zero.
        schema: strict (an unknown column stops the month), or accept_new_columns (unknown columns are kept as published).
        at_once: How many months are processed at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until. Wins over the stored year and months of a deployment.
        until: Last month of the range, such as 2019-03 or 2019.
        edition: Load this edition from the lake's raw zone instead, and pin the month to it: first 12 digits of its sha256.
    """
    chosen = chosen_months(color, year, months, since, until)
    origin_of(source, edition, Terms(rows, schema), chosen)
    require_usable(Target("lake", block_name))

    def load(trip_month: TripMonth) -> Outcome:
        return etl_web_gcs(color, trip_month.year, trip_month.month, block_name, source, rows, schema, edition)

    return each_month("etl-web-gcs", chosen, at_once, load)


if __name__ == "__main__":
    run_as_program(etl_parent_flow)
