"""The lake: one canonical Parquet object per month, and one manifest per month, which is written last."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from flows.connectors import scratch
from flows.connectors.bucket import Bucket, Object
from flows.connectors.growing_file import GrowingFile
from flows.connectors.known_months import last_known_rows
from flows.stores.manifests import MANIFEST, LakeManifests, manifest_of
from flows.stores.raw_zone import RAW_FACTS, content_type
from flows.tlc.attention import warnings_of
from flows.tlc.compare import compare
from flows.tlc.errors import (
    Gone,
    MisconfiguredBlock,
    NotReconciled,
    Overtaken,
    SchemaMismatch,
    TooManyRejects,
    TripDataError,
    UnreadableFile,
    Vanished,
    WrongMonth,
)
from flows.tlc.manifest import Changes, Manifest, Outcome, Present, RawFile, StagedMonth, Status
from flows.tlc.parquet_joining import joined, row_groups
from flows.tlc.pipeline import Add, ahead
from flows.tlc.schema import KEY, arrow_schema
from flows.tlc.sources import ENDINGS
from flows.tlc.stream import MonthStream
from flows.tlc.trips import TEMPORARY_KEYS, Store, Terms, TripMonth, staged_key, temporary_names

if TYPE_CHECKING:
    from prefect_gcp.cloud_storage import GcsBucket

_ROW_GROUP = 128 << 10  # rows
_ENCODERS = max(1, min(2, pa.cpu_count() - 1))  # threads that encode row groups; each has one of about 30 MB in memory
_BATCH = 32 << 10  # rows read at once
_ROOM = 3 << 10  # characters of a manifest; Google allows 8 KiB of metadata per object, compatible servers allow less
_TEMPORARY = temporary_names(ENDINGS)
_OTHERS_TIME = 30.0  # seconds to wait for the manifest of another run that has published its object


class Lake(LakeManifests):
    """Store of months in a bucket. Its raw zone has the published files."""

    name: Store = "lake"

    def __init__(self, block: "GcsBucket") -> None:
        super().__init__(Bucket(block))

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the bucket exists and can be read."""
        self.bucket.check()

    # Stage and publish a month.

    def stage(self, raw: RawFile, terms: Terms, run: str, add: Add, growing: GrowingFile | None = None) -> StagedMonth:
        """Write a raw file's trips to a staged object, quarantined rows to a second one, and new columns to a third.

        Only a few row groups are in memory at a time, whatever the month's size. Nothing is staged from a refused file.
        """
        self._sweep()
        stream = MonthStream(raw, growing or self.content(raw), terms.rows, terms.schema, add)
        try:
            return self._write(stream, run).model_copy(update={"pinned": terms.pinned})
        except (UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth):
            # Keep an edition that a person chose, or that was published earlier. A file that still grows is not in the lake.
            if not (growing or terms.pinned or self._was_published(raw)):
                self.forget(raw, run)
            raise

    def _was_published(self, raw: RawFile) -> bool:
        """Return whether the month was ever made from this file. Look at the present month last.

        Another run with other terms may publish the file at any time. No request deletes an object on the condition that another
        object is absent, so a publication between the last look and the deletion is not noticed.
        """
        if raw.sha256 in {manifest.sha256 for manifest in self.history(raw.trip_month)}:
            return True
        current = self.current(raw.trip_month)
        return current is not None and current.sha256 == raw.sha256

    def _write(self, stream: MonthStream, run: str) -> StagedMonth:
        trip_month, schema = stream.trip_month, arrow_schema(stream.trip_month.color)
        key = staged_key(trip_month.key, run)
        side_keys = {"quarantine_key": "", "extra_key": ""}
        # If an upload fails, the thread that writes ends before the files are closed: Arrow crashes if both happen at once.
        with self.bucket.writer(key) as month, ExitStack() as files:
            writers: dict[str, pq.ParquetWriter] = {}

            def write_side_object(what: str, key: str, table: pa.Table) -> None:
                if what not in writers:
                    side_keys[what] = staged_key(key, run)
                    file = pa.PythonFile(files.enter_context(self.bucket.writer(side_keys[what])), mode="w")
                    writers[what] = files.enter_context(pq.ParquetWriter(file, table.schema))
                writers[what].write_table(table)

            def tables() -> Iterator[pa.Table]:
                for chunk in stream:
                    if chunk.rejects.num_rows:
                        write_side_object("quarantine_key", trip_month.quarantine_key, chunk.rejects)
                    if chunk.extra is not None:
                        write_side_object("extra_key", trip_month.extra_key, chunk.extra)
                    yield chunk.trips

            with closing(ahead(parquet_pieces(tables(), schema), depth=1)) as pieces:
                for piece in pieces:
                    month.write(piece)
        return stream.staged(key=key, generation=self.bucket.written(key).generation, **side_keys)

    def discard(self, staged: StagedMonth) -> None:
        """Delete the staged objects of a month that will not be published."""
        self._delete_staged(staged.key, staged.quarantine_key, staged.extra_key)

    def _sweep(self) -> None:
        """Delete staged objects and cached results of all months that are older than a day. Keep objects of other programs."""
        self.bucket.delete_older(TEMPORARY_KEYS, _TEMPORARY, dt.datetime.now(dt.UTC) - dt.timedelta(days=1))

    def publish(self, staged: StagedMonth, present: Present, run_id: str, by: str = "") -> Outcome:
        """Publish a staged month. If another run published the same bytes by the same rule first, keep its month."""
        trip_month, replaces = staged.trip_month, present.generation
        raw_key = trip_month.raw_key(staged.raw.published.ending)
        side_keys = {trip_month.quarantine_key: staged.quarantine_key, trip_month.extra_key: staged.extra_key}
        if staged.raw.key != raw_key:
            side_keys[raw_key] = staged.raw.key
        manifest = staged.manifest(
            run_id,
            started_by=by,
            key=trip_month.key,
            quarantine_key=trip_month.quarantine_key if staged.quarantine_key else "",
            extra_key=trip_month.extra_key if staged.extra_key else "",
        )
        if staged.raw.key != raw_key:
            # The raw file is published after the month's object. The first copy keeps its bytes if the run dies in between.
            # The second keeps the bytes that it replaces. Nothing is published if one of them cannot be made.
            for key in (staged.raw.key, raw_key):
                self.copy_edition(self.bucket.stat(key), raw_key)
        while True:
            before = self.remembered(trip_month)
            self._require_own_parts(trip_month, before)
            if replaces and (was := self.current(trip_month)):
                self.append_history(was)  # its entry is missing if an older version published it, or if its run died
            changes = self._changes(staged, replaces)
            rows = last_known_rows(staged.raw, before)
            manifest = manifest.model_copy(update={**dict(changes), "replaces": replaces, "known_rows": rows})
            # The object's metadata has a copy of the manifest: if this run dies, a reader finds both or neither.
            noted = {"staged": staged.key, "replaces": replaces, **dict(changes)}
            packed = manifest.packed(_ROOM)
            carried = {MANIFEST: packed} if packed else {}
            self.require_edition(staged.raw.sha256, raw_key)
            try:
                metadata = {name: str(fact) for name, fact in noted.items()} | carried
                published = self.bucket.copy(
                    staged.key, staged.generation, trip_month.key, replaces, metadata, content_type(trip_month.key)
                )
                break
            except Overtaken:
                there = self.bucket.stat(trip_month.key)
                if there.metadata.get("staged") == staged.key:  # published by an earlier attempt of this run
                    published, replaces = there, int(there.metadata["replaces"])
                    counts = {name: int(there.metadata[name]) for name in Changes.model_fields}
                    manifest = manifest.model_copy(update={**counts, "replaces": replaces})
                    if before and before.generation == there.generation:  # that attempt also wrote its manifest
                        manifest = manifest.model_copy(update={"known_rows": before.known_rows})
                        rows_before = before.loaded - before.inserted + before.removed
                        before = before.model_copy(update={"loaded": rows_before})
                    break
                other = self._manifest_of_the_other(trip_month, there)
                if other or not there:
                    self._delete_staged(staged.key, *side_keys.values())
                if other and other.has_bytes(staged.raw, staged.rule):
                    return Outcome(store="lake", status="unchanged", manifest=other)
                if other or not there:
                    how = "loaded from another file" if other else "withdrawn, or its object was deleted,"
                    raise Vanished(
                        f"{trip_month} was {how} during this run. Nothing was published; run again."
                    ) from None
                replaces = there.generation  # the other run died before it wrote the manifest
        manifest = manifest.model_copy(update={"generation": published.generation})
        for key, staged_side in side_keys.items():
            self._publish_side_object(staged_side, key, published)
        manifest = self.append_history(manifest)
        self.remember(manifest)
        self._delete_staged(staged.key, *side_keys.values())
        warnings = warnings_of(manifest, before if replaces else None)
        return Outcome(store="lake", status="replaced" if replaces else "loaded", manifest=manifest, warnings=warnings)

    def _delete_staged(self, *keys: str) -> None:
        for key in keys:
            if key.startswith(TEMPORARY_KEYS):  # a copy of an earlier edition must stay
                self.bucket.delete(key)

    def _changes(self, staged: StagedMonth, replaces: int) -> Changes:
        """Return how many rows publishing will insert, update and remove in generation `replaces`."""
        key = staged.trip_month.key
        if replaces and self.bucket.has_generation(key, replaces):
            # Gone: another run published first, and `publish` detects it. Other errors: another program wrote the object.
            with suppress(Gone, pa.ArrowException, KeyError):
                return compare(self.trips(key, replaces), self.trips(staged.key, staged.generation))
        return Changes(inserted=staged.loaded)

    def _manifest_of_the_other(self, trip_month: TripMonth, there: Object) -> Manifest | None:
        """Wait for the manifest of the run that published first. Return None if it does not appear in time."""
        until = time.monotonic() + _OTHERS_TIME
        while there and time.monotonic() < until:
            manifest = self.remembered(trip_month)
            written = manifest is not None and manifest.generation == there.generation
            if written and self.bucket.has_generation(trip_month.key, there.generation):
                return manifest
            time.sleep(1)
        return None

    def _require_own_parts(self, trip_month: TripMonth, written: Manifest | None) -> None:
        """Raise `MisconfiguredBlock` if the key of quarantined rows or of extra columns has an object of another program.

        An object is the month's if its manifest names it, even if somebody damaged it. If not, a run may have died before it
        wrote the manifest. Then the object is a Parquet file with row numbers.
        """
        for key, named in (
            (trip_month.quarantine_key, written and written.quarantine_key),
            (trip_month.extra_key, written and written.extra_key),
        ):
            if named or not (found := self.bucket.stat(key)):
                continue
            try:
                with self.bucket.ranges(found) as file:
                    names = pq.read_schema(file).names
            except pa.ArrowInvalid:
                names = []
            if KEY[1].name not in names:
                raise MisconfiguredBlock(
                    f"{self.bucket.uri(key)} exists already, but this project did not write it; move it away, or give the"
                    " GcsBucket block another folder. Nothing was changed."
                )

    def _publish_side_object(self, staged: str, key: str, month: Object) -> None:
        """Publish the object `staged` under `key`, as a part of the month. If `staged` is "", delete `key`.

        Do nothing if another run has replaced the month's object: then `key` belongs to that run.
        """
        bucket = self.bucket
        while True:
            source = bucket.stat(staged) if staged else Object("")
            kept = bucket.stat(key)
            # The order matters: stat `key` first, then check the month. If another run publishes its month after this check,
            # it writes `key` after our stat. If it does so before us, our precondition fails, and we check again.
            if not bucket.has_generation(month.key, month.generation):
                return
            with suppress(Overtaken):
                if source:
                    if key.startswith("raw/"):
                        self.copy_edition(kept, key)
                    ours = {name: text for name, text in source.metadata.items() if name in RAW_FACTS}
                    bucket.copy(staged, source.generation, key, kept.generation, ours, content_type(key))
                elif kept and not staged:  # if `staged` no longer exists, an earlier attempt published it
                    bucket.delete(key, kept.generation)
                return

    # Withdraw a month.

    def withdraw(self, trip_month: TripMonth, run_id: str, by: str = "") -> Outcome:
        """Mark a month's manifest as withdrawn, and delete its objects. Keep the published files.

        A second call completes the work of a run that died.

        Raises:
            TripDataError: The lake does not have the month.
            MisconfiguredBlock: The lake has an object of another program under a key of the month.
            Overtaken: Another run published the month at the same time.
        """
        month, manifest = self.bucket.stat(trip_month.key), self.written_of(trip_month)
        self._require_own_parts(trip_month, manifest)
        if month and (current := manifest_of(month, manifest)):
            manifest = self.append_history(current.withdrawn(run_id, by))
            self._write_manifest(manifest, manifest.generation)
        if manifest is None or not manifest.withdrawn_at:
            raise TripDataError(f"{trip_month} is not in the lake; there is nothing to withdraw. Nothing was changed.")
        status: Status = "withdrawn" if month or (run_id and manifest.flow_run_id == run_id) else "unchanged"
        if month:
            for key in (trip_month.quarantine_key, trip_month.extra_key):
                self._publish_side_object("", key, month)
            self.bucket.delete(trip_month.key, manifest.generation)
            # Another run may have published the month just before, and then replaced the marked manifest with its own.
            self._write_manifest(manifest, 0)
        return Outcome(store="lake", status=status, manifest=manifest)

    # Read trips, for other stores and for queries.

    def trips(self, key: str, generation: int) -> Iterator[pa.Table]:
        """Yield the trips of a canonical object, `_BATCH` rows at a time, from a temporary copy on disk."""
        with scratch.temporary_file(self.bucket.stat(key).size, self.bucket.uri(key)) as file:
            self.bucket.download(key, file)
            self.bucket.require(key, generation)
            file.seek(0)
            parquet = pq.ParquetFile(file, pre_buffer=False)
            for batch in parquet.iter_batches(_BATCH):
                yield pa.Table.from_batches([batch])

    def footer(self, manifest: Manifest) -> pq.FileMetaData:
        """Return the Parquet footer of a published month."""
        with self.bucket.ranges(self.bucket.require(manifest.trip_month.key, manifest.generation)) as file:
            return pq.read_metadata(file)

    def require_reconciled(self, manifest: Manifest) -> None:
        """Raise `NotReconciled` unless a published month's Parquet footer has as many rows as its manifest."""
        if (rows := self.footer(manifest).num_rows) != manifest.loaded:
            uri = self.bucket.uri(manifest.key)
            raise NotReconciled(
                f"{manifest.trip_month}: {manifest.loaded} rows were loaded into the lake, {uri} has {rows}."
                " Nothing was published; delete the object, and run etl-web-gcs for the month again."
            )

    def dataset(self, color: str, on_read: Callable[[int], None]) -> ds.Dataset:
        """Return a color's published trips as an Arrow dataset. `on_read` receives the number of bytes of each read.

        Months and row groups that a filter excludes, and columns that the query does not name, are not fetched. Each column
        of a row group takes one request. Arrow's `pre_buffer` is off: it would merge adjacent columns into fewer requests,
        but keep all bytes of a month in memory until the month has been read.
        """
        parquet = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False))
        months = [
            parquet.make_fragment(
                pa.PythonFile(self.bucket.ranges(present, on_read), mode="r"),
                partition_expression=pc.field(KEY[0].name) == pa.scalar(manifest.file_month),
            )
            for manifest, present, _ in self._published(color)
        ]
        if not months:
            raise Gone(f"no month of {color} is in the lake ({self.bucket.uri(color)}/); run etl-web-gcs first.")
        return ds.FileSystemDataset(months, arrow_schema(color), parquet)

    def table(self, present: Object) -> pa.Table:
        """Return the whole table of a small Parquet object."""
        with self.bucket.ranges(present) as file:
            return pq.read_table(file, pre_buffer=False)


def parquet_pieces(tables: Iterable[pa.Table], schema: pa.Schema) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a canonical Parquet file, one row group at a time. Threads encode several row groups at once."""

    def encode(table: pa.Table) -> pa.Buffer:
        sink = pa.BufferOutputStream()
        with parquet_writer(sink, schema) as parquet:
            parquet.write_table(table, _ROW_GROUP)
        return sink.getvalue()

    return joined(row_groups(tables, _ROW_GROUP), encode, _ENCODERS)


def parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of canonical Parquet that BigQuery, DuckDB and pandas all read correctly."""
    # Delta encoding stores consecutive row numbers in a few bytes. A dictionary of times takes almost twice as many bytes.
    delta = [field.name for field in schema if field.name == "row_number" or pa.types.is_timestamp(field.type)]
    return pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=[name for name in schema.names if name not in delta],
        column_encoding=dict.fromkeys(delta, "DELTA_BINARY_PACKED"),
        compression="snappy",
    )
