"""Load history: `python flows/backfill.py --since 2009-01 --until 2024-05 --colors yellow green --into lake warehouse`."""

import asyncio
import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.connectors.web import source_of
from flows.stores import Target
from flows.tasks.batches import BATCHES_OF, Batches
from flows.tasks.behind import Stores, list_stores, log_found
from flows.tasks.board import Board, RunIsOver
from flows.tasks.command import run_as_program
from flows.tasks.dead_runs import SILENT_AFTER, crash_dead_backfills
from flows.tasks.machines import machines_of
from flows.tasks.months import each_month, end_of_months, reason_of
from flows.tasks.policy import flow_options, this_run
from flows.tlc.catalog import Found, months_between, oldest_first
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Outcome
from flows.tlc.sources import SourceName
from flows.tlc.trips import COLORS, AtLeastOne, Bound, Color, Dataset, Order, Spread, Store, TripMonth, month_named

_COLORS: list[Color] = [*COLORS]
_INTO: list[Store] = ["lake", "warehouse", "database"]
_NONE: list[str] = []


def _name() -> str:
    """Name a run after its months."""
    given = flow_run.parameters
    if months := given["months"]:
        return months[0] if len(months) == 1 else f"{months[0]} to {months[-1]}, {len(months)} months"
    return f"{given['since'] or 'all'} to {given['until'] or 'now'}: {', '.join(given['colors'])}"


@flow(name="backfill", flow_run_name=_name, **flow_options())
def backfill(
    since: Bound = "",
    until: Bound = "",
    colors: list[Color] = _COLORS,
    into: list[Store] = _INTO,
    order: Order = "oldest",
    at_once: AtLeastOne = 2,
    months: list[str] = _NONE,
    source: SourceName = "official",
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
    spread: Spread = "here",
    machines: AtLeastOne = 4,
    batch: AtLeastOne = 8,
    deployment: str = "backfill/ny-taxi backfill",
    dask: str = "",
    silent_after: AtLeastOne = SILENT_AFTER,
) -> list[Outcome]:
    """Bring every month of a range that is missing or re-published into the stores. Run it again to resume it.

    Args:
        since: First month, such as 2009-01 or 2009; empty for TLC's first month.
        until: Last month, such as 2024-05 or 2024; empty for the current month.
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        into: Which stores to load. The warehouse is loaded from the lake, so the lake is then loaded too.
        order: Which months come first: oldest or newest.
        at_once: How many months one machine processes at the same time.
        months: These months only, such as yellow 2021-01, instead of since, until and colors.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset; created in the bucket's location if it does not exist.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        spread: here (this process), queue (runs of a deployment, on all agents or workers), or dask (a Dask cluster).
        machines: The number of machines. This many batches of months run at the same time, in the queue or the Dask cluster.
        batch: The number of months in one batch.
        deployment: Name of the deployment that runs each batch, for spread=queue.
        dask: Address of the Dask scheduler, such as tcp://10.0.0.5:8786; empty for processes on this machine.
        silent_after: Seconds without a heartbeat after which a run of a back-fill counts as dead.
    """
    if not into:
        raise TripDataError("into is empty; name at least one store. Nothing was started.")
    chosen = oldest_first(map(month_named, months) if months else months_between(colors, since, until))
    if order == "newest":
        chosen.reverse()
    publisher = source_of(source)
    target = Target("lake", block_name, credentials_block, dataset, postgres_block)

    def look() -> tuple[Stores, list[Found]]:
        stores = list_stores(target, into, sorted({month.color for month in chosen}))
        return stores, stores.compare(publisher, chosen)

    def mark_dead() -> None:
        if not months:  # not in a batch: the run that started it does this
            asyncio.run(crash_dead_backfills(UUID(this_run()), BATCHES_OF))

    try:
        # The board is there first and last. Its heartbeat shows that the run is alive while a slow source is asked for all
        # months, and its end finds out whether somebody cancelled the run.
        with Board(min(10.0, silent_after / 6)) as board, machines_of(spread, deployment, dask, machines) as others:
            mark_dead()
            stores, found = look()
            work = {month.trip_month: month for month in found if month.behind or month.source_error}
            log_found(found, [month for month in work.values() if month.behind])
            get_run_logger().info("%s months checked, %s to load", len(found), len(work))
            board.plan({m: month.published.size or 0 if month.published else 0 for m, month in work.items()})

            def load(trip_month: TripMonth) -> Outcome:
                board.require_not_over()
                board.set(trip_month, "running")
                month = work[trip_month]
                try:
                    outcome = stores.update(publisher, month, month.behind, lambda o: board.add(trip_month, o))
                except Exception as error:
                    board.set(trip_month, "waits")
                    board.require_not_over(ask=True)  # Prefect refuses every task of a cancelled run
                    board.set(trip_month, "failed", reason_of(trip_month, error))
                    raise
                board.set(trip_month, "done", " ".join(outcome.warnings))
                return outcome

            try:
                if others is None:
                    return each_month("backfill", list(work), at_once, load, lambda key, done, failed: None)
                batches = Batches(others, board, flow_run.parameters, this_run())
                return end_of_months("backfill", *batches.load(work, look), lambda key, done, failed: None)
            finally:
                with suppress(Exception):  # it must not hide the end of the months
                    mark_dead()  # a back-fill that died just before this one began is silent only now
    except RunIsOver:
        # A flow that returns a state ends in this state. Prefect refuses every other end of a cancelled run.
        state: Any = Cancelled(message="the steps in progress were finished; no other step was started")
        return cast(list[Outcome], state)


if __name__ == "__main__":
    run_as_program(backfill)
