"""Verify months of the stores, and report the differences. No trip is changed."""

import datetime as dt
import shlex
import time
from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.connectors.web import source_of
from flows.stores import STORES, Target
from flows.stores.verify import CHECKS
from flows.stores.verify.findings import Check, Findings
from flows.tasks.policy import RETRIES, this_run
from flows.tasks.report import plain_rows
from flows.tasks.stores import open_store
from flows.tlc.addresses import shown, stored
from flows.tlc.errors import Gone, TripDataError
from flows.tlc.manifest import Manifest
from flows.tlc.sources import TEMPLATES, Source
from flows.tlc.trips import Store, TripMonth
from flows.tlc.verify import Depth, Verified

_PATIENCE = 5.0  # seconds between two checks, in which another run can finish publishing the month
_ATTEMPTS = 4
_FLOWS: dict[Store, str] = {"lake": "etl_web_gcs", "warehouse": "etl_gcs_bq", "database": "ingest_data"}


def _check(into: Target, uses_lake: bool) -> Check:
    lake = open_store(into.with_store("lake")) if uses_lake else None
    return CHECKS[into.store](open_store(into), lake)


@task(name="find months", task_run_name="find months in {into.title}", **RETRIES)
def find_months(into: Target, colors: Sequence[str]) -> tuple[set[TripMonth], list[Verified]]:
    """Return every month that a store has or should have, and the rows that belong to no month."""
    check = _check(into, uses_lake=False)
    return check.months(colors), check.strays(colors)


@task(name="verify", task_run_name="verify {trip_month} in {into.title}", **RETRIES)
def verify_month(trip_month: TripMonth, into: Target, depth: Depth, uses_lake: bool) -> Verified:
    """Verify one month in one store. If it differs, write the fault into its manifest, so that the next run loads it again."""
    log, check = get_run_logger(), _check(into, uses_lake)
    found = _settled(check, trip_month, depth)
    if not found.differences:
        why = f"; rows not compared: {found.not_compared}" if found.not_compared else ""
        log.info("%s in %s: no difference%s", trip_month, STORES[into.store].title, why)
        return Verified(into.store, trip_month, not_compared=found.not_compared)
    verified = Verified(
        into.store, trip_month, tuple(found.differences), found.not_compared, _mend(trip_month, into, found)
    )
    if found.manifest and not found.manifest.fault:
        fault = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M:%S}: {found.differences[0]}"
        try:
            check.mark(found.manifest, fault)
        except TripDataError as error:  # such as credentials that may only read
            log.warning("%s: the fault could not be written into the manifest: %s", trip_month, error)
    return verified


def _settled(check: Check, trip_month: TripMonth, depth: Depth) -> Findings:
    """Check until two checks agree, because another run may be publishing the month. Return the findings of the last."""
    before: Findings | None = None
    for attempt in range(_ATTEMPTS):
        try:
            found = check.verify(trip_month, depth, this_run() or "local")
        except Gone:  # the object was replaced while it was read
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        if not found.differences or found == before:
            return found
        before = found
        time.sleep(_PATIENCE)
    return found


def _mend(trip_month: TripMonth, into: Target, found: Findings) -> str:
    """Return the command that loads a damaged month again: the same edition or source, by the same rule."""
    kind, manifest = STORES[into.store], found.manifest
    if manifest is None:  # the month vanished: its history has the last manifest
        manifest = next(reversed(open_store(into).history(trip_month)), None)
    withdrawn = found.manifest is not None and found.manifest.withdrawn_at is not None
    program = "withdraw" if withdrawn else _FLOWS[into.store]
    words = [f"python flows/{program}.py {trip_month.color} {trip_month.year} {trip_month.month}"]
    if withdrawn and found.remove:
        return f"move {found.remove} away"
    if withdrawn:
        words.append(f"--stores {into.store}")
        options = [
            ("--block-name", into.lake_block, GCS_BUCKET), ("--credentials-block", into.credentials_block, GCP_CREDENTIALS),
            ("--dataset", into.dataset, DATASET), ("--postgres-block", into.database_block, POSTGRES),
        ]  # fmt: skip
        return _command("", words, options)
    edition = manifest.pinned if manifest and _has_edition(into, manifest) else ""
    if manifest and kind.files != "lake":
        words += [f"--edition {edition}"] if edition else _source(manifest)
        words += [f"--rows {manifest.rule}"] if manifest.rule != kind.rows else []
        if into.store == "lake" and manifest.new_columns:
            words.append("--schema accept_new_columns")
    own = (into.database_block, POSTGRES) if into.store == "database" else (into.lake_block, GCS_BUCKET)
    options = [("--block-name", *own)]
    if into.store == "database" and edition:
        options += [("--lake-block", into.lake_block, GCS_BUCKET)]
    if kind.files == "lake":
        options += [
            ("--credentials-block", into.credentials_block, GCP_CREDENTIALS), ("--dataset", into.dataset, DATASET),
            ("--via", into.via, "load_job"),
        ]  # fmt: skip
    return _command(found.remove, words, options)


def _command(remove: str, words: Sequence[str], options: Sequence[tuple[str, str, str]]) -> str:
    """Return a sentence with a command. Of the options, it has those that are given and differ from their default."""
    given = [f"{option} {shlex.quote(value)}" for option, value, default in options if value != default]
    return (f"move {remove} away, then run " if remove else "run ") + " ".join([*words, *given])


def _has_edition(into: Target, manifest: Manifest) -> bool:
    """Return whether the lake still has the edition to which a month is pinned."""
    try:
        return bool(
            manifest.pinned and open_store(into.with_store("lake")).edition(manifest.trip_month, manifest.pinned)
        )
    except TripDataError:
        return False


def _source(manifest: Manifest) -> list[str]:
    """Return the `--source` that a month was loaded from, if it is not the default source."""
    month, url = manifest.trip_month, manifest.url
    for name in TEMPLATES:
        try:
            if stored(source_of(name).url(month)) == url:
                return [] if name == "official" else [f"--source {name}"]
        except TripDataError:  # this process has no permission for the address that the operator set for the source
            continue
    template = shown(url).replace("{", "{{").replace("}", "}}")
    template = template.replace(month.stem, "{color}_tripdata_{year}-{month:02d}")
    try:
        Source(template)
    except TripDataError:
        template = f"THE TEMPLATE OF {shown(url)}"
    return [f"--source {shlex.quote(template)}"]


def report_verified(key: str, results: Sequence[Verified], failed: Sequence[tuple[str, str]]) -> None:
    """Report a run: one row per month and store with its status, the differences, and the command that mends the month."""
    rows = [
        {
            "month": str(result.trip_month),
            "store": result.store,
            "status": result.status,
            "differences": "; ".join(result.differences) or result.not_compared,
            "to mend it": result.mend,
        }
        for result in results
    ]
    rows += [
        {"month": month, "store": "", "status": "not verified", "differences": reason, "to mend it": ""}
        for month, reason in failed
    ]
    differ = sum(result.status == "differs" for result in results)
    create_table_artifact(plain_rows(rows), key=key, description=f"{differ} of {len(rows)} differ")
