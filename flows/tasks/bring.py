"""Bring one month into one store: look it up, extract it, transform it, load it. Each step is a task with retries."""

from contextlib import ExitStack, nullcontext, suppress
from typing import Any

from prefect import get_run_logger, task

from flows.stores import STORES, MonthStore, Target
from flows.stores.origins import LookedUp, Origin
from flows.tasks.early import early_staging, early_staging_of
from flows.tasks.policy import CACHE_FOR, RETRIES, cached_by, started_by, submit, this_run
from flows.tasks.progress import meter
from flows.tasks.report import report
from flows.tasks.stores import is_checked, load_block, open_store
from flows.tlc.addresses import escaped, shown, stored
from flows.tlc.errors import Overtaken, TripDataError, Vanished
from flows.tlc.manifest import Manifest, Outcome, Present, RawFile, StagedCopy, StagedMonth
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Terms, TripMonth


def bring(trip_month: TripMonth, origin: Origin, into: Target) -> Outcome:
    """Bring one month from its origin into a store, exactly once, and return the outcome."""
    with ExitStack() as claims:  # closed at the end of this run, even after an error
        if STORES[into.store].exclusive:
            # Called, not submitted: a submitted task may run on another machine, and the claim belongs to this process.
            claim(trip_month, into, claims)
        looked = submit(look_up, trip_month, origin, into, is_checked(into)).result()
        try:
            return _load_found(trip_month, looked, into)
        except Vanished as vanished:
            get_run_logger().warning("%s: it is looked up once more, because of this: %s", trip_month, vanished)
            if STORES[into.store].exclusive:  # the server may have released the lock
                claims.close()
                claim(trip_month, into, claims)
            looked = submit(look_up, trip_month, origin, into, checked=False).result()
            return _load_found(trip_month, looked, into)


def _load_found(trip_month: TripMonth, looked: LookedUp, into: Target) -> Outcome:
    """Load the month as it was found, unless the store has it already."""
    manifest, why = looked.unchanged, looked.why
    if looked.lost:
        get_run_logger().warning("%s: %s", trip_month, looked.lost)
    if manifest is None:
        with early_staging(looked.found, looked.terms, into):
            raw = extract(looked.found, into) if isinstance(looked.found, PublishedFile) else looked.found
            _require_edition(looked, raw)
            if same := looked.loaded_from(raw):
                manifest = submit(remember, same, raw, into).result()
                why = looked.why_same_bytes
            else:
                staged = submit(transform, raw, looked.terms, into).result()
                return submit(load, staged, looked.present, into, started_by()).result()
    get_run_logger().info("%s %s", trip_month, why)
    return Outcome(store=into.store, status="unchanged", manifest=manifest)


@task(name="claim", task_run_name="claim {trip_month} in {into.title}", **RETRIES)
def claim(trip_month: TripMonth, into: Target, claims: ExitStack) -> None:
    """Lock the month in its store until `claims` is closed. Wait if another run of the month has the lock."""
    log = get_run_logger()
    claims.enter_context(
        open_store(into).claim(trip_month, lambda: log.info("another run is loading %s; waiting for it", trip_month))
    )


def _require_edition(looked: LookedUp, raw: RawFile | Manifest) -> None:
    if looked.sha256 and raw.sha256 != looked.sha256:
        url = shown(raw.published.url)
        raise TripDataError(f"{raw.trip_month} was re-published at {url}; run ingest-data to load the new edition.")


@task(name="look up", task_run_name="look up {trip_month}", **RETRIES)
def look_up(trip_month: TripMonth, origin: Origin, into: Target, checked: bool) -> LookedUp:
    """Compare the month at its origin with the month in the store. Check the store first unless the run has `checked` it."""
    store = open_store(into)
    if not checked:
        store.check()
    return origin.look_up(trip_month, store)


