"""Verify months of the lake: compare the object with its manifest, and its trips with the raw file."""

import datetime as dt
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.stores.lake import Lake
from flows.stores.verify.findings import Findings, vanished
from flows.tlc.compare import differences
from flows.tlc.errors import Gone, TripDataError, UnknownMonth, UnreadableFile
from flows.tlc.manifest import Manifest
from flows.tlc.schema import KEY, SCHEMA_VERSION, arrow_schema
from flows.tlc.stream import MonthStream
from flows.tlc.trips import COLORS, TripMonth
from flows.tlc.verify import Depth, RowFaults, Verified, counts_of, number_of

_NAMED = re.compile(rf"\w+/({'|'.join(COLORS)})_tripdata_(\d{{4}})-(\d\d)(\.parquet|\.json|/)")
_LOADING = dt.timedelta(days=1)  # a younger raw file may belong to a run that has not published its month yet


@dataclass(frozen=True)
class LakeCheck:
    """Verifies months of the lake. It compares the object with the manifest, and its trips with the raw file."""

    store: Lake

    def months(self, colors: Iterable[str]) -> set[TripMonth]:
        """Return every month with an object or a manifest, and those that should have one by their history or raw file."""
        found: set[TripMonth] = set()
        for color in dict.fromkeys(colors):
            there, noted = self._named(f"{color}/", f"manifests/{color}/"), self._named(f"history/{color}/")
            old = (dt.datetime.now(dt.UTC) - _LOADING).isoformat()
            raw = {month for month, editions in self.store.every_edition(color).items() if editions[0].fetched_at < old}
            found |= there | vanished(self.store, noted - there) | (raw - noted)
        return found

    def _named(self, *prefixes: str) -> set[TripMonth]:
        """Return the months that the objects below these prefixes are named after."""
        found = set()
        for match in map(_NAMED.search, (key for prefix in prefixes for key in self.store.bucket.listing(prefix))):
            with suppress(UnknownMonth):
                found |= {TripMonth(match[1], int(match[2]), int(match[3]))} if match else set()
        return found

    def strays(self, colors: Iterable[str]) -> list[Verified]:
        """Return none: each object belongs to the month of its name."""
        return []

    def verify(self, trip_month: TripMonth, depth: Depth, run: str) -> Findings:
        """Check the object, its manifest and its side objects. At greater depth, check the trips too."""
        store = self.store
        uri, present = store.bucket.uri(trip_month.key), store.bucket.stat(trip_month.key)
        written = store.written_of(trip_month)
        if written and written.withdrawn_at:
            foreign = uri if present and "staged" not in present.metadata else ""
            there = [f"{uri} exists, but the month was withdrawn"] if present else []
            return Findings(written, there, "withdrawn", foreign)
        if not present:
            return Findings(written, [f"{uri} is missing"])
        manifest = store.current(trip_month)
        found = Findings(manifest or written)
        if written is None:
            found.differences.append(f"{store.bucket.uri(trip_month.manifest_key)} is missing or cannot be read")
        elif written.generation != present.generation:
            found.differences.append(
                f"{uri} has generation {present.generation}, the manifest names {written.generation}: another program wrote it"
            )
        if manifest is None:
            found.remove = "" if written else uri
            return found
        found.differences += counts_of(manifest)
        try:
            found.differences += self._objects(manifest)
            if depth != "counts" and not found.differences:
                found.differences += self._rows(manifest)
        except (pa.ArrowException, OSError) as error:
            found.differences.append(f"{uri} cannot be read: {_first_line(error)}")
        if depth == "raw" and not found.differences:
            self._against_raw(manifest, found)
        return found

    def _objects(self, manifest: Manifest) -> Iterator[str]:
        store, month = self.store, manifest.trip_month
        footer = store.footer(manifest)
        yield from number_of(f"rows in {manifest.key}", footer.num_rows, manifest.loaded)
        if manifest.schema_version == SCHEMA_VERSION and footer.schema.to_arrow_schema() != arrow_schema(month.color):
            yield f"{manifest.key} does not have the canonical columns"
        quarantined = sum(manifest.quarantined.values())
        for key, named, rows in (
            (month.quarantine_key, manifest.quarantine_key, quarantined),
            (month.extra_key, manifest.extra_key, manifest.loaded),
        ):
            side = store.bucket.stat(key)
            if side and not named:
                yield f"{store.bucket.uri(key)} exists, but the manifest names no such object"
            elif named and not side:
                yield f"{store.bucket.uri(key)} is missing"
            elif side:
                with store.bucket.ranges(side) as file:
                    yield from number_of(f"rows in {key}", pq.read_metadata(file).num_rows, rows)
        try:
            store.raw_of(manifest)
        except Gone as error:
            yield f"the raw file is missing or replaced: {error}"

    def _rows(self, manifest: Manifest) -> list[str]:
        """Check the keys: each row's month, and row numbers that count upwards."""
        last = 0
        for trips in self.store.trips(manifest.key, manifest.generation):
            months, numbers = (trips.column(column.name).combine_chunks() for column in KEY)
            if not pc.all(pc.equal(months, pa.scalar(manifest.file_month)), min_count=0).as_py() or months.null_count:
                return [f"{manifest.key} has rows of another file_month"]
            upwards = pc.all(pc.greater(numbers[1:], numbers[:-1]), min_count=0).as_py() and not numbers.null_count
            if trips.num_rows and (not upwards or numbers[0].as_py() <= last):
                return [f"row_number of {manifest.key} does not count upwards after {last:,}"]
            last = numbers[-1].as_py() if trips.num_rows else last
        return []

    def _against_raw(self, manifest: Manifest, found: Findings) -> None:
        """Convert the raw file again, and compare every trip."""
        store = self.store
        raw = store.raw_of(manifest)
        try:
            for _ in store.content(raw).pieces():
                pass
        except UnreadableFile:
            found.remove = store.bucket.uri(raw.key)
            found.differences.append(f"{found.remove} does not have the SHA-256 of the published file")
            return
        stream = MonthStream(raw, store.content(raw), manifest.rule, manifest.schema_rule)
        faults = RowFaults("the raw file")
        try:
            trips = store.trips(manifest.key, manifest.generation)
            faults.add(differences(trips, (chunk.trips for chunk in stream)))
        except TripDataError as error:
            if isinstance(error, Gone):
                raise
            found.differences.append(f"the raw file cannot be converted: {error}")
            return
        found.differences += faults.in_words()
        quarantined = sum(manifest.quarantined.values())
        found.differences += number_of(
            "quarantined rows of the raw file", stream.tally.quarantined.total(), quarantined
        )

    def mark(self, manifest: Manifest, fault: str) -> None:
        """Write the fault into the manifest. Raise `Overtaken` if another run writes the manifest at the same time."""
        bucket, key = self.store.bucket, manifest.trip_month.manifest_key
        present = bucket.stat(key)
        if self.store.remembered(manifest.trip_month) == manifest:
            marked = manifest.model_copy(update={"fault": fault})
            bucket.write_text(key, marked.model_dump_json(indent=1), present.generation)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
