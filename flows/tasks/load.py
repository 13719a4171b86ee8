"""Load: publish a staged month at one stroke, and say what was published."""

import dataclasses
import datetime as dt
import time

from prefect import get_run_logger, task

from flows.connectors.known import known_file
from flows.connectors.lake import Gone, Lake, LakeObject, Overtaken, packed
from flows.connectors.postgres import Postgres
from flows.connectors.warehouse import Warehouse
from flows.tasks.policy import RETRIES, this_run
from flows.tasks.report import report
from flows.tasks.stores import lake_of, postgres_of, warehouse_of
from flows.tlc.attention import warnings_of
from flows.tlc.compare import Changes, compare
from flows.tlc.manifest import Manifest, Outcome, StagedMonth, Status

_OTHERS_TIME = 30.0  # seconds that another run gets between its object and its manifest


def _tell(outcome: Outcome, manifest: Manifest, store: Lake | Postgres) -> None:
    """Log and report what became of a month; `store` knows the month before, to compare with."""
    log, previous = get_run_logger(), outcome.trip_month.previous
    log.info("%s", outcome)
    if manifest.recount and manifest.recount not in " ".join(outcome.warnings):
        log.info("%s: %s", manifest.trip_month, manifest.recount)
    page = store.page(manifest.key) if isinstance(store, Lake) else ""
    try:
        report(outcome, manifest, store.manifest(previous) if previous else None, page)
    except Exception as error:  # the month is published, and that is what this run is for
        log.warning("%s: no report could be left (%s)", manifest.trip_month, type(error).__name__)
    for warning in outcome.warnings:
        log.warning("%s: %s", outcome.trip_month, warning)


def _last_known_rows(staged: StagedMonth, before: Manifest | None) -> int | None:
    """Rows of the edition that this one takes the place of: by the store's own word, else by what is known of TLC's files."""
    url = staged.raw.published.url
    if before and before.url == url:
        return before.source_rows
    known = known_file(url)
    return known.rows if known else None


@task(name="load to lake", task_run_name="load {staged.raw.published.trip_month} → lake", **RETRIES)
def load_to_lake(staged: StagedMonth, replaces: int, block_name: str) -> Outcome:
    """Publish the staged Parquet under the month's own key, then its manifest, last."""
    lake = lake_of(block_name)
    outcome, manifest = publish_in_lake(lake, staged, replaces, this_run())
    _tell(outcome, manifest, lake)
    if manifest.new_columns:
        get_run_logger().warning(
            "%s: TLC has NEW COLUMNS: %s. They are in %s as published, and nowhere else; docs/eras.md tells how to add them",
            outcome.trip_month, ", ".join(manifest.new_columns), manifest.extra_key,
        )  # fmt: skip
    return outcome


def publish_in_lake(lake: Lake, staged: StagedMonth, replaces: int, run_id: str) -> tuple[Outcome, Manifest]:
    """Publish a staged month, unless another run of it was first: then that run's month stands.

    `replaces` is the generation of the month's object when this run began (0: there was none).
    """
    trip_month = staged.raw.published.trip_month
    raw_key = trip_month.raw_key(staged.raw.published.ending)
    staged_raw = staged.raw.key if staged.raw.key != raw_key else ""
    staged_keys = [key for key in (staged.key, staged.quarantine_key, staged.extra_key, staged_raw) if key]
    manifest = staged.manifest(
        run_id,
        key=trip_month.key,
        quarantine_key=trip_month.quarantine_key if staged.quarantine_key else "",
        extra_key=trip_month.extra_key if staged.extra_key else "",
    )
    while True:
        did = dataclasses.asdict(_changes(lake, staged, replaces) or Changes(inserted=staged.loaded))
        before = lake.manifest(trip_month)
        rows = _last_known_rows(staged, before)
        manifest = manifest.model_copy(update={**did, "replaces": replaces, "known_rows": rows})
        # The manifest is on the object itself as well: whoever reads finds both, or neither, whenever this run may die.
        noted = {"staged": staged.key, "replaces": replaces, **did}
        try:
            published = lake.publish(
                staged.key,
                staged.generation,
                trip_month.key,
                replaces,
                {k: str(v) for k, v in noted.items()} | packed(manifest),
            )
            break
        except Overtaken:
            present = lake.stat(trip_month.key)
            if present and present.metadata.get("staged") == staged.key:  # by an attempt before this one
                published = present
                replaces, *did_then = (int(present.metadata[name]) for name in ("replaces", *did))
                did = dict(zip(did, did_then, strict=True))
                manifest = manifest.model_copy(update={**did, "replaces": replaces})
                if before and before.generation == present.generation:  # that attempt wrote its manifest, too
                    manifest = manifest.model_copy(update={"known_rows": before.known_rows})
                    rows_before = before.loaded - before.inserted + before.removed
                    before = before.model_copy(update={"loaded": rows_before})
                break
            other = _manifest_of_the_other(lake, staged, present)
            if other and other.holds(staged.raw, staged.rule):
                lake.delete(staged_keys)
                return Outcome.of("lake", "unchanged", other), other
            replaces = present.generation if present else 0  # its run died there, or loaded something else
    manifest = manifest.model_copy(update={"generation": published.generation})
    lake.publish_beside(staged.quarantine_key, trip_month.quarantine_key, published)
    lake.publish_beside(staged.extra_key, trip_month.extra_key, published)
    if staged_raw:
        lake.publish_beside(staged_raw, raw_key, published)
    lake.write_manifest(manifest)
    lake.delete(staged_keys)
    warnings = warnings_of(manifest, before if replaces else None)
    return Outcome.of("lake", "replaced" if replaces else "loaded", manifest, warnings, **did), manifest


