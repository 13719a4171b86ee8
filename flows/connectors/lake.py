"""The lake: a bucket of Google Cloud Storage, reached through a `GcsBucket` block. Keys here are inside the block's folder."""

import base64
import binascii
import datetime as dt
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
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
from flows.tlc.errors import MisconfiguredBlock, NotReconciled, TripDataError
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.pipeline import ahead
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.schema import KEY, QUARANTINE_SCHEMA, arrow_schema
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import PASSING_KEYS, SchemaRule, TripMonth, staged_key

# A request carries one of these; the client's own 60 s for a whole upload would kill a slow line's big month.
CHUNK = 8 << 20
TIMEOUT = (15, 300)  # seconds to connect, to wait for an answer
_ROW_GROUP = 128 << 10  # rows
_AT_ONCE = 8  # manifests read at the same time; the client keeps ten connections
_PACKED = "manifest"
# Metadata of a raw file. Servers and other tools add keys of their own, which some of them refuse to take from a client.
RAW_FACTS = ("url", "etag", "last_modified", "upload", "sha256", "fetched_at", "verified")
_ROOM = 3 << 10  # letters of it; Google gives an object's metadata 8 KiB, others of its kind less
_PARQUET, _BYTES = "application/vnd.apache.parquet", "application/octet-stream"


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

    def page(self, key: str) -> str:
        """Where a person sees the object, in Google's console."""
        name = quote(f"{self.block.bucket}/{self.path(key)}")
        return f"https://console.cloud.google.com/storage/browser/_details/{name}"

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
        return self.holds(raw.key, raw.generation)

    def holds(self, key: str, generation: int) -> bool:
        """Whether an object is there at this generation."""
        present = self.stat(key)
        return present is not None and present.generation == generation

    def present(self, trip_month: TripMonth) -> LakeObject | None:
        """Return the month's object, or None. Raise `MisconfiguredBlock` if this project did not write it.

        This project's mark is the metadata `staged`, or, where another tool replaced the metadata, a manifest of that generation.
        """
        found = self.stat(trip_month.key)
        if found is not None and "staged" not in found.metadata and not self.finished(trip_month):
            raise MisconfiguredBlock(
                f"{self.uri(trip_month.key)} is there already and was not written by this project; move it away, or give the"
                " GcsBucket block another folder. Nothing was loaded."
            )
        return found

    def raw_of(self, manifest: Manifest) -> RawFile:
        """The published file that a month was made of, as the lake keeps it; `Gone` if it keeps another by now, or none."""
        published = manifest.published
        present = self.stat(manifest.trip_month.raw_key(published.ending))
        if not present or present.metadata.get("sha256") != manifest.sha256:
            raise Gone(
                f"{manifest.trip_month}: the file it was made of (sha256 {manifest.sha256[:12]}…) is not in the lake any more;"
                " run etl-web-gcs to fetch the month again."
            )
        return RawFile(
            published=published,
            key=present.key,
            generation=present.generation,
            size=present.size,
            sha256=manifest.sha256,
            verified=manifest.verified,
        )

    def _object(self, key: str, blob: Blob) -> LakeObject:
        return LakeObject(key, int(blob.generation), int(blob.size), dict(blob.metadata or {}))

    def read(self, raw: RawFile) -> Iterator[bytes]:
        """The bytes of a raw file, in chunks."""
        key, generation, position = raw.key, raw.generation, 0
        while True:
            blob = self._bucket.blob(self.path(key), generation=generation)
            try:
                with self._explained("read"), blob.open("rb", chunk_size=CHUNK, timeout=TIMEOUT) as file:
                    file.seek(position)
                    while piece := file.read(CHUNK):
                        position += len(piece)
                        yield piece
                return
            except NotFound as error:
                published = raw.published
                # Fetched again by another run, or published by it and no longer staged.
                for key in (raw.key, published.trip_month.raw_key(published.ending)):
                    present = self.stat(key)
                    if present and _same_file(raw, present):
                        generation = present.generation
                        break
                else:
                    raise Gone(
                        f"{self.uri(raw.key)} (generation {raw.generation}) is not in the lake any more;"
                        " it was deleted or replaced while this run was at work. Run again."
                    ) from error

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
            file: Any = blob.open(
                "wb", chunk_size=CHUNK, ignore_flush=True, timeout=TIMEOUT, if_generation_match=replaces
            )
            try:
                with _named(), file:
                    yield file
            except PreconditionFailed as error:
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile") from error
            finally:
                # Where sending or giving up failed, the client leaves it open: the garbage collector would close it, that is,
                # send what there is as if it were the whole, some time later.
                file._buffer.close()

    def describe(self, key: str, facts: Mapping[str, str], mark: Mapping[str, str]) -> LakeObject:
        """Add metadata to the object that carries `mark`, and return the object.

        Metadata that the server or another tool added is ignored here, and stays.

        Raises:
            Overtaken: The object under `key` does not carry `mark`: another run replaced it.
        """
        with self._explained("written"):
            blob = self._bucket.get_blob(self.path(key), timeout=TIMEOUT)
            if blob is None:
                raise Gone(
                    f"{self.uri(key)} vanished right after it was written; is a lifecycle rule at work? Run again."
                )
            if not mark.items() <= (blob.metadata or {}).items():
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile")
            blob.metadata = dict(facts)  # a PATCH keeps the keys that it does not name
            try:
                blob.patch(timeout=TIMEOUT, if_generation_match=blob.generation)
            except PreconditionFailed as error:
                raise Overtaken(f"{self.uri(key)} was written by another run meanwhile") from error
        return self._object(key, blob)

    def publish_beside(self, staged: str, key: str, of: LakeObject) -> None:
        """Let `key`, which lies beside the month `of`, be what is staged, or nothing if `staged` is "".

        Left alone where another run published its month over `of`: what lies there is that run's then.
        """
        while True:
            source = self.stat(staged) if staged else None
            kept = self.stat(key)
            # In this order: a run that publishes its month after this look comes to `key` after it too, and fails us there.
            if not self.holds(of.key, of.generation):
                return
            with suppress(Overtaken):
                if source:
                    ours = {name: text for name, text in source.metadata.items() if name in RAW_FACTS}
                    self.publish(staged, source.generation, key, kept.generation if kept else 0, ours)
                elif kept and not staged:  # with something to be staged, an attempt before this one has published it
                    self._delete(kept)
                return

    def _delete(self, present: LakeObject) -> None:
        """Delete an object that may be gone; `Overtaken` if there is another by now."""
        with self._explained("written"), suppress(NotFound):
            try:
                blob = self._bucket.blob(self.path(present.key))
                blob.delete(timeout=TIMEOUT, if_generation_match=present.generation)
            except PreconditionFailed as error:
                raise Overtaken(f"{self.uri(present.key)} was written by another run meanwhile") from error

    def publish(
        self, staged: str, generation: int, key: str, replaces: int, metadata: Mapping[str, str] | None = None
    ) -> LakeObject:
        """Copy a staged object to `key`, inside the store; its metadata there is `metadata`.

        Raises `Overtaken` unless `key` is still at generation `replaces` (0: absent).
        """
        source = self._bucket.blob(self.path(staged), generation=generation)
        blob = self._bucket.blob(self.path(key))
        blob.content_type = _PARQUET if key.endswith(".parquet") else _BYTES  # a copy with its own metadata needs one
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

    def delete_raw(self, raw: RawFile) -> None:
        """Delete a raw file if it is still there at its generation."""
        with suppress(Overtaken):
            self._delete(LakeObject(raw.key, raw.generation, raw.size, {}))

    def manifest(self, trip_month: TripMonth) -> Manifest | None:
        """What the lake says it holds of a month; None too if that cannot be understood: the month is then loaded anew."""
        return self._manifest(trip_month.manifest_key)

    def _manifest(self, key: str) -> Manifest | None:
        with self._explained("read"), suppress(NotFound, ValidationError):
            return Manifest.model_validate_json(self._bucket.blob(self.path(key)).download_as_bytes(timeout=TIMEOUT))
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

    def chunks(self, raw: RawFile, on_shape: Callable[[Shape], None], rule: SchemaRule = "strict") -> Iterator[Chunk]:
        """The trips of a raw file, as a stream; Parquet, which has to be read out of order, passes through a temporary file."""
        trip_month, ending = raw.published.trip_month, raw.published.ending
        pieces = self.read(raw)
        if ending != ".parquet":
            yield from csv_chunks(trip_month, ending, ahead(pieces), on_shape, rule, raw.size)
            return
        with scratch.temporary_file(raw.size, str(trip_month)) as file:
            for piece in pieces:
                file.write(piece)
            file.seek(0)
            yield from parquet_chunks(trip_month, file, on_shape, rule)

    def write_trips(
        self, trip_month: TripMonth, run: str, chunks: Iterable[Chunk], check: Callable[[], None] = lambda: None
    ) -> tuple[LakeObject, str, str, Tally]:
        """Write canonical trips to a staged object, what was set aside to another, and the trips' new columns to a third.

        Tells the keys of the latter two, each "" if there was nothing of the kind. One row group in memory at a time,
        whatever the month's size. Writes nothing if `check`, which is called after the last chunk, raises.
        """
        key = staged_key(trip_month.key, run)
        quarantine = extra_key = ""
        schema = arrow_schema(trip_month.color)
        tally = Tally(trip_month)
        with ExitStack() as open_files:

            def new_file(key: str) -> pa.PythonFile:
                return pa.PythonFile(open_files.enter_context(self.writer(key)), mode="w")

            parquet = open_files.enter_context(parquet_writer(new_file(key), schema))
            held: list[pa.Table] = []
            for chunk in chunks:
                tally.add(chunk)
                if chunk.rejects.num_rows:
                    if not quarantine:
                        quarantine = staged_key(trip_month.quarantine_key, run)
                        file = new_file(quarantine)
                        aside = open_files.enter_context(pq.ParquetWriter(file, QUARANTINE_SCHEMA))
                    aside.write_table(chunk.rejects)
                if chunk.extra is not None:
                    if not extra_key:
                        extra_key = staged_key(trip_month.extra_key, run)
                        file = new_file(extra_key)
                        extra = open_files.enter_context(pq.ParquetWriter(file, chunk.extra.schema))
                    extra.write_table(chunk.extra)
                held.append(chunk.trips)
                if sum(table.num_rows for table in held) >= _ROW_GROUP:
                    parquet.write_table(pa.concat_tables(held), _ROW_GROUP)
                    held = []
            parquet.write_table(pa.concat_tables([schema.empty_table(), *held]), _ROW_GROUP)
            tally.check(trip_month)  # before the object appears
            check()
        staged = self.stat(key)
        if staged is None:
            raise Gone(f"{self.uri(key)} vanished right after it was written; is a lifecycle rule at work? Run again.")
        return staged, quarantine, extra_key, tally

    def sweep(self) -> None:
        """Delete what runs of any month left more than a day ago: staged objects of dead ones, and cached results."""
        before = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        with self._explained("read"):
            for below in map(self.path, PASSING_KEYS):
                for blob in self._bucket.client.list_blobs(self._bucket, prefix=below, timeout=TIMEOUT):
                    if blob.updated and blob.updated < before:
                        with suppress(NotFound):  # another run sweeps too
                            blob.delete(timeout=TIMEOUT)

    def current(self, trip_month: TripMonth) -> Manifest | None:
        """What the lake holds of a month; also while, or because, the run that published it has not written its manifest."""
        present = self.stat(trip_month.key)
        return _manifest_of(present, self.manifest(trip_month)) if present else None

    def finished(self, trip_month: TripMonth) -> Manifest | None:
        """The same of a month whose run came to its end: nothing is left to do for it. None of any other."""
        manifest = self.manifest(trip_month)
        return manifest if manifest and self.holds(trip_month.key, manifest.generation) else None

    def months(self, colors: Iterable[str]) -> dict[TripMonth, Held]:
        """Every month that is there now, as `current` would tell: two listings a color, and the manifests, some at once."""
        return {
            manifest.trip_month: Held(manifest, present.size, finished)
            for color in colors
            for manifest, present, finished in self._published(color)
        }

    def require(self, manifest: Manifest) -> None:
        """Raise unless the month's object is still the one that `manifest` tells of."""
        present = self.stat(manifest.trip_month.key)
        if present is None or present.generation != manifest.generation:
            raise Gone(f"{self.uri(manifest.trip_month.key)} was replaced while this run was at work. Run again.")

    def schema(self, manifest: Manifest) -> pa.Schema:
        """The columns of a published month, from its Parquet footer."""
        return self._footer(manifest).schema.to_arrow_schema()

    def require_reconciled(self, manifest: Manifest) -> None:
        """Raise unless a published month has as many rows, by its Parquet footer, as its manifest says."""
        if (rows := self._footer(manifest).num_rows) != manifest.loaded:
            raise NotReconciled(
                f"{manifest.trip_month}: {manifest.loaded} rows were loaded into the lake, {self.uri(manifest.key)} has {rows}."
                " Nothing was published; delete the object, and run etl-web-gcs for the month again."
            )

    def _footer(self, manifest: Manifest) -> pq.FileMetaData:
        blob = self._bucket.blob(self.path(manifest.trip_month.key), generation=manifest.generation)
        with self._explained("read"), blob.open("rb", chunk_size=1 << 20, timeout=TIMEOUT) as file:
            return pq.read_metadata(file)

    def trips(self, key: str, generation: int) -> Iterator[pa.Table]:
        """The trips of a canonical object, a row group at a time, by way of a temporary file."""
        present = self.stat(key)
        with scratch.temporary_file(present.size if present else 0, self.uri(key)) as file:
            with self._explained("read"):
                self.block.download_object_to_file_object(key, file)
            present = self.stat(key)
            if present is None or present.generation != generation:
                raise Gone(f"{self.uri(key)} was replaced while this run was at work. Run again.")
            file.seek(0)
            parquet = pq.ParquetFile(file, pre_buffer=False)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)

    def open(self, present: LakeObject, on_read: Callable[[int], None] = lambda size: None) -> io.RawIOBase:
        """An object as a file, of this very generation, of which only what is read is fetched; `on_read` is told how much."""
        blob = self._bucket.blob(self.path(present.key), generation=present.generation)

        def fetch(start: int, stop: int) -> bytes:
            with self._explained("read"):
                try:
                    data = bytes(blob.download_as_bytes(start=start, end=stop - 1, checksum=None, timeout=TIMEOUT))
                except NotFound as error:
                    raise Gone(f"{self.uri(present.key)} was replaced while it was being read. Run again.") from error
            on_read(len(data))
            return data

        return _Ranges(present.size, fetch)

    def _listed(self, prefix: str) -> dict[str, LakeObject]:
        """The objects below a prefix by key, in order of their names."""
        with self._explained("read"):
            blobs = self._bucket.client.list_blobs(self._bucket, prefix=self.path(prefix), timeout=TIMEOUT)
            keys = ((blob.name.removeprefix(self._folder), blob) for blob in blobs)
            return {key: self._object(key, blob) for key, blob in keys}

    def published(self, color: str) -> list[tuple[Manifest, LakeObject]]:
        """A color's months as `current` would tell, oldest first, each with its object."""
        return [(manifest, present) for manifest, present, _ in self._published(color)]

    def _published(self, color: str) -> list[tuple[Manifest, LakeObject, bool]]:
        """The same, and whether `finished` would tell of the month."""
        objects = self._listed(f"{color}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            written = {m.key: m for m in pool.map(self._manifest, self._listed(f"manifests/{color}/")) if m}
        found = [(_manifest_of(present, written.get(key)), present) for key, present in objects.items()]
        return [(manifest, present, manifest == written.get(present.key)) for manifest, present in found if manifest]

    def dataset(self, color: str, on_read: Callable[[int], None]) -> ds.Dataset:
        """A color's published trips, to be asked: what a filter rules out (months, row groups) or nobody names (columns) is
        not fetched; `on_read` is told of the bytes that are.

        A column of a row group is one request. Arrow's `pre_buffer` would join columns that are neighbours into fewer requests,
        and keep all bytes of a month until it has been read.
        """
        parquet = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False))
        months = [
            parquet.make_fragment(
                pa.PythonFile(self.open(present, on_read), mode="r"),
                partition_expression=pc.field(KEY[0].name) == pa.scalar(manifest.file_month),
            )
            for manifest, present in self.published(color)
        ]
        if not months:
            raise Gone(f"no month of {color} is in the lake ({self.uri(color)}/); run etl-web-gcs first.")
        return ds.FileSystemDataset(months, arrow_schema(color), parquet)

    def table(self, present: LakeObject) -> pa.Table:
        """A small Parquet object, whole."""
        with self.open(present) as file:
            return pq.read_table(file, pre_buffer=False)


