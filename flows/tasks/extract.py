"""Extract: bring a month's published file to where this project can rely on it."""

import datetime as dt
import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, get_args

from prefect import get_run_logger, task

from flows.connectors import scratch, web
from flows.connectors.known import known_publication
from flows.connectors.lake import Gone, Lake, same_edition
from flows.tasks.policy import CACHE_FOR, RETRIES, cached_by
from flows.tasks.progress import Add, meter
from flows.tasks.stores import lake_of
from flows.tlc.catalog import refusal
from flows.tlc.errors import NotPublished
from flows.tlc.manifest import Manifest, RawFile, Verified
from flows.tlc.pipeline import ahead
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Store, TripMonth, staged_key


@contextmanager
def refusal_explained(
    trip_month: TripMonth, url: str, store: Store, held: Callable[[], Manifest | None]
) -> Iterator[None]:
    """Raise `RefusedMonth` in the place of `NotPublished` if the month is known to be published at `url`.

    `held` returns what the store holds of the month, and is called only then.
    """
    try:
        yield
    except NotPublished as error:
        refused = refusal(trip_month, url, error, known_publication(trip_month, url), {store: held()})
        raise refused or error from error.__cause__


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
    with meter(f"extract {published.trip_month}", "bytes") as progress:
        raw = copy_to_lake(lake_of(block_name), published, progress.add)
    get_run_logger().info("%s: %s bytes as published are in %s", published.trip_month, f"{raw.size:,}", raw.key)
    return raw.model_dump(mode="json")


def metered(pieces: Iterable[bytes], published: PublishedFile, add: Add) -> Iterator[bytes]:
    """The same pieces; their sizes are told to `add`."""
    come = 0
    for piece in pieces:
        come += len(piece)
        add(len(piece), come / published.size if published.size else 0)
        yield piece


class _SameBytes(Exception):
    """The file in the lake is this one already."""


def copy_to_lake(lake: Lake, published: PublishedFile, add: Add = lambda count, share: None) -> RawFile:
    """Stream a published file into the raw zone, hashing on the way; the object appears whole or not at all.

    Bytes that are there already stay as they are: the month was made of them. Others are staged, until they are the month's.
    """
    key = published.trip_month.raw_key(published.ending)
    about = {
        "url": published.url,
        "etag": published.etag or "",
        "last_modified": published.last_modified or "",
    }
    known = lake.stat(key)
    if known and "sha256" in known.metadata and same_edition(published, known):
        return RawFile(
            published=published,
            key=key,
            generation=known.generation,
            size=known.size,
            sha256=known.metadata["sha256"],
            verified=_verified(known.metadata),
        )
    upload = uuid.uuid4().hex
    mark = {"upload": upload}  # by which this run recognises its own upload
    # Without its sha256 it was never told of, and no month was made of it: its run died, or is about to be overtaken.
    believed = known is not None and "sha256" in known.metadata
    into = staged_key(key, upload) if believed else key
    replaces = known.generation if known and not believed else 0
    digest = hashlib.sha256()
    verified: list[Verified] = [""]
    try:
        with lake.writer(into, about | mark, replaces=replaces) as raw:
            with closing(ahead(metered(web.read(published, verified.append), published, add))) as pieces:
                for piece in pieces:
                    digest.update(piece)
                    raw.write(piece)
            if known and known.metadata.get("sha256") == digest.hexdigest():
                into, mark = key, {"sha256": digest.hexdigest()}
                raise _SameBytes
    except _SameBytes:
        pass
    facts = {
        "sha256": digest.hexdigest(),
        "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "verified": verified[-1],
    }
    raw_object = lake.describe(into, about | facts, mark)
    return RawFile(
        published=published,
        key=into,
        generation=raw_object.generation,
        size=raw_object.size,
        sha256=digest.hexdigest(),
        verified=verified[-1],
    )


def _verified(metadata: Mapping[str, str]) -> Verified:
    """Return how an object's transfer was checked, by its metadata; older ones do not say."""
    return next((word for word in get_args(Verified) if word == metadata.get("verified")), "")


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
    verified: list[Verified] = [""]
    with meter(f"extract {published.trip_month}", "bytes") as progress:
        raw = scratch.keep(published, lambda file: metered(web.read(file, verified.append), file, progress.add))
    raw = raw.model_copy(update={"verified": verified[-1]})
    get_run_logger().info("%s: %s bytes fetched", published.trip_month, f"{raw.size:,}")
    return raw.model_dump(mode="json")


def in_scratch(raw: RawFile) -> bool:
    """Whether this machine's scratch cache still has the file."""
    return scratch.has(raw)


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
    raise Gone(
        f"what {lake.uri(trip_month.key)} is can be told from no manifest; run etl-web-gcs for {trip_month} again."
    )
