"""The lake's raw zone: every published file, byte for byte, under `raw/`."""

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, get_args

from flows.connectors import scratch
from flows.connectors.bucket import Bucket, Object
from flows.connectors.web import Download
from flows.tlc.errors import Gone, Overtaken
from flows.tlc.manifest import Manifest, RawFile, Verified
from flows.tlc.pipeline import Add, ahead
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth, staged_key

# Metadata keys of a raw file. Servers and other tools add their own keys, and some servers refuse those keys from a client.
RAW_FACTS = ("url", "etag", "last_modified", "upload", "sha256", "fetched_at", "verified")


class _SameBytes(Exception):
    """The lake already has exactly these bytes."""


class RawZone:
    """Published files in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def extract(self, published: PublishedFile, add: Add) -> RawFile:
        """Stream a published file into the raw zone. The object appears whole or not at all.

        A complete raw file is not overwritten, because the month was made from it. A new edition is staged until its month
        is published.
        """
        bucket, key = self.bucket, published.trip_month.raw_key(published.ending)
        about = {name: getattr(published, name) or "" for name in ("url", "etag", "last_modified")}
        current = bucket.stat(key)
        # No month was made from an object without sha256: its run died, or still runs and is about to be overtaken.
        whole = "sha256" in current.metadata
        if whole and same_edition(published, current):
            return _raw_file(published, current)
        upload = uuid.uuid4().hex
        mark = {"upload": upload}  # lets this run recognise its own upload
        into = staged_key(key, upload) if whole else key
        replaces = 0 if whole else current.generation
        digest, download = hashlib.sha256(), Download(published, add)
        try:
            with bucket.writer(into, about | mark, replaces=replaces) as raw:
                with closing(ahead(download)) as pieces:
                    for piece in pieces:
                        digest.update(piece)
                        raw.write(piece)
                if current.metadata.get("sha256") == digest.hexdigest():
                    raise _SameBytes
        except _SameBytes:
            into, mark = key, {"sha256": digest.hexdigest()}
        facts = {
            "sha256": digest.hexdigest(),
            "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "verified": download.verified,
        }
        return _raw_file(published, bucket.add_metadata(into, about | facts, mark))

    def raw_of(self, manifest: Manifest) -> RawFile:
        """Return the published file that a month was made from. Raise `Gone` if the raw zone does not have it."""
        published = manifest.published
        present = self.bucket.stat(manifest.trip_month.raw_key(published.ending))
        if present.metadata.get("sha256") != manifest.sha256:
            raise Gone(
                f"{manifest.trip_month}: the file it was made of (sha256 {manifest.sha256[:12]}…) is not in the lake any more;"
                " run etl-web-gcs to fetch the month again."
            )
        return _raw_file(published, present).model_copy(update={"verified": manifest.verified})

    def has(self, raw: RawFile) -> bool:
        """Return whether a raw file is unchanged since it was extracted."""
        return self.bucket.holds(raw.key, raw.generation)

    def content(self, raw: RawFile) -> "RawContent":
        """Return the bytes of a raw file."""
        return RawContent(self.bucket, raw)

    def forget(self, raw: RawFile, run: str) -> None:
        """Delete a refused file, and the result that run `run` stored about it for Prefect's cache."""
        with suppress(Overtaken):
            self.bucket.delete(raw.key, raw.generation)
        self.forget_result(raw.trip_month, run)

    def forget_result(self, trip_month: TripMonth, run: str) -> None:
        """Delete the result that run `run` stored about a month's file for Prefect's cache."""
        self.bucket.delete(trip_month.results_key.replace("{flow_run.id}", run))


@dataclass(frozen=True)
class RawContent:
    """The bytes of a raw file in a bucket."""

    bucket: Bucket
    raw: RawFile

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes, even if another run fetches the same file again or publishes it in the meantime."""
        raw, position = self.raw, 0
        key, generation = raw.key, raw.generation
        while True:
            try:
                for piece in self.bucket.read(key, generation, position):
                    position += len(piece)
                    yield piece
                return
            except Gone:
                for key in (raw.key, raw.published.trip_month.raw_key(raw.published.ending)):
                    present = self.bucket.stat(key)
                    if _same_file(raw, present):
                        generation = present.generation
                        break
                else:
                    raise

    @contextmanager
    def file(self) -> Iterator[IO[bytes]]:
        """Copy the bytes to a temporary file on the scratch disk, and yield it."""
        with scratch.temporary_file(self.raw.size, str(self.raw.trip_month)) as file:
            for piece in self.pieces():
                file.write(piece)
            file.seek(0)
            yield file


def _raw_file(published: PublishedFile, present: Object) -> RawFile:
    verified = present.metadata.get("verified")  # absent from objects written by older versions
    return RawFile(
        published=published, key=present.key, generation=present.generation, size=present.size,
        sha256=present.metadata["sha256"], verified=next((word for word in get_args(Verified) if word == verified), ""),
    )  # fmt: skip


def same_edition(published: PublishedFile, present: Object) -> bool:
    """Return whether a raw object is this edition of the file: by the URL, ETag and time in its metadata, and by its size."""
    about = {name: present.metadata.get(name) or None for name in ("url", "etag", "last_modified")}
    kept = published.model_copy(update=about | {"size": present.size})
    return kept.url == published.url and bool(published.same_edition(kept))


def _same_file(raw: RawFile, present: Object) -> bool:
    same = same_edition(raw.published, present) or present.metadata.get("sha256") == raw.sha256
    return present.size == raw.size and same
