"""The lake's raw zone: every published file, byte for byte, under `raw/`; earlier editions under `raw/{color}/editions/`."""

import datetime as dt
import hashlib
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast, get_args

from flows.connectors import scratch
from flows.connectors.bucket import Bucket, Object
from flows.connectors.growing_file import GrowingFile
from flows.connectors.web import Download
from flows.tlc.addresses import shown, stored
from flows.tlc.errors import Gone, MisconfiguredBlock, Overtaken, UnknownEdition, UnreadableFile, Vanished
from flows.tlc.manifest import Manifest, RawFile, Verified
from flows.tlc.pipeline import Add
from flows.tlc.sources import ENDINGS, Ending, PublishedFile
from flows.tlc.trips import COLORS, EDITION_DIGITS, TripMonth, edition_key, staged_key

# Metadata keys of a raw file. Servers and other tools add their own keys, and some servers refuse those keys from a client.
RAW_FACTS = ("url", "etag", "last_modified", "sha256", "fetched_at", "verified")


_RAW_KEY = re.compile(
    rf"raw/\w+/(?:editions/)?(?P<color>{'|'.join(COLORS)})_tripdata_(?P<year>\d{{4}})-(?P<month>\d{{2}})"
    rf"(?:-[0-9a-f]{{{EDITION_DIGITS}}})?(?P<ending>{'|'.join(map(re.escape, ENDINGS))})"
)


def content_type(key: str) -> str:
    """Return the content type of an object by its key."""
    return "application/vnd.apache.parquet" if key.endswith(".parquet") else "application/octet-stream"


@dataclass(frozen=True)
class Edition:
    """One edition of a month's file. One or two objects have its bytes."""

    trip_month: TripMonth
    ending: Ending
    objects: tuple[Object, ...]

    @property
    def sha256(self) -> str:
        """Return the digest of its bytes."""
        return self.objects[0].metadata["sha256"]

    @property
    def name(self) -> str:
        """Return the name that people use: the first digits of the digest."""
        return self.sha256[:EDITION_DIGITS]

    @property
    def fetched_at(self) -> str:
        """Return when the file was fetched last, in ISO 8601; "" if that is unknown."""
        return max(present.metadata.get("fetched_at", "") for present in self.objects)

    @property
    def is_current(self) -> bool:
        """Whether it is under the key of the published file: the lake's month was made from it, or a run is loading it."""
        return "/editions/" not in self.objects[0].key

    @property
    def raw(self) -> RawFile:
        """Return the file as its source described it."""
        first = self.objects[0]
        about = {name: first.metadata.get(name) or None for name in ("etag", "last_modified")}
        published = PublishedFile(
            trip_month=self.trip_month, url=first.metadata.get("url", ""), ending=self.ending, size=first.size, **about
        )
        return _raw_file(published, first)

    def __str__(self) -> str:
        about = self.raw.published
        return f"{self.name} ({about.size:,} bytes, fetched {self.fetched_at or 'at an unknown time'} from {shown(about.url)})"


