"""The lake: one canonical Parquet object per month, and one manifest per month, which is written last."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import ValidationError

from flows.connectors import scratch
from flows.connectors.bucket import Bucket, Object
from flows.connectors.known_months import last_known_rows
from flows.stores.raw_zone import RAW_FACTS, RawZone
from flows.tlc.attention import warnings_of
from flows.tlc.catalog import ListedMonth
from flows.tlc.compare import compare
from flows.tlc.errors import (
    Gone,
    MisconfiguredBlock,
    NotReconciled,
    Overtaken,
    SchemaMismatch,
    TooManyRejects,
    UnreadableFile,
    WrongMonth,
)
from flows.tlc.manifest import Changes, Manifest, Outcome, Present, RawFile, StagedMonth
from flows.tlc.pipeline import Add
from flows.tlc.schema import KEY, arrow_schema
from flows.tlc.stream import MonthStream
from flows.tlc.trips import PASSING_KEYS, Store, Terms, TripMonth, staged_key

if TYPE_CHECKING:
    from prefect_gcp.cloud_storage import GcsBucket

_ROW_GROUP = 128 << 10  # rows
_AT_ONCE = 8  # manifests read at the same time; the client keeps ten connections
_MANIFEST = "manifest"
_ROOM = 3 << 10  # characters of a manifest; Google allows 8 KiB of metadata per object, compatible servers allow less
_PARQUET = "application/vnd.apache.parquet"
_OTHERS_TIME = 30.0  # seconds to wait for the manifest of another run that has published its object


class Lake(RawZone):
    """Store of months in a bucket. Its raw zone has the published files."""

    name: Store = "lake"

    def __init__(self, block: "GcsBucket") -> None:
        super().__init__(Bucket(block))

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the bucket exists and can be read."""
        self.bucket.check()

    # What the lake has.

    def present(self, trip_month: TripMonth) -> Present:
        """Return the state of a month in the lake.

        An object counts as written by this project if it has the metadata `staged`. If another tool replaced the metadata,
        it counts if a manifest names its generation.

        Raises:
            MisconfiguredBlock: The month's key has an object that this project did not write.
        """
        found = self.bucket.stat(trip_month.key)
        written = self.remembered(trip_month)
        if not found:
            return Present()
        finished = written is not None and written.generation == found.generation
        if "staged" not in found.metadata and not finished:
            raise MisconfiguredBlock(
                f"{self.bucket.uri(trip_month.key)} is there already and was not written by this project; move it away, or give"
                " the GcsBucket block another folder. Nothing was loaded."
            )
        return Present(manifest=_manifest_of(found, written), generation=found.generation, finished=finished)

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the month's written manifest; None if there is none or it is not valid."""
        return self._read_manifest(trip_month.manifest_key)

    def _read_manifest(self, key: str) -> Manifest | None:
        with suppress(ValidationError, UnicodeDecodeError):
            text = self.bucket.read_text(key)
            return Manifest.model_validate_json(text) if text is not None else None
        return None

    def current(self, trip_month: TripMonth) -> Manifest | None:
        """Return the manifest of the month's object, or None.

        It is found even if the run that published the object has not written the manifest: the object's metadata has a copy.
        """
        present = self.bucket.stat(trip_month.key)
        return _manifest_of(present, self.remembered(trip_month)) if present else None

    def required(self, trip_month: TripMonth) -> Manifest:
        """Return the manifest of the month's object. Raise `Gone` if the lake has no month, or no readable manifest of it."""
        manifest = self.current(trip_month)
        if manifest is not None:
            return manifest
        uri = self.bucket.uri(trip_month.key)
        if not self.bucket.stat(trip_month.key):
            raise Gone(f"{trip_month} is not in the lake ({uri}); run etl-web-gcs for it first.")
        raise Gone(f"{uri} has no readable manifest; run etl-web-gcs for {trip_month} again.")

    def months(self, colors: Iterable[str]) -> dict[TripMonth, ListedMonth]:
        """Return every month of the colors. Two listings per color, and the manifests, several at a time."""
        return {
            manifest.trip_month: ListedMonth(manifest, present.size, finished)
            for color in dict.fromkeys(colors)
            for manifest, present, finished in self._published(color)
        }

    def _published(self, color: str) -> list[tuple[Manifest, Object, bool]]:
        """Return a color's months, oldest first: the manifest, the object, and whether its run wrote the manifest."""
        objects = self.bucket.listing(f"{color}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            manifests = pool.map(self._read_manifest, self.bucket.listing(f"manifests/{color}/"))
            written = {manifest.key: manifest for manifest in manifests if manifest}
        found = [(_manifest_of(present, written.get(key)), present) for key, present in objects.items()]
        return [(manifest, present, manifest == written.get(present.key)) for manifest, present in found if manifest]

    def page(self, manifest: Manifest) -> str:
        """Return the URL of the month's object in Google's console."""
        return self.bucket.page(manifest.key)

    # Stage and publish a month.

    def stage(self, raw: RawFile, terms: Terms, run: str, add: Add) -> StagedMonth:
        """Write a raw file's trips to a staged object, quarantined rows to a second one, and new columns to a third.

        Only one row group is in memory at a time, whatever the month's size. Nothing is staged from a refused file.
        """
        self._sweep()
        stream = MonthStream(raw, self.content(raw), terms.rows, terms.schema, add)
        try:
            return self._write(stream, run)
        except (UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth):
            published = self.current(raw.trip_month)
            if not published or published.sha256 != raw.sha256:
                self.forget(raw, run)
            raise

    def _write(self, stream: MonthStream, run: str) -> StagedMonth:
        trip_month, schema = stream.trip_month, arrow_schema(stream.trip_month.color)
        key = staged_key(trip_month.key, run)
        side_keys = {"quarantine_key": "", "extra_key": ""}
        with ExitStack() as files:

            def file(key: str) -> pa.PythonFile:
                return pa.PythonFile(files.enter_context(self.bucket.writer(key)), mode="w")

            writers: dict[str, pq.ParquetWriter] = {}

            def write_side_object(what: str, key: str, table: pa.Table) -> None:
                if what not in writers:
                    side_keys[what] = staged_key(key, run)
                    writers[what] = files.enter_context(pq.ParquetWriter(file(side_keys[what]), table.schema))
                writers[what].write_table(table)

            parquet = files.enter_context(parquet_writer(file(key), schema))
            buffered: list[pa.Table] = []
            for chunk in stream:
                if chunk.rejects.num_rows:
                    write_side_object("quarantine_key", trip_month.quarantine_key, chunk.rejects)
                if chunk.extra is not None:
                    write_side_object("extra_key", trip_month.extra_key, chunk.extra)
                buffered.append(chunk.trips)
                if sum(table.num_rows for table in buffered) >= _ROW_GROUP:
                    parquet.write_table(pa.concat_tables(buffered), _ROW_GROUP)
                    buffered = []
            parquet.write_table(pa.concat_tables([schema.empty_table(), *buffered]), _ROW_GROUP)
        return stream.staged(key=key, generation=self.bucket.written(key).generation, **side_keys)

    def _sweep(self) -> None:
        """Delete what runs of any month left behind more than a day ago: staged objects and cached results."""
        self.bucket.delete_older(PASSING_KEYS, dt.datetime.now(dt.UTC) - dt.timedelta(days=1))

    def publish(self, staged: StagedMonth, present: Present, run_id: str) -> Outcome:
        """Publish a staged month. Keep another run's month if that run published the same bytes by the same rule first."""
        trip_month, replaces = staged.trip_month, present.generation
        raw_key = trip_month.raw_key(staged.raw.published.ending)
        side_keys = {trip_month.quarantine_key: staged.quarantine_key, trip_month.extra_key: staged.extra_key}
        if staged.raw.key != raw_key:
            side_keys[raw_key] = staged.raw.key
        manifest = staged.manifest(
            run_id,
            key=trip_month.key,
            quarantine_key=trip_month.quarantine_key if staged.quarantine_key else "",
            extra_key=trip_month.extra_key if staged.extra_key else "",
        )
        while True:
            before = self.remembered(trip_month)
            changes = self._changes(staged, replaces)
            rows = last_known_rows(staged.raw.published.url, before)
            manifest = manifest.model_copy(update={**dict(changes), "replaces": replaces, "known_rows": rows})
            # The object's metadata carries the manifest, too: if this run dies, a reader finds both or neither.
            noted = {"staged": staged.key, "replaces": replaces, **dict(changes)}
            packed = manifest.packed()
            carried = {_MANIFEST: packed} if len(packed) <= _ROOM else {}
            try:
                metadata = {name: str(fact) for name, fact in noted.items()} | carried
                published = self.bucket.copy(
                    staged.key, staged.generation, trip_month.key, replaces, metadata, _PARQUET
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
                if other and other.holds(staged.raw, staged.rule):
                    self._delete_staged(staged.key, *side_keys.values())
                    return Outcome(store="lake", status="unchanged", manifest=other)
                replaces = there.generation  # the other run died before its manifest, or loaded another file
        manifest = manifest.model_copy(update={"generation": published.generation})
        for key, staged_side in side_keys.items():
            self._publish_beside(staged_side, key, published)
        self.remember(manifest)
        self._delete_staged(staged.key, *side_keys.values())
        warnings = warnings_of(manifest, before if replaces else None)
        return Outcome(store="lake", status="replaced" if replaces else "loaded", manifest=manifest, warnings=warnings)

    def _delete_staged(self, *keys: str) -> None:
        for key in filter(None, keys):
            self.bucket.delete(key)

    def _changes(self, staged: StagedMonth, replaces: int) -> Changes:
        """Return the rows that publishing will insert, update and remove, compared with generation `replaces`."""
        key = staged.trip_month.key
        if replaces and self.bucket.holds(key, replaces):
            with suppress(Gone):  # another run published first; `publish` will detect it
                return compare(self.trips(key, replaces), self.trips(staged.key, staged.generation))
        return Changes(inserted=staged.loaded)

    def _manifest_of_the_other(self, trip_month: TripMonth, there: Object) -> Manifest | None:
        """Wait for the manifest of the run that overtook this one. Return None if it does not appear in time."""
        until = time.monotonic() + _OTHERS_TIME
        while there and time.monotonic() < until:
            manifest = self.remembered(trip_month)
            written = manifest is not None and manifest.generation == there.generation
            if written and self.bucket.holds(trip_month.key, there.generation):
                return manifest
            time.sleep(1)
        return None

    def _publish_beside(self, staged: str, key: str, month: Object) -> None:
        """Publish the object `staged` under `key`, to go with the month's object. If `staged` is "", delete `key`.

        Do nothing if another run has replaced the month's object: then `key` belongs to that run.
        """
        bucket = self.bucket
        while True:
            source = bucket.stat(staged) if staged else Object("")
            kept = bucket.stat(key)
            # The order matters: stat `key` first, then check the month. If another run publishes its month after this check,
            # it writes `key` after our stat. If it does so before us, our precondition fails, and we check again.
            if not bucket.holds(month.key, month.generation):
                return
            with suppress(Overtaken):
                if source:
                    ours = {name: text for name, text in source.metadata.items() if name in RAW_FACTS}
                    kind = _PARQUET if key.endswith(".parquet") else "application/octet-stream"
                    bucket.copy(staged, source.generation, key, kept.generation, ours, kind)
                elif kept and not staged:  # if `staged` is named but gone, an earlier attempt has published it
                    bucket.delete(key, kept.generation)
                return

    def remember(self, manifest: Manifest) -> None:
        """Write the month's manifest: the last step of publishing.

        Write nothing if the lake has another generation of the month now: the run that published it writes its manifest.
        """
        key = manifest.trip_month.manifest_key
        while True:
            current = self.bucket.stat(key)
            if not self.bucket.holds(manifest.trip_month.key, manifest.generation):
                return
            with suppress(Overtaken):  # another run wrote first: check again
                self.bucket.write_text(key, manifest.model_dump_json(indent=1), current.generation)
                return

    # Read trips, for other stores and for queries.

    def trips(self, key: str, generation: int) -> Iterator[pa.Table]:
        """Yield the trips of a canonical object, one row group at a time, from a temporary copy on disk."""
        with scratch.temporary_file(self.bucket.stat(key).size, self.bucket.uri(key)) as file:
            self.bucket.download(key, file)
            self.bucket.require(key, generation)
            file.seek(0)
            parquet = pq.ParquetFile(file, pre_buffer=False)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)

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


def _manifest_of(present: Object, written: Manifest | None) -> Manifest | None:
    """Return the written manifest if it names this generation, else the copy in the object's metadata."""
    if written and written.generation == present.generation:
        return written
    carried = Manifest.unpacked(present.metadata.get(_MANIFEST, ""))
    return carried and carried.model_copy(update={"generation": present.generation})


def parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of canonical Parquet that BigQuery, DuckDB and pandas all read correctly."""
    # Row numbers are consecutive: delta encoding stores them in a few bytes. A dictionary would need eight bytes per row.
    dictionary = [name for name in schema.names if name != "row_number"]
    return pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=dictionary,
        column_encoding={"row_number": "DELTA_BINARY_PACKED"},
        compression="snappy",
    )
