"""Quarantine → lake, after a rule changed: `python flows/replay_quarantine.py green 2021 1 2`."""

from prefect import flow, get_run_logger

from blocks import GCS_BUCKET
from flows.tasks.command import run_as_program
from flows.tasks.extract import extract_from_lake
from flows.tasks.load import load_to_lake
from flows.tasks.months import each_month
from flows.tasks.notify import notifications
from flows.tasks.policy import task_runner
from flows.tasks.stores import lake_of
from flows.tasks.transform import transform_in_lake
from flows.tlc.manifest import Outcome
from flows.tlc.trips import Color, Month, TripMonth, Year, trip_months


@flow(name="replay-quarantine", flow_run_name="{color} {year} {months}", task_runner=task_runner(), **notifications())
def replay_quarantine(
    color: Color,
    year: Year,
    months: list[Month],
    block_name: str = GCS_BUCKET,
    at_once: int = 2,
) -> list[Outcome]:
    """Load months that have quarantined rows again, from the lake's own copy of their files, by the rules of today.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names.
        months: Months of the files' names, each 1 to 12; those without quarantined rows are left alone.
        block_name: Name of the GcsBucket block that is the lake.
        at_once: How many months are worked on at the same time.
    """
    chosen = trip_months(color, year, months)
    lake = lake_of(block_name)
    lake.check()
    log = get_run_logger()

    def replay(trip_month: TripMonth) -> Outcome:
        before = extract_from_lake.submit(trip_month, block_name).result()
        if not before.quarantined:
            log.info("%s has no quarantined rows; it is left alone", trip_month)
            return Outcome.of("lake", "unchanged", before)
        raw = lake.raw_of(before)
        staged = transform_in_lake.submit(raw, before.rule, block_name, before.schema_rule).result()
        outcome = load_to_lake.submit(staged, before.generation, block_name).result()
        if outcome.status == "unchanged":
            log.info("%s was replayed by another run meanwhile", trip_month)
        else:
            aside = sum(before.quarantined.values())
            loaded = f"{outcome.inserted:,} of {aside:,} quarantined rows are loaded now"
            log.info("%s: %s, %s still are not", trip_month, loaded, f"{aside - outcome.inserted:,}")
        return outcome

    return each_month("replay-quarantine", chosen, at_once, replay)


if __name__ == "__main__":
    run_as_program(replay_quarantine)
