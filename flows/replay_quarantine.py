"""Quarantine → lake or Postgres, after a rule changed: `python flows/replay_quarantine.py green 2021 1 2`."""

import sys
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: Python searches its folder for modules, and not the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prefect import flow, get_run_logger

from blocks import GCS_BUCKET, POSTGRES
from flows.connectors import scratch
from flows.connectors.web import published_at
from flows.tasks.command import run_as_program
from flows.tasks.extract import extract_from_lake, extract_to_scratch, in_scratch, refusal_explained
from flows.tasks.load import load_to_lake, load_to_postgres
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.notify import notifications
from flows.tasks.policy import believed, task_runner
from flows.tasks.stores import lake_of, postgres_of
from flows.tasks.transform import transform_for_postgres, transform_in_lake
from flows.tlc.addresses import shown
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest, Outcome
from flows.tlc.trips import AtLeastOne, Bound, Color, OptionalMonths, OptionalYear, TripMonth


@flow(name="replay-quarantine", flow_run_name=named_for_months(), task_runner=task_runner(), **notifications())
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
    """Load months that have quarantined rows again, from the very files they were made of, by the rules of today.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12; those without quarantined rows are left alone.
        store: lake, which keeps its files, or database, for which they are fetched again where this machine has them no more.
        block_name: Name of the GcsBucket block that is the lake.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        at_once: How many months are worked on at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until; wins over year and months.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    log = get_run_logger()

    def left_alone(before: Manifest) -> Outcome:
        log.info("%s has no quarantined rows; it is left alone", before.trip_month)
        return Outcome.of(store, "unchanged", before)

    def told(before: Manifest, outcome: Outcome) -> Outcome:
        if outcome.status == "unchanged":
            log.info("%s was replayed by another run meanwhile", outcome.trip_month)
            return outcome
        aside = sum(before.quarantined.values())
        loaded = f"{outcome.inserted:,} of {aside:,} quarantined rows are loaded now"
        log.info("%s: %s, %s still are not", outcome.trip_month, loaded, f"{aside - outcome.inserted:,}")
        return outcome

    def in_lake(trip_month: TripMonth) -> Outcome:
        before = extract_from_lake.submit(trip_month, block_name).result()
        if not before.quarantined:
            return left_alone(before)
        raw = lake.raw_of(before)
        staged = transform_in_lake.submit(raw, before.rule, block_name, before.schema_rule).result()
        return told(before, load_to_lake.submit(staged, before.generation, block_name).result())

    def in_database(trip_month: TripMonth) -> Outcome:
        with postgres.claim(trip_month, lambda: log.info("another run is loading %s; waiting for it", trip_month)):
            before = postgres.manifest(trip_month)
            if before is None:
                raise TripDataError(f"{trip_month} is not in Postgres; run ingest-data for it first.")
            if not before.quarantined:
                return left_alone(before)
            raw = scratch.raw_of(before)
            if not in_scratch(raw):
                with refusal_explained(trip_month, before.url, "database", lambda: before):
                    published = published_at(trip_month, before.url, before.published.ending)
                raw = believed(extract_to_scratch, in_scratch, published)
            if raw.sha256 != before.sha256:
                raise TripDataError(
                    f"{trip_month} was re-published at {shown(before.url)}; run ingest-data, which takes that in."
                )
            staged = transform_for_postgres.submit(raw, before.rule, postgres_block).result()
            return told(before, load_to_postgres.submit(staged, postgres_block, before).result())

    if store == "lake":
        lake = lake_of(block_name)
        lake.check()
        return each_month("replay-quarantine", chosen, at_once, in_lake)
    postgres = postgres_of(postgres_block)
    postgres.check()
    return each_month("replay-quarantine", chosen, at_once, in_database)


if __name__ == "__main__":
    run_as_program(replay_quarantine)
