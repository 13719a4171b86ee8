"""Everything new or re-published: web → lake → BigQuery, and Postgres on request: `python flows/bring_up_to_date.py`."""

import gc
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.connectors.web import source_of
from flows.stores import Target
from flows.tasks.behind import list_stores, log_found
from flows.tasks.command import run_as_program
from flows.tasks.months import each_month, named
from flows.tasks.policy import flow_options
from flows.tasks.survey import report_stores
from flows.tlc.catalog import KNOWN_RANGES, Found, months_ago, months_between, oldest_first, overdue
from flows.tlc.errors import MonthsFailed, Overdue, TripDataError
from flows.tlc.manifest import Outcome
from flows.tlc.sources import TEMPLATES, Source, SourceName
from flows.tlc.trips import AtLeastOne, AtLeastZero, Bound, Color, Dataset, Store, TripMonth

_COLORS: list[Color] = ["yellow", "green"]
_INTO: list[Store] = ["lake", "warehouse"]
_LOOK_BACK = 24  # months


@flow(name="bring-up-to-date", flow_run_name=named("up to date: {colors}"), **flow_options())
def bring_up_to_date(
    colors: list[Color] = _COLORS,
    since: Bound = "",
    at_most: AtLeastOne = 24,
    into: list[Store] = _INTO,
    source: SourceName = "official",
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
    at_once: AtLeastOne = 2,
    until: Bound = "",
    expect_within: AtLeastZero = 4,
) -> list[Outcome]:
    """Bring every month that is new or re-published at its source into the stores, oldest first. Do not touch other months.

    Args:
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        since: First month to load, such as 2019-01 or 2019; empty for the last 24 months. Older loaded months are checked too.
        at_most: How many months one run takes, oldest first; the others wait for the next run.
        into: Which stores to bring up to date. The warehouse is loaded from the lake, so the lake is then updated too.
        source: official (TLC's Parquet), mirror (DataTalksClub's CSV), or a URL template with {color}, {year}, {month:02d}.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset; created in the bucket's location if it does not exist.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        at_once: How many months are processed at the same time.
        until: Last month to load or check, such as 2021-12 or 2021; empty for the current month.
        expect_within: Fail at the end if a color's newest published month is more than this many months ago; 0 for no check.
    """
    if at_most < 1 or not into:
        raise TripDataError(
            f"at_most is {at_most} and into is {into}; take at least one month into at least one store."
        )
    if expect_within < 0:
        raise TripDataError(f"expect_within is {expect_within}; give a number of months, or 0 for no check.")
    publisher = source_of(source)
    window = months_between(colors, since or months_ago(_LOOK_BACK), until)

    target = Target("lake", block_name, credentials_block, dataset, postgres_block)
    stores = list_stores(target, into, colors)
    # Also check the months before `since` that were loaded from this source, but none after `until`.
    loaded = [month for month in stores.loaded_from(publisher, colors) if month.file_month <= window[-1].file_month]
    found = stores.compare(publisher, oldest_first([*window, *loaded]))
    due = [month for month in found if month.behind]
    taken, waiting = due[:at_most], due[at_most:]
    _log(found, taken, waiting)

    work = {month.trip_month: month for month in found if month in taken or month.source_error}
    statuses: dict[TripMonth, dict[Store, str]] = defaultdict(dict)

    def load(trip_month: TripMonth) -> Outcome:
        month = work[trip_month]
        behind = month.behind if month in taken else []
        return stores.update(publisher, month, behind, lambda o: statuses[trip_month].update({o.store: o.status}))

    def report(key: str, done: Sequence[Outcome], failed: Sequence[tuple[str, str]]) -> None:
        report_stores(key, found, [m.trip_month for m in waiting], statuses, dict(failed), done)

    with _failing_at_the_end(_overdue(found, colors, expect_within, source, publisher)):
        return each_month("bring-up-to-date", list(work), at_once, load, report)


@contextmanager
def _failing_at_the_end(reasons: Sequence[str]) -> Iterator[None]:
    """Run the block, then raise `Overdue` if there are reasons. If months failed, add the reasons to `MonthsFailed` instead."""
    try:
        yield
    except MonthsFailed as failure:
        failure.args = ("\n".join([str(failure), *reasons]),)
        raise
    if reasons:
        raise Overdue("\n".join(reasons))


def _overdue(found: Sequence[Found], colors: Sequence[Color], within: int, source: str, publisher: Source) -> list[str]:
    """Return and log which colors are overdue. Return nothing for a source that no longer publishes."""
    if any(publisher.template == TEMPLATES[known.source] or source == known.source for known in KNOWN_RANGES):
        return []
    late = [text for color in dict.fromkeys(colors) if (text := overdue(color, found, within, publisher.template))]
    for text in late:
        get_run_logger().error("%s", text)
    return late


def _log(found: Sequence[Found], taken: Sequence[Found], waiting: Sequence[Found]) -> None:
    log = get_run_logger()
    log_found(found, taken)
    log.info("%s months checked, %s to bring up to date now", len(found), len(taken))
    if waiting:
        log.warning(
            "%s more months wait for the next run, from %s to %s; raise at_most, or run again",
            len(waiting), waiting[0].trip_month, waiting[-1].trip_month,
        )  # fmt: skip


if __name__ == "__main__":
    run_as_program(bring_up_to_date)
