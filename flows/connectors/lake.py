"""The lake: a bucket of Google Cloud Storage, reached through a `GcsBucket` block. Keys here are inside the block's folder."""

import datetime as dt
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    Unauthorized,
    from_http_status,
)
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage import Blob, Bucket
from google.cloud.storage.exceptions import InvalidResponse
from prefect_gcp.cloud_storage import GcsBucket
from pydantic import ValidationError

from flows.connectors import scratch
from flows.tlc.catalog import Held
from flows.tlc.clean import Chunk, Tally
from flows.tlc.eras import Shape
from flows.tlc.errors import MisconfiguredBlock, TripDataError
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.pipeline import ahead
from flows.tlc.reading import csv_chunks, parquet_chunks
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import FIRST_MONTH, TripMonth

# A request carries one of these; the client's own 60 s for a whole upload would kill a slow line's big month.
CHUNK = 8 << 20
TIMEOUT = (15, 300)  # seconds to connect, to wait for an answer
_READING = 8  # manifests at once; the client keeps ten connections
_ROW_GROUP = 128 << 10  # rows
_STAGING = "staging"
RESULTS = "results"  # of cached tasks
_PARQUET = "application/vnd.apache.parquet"


class Overtaken(Exception):
    """Another run changed the object first."""


class Gone(TripDataError):
    """An object that should be in the lake is not there."""


@dataclass(frozen=True)
class LakeObject:
    """An object of the lake, at one generation."""

    key: str
    generation: int
    size: int
    metadata: Mapping[str, str]


@contextmanager
def _named() -> Iterator[None]:
    """Give an upload's errors the names that all other requests' errors have."""
    try:
        yield
    except InvalidResponse as error:
        status = error.response.status_code
        raise from_http_status(status, str(error), response=error.response) from error  # type: ignore[no-untyped-call]