def extract(published: PublishedFile, into: Target) -> RawFile:
    """Extract a published file. Reuse a cached result if it is less than a day old and the file is still there.

    If every machine can reach the store, its cached results are kept in the store itself.
    """
    named: dict[str, Any] = {"task_run_name": extract_file.task_run_name}  # with_options() drops this setting
    if into.bucket_block:
        named |= {"result_storage": load_block("gcs-bucket", into.bucket_block)}
        named |= {"result_storage_key": published.trip_month.results_key}
    state: Any = submit(extract_file.with_options(**named), published, into).wait()
    if state.name == "Cached":
        with suppress(Exception):  # the cached result may have been deleted
            raw = _raw_of(state.result(), published)
            if submit(still_there, raw, into).result():
                return raw
        state = submit(extract_file.with_options(**named, refresh_cache=True), published, into).wait()
    try:
        return _raw_of(state.result(), published)
    except TripDataError:
        if into.bucket_block:
            with suppress(Exception):  # Prefect persists a failed task's error, too; delete it now, not after a day
                open_store(into).forget_result(published.trip_month, this_run())
        raise


def _raw_of(result: dict[str, Any], published: PublishedFile) -> RawFile:
    """Return the raw file of a task's result. Add the whole address: the result has it without its query."""
    raw = RawFile.model_validate(result)
    return raw.model_copy(update={"published": raw.published.model_copy(update={"url": published.url})})


@task(name="check file", task_run_name="check file {raw.trip_month} → {into.title}", **RETRIES)
def still_there(raw: RawFile, into: Target) -> bool:
    """Return whether an extracted file is still where the store reads it."""
    there: bool = open_store(into).has(raw)
    return there


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
        store, early = open_store(into), early_staging_of(published.trip_month, into)
        with early.receiving(store) if early else nullcontext() as growing:
            raw: RawFile = store.extract(published, progress.add, growing)
    get_run_logger().info("%s: %s bytes as published are in %s", published.trip_month, f"{raw.size:,}", raw.key)
    result = raw.model_dump(mode="json")
    result["published"]["url"] = stored(raw.published.url)
    return result


@task(name="transform", task_run_name="transform {raw.trip_month} → {into.title}", **RETRIES)
def transform(raw: RawFile | Manifest, terms: Terms, into: Target) -> StagedMonth | StagedCopy:
    """Stage canonical trips, and quarantine the rows that cannot be converted. No reader sees them yet."""
    with meter(f"transform {raw.trip_month}") as progress:
        staged: StagedMonth | StagedCopy | None = None
        if isinstance(raw, RawFile) and (early := early_staging_of(raw.trip_month, into)):
            staged = early.result(raw, progress.add)
        if staged is None:
            staged = open_store(into).stage(raw, terms, this_run() or "local", progress.add)
    return staged


@task(name="load", task_run_name="load {staged.trip_month} → {into.title}", **RETRIES)
def load(staged: StagedMonth | StagedCopy, present: Present, into: Target, by: str) -> Outcome:
    """Publish a staged month atomically, and report it."""
    store: MonthStore = open_store(into)
    outcome = store.publish(staged, present, this_run(), by)
    _report(outcome, store)
    return outcome


@task(name="remember", task_run_name="remember {raw.trip_month} in {into.title}", **RETRIES)
def remember(manifest: Manifest, raw: RawFile | Manifest, into: Target) -> Manifest:
    """Write into the manifest that the same bytes were published again."""
    store, seen = open_store(into), manifest.seen_at(raw)
    if (now := store.remembered(raw.trip_month)) and now.fault != manifest.fault:
        raise Overtaken(f"{raw.trip_month}: verify found a fault during this run ({now.fault}). Run again.")
    store.remember(seen)
    return seen


def _report(outcome: Outcome, store: MonthStore) -> None:
    """Log and report a month's outcome. The report compares it with the previous month."""
    log, manifest, previous = get_run_logger(), outcome.manifest, outcome.trip_month.previous
    log.info("%s", outcome)
    if manifest.recount and manifest.recount not in " ".join(outcome.warnings):
        log.info("%s: %s", manifest.trip_month, manifest.recount)
    try:
        report(outcome, store.remembered(previous) if previous else None, store.page(manifest))
    except Exception as error:  # the month is published; a missing report must not fail the run
        log.warning("%s: the report could not be written (%s)", manifest.trip_month, type(error).__name__)
    for warning in outcome.warnings:
        log.warning("%s: %s", outcome.trip_month, warning)
    if manifest.new_columns and outcome.store == "lake":
        log.warning(
            "%s: TLC has NEW COLUMNS: %s. Only %s has them, as published; docs/eras.md explains how to add them",
            outcome.trip_month, escaped(", ".join(manifest.new_columns)), manifest.extra_key,
        )  # fmt: skip
