"""The lake: one canonical Parquet object per month, and its manifest, which is written last."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import ValidationError

from flows.connectors import scratch
from flows.connectors.bucket import Bucket, Object
from flows.connectors.known import last_known_rows
from flows.connectors.web import Add
from flows.stores.raw_zone import RAW_FACTS, RawZone
from flows.tlc.attention import warnings_of
from flows.tlc.catalog import Held
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
from flows.tlc.schema import KEY, arrow_schema
from flows.tlc.sources import PublishedFile
from flows.tlc.stream import MonthStream
from flows.tlc.trips import PASSING_KEYS, Store, Terms, TripMonth, staged_key

if TYPE_CHECKING:
    from prefect_gcp.cloud_storage import GcsBucket

_ROW_GROUP = 128 << 10  # rows
_AT_ONCE = 8  # manifests read at the same time; the client keeps ten connections
_MANIFEST = "manifest"
_ROOM = 3 << 10  # letters of it; Google gives an object's metadata 8 KiB, others of its kind less
_PARQUET = "application/vnd.apache.parquet"
_OTHERS_TIME = 30.0  # seconds that another run gets between its object and its manifest


class Lake:
    """Months of trips in a bucket."""

    name: Store = "lake"

    def __init__(self, block: "GcsBucket") -> None:
        self.block = block
        self.bucket = Bucket(block)
        self.raw_zone = RawZone(self.bucket)

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the bucket exists and may be read."""
        self.bucket.check()

    def claim(self, trip_month: TripMonth, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Do nothing: of two runs at once the later one finds the earlier one's generation."""
        return nullcontext()

    # What the lake has.

    def present(self, trip_month: TripMonth) -> Present:
        """Return what the lake has of a month.

        Raises:
            MisconfiguredBlock: There is an object of the month's name that this project did not write. This project's mark
                is the metadata `staged`, or, where another tool replaced the metadata, a manifest of that generation.
        """
        found = self.bucket.stat(trip_month.key)
        written = self.remembered(trip_month)
        if found is None:
            return Present()
        finished = written is not None and written.generation == found.generation
        if "staged" not in found.metadata and not finished:
            raise MisconfiguredBlock(
                f"{self.bucket.uri(trip_month.key)} is there already and was not written by this project; move it away, or give"
                " the GcsBucket block another folder. Nothing was loaded."
            )
        return Present(manifest=_manifest_of(found, written), generation=found.generation, finished=finished)

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the month's written manifest; None if there is none or it cannot be understood."""
        return self._read_manifest(trip_month.manifest_key)

    def _read_manifest(self, key: str) -> Manifest | None:
        with suppress(ValidationError, UnicodeDecodeError):
            text = self.bucket.read_text(key)
            return Manifest.model_validate_json(text) if text is not None else None
        return None

    def current(self, trip_month: TripMonth) -> Manifest | None:
        """Return the manifest of the month's object, also while, or because, its run has not written it; None if unknown."""
        present = self.bucket.stat(trip_month.key)
        return _manifest_of(present, self.remembered(trip_month)) if present else None

    def required(self, trip_month: TripMonth) -> Manifest:
        """Return the manifest of the month's object.

        Raises:
            Gone: The lake does not have the month, or does not know what it has.
        """
        manifest = self.current(trip_month)
        if manifest is not None:
            return manifest
        uri = self.bucket.uri(trip_month.key)
        if self.bucket.stat(trip_month.key) is None:
            raise Gone(f"{trip_month} is not in the lake ({uri}); run etl-web-gcs for it first.")
        raise Gone(f"{uri} has no readable manifest; run etl-web-gcs for {trip_month} again.")

    def months(self, colors: Iterable[str]) -> dict[TripMonth, Held]:
        """Return every month of the colors: by two listings per color, and the manifests, some at once."""
        return {
            manifest.trip_month: Held(manifest, present.size, finished)
            for color in dict.fromkeys(colors)
            for manifest, present, finished in self._published(color)
        }

    def _published(self, color: str) -> list[tuple[Manifest, Object, bool]]:
        """Return a color's months, oldest first: manifest, object, and whether its run wrote the manifest."""
        objects = self.bucket.listing(f"{color}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            manifests = pool.map(self._read_manifest, self.bucket.listing(f"manifests/{color}/"))
            written = {manifest.key: manifest for manifest in manifests if manifest}
        found = [(_manifest_of(present, written.get(key)), present) for key, present in objects.items()]
        return [(manifest, present, manifest == written.get(present.key)) for manifest, present in found if manifest]

    def page(self, manifest: Manifest) -> str:
        """Return where a person sees the month's object, in Google's console."""
        return self.bucket.page(manifest.key)

    # The published file.

    def extract(self, published: PublishedFile, add: Add) -> RawFile:
        """Stream the published file into the raw zone."""
        return self.raw_zone.extract(published, add)

    def has(self, raw: RawFile) -> bool:
        """Return whether the raw zone still has the file."""
        return self.raw_zone.has(raw)

    def forget_result(self, key: str) -> None:
        """Delete a task's result that the lake keeps for Prefect's cache."""
        self.bucket.delete([key])

    def raw_of(self, manifest: Manifest) -> RawFile:
        """Return the published file that a month was made of; raise `Gone` if the raw zone has it no more."""
        return self.raw_zone.raw_of(manifest)

    # A month on its way.

    def stage(self, raw: RawFile, terms: Terms, run: str, add: Add) -> StagedMonth:
        """Write a raw file's trips to a staged object, the rows that do not fit to another, new columns to a third.

        One row group is in memory at a time, whatever the month's size. Nothing is staged of a file that is refused.
        """
        self._sweep()
        stream = MonthStream(raw, self.raw_zone.content(raw), terms.rows, terms.schema, add)
        try:
            return self._write(stream, run)
        except (UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth):
            published = self.current(raw.trip_month)
            if not published or published.sha256 != raw.sha256:
                self.raw_zone.forget(raw, raw.trip_month, run)
            raise

    def _write(self, stream: MonthStream, run: str) -> StagedMonth:
        trip_month, schema = stream.trip_month, arrow_schema(stream.trip_month.color)
        key = staged_key(trip_month.key, run)
        beside = {"quarantine_key": "", "extra_key": ""}
        with ExitStack() as files:

            def file(key: str) -> pa.PythonFile:
                return pa.PythonFile(files.enter_context(self.bucket.writer(key)), mode="w")

            writers: dict[str, pq.ParquetWriter] = {}

            def write_beside(what: str, key: str, table: pa.Table) -> None:
                if what not in writers:
                    beside[what] = staged_key(key, run)
                    writers[what] = files.enter_context(pq.ParquetWriter(file(beside[what]), table.schema))
                writers[what].write_table(table)

            parquet = files.enter_context(parquet_writer(file(key), schema))
            held: list[pa.Table] = []
            for chunk in stream:
                if chunk.rejects.num_rows:
                    write_beside("quarantine_key", trip_month.quarantine_key, chunk.rejects)
                if chunk.extra is not None:
                    write_beside("extra_key", trip_month.extra_key, chunk.extra)
                held.append(chunk.trips)
                if sum(table.num_rows for table in held) >= _ROW_GROUP:
                    parquet.write_table(pa.concat_tables(held), _ROW_GROUP)
                    held = []
            parquet.write_table(pa.concat_tables([schema.empty_table(), *held]), _ROW_GROUP)
        return stream.staged(key=key, generation=self.bucket.written(key).generation, **beside)

    def _sweep(self) -> None:
        """Delete what runs of any month left more than a day ago: staged objects of dead ones, and cached results."""
        self.bucket.delete_older(PASSING_KEYS, dt.datetime.now(dt.UTC) - dt.timedelta(days=1))

    def publish(self, staged: StagedMonth, present: Present, run_id: str) -> Outcome:
        """Publish a staged month, unless another run published it first: then that run's month stands.

        `present` is what the lake had of the month when this run began.
        """
        trip_month, replaces = staged.trip_month, present.generation
        raw_key = trip_month.raw_key(staged.raw.published.ending)
        staged_raw = staged.raw.key if staged.raw.key != raw_key else ""
        staged_keys = [key for key in (staged.key, staged.quarantine_key, staged.extra_key, staged_raw) if key]
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
            # The manifest is on the object itself as well: whoever reads finds both, or neither, whenever this run may die.
            noted = {"staged": staged.key, "replaces": replaces, **dict(changes)}
            packed = manifest.packed()
            carried = {_MANIFEST: packed} if len(packed) <= _ROOM else {}
            try:
                published = self.bucket.copy(
                    staged.key,
                    staged.generation,
                    trip_month.key,
                    replaces,
                    {name: str(fact) for name, fact in noted.items()} | carried,
                    _PARQUET,
                )
                break
            except Overtaken:
                there = self.bucket.stat(trip_month.key)
                if there and there.metadata.get("staged") == staged.key:  # by an attempt before this one
                    published, replaces = there, int(there.metadata["replaces"])
                    did = {name: int(there.metadata[name]) for name in Changes.model_fields}
                    manifest = manifest.model_copy(update={**did, "replaces": replaces})
                    if before and before.generation == there.generation:  # that attempt wrote its manifest, too
                        manifest = manifest.model_copy(update={"known_rows": before.known_rows})
                        rows_before = before.loaded - before.inserted + before.removed
                        before = before.model_copy(update={"loaded": rows_before})
                    break
                other = self._manifest_of_the_other(trip_month, there)
                if other and other.holds(staged.raw, staged.rule):
                    self.bucket.delete(staged_keys)
                    return Outcome(store="lake", status="unchanged", manifest=other)
                replaces = there.generation if there else 0  # its run died there, or loaded something else
        manifest = manifest.model_copy(update={"generation": published.generation})
        self._publish_beside(staged.quarantine_key, trip_month.quarantine_key, published)
        self._publish_beside(staged.extra_key, trip_month.extra_key, published)
        if staged_raw:
            self._publish_beside(staged_raw, raw_key, published)
        self.remember(manifest)
        self.bucket.delete(staged_keys)
        warnings = warnings_of(manifest, before if replaces else None)
        return Outcome(store="lake", status="replaced" if replaces else "loaded", manifest=manifest, warnings=warnings)

    def _changes(self, staged: StagedMonth, replaces: int) -> Changes:
        """Return what publishing will change for a reader of generation `replaces`."""
        key = staged.trip_month.key
        if replaces and self.bucket.holds(key, replaces):
            with suppress(Gone):  # another run was first, as publishing will find
                return compare(self.trips(key, replaces), self.trips(staged.key, staged.generation))
        return Changes(inserted=staged.loaded)

    def _manifest_of_the_other(self, trip_month: TripMonth, there: Object | None) -> Manifest | None:
        """Wait for the manifest of the run that overtook this one; None if that run died before it wrote one."""
        until = time.monotonic() + _OTHERS_TIME
        while there is not None and time.monotonic() < until:
            manifest = self.remembered(trip_month)
            if (
                manifest
                and manifest.generation == there.generation
                and self.bucket.holds(trip_month.key, there.generation)
            ):
                return manifest
            time.sleep(1)
        return None

    def _publish_beside(self, staged: str, key: str, of: Object) -> None:
        """Publish what is staged under `key`, beside the month's object `of`; delete what `key` has if `staged` is "".

        Leave `key` alone if another run published its month over `of`: then `key` is that run's.
        """
        bucket = self.bucket
        while True:
            source = bucket.stat(staged) if staged else None
            kept = bucket.stat(key)
            # In this order: a run that publishes its month after this look comes to `key` after it too, and fails us there.
            if not bucket.holds(of.key, of.generation):
                return
            with suppress(Overtaken):
                if source:
                    ours = {name: text for name, text in source.metadata.items() if name in RAW_FACTS}
                    kind = _PARQUET if key.endswith(".parquet") else "application/octet-stream"
                    bucket.copy(staged, source.generation, key, kept.generation if kept else 0, ours, kind)
                elif kept and not staged:  # with something to be staged, an attempt before this one has published it
                    bucket.delete_generation(key, kept.generation)
                return

    def remember(self, manifest: Manifest) -> None:
        """Write the month's manifest: the last act of publishing it.

        Write nothing if the lake has another generation of the month by now: its run writes its own.
        """
        key = manifest.trip_month.manifest_key
        while True:
            known = self.bucket.stat(key)
            if not self.bucket.holds(manifest.trip_month.key, manifest.generation):
                return
            with suppress(Overtaken):  # another run wrote first: look again
                self.bucket.write_text(key, manifest.model_dump_json(indent=1), known.generation if known else 0)
                return

    # The trips, for other stores and for questions.

    def trips(self, key: str, generation: int) -> Iterator[pa.Table]:
        """Yield the trips of a canonical object, a row group at a time, by way of a temporary file."""
        present = self.bucket.stat(key)
        with scratch.temporary_file(present.size if present else 0, self.bucket.uri(key)) as file:
            self.bucket.download(key, file)
            self.bucket.require(key, generation)
            file.seek(0)
            parquet = pq.ParquetFile(file, pre_buffer=False)
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group)

    def footer(self, manifest: Manifest) -> pq.FileMetaData:
        """Return the Parquet footer of a published month."""
        with self.bucket.opened(manifest.trip_month.key, manifest.generation) as file:
            return pq.read_metadata(file)

    def require_reconciled(self, manifest: Manifest) -> None:
        """Raise unless a published month has as many rows, by its Parquet footer, as its manifest says."""
        if (rows := self.footer(manifest).num_rows) != manifest.loaded:
            uri = self.bucket.uri(manifest.key)
            raise NotReconciled(
                f"{manifest.trip_month}: {manifest.loaded} rows were loaded into the lake, {uri} has {rows}."
                " Nothing was published; delete the object, and run etl-web-gcs for the month again."
            )

    def dataset(self, color: str, on_read: Callable[[int], None]) -> ds.Dataset:
        """Return a color's published trips as an Arrow dataset; `on_read` gets the number of bytes of each read.

        Months and row groups that a filter rules out, and columns that nobody names, are not fetched. A column of a row
        group is one request. Arrow's `pre_buffer` would join neighbouring columns into fewer requests, and keep all bytes of
        a month until it has been read.
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
        """Return a small Parquet object, whole."""
        with self.bucket.ranges(present) as file:
            return pq.read_table(file, pre_buffer=False)


def _manifest_of(present: Object, written: Manifest | None) -> Manifest | None:
    """Return the written manifest if it is of this generation, or else the one in the object's metadata."""
    if written and written.generation == present.generation:
        return written
    carried = Manifest.unpacked(present.metadata.get(_MANIFEST, ""))
    return carried and carried.model_copy(update={"generation": present.generation})


def parquet_writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of canonical Parquet that BigQuery, DuckDB and pandas all read correctly."""
    # The key is a run of numbers: deltas store it in a few bytes where a dictionary would need all eight for each row.
    dictionary = [name for name in schema.names if name != "row_number"]
    return pq.ParquetWriter(
        sink,
        schema,
        use_dictionary=dictionary,
        column_encoding={"row_number": "DELTA_BINARY_PACKED"},
        compression="snappy",
    )
