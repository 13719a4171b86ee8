"""Bring one month into one store: look it up, extract it, transform it, load it. Each step is a task with retries."""

from typing import Any

from prefect import get_run_logger, task
from prefect.runtime import flow_run

from flows.stores import FileStore, MonthStore, Target
from flows.stores.origins import LookedUp, Origin
from flows.tasks.policy import CACHE_FOR, RETRIES, believed, cached_by, this_run
from flows.tasks.progress import meter
from flows.tasks.report import report
from flows.tasks.stores import open_store
from flows.tlc.addresses import shown
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest, Outcome, Present, RawFile, StagedCopy, StagedMonth
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Terms, TripMonth


def bring(trip_month: TripMonth, origin: Origin, into: Target) -> Outcome:
    """Bring one month from its origin into a store, exactly once, and return the outcome."""
    log, store = get_run_logger(), open_store(into)
    with store.claim(trip_month, lambda: log.info("another run is loading %s; waiting for it", trip_month)):
        looked = look_up.submit(trip_month, origin, into).result()
        if looked.unchanged:
            return _unchanged(into, looked.unchanged, looked.why)
        raw = extract(looked.found, store, into) if isinstance(looked.found, PublishedFile) else looked.found
        _require_edition(looked, raw)
        if same := looked.held(raw):
            seen = remember.submit(same, raw, into).result()
            return _unchanged(into, seen, "was published again with the same bytes; nothing to do")
        staged = transform.submit(raw, looked.terms, into).result()
        return load.submit(staged, looked.present, into).result()


def _unchanged(into: Target, manifest: Manifest, why: str) -> Outcome:
    get_run_logger().info("%s %s", manifest.trip_month, why)
    return Outcome(store=into.store, status="unchanged", manifest=manifest)


def _require_edition(looked: LookedUp, raw: RawFile | Manifest) -> None:
    if looked.sha256 and raw.sha256 != looked.sha256:
        published = raw.published
        raise TripDataError(
            f"{raw.trip_month} was re-published at {shown(published.url)}; run ingest-data, which takes that in."
        )


@task(name="look up", task_run_name="look up {trip_month}", **RETRIES)
def look_up(trip_month: TripMonth, origin: Origin, into: Target) -> LookedUp:
    """Compare the month at its origin with the month in the store."""
    store = open_store(into)
    store.check()
    return origin.look_up(trip_month, store)


def extract(published: PublishedFile, store: FileStore, into: Target) -> RawFile:
    """Extract a published file. Reuse a cached result if it is less than a day old and the file is still there.

    If every machine can reach the store, its cached results are kept in the store itself.
    """
    extraction, results = extract_file, published.trip_month.results_key
    if store.block:
        extraction = extraction.with_options(
            result_storage=store.block,
            result_storage_key=results,
            task_run_name=extraction.task_run_name,  # with_options() drops it
        )
    try:
        return believed(extraction, store.has, published, into)
    except TripDataError:
        store.forget_result(results.replace("{flow_run.id}", this_run()))  # Prefect persists a failed task's error, too
        raise


@task(
    name="extract",
    task_run_name="extract {published.trip_month} → {into.title}",
    cache_key_fn=cached_by,
    cache_expiration=CACHE_FOR,
    persist_result=True,
    result_serializer="json",
    **RETRIES,
)
def extract_file(published: PublishedFile, into: Target) -> dict[str, Any]:
    """Copy the published file, byte for byte, to where the store reads it. Return a `RawFile` as JSON, for the cache."""
    with meter(f"extract {published.trip_month}", "bytes") as progress:
        raw: RawFile = open_store(into).extract(published, progress.add)
    get_run_logger().info("%s: %s bytes as published are in %s", published.trip_month, f"{raw.size:,}", raw.key)
    return raw.model_dump(mode="json")


@task(name="transform", task_run_name="transform {raw.trip_month} → {into.title}", **RETRIES)
def transform(raw: RawFile | Manifest, terms: Terms, into: Target) -> StagedMonth | StagedCopy:
    """Stage canonical trips where no reader sees them yet, and quarantine the rows that do not fit."""
    with meter(f"transform {raw.trip_month}") as progress:
        staged: StagedMonth | StagedCopy = open_store(into).stage(
            raw, terms, str(flow_run.get_id() or "local"), progress.add
        )
    return staged


@task(name="load", task_run_name="load {staged.trip_month} → {into.title}", **RETRIES)
def load(staged: StagedMonth | StagedCopy, present: Present, into: Target) -> Outcome:
    """Publish a staged month atomically, and report it."""
    store = open_store(into)
    outcome: Outcome = store.publish(staged, present, this_run())
    _report(outcome, store)
    return outcome


@task(name="remember", task_run_name="remember {raw.trip_month} in {into.title}", **RETRIES)
def remember(manifest: Manifest, raw: RawFile | Manifest, into: Target) -> Manifest:
    """Record in the manifest that the same bytes were published again."""
    seen = manifest.seen_at(raw)
    open_store(into).remember(seen)
    return seen


def _report(outcome: Outcome, store: MonthStore) -> None:
    """Log and report a month's outcome, next to the previous month for comparison."""
    log, manifest, previous = get_run_logger(), outcome.manifest, outcome.trip_month.previous
    log.info("%s", outcome)
    if manifest.recount and manifest.recount not in " ".join(outcome.warnings):
        log.info("%s: %s", manifest.trip_month, manifest.recount)
    try:
        report(outcome, store.remembered(previous) if previous else None, store.page(manifest))
    except Exception as error:  # the month is published; a missing report must not fail the run
        log.warning("%s: no report could be left (%s)", manifest.trip_month, type(error).__name__)
    for warning in outcome.warnings:
        log.warning("%s: %s", outcome.trip_month, warning)
    if manifest.new_columns and outcome.store == "lake":
        log.warning(
            "%s: TLC has NEW COLUMNS: %s. They are in %s as published, and nowhere else; docs/eras.md explains how to add them",
            outcome.trip_month, ", ".join(manifest.new_columns), manifest.extra_key,
        )  # fmt: skip
