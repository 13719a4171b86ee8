"""Extract: bring a month's published file to where this project can rely on it."""

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping
from typing import Any

from prefect import get_run_logger, task

from flows.connectors import scratch, web
from flows.connectors.lake import Gone, Lake, Overtaken
from flows.tasks.policy import CACHE_FOR, RETRIES, cached_by
from flows.tasks.stores import lake_of
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth


@task(
    name="extract to lake",
    task_run_name="extract {published.trip_month} → lake",
    cache_key_fn=cached_by("block_name"),
    cache_expiration=CACHE_FOR,
    persist_result=True,
    result_serializer="json",
    **RETRIES,
)
def extract_to_lake(published: PublishedFile, block_name: str) -> dict[str, Any]:
    """Stream the published file, as it is, into the lake's raw zone; a `RawFile` as JSON, for Prefect's cache."""
    raw = copy_to_lake(lake_of(block_name), published)
    get_run_logger().info("%s: %s bytes as published are in %s", published.trip_month, f"{raw.size:,}", raw.key)
    return raw.model_dump(mode="json")


class _SameBytes(Exception):
    """The file in the lake is this one already."""


def copy_to_lake(lake: Lake, published: PublishedFile) -> RawFile:
    """Stream a published file into the raw zone, hashing on the way; the object appears whole or not at all.

    Bytes that are there already stay as they are: another run may be reading them.
    """
    key = published.trip_month.raw_key(published.ending)
    about = {"url": published.url, "etag": published.etag or ""}
    known = lake.stat(key)
    if known and published.etag and about.items() <= known.metadata.items() and "sha256" in known.metadata:
        return RawFile(
            published=published, key=key, generation=known.generation, size=known.size, sha256=known.metadata["sha256"]
        )
    about["upload"] = uuid.uuid4().hex  # tells this very upload from another run's
    digest = hashlib.sha256()
    written: Mapping[str, str] = about
    try:
        with lake.writer(key, about, replaces=known.generation if known else 0) as raw:
            for piece in web.read(published):
                digest.update(piece)
                raw.write(piece)
            if known and known.metadata.get("sha256") == digest.hexdigest():
                written = known.metadata
                raise _SameBytes
    except _SameBytes:
        pass
    facts = {"sha256": digest.hexdigest(), "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
    raw_object = lake.describe(key, about | facts, of=written)
    return RawFile(
        published=published, key=key, generation=raw_object.generation, size=raw_object.size, sha256=digest.hexdigest()
    )


@task(
    name="extract to scratch",
    task_run_name="extract {published.trip_month}",
    cache_key_fn=cached_by(on_this_machine=True),
    cache_expiration=CACHE_FOR,
    persist_result=True,
    result_serializer="json",
    **RETRIES,
)
def extract_to_scratch(published: PublishedFile) -> dict[str, Any]:
    """Fetch the published file into this machine's scratch cache, where its chunks are read from; a `RawFile` as JSON."""
    raw = scratch.keep(published, web.read)
    get_run_logger().info("%s: %s bytes fetched", published.trip_month, f"{raw.size:,}")
    return raw.model_dump(mode="json")


def in_scratch(raw: RawFile) -> bool:
    """Whether this machine's scratch cache still has the file."""
    return scratch.path_of(raw) is not None


@task(name="extract from lake", task_run_name="extract {trip_month} ← lake", **RETRIES)
def extract_from_lake(trip_month: TripMonth, block_name: str) -> Manifest:
    """Find the month in the lake: its manifest, sure to be about the object that is there now."""
    lake = lake_of(block_name)
    lake.check()
    manifest = lake.current(trip_month)
    if manifest is not None:
        return manifest
    if lake.stat(trip_month.key) is None:
        raise Gone(f"{trip_month} is not in the lake ({lake.uri(trip_month.key)}); run etl-web-gcs for it first.")
    raise Overtaken(
        f"{lake.uri(trip_month.key)} is newer than its manifest: another run is publishing it now, or died doing so."
        " If this stays, run etl-web-gcs for it again."
    )