def _changes(lake: Lake, staged: StagedMonth, replaces: int) -> Changes | None:
    """What publishing will change for a reader of generation `replaces`; None if it is not there."""
    present = lake.stat(staged.raw.published.trip_month.key)
    if not replaces or present is None or present.generation != replaces:
        return None
    try:
        return compare(lake.trips(present.key, replaces), lake.trips(staged.key, staged.generation))
    except Gone:  # another run was first, as publishing will find
        return None


def _manifest_of_the_other(lake: Lake, staged: StagedMonth, present: LakeObject | None) -> Manifest | None:
    """The manifest of the run that overtook this one, waited for; None if that run died before it wrote one."""
    trip_month = staged.raw.published.trip_month
    until = time.monotonic() + _OTHERS_TIME
    while present is not None and time.monotonic() < until:
        manifest = lake.finished(trip_month)
        if manifest and manifest.generation == present.generation:
            return manifest
        time.sleep(1)
    return None


@task(name="load to BigQuery", task_run_name="load {manifest.trip_month} → BigQuery", **RETRIES)
def load_to_bigquery(
    manifest: Manifest,
    before: Manifest | None,
    staging: str | None,
    block_name: str,
    credentials_block: str,
    dataset: str,
) -> Outcome:
    """Replace the month's partition at one stroke, check its rows against the lake's, and say so in `loads`."""
    warehouse, lake = warehouse_of(credentials_block, dataset), lake_of(block_name)
    outcome, loaded = publish_in_bigquery(warehouse, lake, manifest, before, staging, this_run())
    _tell(outcome, loaded, lake)
    return outcome


def publish_in_bigquery(
    warehouse: Warehouse, lake: Lake, manifest: Manifest, before: Manifest | None, staging: str | None, run_id: str
) -> tuple[Outcome, Manifest]:
    """Publish a month of the lake in BigQuery: from a staging table if there is one, else straight from the bucket.

    `before` is what the warehouse held of the month when this run began.
    """
    started_at = dt.datetime.now(dt.UTC)
    if before is None:
        changes = Changes(inserted=manifest.loaded)
    elif before.generation == manifest.replaces:  # what was there is what the lake compared with
        changes = Changes(manifest.inserted, manifest.updated, manifest.removed)
    else:
        changes = Changes(inserted=manifest.loaded, removed=before.loaded)
    did = dataclasses.asdict(changes)

    def published() -> Manifest:
        now = {"started_at": started_at, "published_at": dt.datetime.now(dt.UTC)}
        return manifest.model_copy(update={**did, **now, "flow_run_id": run_id})

    if staging is not None:
        loaded = published()
        warehouse.replace_from_staging(loaded, staging)
        warehouse.require_reconciled(loaded)
        warehouse.discard(staging)
    else:
        # A load job has no part in a transaction: what can be checked is checked before, and `loads` is told after it.
        lake.require_reconciled(manifest)
        warehouse.load_from_lake(manifest, lake.uri(manifest.key))
        # BigQuery reads whatever is under the key by then, and cannot be asked for a generation.
        lake.require(manifest)
        warehouse.require_reconciled(manifest)
        warehouse.write_manifest(loaded := published())
    status: Status = "replaced" if before else "loaded"
    return Outcome.of("warehouse", status, loaded, warnings_of(loaded, before), **did), loaded


@task(name="load to Postgres", task_run_name="load {staged.raw.published.trip_month} → Postgres", **RETRIES)
def load_to_postgres(staged: StagedMonth, block_name: str, before: Manifest | None = None) -> Outcome:
    """Publish the staged rows in one transaction: a new month is attached, a known one gets what differs.

    `before` is what the database held of the month when this run began.
    """
    postgres = postgres_of(block_name)
    outcome, manifest = publish_in_postgres(postgres, staged, this_run(), before)
    _tell(outcome, manifest, postgres)
    return outcome


def publish_in_postgres(
    postgres: Postgres, staged: StagedMonth, run_id: str, before: Manifest | None = None
) -> tuple[Outcome, Manifest]:
    """Publish a staged month in the database, with its row in `loads`.

    `before` is what the database held of the month when this run began: an attempt cut off after its success has replaced that.
    """
    known = postgres.manifest(staged.raw.published.trip_month)
    if known and run_id and known.flow_run_id == run_id and known.holds(staged.raw, staged.rule):
        # By this very run, in an attempt that was cut off before it heard of its success.
        did = {"inserted": known.inserted, "updated": known.updated, "removed": known.removed}
        did_then: Status = "replaced" if before else "loaded"
        again = known.model_copy(update={"repeated": staged.repeated, "known_rows": _last_known_rows(staged, before)})
        return Outcome.of("database", did_then, again, warnings_of(again, before), **did), again
    manifest = staged.manifest(run_id).model_copy(update={"known_rows": _last_known_rows(staged, known)})
    did = dataclasses.asdict(postgres.publish(staged.key, manifest))
    warnings = warnings_of(manifest.model_copy(update=did), known)
    return Outcome.of("database", "replaced" if known else "loaded", manifest, warnings, **did), manifest