class Lake:
    """Objects by key: streamed in, streamed out, replaced only if nobody else did."""

    def __init__(self, block: GcsBucket) -> None:
        self._folder = block.bucket_folder
        self.block = block
        with self._explained("reached"):
            client = block.gcp_credentials.get_cloud_storage_client()
        self._bucket: Bucket = client.bucket(block.bucket)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn the client's errors about the bucket itself into one a person can act on."""
        name = self.block.bucket
        try:
            with _named():
                yield
        except TransportError:  # the way to the token's issuer is broken, the credentials need not be
            raise
        except (Forbidden, Unauthorized, GoogleAuthError) as error:
            raise MisconfiguredBlock(
                f"bucket {name!r} cannot be {doing} with the block's credentials ({type(error).__name__}: {error});"
                " give the service account Storage Object Admin on it, or correct the credentials."
            ) from error

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the bucket exists and may be read."""
        listed = self._bucket.client.list_blobs(self._bucket, prefix=self._folder, max_results=1, timeout=TIMEOUT)
        with self._explained("read"):
            try:
                next(iter(listed), None)
            except NotFound as error:
                raise MisconfiguredBlock(
                    f"bucket {self.block.bucket!r} does not exist; create it, or correct the GcsBucket block"
                    " (python -m blocks.register takes LAKE_BUCKET)."
                ) from error

    def path(self, key: str) -> str:
        """The object's whole name in the bucket."""
        return f"{self._folder}{key}"

    def uri(self, key: str) -> str:
        """`gs://…`, as BigQuery wants it."""
        return f"gs://{self.block.bucket}/{self.path(key)}"

    @property
    def location(self) -> str | None:
        """Where the bucket is, or None if the credentials may not ask."""
        try:
            self._bucket.reload(timeout=TIMEOUT)
        except GoogleAPIError:
            return None
        return str(self._bucket.location) if self._bucket.location else None

    def stat(self, key: str) -> LakeObject | None:
        """The object now under `key`, or None."""
        with self._explained("read"):
            blob = self._bucket.get_blob(self.path(key), timeout=TIMEOUT)
        return None if blob is None else self._object(key, blob)

    def has(self, raw: RawFile) -> bool:
        """Whether a raw file is there as it was when it was extracted."""
        present = self.stat(raw.key)
        return present is not None and present.generation == raw.generation

    def _object(self, key: str, blob: Blob) -> LakeObject:
        return LakeObject(key, int(blob.generation), int(blob.size), dict(blob.metadata or {}))

    def read(self, raw: RawFile) -> Iterator[bytes]:
        """The bytes of a raw file, in chunks."""
        generation, position = raw.generation, 0
        while True:
            blob = self._bucket.blob(self.path(raw.key), generation=generation)
            try:
                with self._explained("read"), blob.open("rb", chunk_size=CHUNK, timeout=TIMEOUT) as file:
                    file.seek(position)
                    while piece := file.read(CHUNK):
                        position += len(piece)
                        yield piece
                return
            except NotFound as error:
                present = self.stat(raw.key)
                if present is None or not _same_file(raw, present):
                    raise Gone(
                        f"{self.uri(raw.key)} (generation {generation}) is not in the lake any more;"
                        " it was deleted or replaced while this run was at work. Run again."
                    ) from error
                generation = present.generation  # fetched again by another run

    @contextmanager
    def writer(
        self, key: str, metadata: Mapping[str, str] | None = None, replaces: int | None = None
    ) -> Iterator[IO[bytes]]:
        """A file to write a new object to; it appears whole when the block ends, and not at all on an error.

        Raises `Overtaken` if `replaces` is given and `key` is no longer at that generation (0: absent).
        """
        blob = self._bucket.blob(self.path(key))
        blob.metadata = dict(metadata or {})
        with self._explained("written"):
            try:
                with (
                    _named(),
                    blob.open(
                        "wb", chunk_size=CHUNK, ignore_flush=True, timeout=TIMEOUT, if_generation_match=replaces
                    ) as file,
                ):
                    yield file
            except PreconditionFailed as error:
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile") from error

    def describe(self, key: str, more: Mapping[str, str], of: Mapping[str, str] | None = None) -> LakeObject:
        """Add metadata to an object just written, and tell what it is.

        Raises `Overtaken` if its metadata is not `of` any more: then it is another object by now.
        """
        with self._explained("written"):
            blob = self._bucket.get_blob(self.path(key), timeout=TIMEOUT)
            if blob is None:
                raise Gone(
                    f"{self.uri(key)} vanished right after it was written; is a lifecycle rule at work? Run again."
                )
            if of is not None and blob.metadata != of:
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile")
            blob.metadata = {**(blob.metadata or {}), **more}
            blob.patch(timeout=TIMEOUT, if_generation_match=blob.generation)
        return self._object(key, blob)

    def publish(
        self, staged: str, generation: int, key: str, replaces: int, metadata: Mapping[str, str] | None = None
    ) -> LakeObject:
        """Copy a staged object to `key`, inside the store; its metadata there is `metadata`.

        Raises `Overtaken` unless `key` is still at generation `replaces` (0: absent).
        """
        source = self._bucket.blob(self.path(staged), generation=generation)
        blob = self._bucket.blob(self.path(key))
        blob.content_type = _PARQUET
        blob.metadata = dict(metadata or {})
        token: str | None = None
        with self._explained("written"):
            try:
                while True:  # once, or piece by piece where the store wants it so
                    token, _, _ = blob.rewrite(source, token=token, if_generation_match=replaces, timeout=TIMEOUT)
                    if token is None:
                        return self._object(key, blob)
            except PreconditionFailed as error:
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile") from error
            except NotFound as error:
                raise Gone(f"{self.uri(staged)} is not in the lake any more; run again.") from error

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects that may or may not be there."""
        for key in keys:
            with self._explained("written"):
                try:
                    self._bucket.blob(self.path(key)).delete(timeout=TIMEOUT)
                except NotFound:
                    continue

    def manifest(self, trip_month: TripMonth) -> Manifest | None:
        """What the lake says it holds of a month."""
        blob = self._bucket.blob(self.path(trip_month.manifest_key))
        with self._explained("read"):
            try:
                return Manifest.model_validate_json(blob.download_as_bytes(timeout=TIMEOUT))
            except NotFound:
                return None

    def write_manifest(self, manifest: Manifest) -> bool:
        """Say what the lake holds of a month: the last act of publishing it.

        False, and nothing is said, if it holds another generation by now: that is for the run to say which wrote it.
        """
        trip_month = manifest.trip_month
        blob = self._bucket.blob(self.path(trip_month.manifest_key))
        while True:
            known = self.stat(trip_month.manifest_key)
            present = self.stat(trip_month.key)
            if present is None or present.generation != manifest.generation:
                return False
            with self._explained("written"), suppress(PreconditionFailed):  # another run spoke first: look again
                blob.upload_from_string(
                    manifest.model_dump_json(indent=1),
                    "application/json",
                    timeout=TIMEOUT,
                    if_generation_match=known.generation if known else 0,
                )
                return True

    def chunks(self, raw: RawFile, on_shape: Callable[[Shape], None]) -> Iterator[Chunk]:
        """The trips of a raw file, as a stream; Parquet, which has to be read out of order, passes through a temporary file."""
        trip_month, ending = raw.published.trip_month, raw.published.ending
        pieces = self.read(raw)
        if ending != ".parquet":
            yield from csv_chunks(trip_month, ending, ahead(pieces), on_shape)
            return
        scratch.require_room(raw.size, str(trip_month))
        with tempfile.TemporaryFile(dir=scratch.folder()) as file:
            for piece in pieces:
                file.write(piece)
            file.seek(0)
            yield from parquet_chunks(trip_month, file, on_shape)

    def write_trips(self, trip_month: TripMonth, run: str, chunks: Iterable[Chunk]) -> tuple[LakeObject, str, Tally]:
        """Write canonical trips to a staged object, and what was set aside to another (its key, or "" if nothing was).

        One row group in memory at a time, whatever the month's size.
        """
        key = f"{_STAGING}/{trip_month.color}/{trip_month.stem}-{run}.parquet"
        schema = arrow_schema(trip_month.color)
        tally = Tally()
        rejects: list[pa.Table] = []
        with self.writer(key) as out, parquet_writer(pa.PythonFile(out, mode="w"), schema) as parquet:
            held: list[pa.Table] = []
            for chunk in chunks:
                tally.add(chunk)
                if chunk.rejects.num_rows:
                    rejects.append(chunk.rejects)
                held.append(chunk.trips)
                if sum(table.num_rows for table in held) >= _ROW_GROUP:
                    parquet.write_table(pa.concat_tables(held), _ROW_GROUP)
                    held = []
            parquet.write_table(pa.concat_tables([schema.empty_table(), *held]), _ROW_GROUP)
            tally.check(trip_month)  # before the object appears
        quarantine = ""
        if rejects:
            quarantine = f"{_STAGING}/{trip_month.quarantine_key.replace('.parquet', f'-{run}.parquet')}"
            with self.writer(quarantine) as out:
                pq.write_table(pa.concat_tables(rejects), pa.PythonFile(out, mode="w"))
        staged = self.stat(key)
        if staged is None:
            raise Gone(f"{self.uri(key)} vanished right after it was written; is a lifecycle rule at work? Run again.")
        return staged, quarantine, tally

    def sweep(self, trip_month: TripMonth) -> None:
        """Delete what runs of this month left more than a day ago: staged objects of dead ones, and cached results."""
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        with self._explained("read"):
            folders = (f"{_STAGING}/{trip_month.color}", f"{_STAGING}/quarantine/{trip_month.color}", RESULTS)
            for folder in folders:
                prefix = self.path(f"{folder}/{trip_month.stem}-")
                for blob in self._bucket.client.list_blobs(self._bucket, prefix=prefix, timeout=TIMEOUT):
                    if blob.updated and blob.updated < before:
                        blob.delete(timeout=TIMEOUT)

    def current(self, trip_month: TripMonth) -> Manifest | None:
        """The month's manifest, if the object it tells of is the one that is there."""
        manifest = self.manifest(trip_month)
        if manifest is None:
            return None
        present = self.stat(trip_month.key)
        return manifest if present and present.generation == manifest.generation else None

    def months(self, colors: Iterable[str]) -> dict[TripMonth, Held]:
        """Every month that is there now, as `current` would tell: two listings a color, and the manifests, some at once."""
        list_below = partial(self._bucket.client.list_blobs, self._bucket, timeout=TIMEOUT)

        def held(about: Blob) -> tuple[Manifest, int] | None:
            # Gone since it was listed, or not to be understood: whoever brings that month up to date will hear of it.
            with self._explained("read"), suppress(NotFound, ValidationError):
                manifest = Manifest.model_validate_json(about.download_as_bytes(timeout=TIMEOUT))
                present = trips.get(self.path(manifest.trip_month.key))
                if present and present.generation == manifest.generation:
                    return manifest, int(present.size)
            return None

        found: list[tuple[Manifest, int]] = []
        with self._explained("read"), ThreadPoolExecutor(_READING) as pool:
            for color in colors:
                first = TripMonth(color, *FIRST_MONTH[color])
                folders = [self.path(key.rpartition("/")[0] + "/") for key in (first.key, first.manifest_key)]
                listed, manifests = (list(list_below(prefix=folder)) for folder in folders)
                trips = {blob.name: blob for blob in listed}
                found += filter(None, pool.map(held, manifests))
        return {manifest.trip_month: Held(manifest, size) for manifest, size in found}

    def require(self, manifest: Manifest) -> None:
        """Raise unless the month's object is still the one that `manifest` tells of."""
        present = self.stat(manifest.trip_month.key)
        if present is None or present.generation != manifest.generation:
            raise Gone(f"{self.uri(manifest.trip_month.key)} was replaced while this run was at work. Run again.")

    def schema(self, manifest: Manifest) -> pa.Schema:
        """The columns of a published month, from its Parquet footer."""
        blob = self._bucket.blob(self.path(manifest.trip_month.key), generation=manifest.generation)
        with self._explained("read"), blob.open("rb", chunk_size=1 << 20, timeout=TIMEOUT) as file:
            return pq.read_schema(file)

    def trips(self, key: str, generation: int) -> Iterator[pa.Table]:
        """The trips of a canonical object, a row group at a time, by way of a temporary file."""
        present = self.stat(key)
        scratch.require_room(present.size if present else 0, self.uri(key))
        with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
            path = Path(folder) / "trips.parquet"
            with self._explained("read"):
                self.block.download_object_to_path(key, path)
            present = self.stat(key)
            if present is None or present.generation != generation:
                raise Gone(f"{self.uri(key)} was replaced while this run was at work. Run again.")
            parquet = pq.ParquetFile(path)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)


def _same_file(raw: RawFile, present: LakeObject) -> bool:
    about = present.metadata
    same_version = raw.published.etag and (about.get("url"), about.get("etag")) == (
        raw.published.url,
        raw.published.etag,
    )
    return present.size == raw.size and bool(same_version or about.get("sha256") == raw.sha256)


def parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of canonical Parquet: what BigQuery, DuckDB and pandas all read as it is meant."""
    # The key is a run of numbers: deltas store it in a few bytes where a dictionary would need all eight a row.
    dictionary = [name for name in schema.names if name != "row_number"]
    return pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=dictionary,
        column_encoding={"row_number": "DELTA_BINARY_PACKED"},
        compression="snappy",
    )