class RawZone:
    """Published files in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket

    def extract(self, published: PublishedFile, add: Add, growing: GrowingFile | None = None) -> RawFile:
        """Copy a published file into the raw zone, through the scratch disk. The object appears only when it is complete.

        A complete raw file is not overwritten, because the month was made from it. A new edition is staged until its month
        is published.

        If the file is downloaded, another thread can read its bytes from `growing` meanwhile.
        """
        bucket, key = self.bucket, published.trip_month.raw_key(published.ending)
        about = {name: getattr(published, name) or "" for name in ("etag", "last_modified")}
        about["url"] = stored(published.url)
        current = bucket.stat(key)
        if current and "url" not in current.metadata:
            raise MisconfiguredBlock(
                f"{bucket.uri(key)} is not a raw file that this project wrote: its metadata has no url. If it comes from a"
                " backup, copy it again with its metadata; otherwise move it away. Nothing was downloaded."
            )
        # Older versions wrote the digest after the bytes. An object without it is incomplete, and no month was made from it.
        whole = "sha256" in current.metadata
        if whole and same_edition(published, current):
            return _raw_file(published, current)
        into = staged_key(key, uuid.uuid4().hex) if whole else key
        download = Download(published, add)
        with scratch.fetched(published, lambda _: download, growing) as (file, sha256):
            facts = about | {
                "sha256": sha256,
                "fetched_at": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
                "verified": download.verified,
            }
            if current.metadata.get("sha256") == sha256:
                return _raw_file(published, bucket.add_metadata(current, facts))
            with bucket.writer(into, facts, replaces=0 if whole else current.generation) as raw:
                for piece in scratch.pieces(file):
                    raw.write(piece)
        present = bucket.written(into)
        if present.metadata.get("sha256") != sha256:
            raise bucket.overtaken(into)
        return _raw_file(published, present)

    def raw_of(self, manifest: Manifest) -> RawFile:
        """Return the published file that a month was made from. Raise `Gone` if the raw zone does not have it."""
        published = manifest.published
        key = manifest.trip_month.raw_key(published.ending)
        for present in map(self.bucket.stat, (key, edition_key(key, manifest.sha256))):
            if present.metadata.get("sha256") == manifest.sha256:
                return _raw_file(published, present).model_copy(update={"verified": manifest.verified})
        raise Gone(
            f"{manifest.trip_month}: the file that it was made from (sha256 {manifest.edition}…) is no longer in the lake;"
            " run etl-web-gcs to fetch the month again."
        )

    def editions(self, trip_month: TripMonth) -> list[Edition]:
        """Return the editions of a month's file that the raw zone has, the newest first."""
        plain = trip_month.raw_key("")
        return self._editions(plain, edition_key(plain, "")).get(trip_month, [])

    def every_edition(self, color: str) -> dict[TripMonth, list[Edition]]:
        """Return the editions of every month of a color, the newest first."""
        return self._editions(f"raw/{color}/")

    def _editions(self, *prefixes: str) -> dict[TripMonth, list[Edition]]:
        found: dict[TripMonth, dict[str, Edition]] = {}
        for present in (there for prefix in prefixes for there in self.bucket.listing(prefix).values()):
            name, sha256 = _RAW_KEY.fullmatch(present.key), present.metadata.get("sha256")
            if name and sha256:  # without sha256, it is an incomplete upload of an older version
                trip_month = TripMonth(name["color"], int(name["year"]), int(name["month"]))
                editions = found.setdefault(trip_month, {})
                others = editions[sha256].objects if sha256 in editions else ()
                # The published file's own key comes first, so that loading its edition again copies nothing.
                objects = tuple(sorted((*others, present), key=lambda there: "/editions/" in there.key))
                editions[sha256] = Edition(trip_month, cast(Ending, name["ending"]), objects)
        return {
            month: sorted(editions.values(), key=lambda edition: edition.fetched_at, reverse=True)
            for month, editions in sorted(found.items())
        }

    def edition(self, trip_month: TripMonth, name: str) -> RawFile:
        """Return the edition whose sha256 begins with `name`. Raise `UnknownEdition` unless there is exactly one."""
        editions = self.editions(trip_month)
        found = [edition for edition in editions if edition.sha256.startswith(name)]
        if len(found) == 1:
            return found[0].raw
        there = "; ".join(map(str, editions)) or "none"
        raise UnknownEdition(
            f"{trip_month}: {len(found) or 'no'} editions in the lake's raw zone begin with {name}. The month has: {there}."
            " Nothing was loaded."
        )

    def copy_edition(self, present: Object, raw_key: str) -> None:
        """Copy a whole raw file to the key of its edition, unless a copy exists. `raw_key` is its key once published.

        Raise `MisconfiguredBlock` if the key of the edition has another object.
        """
        sha256 = present.metadata.get("sha256")
        if sha256:
            key = edition_key(raw_key, sha256)
            facts = {name: text for name, text in present.metadata.items() if name in RAW_FACTS}
            try:
                with suppress(Gone):  # another run made a copy and then replaced the file
                    self.bucket.copy(present.key, present.generation, key, 0, facts, content_type(raw_key))
            except Overtaken:
                edition = self.bucket.stat(key)
                if not edition:  # it was deleted meanwhile; a retry copies the file
                    raise
                self._require_copy(edition, present)

    def _require_copy(self, edition: Object, present: Object) -> None:
        """Raise `MisconfiguredBlock` unless an edition has the digest of a raw file in its metadata, and the file's bytes."""
        sha256 = present.metadata["sha256"]
        same = (edition.size, edition.crc32c) == (present.size, present.crc32c)
        if edition.metadata.get("sha256") != sha256 or not (same or self._digest(edition) == sha256):
            raise MisconfiguredBlock(
                f"{self.bucket.uri(edition.key)} should be a copy of {self.bucket.uri(present.key)}, but another program wrote"
                " or changed it. Move it away, and run again. The raw file was not replaced."
            )

    def _digest(self, present: Object) -> str:
        digest = hashlib.sha256()
        for piece in self.bucket.read(present.key, present.generation):
            digest.update(piece)
        return digest.hexdigest()

    def require_edition(self, sha256: str, raw_key: str) -> None:
        """Raise `Vanished` unless the raw zone has the file with this digest, as `raw_key` or as an edition of it."""
        for key in (raw_key, edition_key(raw_key, sha256)):
            if self.bucket.stat(key).metadata.get("sha256") == sha256:
                return
        raise Vanished(
            f"{self.bucket.uri(raw_key)} was deleted or replaced during this run. Nothing was published; run again."
        )

    def delete_edition(self, edition: Edition) -> None:
        """Delete every object of an edition. Raise `Overtaken` if another run replaced one of them."""
        for present in edition.objects:
            self.bucket.delete(present.key, present.generation)

    def has(self, raw: RawFile) -> bool:
        """Return whether a raw file still has the generation that was extracted."""
        return self.bucket.has_generation(raw.key, raw.generation)

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
        """Yield the bytes, even if another run fetches or publishes the same file meanwhile.

        Raise `UnreadableFile` at the end if they are not those that were published.
        """
        raw, position, digest = self.raw, 0, hashlib.sha256()
        key, generation = raw.key, raw.generation
        while True:
            try:
                for piece in self.bucket.read(key, generation, position):
                    position += len(piece)
                    digest.update(piece)
                    yield piece
                break
            except Gone:
                plain = raw.published.trip_month.raw_key(raw.published.ending)
                for key in (raw.key, plain, edition_key(plain, raw.sha256)):
                    present = self.bucket.stat(key)
                    if _same_file(raw, present):
                        generation = present.generation
                        break
                else:
                    raise
        if digest.hexdigest() != raw.sha256:
            fetched = "" if "/editions/" in key else ", or delete it and run etl-web-gcs"
            raise UnreadableFile(
                f"{raw.trip_month}: {self.bucket.uri(key)} does not have the SHA-256 of the published file ({raw.sha256[:12]}…):"
                f" another program changed it. Nothing was loaded; restore it from a backup{fetched}."
            )

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
    return stored(kept.url or "") == stored(published.url) and bool(published.same_edition(kept))


def _same_file(raw: RawFile, present: Object) -> bool:
    same = same_edition(raw.published, present) or present.metadata.get("sha256") == raw.sha256
    return present.size == raw.size and same