class _Ranges(io.RawIOBase):
    """A file of which every read is a request of its own: Parquet's reader asks for whole columns, and for nothing twice."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._at = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._at + size)
        data = self._fetch(self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data


def packed(manifest: Manifest) -> dict[str, str]:
    """A manifest as metadata of the month's object, from which `current` reads it where it is written nowhere else yet."""
    text = base64.b64encode(zlib.compress(manifest.model_dump_json(exclude_defaults=True).encode())).decode()
    return {_PACKED: text} if len(text) <= _ROOM else {}


def _manifest_of(present: LakeObject, written: Manifest | None) -> Manifest | None:
    """The manifest of an object: the one that is written, if it is of this generation, or else what the object itself says."""
    if written and written.generation == present.generation:
        return written
    with suppress(KeyError, binascii.Error, zlib.error, ValidationError):
        text = zlib.decompress(base64.b64decode(present.metadata[_PACKED]))
        return Manifest.model_validate_json(text).model_copy(update={"generation": present.generation})
    return None


def same_edition(published: PublishedFile, present: LakeObject) -> bool:
    """Return whether a raw object is this edition of the file, by what its metadata says of where it came from."""
    about = present.metadata
    kept = published.model_copy(
        update={
            "etag": about.get("etag") or None,
            "last_modified": about.get("last_modified") or None,
            "size": present.size,
        }
    )
    return about.get("url") == published.url and bool(published.same_edition(kept))


def _same_file(raw: RawFile, present: LakeObject) -> bool:
    same = same_edition(raw.published, present) or present.metadata.get("sha256") == raw.sha256
    return present.size == raw.size and same


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
