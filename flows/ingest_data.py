"""Web → Postgres: `python flows/ingest_data.py yellow 2021 1 2 3`."""

import sys
from pathlib import Path

if not __package__:  # run as a file: Python searches its folder for modules, and not the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prefect import flow, get_run_logger

from blocks import POSTGRES
from flows.connectors.web import look_up, source_of
from flows.tasks.command import run_as_program
from flows.tasks.extract import extract_to_scratch, in_scratch, refusal_explained
from flows.tasks.load import load_to_postgres
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.notify import notifications
from flows.tasks.policy import believed, task_runner
from flows.tasks.stores import postgres_of
from flows.tasks.transform import transform_for_postgres
from flows.tlc.manifest import Outcome
from flows.tlc.sources import SourceName
from flows.tlc.trips import AtLeastOne, Bound, Color, OptionalMonths, OptionalYear, Rows, TripMonth


@flow(name="ingest-data", flow_run_name=named_for_months(), task_runner=task_runner(), **notifications())
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
) -> list[Outcome]:
    """Bring months of trips into Postgres, exactly once; a month that fails stops no other.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        block_name: Name of the SqlAlchemyConnector block that is the database.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: with_passengers to leave out trips with a passenger_count of zero, or all.
        at_once: How many months are worked on at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until; wins over year and months.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    publisher = source_of(source)
    log = get_run_logger()
    postgres = postgres_of(block_name)
    postgres.check()

    def load(trip_month: TripMonth) -> Outcome:
        with refusal_explained(
            trip_month, publisher.url(trip_month), "database", lambda: postgres.manifest(trip_month)
        ):
            published = look_up(publisher, trip_month)
        with postgres.claim(trip_month, lambda: log.info("another run is loading %s; waiting for it", trip_month)):
            manifest = postgres.manifest(trip_month)
            if manifest and manifest.covers(published, rows):
                log.info("%s is unchanged at its source and in Postgres; nothing to do", trip_month)
                return Outcome.of("database", "unchanged", manifest)
            raw = believed(extract_to_scratch, in_scratch, published)
            if manifest and manifest.holds(raw, rows):
                log.info("%s was published again with the same bytes; nothing to do", trip_month)
                postgres.write_manifest(manifest.seen_at(raw))
                return Outcome.of("database", "unchanged", manifest)
            staged = transform_for_postgres.submit(raw, rows, block_name).result()
            return load_to_postgres.submit(staged, block_name, manifest).result()

    return each_month("ingest-data", chosen, at_once, load)


if __name__ == "__main__":
    run_as_program(ingest_data)
