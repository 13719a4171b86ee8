"""Web → Postgres: `python flows/ingest_data.py yellow 2021 1 2 3`."""

import gc
import sys
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import GCS_BUCKET, POSTGRES
from flows.stores import Target
from flows.stores.origins import origin_of
from flows.tasks.bring import bring
from flows.tasks.command import run_as_program
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.policy import flow_options
from flows.tasks.stores import require_usable
from flows.tlc.manifest import Outcome
from flows.tlc.sources import SourceName
from flows.tlc.trips import AtLeastOne, Bound, Color, EditionName, OptionalMonths, OptionalYear, Rows, Terms


@flow(name="ingest-data", flow_run_name=named_for_months(), **flow_options())
def ingest_data(
    color: Color,
    year: OptionalYear = None,
    months: OptionalMonths = None,
    block_name: str = POSTGRES,
    source: SourceName = "official",
    rows: Rows = "with_passengers",
    at_once: AtLeastOne = 1,
    since: Bound = "",
    until: Bound = "",
    edition: EditionName = "",
    lake_block: str = GCS_BUCKET,
) -> list[Outcome]:
    """Bring months of trips into Postgres, exactly once. A month that fails does not stop the others.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        block_name: Name of the SqlAlchemyConnector block that is the database.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: with_passengers to leave out trips with a passenger_count of zero, or all.
        at_once: How many months are processed at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until. Wins over the stored year and months of a deployment.
        until: Last month of the range, such as 2019-03 or 2019.
        edition: Load this edition from the lake's raw zone instead, and pin the month to it: first 12 digits of its sha256.
        lake_block: Name of the GcsBucket block that is the lake; used only with an edition.
    """
    chosen = chosen_months(color, year, months, since, until)
    origin = origin_of(source, edition, Terms(rows), chosen)
    into = Target("database", lake_block, database_block=block_name)
    require_usable(into, *([into.with_store("lake")] if edition else []))
    return each_month("ingest-data", chosen, at_once, lambda trip_month: bring(trip_month, origin, into))


if __name__ == "__main__":
    run_as_program(ingest_data)
