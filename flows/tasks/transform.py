"""Transform: from the file as published to canonical trips, staged where nobody reads them yet."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from tempfile import SpooledTemporaryFile
from typing import Literal

import pyarrow as pa
from prefect import task
from prefect.runtime import flow_run

from flows.connectors import scratch, web
from flows.connectors.copy_format import encode, write_rejects
from flows.connectors.lake import Lake
from flows.connectors.postgres import Postgres
from flows.tasks.policy import RETRIES
from flows.tasks.progress import Add, meter
from flows.tasks.stores import lake_of, postgres_of, warehouse_of
from flows.tlc import addresses
from flows.tlc.clean import Chunk, Tally, filtered
from flows.tlc.eras import Shape
from flows.tlc.errors import SchemaMismatch, TooManyRejects, UnreadableFile, WrongMonth
from flows.tlc.manifest import Manifest, RawFile, StagedMonth
from flows.tlc.pickups import Pickups
from flows.tlc.pipeline import ahead
from flows.tlc.quality import Profiler
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.schema import KEY
from flows.tlc.trips import Rows, SchemaRule

Via = Literal["load_job", "dataframe"]
_IN_MEMORY = 8 << 20  # bytes of rejects; more go by way of the disk


def counted(chunks: Iterable[Chunk], add: Add) -> Iterator[Chunk]:
    """The same chunks; their source rows are told to `add`."""
    for chunk in chunks:
        add(chunk.source_rows, chunk.share)
        yield chunk


def shown(chunks: Iterable[Chunk], to: Profiler | Pickups) -> Iterator[Chunk]:
    """Yield the same chunks, and add their trips to a profile or to a count of pickups."""
    for chunk in chunks:
        to.add(chunk.trips)
        yield chunk


@task(name="transform in lake", task_run_name="transform {raw.published.trip_month}", **RETRIES)
def transform_in_lake(raw: RawFile, rows: Rows, block_name: str, schema: SchemaRule = "strict") -> StagedMonth:
    """Stream the raw file into canonical Parquet, staged in the lake, and set aside what does not fit."""
    with meter(f"transform {raw.published.trip_month}") as progress:
        return canonical_in_lake(lake_of(block_name), raw, rows, flow_run.get_id() or "local", progress.add, schema)


def canonical_in_lake(
    lake: Lake, raw: RawFile, rows: Rows, run: str, add: Add, schema: SchemaRule = "strict"
) -> StagedMonth:
    """Write a raw file's trips to a staged Parquet object of run `run`."""
    started_at = dt.datetime.now(dt.UTC)
    trip_month = raw.published.trip_month
    lake.sweep()
    shapes: list[Shape] = []
    pickups, profiler = Pickups(trip_month), Profiler(trip_month)
    chunks = filtered(shown(counted(lake.chunks(raw, shapes.append, schema), add), pickups), rows)
    try:
        staged, quarantine, extra, tally = lake.write_trips(trip_month, run, shown(chunks, profiler), pickups.check)
    except (UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth):
        _forget_refused(lake, raw, run)
        raise
    return StagedMonth.of(
        raw,
        rows,
        shapes[0].era.name,
        shapes[0].published,
        tally,
        profiler.profile(),
        started_at,
        key=staged.key,
        generation=staged.generation,
        quarantine_key=quarantine,
        new_columns=shapes[0].new,
        extra_key=extra,
    )


def _forget_refused(lake: Lake, raw: RawFile, run: str) -> None:
    """Delete a refused file from the lake, unless the month that is published was made of it, and this run's note of it."""
    trip_month = raw.published.trip_month
    published = lake.current(trip_month)
    if published and published.sha256 == raw.sha256:
        return
    lake.delete_raw(raw)
    lake.delete([trip_month.results_key.replace("{flow_run.id}", run)])


@task(name="transform for Postgres", task_run_name="transform {raw.published.trip_month}", **RETRIES)
def transform_for_postgres(raw: RawFile, rows: Rows, block_name: str) -> StagedMonth:
    """Convert the file's chunks and COPY them into a staging table; parsing and copying overlap."""
    with meter(f"transform {raw.published.trip_month}") as progress:
        return staged_in_postgres(postgres_of(block_name), raw, rows, progress.add)


def staged_in_postgres(postgres: Postgres, raw: RawFile, rows: Rows, add: Add) -> StagedMonth:
    """COPY a published file's trips into the month's staging table, chunk by chunk until the file runs out."""
    started_at = dt.datetime.now(dt.UTC)
    trip_month = raw.published.trip_month
    tally, pickups, profiler = Tally(trip_month), Pickups(trip_month), Profiler(trip_month)
    shapes: list[Shape] = []

    def tables() -> Iterator[pa.Table]:
        chunks = filtered(shown(counted(chunks_of(raw, shapes.append), add), pickups), rows)
        for chunk in shown(chunks, profiler):
            tally.add(chunk)
            if chunk.rejects.num_rows:
                write_rejects(chunk.rejects, aside)
            yield chunk.trips.drop_columns([KEY[0].name])  # the staging table's default fills it in
        # Inside the COPY: a month that fails leaves no staging table.
        tally.check(trip_month)
        pickups.check()

    postgres.ensure_tables(trip_month.color)
    with (
        scratch.disk_full_explained(str(raw.published.trip_month)),
        SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch.folder())) as aside,
        closing(ahead(encode(tables()))) as pieces,
    ):
        staging = postgres.stage(trip_month, pieces, aside)
    shape = shapes[0]
    return StagedMonth.of(
        raw, rows, shape.era.name, shape.published, tally, profiler.profile(), started_at, key=staging
    )


def chunks_of(raw: RawFile, on_shape: Callable[[Shape], None]) -> Iterator[Chunk]:
    """The chunks of a file in the scratch cache, fetched again if the cache does not have exactly those bytes."""
    published = raw.published
    file = scratch.opened(raw)
    if file is None:
        again = scratch.keep(published, web.read)
        file = scratch.opened(raw)
        if file is None:
            raise UnreadableFile(
                f"{published.trip_month}: {addresses.shown(published.url)} changed while it was being loaded"
                f" (sha256 {again.sha256[:12]}…, was {raw.sha256[:12]}…). Nothing was loaded; run again."
            )
    with file:
        if published.ending == ".parquet":
            yield from parquet_chunks(published.trip_month, file, on_shape)
        else:
            yield from csv_chunks(published.trip_month, published.ending, scratch.pieces(file), on_shape, size=raw.size)


@task(name="transform for BigQuery", task_run_name="transform {manifest.trip_month} for BigQuery", **RETRIES)
def transform_for_bigquery(
    manifest: Manifest, via: Via, block_name: str, credentials_block: str, dataset: str
) -> str | None:
    """Make sure types agree; through a data frame, also stage the rows, and return the staging table's name."""
    lake = lake_of(block_name)
    warehouse = warehouse_of(credentials_block, dataset)
    trip_month = manifest.trip_month
    warehouse.require_same_types(trip_month, lake.schema(manifest))
    warehouse.ensure_tables(trip_month.color, lake.location)
    if via == "load_job":
        return None
    with meter(f"transform {trip_month} for BigQuery") as progress:
        staged = 0

        def tables() -> Iterator[pa.Table]:
            nonlocal staged
            for trips in lake.trips(trip_month.key, manifest.generation):
                staged += trips.num_rows
                progress.add(trips.num_rows, staged / max(manifest.loaded, 1))
                yield trips

        return warehouse.stage_frames(trip_month, flow_run.get_id() or "local", tables())
