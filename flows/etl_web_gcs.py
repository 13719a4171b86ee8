"""Web → lake: `python flows/etl_web_gcs.py green 2021 1 2 3`."""

import sys
import warnings
from pathlib import Path

if not __package__:  # run as a file: Python searches its folder for modules, and not the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from prefect import flow, get_run_logger

from blocks import GCS_BUCKET
from flows.connectors.lake import Lake
from flows.connectors.web import look_up, source_of
from flows.tasks.command import run_as_program
from flows.tasks.extract import extract_to_lake, refusal_explained
from flows.tasks.load import load_to_lake
from flows.tasks.months import chosen_months, each_month, named_for_months
from flows.tasks.notify import notifications
from flows.tasks.policy import believed, task_runner, this_run
from flows.tasks.stores import lake_of
from flows.tasks.transform import transform_in_lake
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Outcome, RawFile
from flows.tlc.sources import PublishedFile, SourceName
from flows.tlc.trips import (
    AtLeastOne,
    Bound,
    Color,
    Month,
    OptionalMonths,
    OptionalYear,
    Rows,
    SchemaRule,
    TripMonth,
    Year,
    trip_months,
)

# Prefect makes a model of a flow's parameters, and pydantic minds that one is called `schema`; both do what they should.
warnings.filterwarnings("ignore", 'Field name "schema" in', UserWarning)


@flow(name="etl-web-gcs", flow_run_name="{color} {year}-{month:02d}", task_runner=task_runner(), **notifications())
def etl_web_gcs(
    color: Color,
    year: Year,
    month: Month,
    block_name: str = GCS_BUCKET,
    source: SourceName = "official",
    rows: Rows = "all",
    schema: SchemaRule = "strict",
) -> Outcome:
    """Bring one month of trips into the lake, exactly once.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the file's name.
        month: Month of the file's name, 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: all, or with_passengers to leave out trips with a passenger_count of zero.
        schema: strict (a column that the schema does not know stops the month), or accept_new_columns to keep it as published.
    """
    [trip_month] = trip_months(color, year, [month])
    lake = lake_of(block_name)
    lake.check()
    publisher = source_of(source)
    with refusal_explained(trip_month, publisher.url(trip_month), "lake", lambda: lake.current(trip_month)):
        published = look_up(publisher, trip_month)
    present = lake.present(trip_month)
    manifest = lake.finished(trip_month)
    if manifest and manifest.covers(published, rows):
        known = f"; its new columns ({', '.join(manifest.new_columns)}) were accepted" if manifest.new_columns else ""
        get_run_logger().info("%s is unchanged at its source and in the lake%s; nothing to do", trip_month, known)
        return Outcome.of("lake", "unchanged", manifest)

    raw = _extract(lake, published, block_name)
    if manifest and manifest.holds(raw, rows):
        get_run_logger().info("%s was published again with the same bytes; nothing to do", trip_month)
        lake.write_manifest(manifest.seen_at(raw))
        return Outcome.of("lake", "unchanged", manifest)
    staged = transform_in_lake.submit(raw, rows, block_name, schema).result()
    return load_to_lake.submit(staged, present.generation if present else 0, block_name).result()


def _extract(lake: Lake, published: PublishedFile, block_name: str) -> RawFile:
    """Extract by a cache that lives in the lake itself, where every machine finds it; not believed if the file is gone."""
    extract = extract_to_lake.with_options(
        result_storage=lake.block,
        result_storage_key=published.trip_month.results_key,
        task_run_name=extract_to_lake.task_run_name,  # Prefect would forget it
    )
    try:
        return believed(extract, lake.has, published, block_name)
    except TripDataError:
        # Prefect keeps a failed task's error as its result, too.
        lake.delete([published.trip_month.results_key.replace("{flow_run.id}", this_run())])
        raise


@flow(name="etl-parent-flow", flow_run_name=named_for_months(), task_runner=task_runner(), **notifications())
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
) -> list[Outcome]:
    """Bring months of trips into the lake, exactly once; a month that fails stops no other.

    Args:
        color: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        year: Year of the files' names, with months; or give since and until.
        months: Months of the files' names, each 1 to 12.
        block_name: Name of the GcsBucket block that is the lake.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        rows: all, or with_passengers to leave out trips with a passenger_count of zero.
        schema: strict (a column that the schema does not know stops the month), or accept_new_columns to keep it as published.
        at_once: How many months are worked on at the same time.
        since: First month of a range, such as 2019-02 or 2019, with until; wins over year and months.
        until: Last month of the range, such as 2019-03 or 2019.
    """
    chosen = chosen_months(color, year, months, since, until)
    source_of(source)
    lake_of(block_name).check()

    def load(trip_month: TripMonth) -> Outcome:
        return etl_web_gcs(color, trip_month.year, trip_month.month, block_name, source, rows, schema)

    return each_month("etl-web-gcs", chosen, at_once, load)


if __name__ == "__main__":
    run_as_program(etl_parent_flow)
