"""The manifests of the lake's months: the present ones, the earlier ones, and the withdrawn ones."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from flows.connectors.bucket import Object
from flows.stores.raw_zone import RawZone
from flows.tlc.catalog import Also, ListedMonth
from flows.tlc.errors import Gone, MisconfiguredBlock, Overtaken
from flows.tlc.manifest import Manifest, Present, timeline
from flows.tlc.trips import TripMonth

MANIFEST = "manifest"
"""The metadata key under which a month's object has a copy of its manifest."""
_AT_ONCE = 8  # manifests read at the same time; the client keeps ten connections


class LakeManifests(RawZone):
    """One manifest per month, written last, and a history with one object per publication and per withdrawal."""

    def present(self, trip_month: TripMonth) -> Present:
        """Return the state of a month in the lake.

        An object counts as written by this project if it has the metadata `staged`. If another tool replaced the metadata,
        it counts if a manifest names its generation. It also counts if the month's manifest has a fault from a verification:
        then another program overwrote an object of this project.

        Raises:
            MisconfiguredBlock: The month's key has an object that this project did not write.
        """
        found = self.bucket.stat(trip_month.key)
        written = self.written_of(trip_month)
        if not found:
            return Present()
        finished = written is not None and written.generation == found.generation
        if "staged" not in found.metadata and not finished and not (written and written.fault):
            raise MisconfiguredBlock(
                f"{self.bucket.uri(trip_month.key)} exists already, but this project did not write it; move it away, or give"
                " the GcsBucket block another folder. Nothing was loaded."
            )
        return Present(manifest=manifest_of(found, written), generation=found.generation, finished=finished)

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the month's written manifest; None if it is missing or invalid, or if the month was withdrawn."""
        written = self.written_of(trip_month)
        return None if written and written.withdrawn_at else written

    def written_of(self, trip_month: TripMonth) -> Manifest | None:
        """Return the month's written manifest, even if the month was withdrawn."""
        return self._read_manifest(trip_month.manifest_key)

    def _read_manifest(self, key: str) -> Manifest | None:
        with suppress(ValueError):  # not text, not a manifest, or too large
            text = self.bucket.read_text(key)
            return Manifest.model_validate_json(text) if text is not None else None
        return None

    def current(self, trip_month: TripMonth) -> Manifest | None:
        """Return the manifest of the month's object, or None.

        If the run that published the object has not written the manifest, return the copy in the object's metadata.
        """
        present = self.bucket.stat(trip_month.key)
        return manifest_of(present, self.written_of(trip_month)) if present else None

    def required(self, trip_month: TripMonth) -> Manifest:
        """Return the manifest of the month's object. Raise `Gone` if the lake has no month, or no readable manifest of it."""
        manifest = self.current(trip_month)
        if manifest is not None:
            return manifest
        uri, written = self.bucket.uri(trip_month.key), self.written_of(trip_month)
        if written and written.withdrawn_at:
            raise Gone(
                f"{trip_month} was withdrawn from the lake on {written.withdrawn_at:%Y-%m-%d}; to restore it, run etl-web-gcs."
            )
        if not self.bucket.stat(trip_month.key):
            raise Gone(f"{trip_month} is not in the lake ({uri}); run etl-web-gcs for it first.")
        raise Gone(f"{uri} has no readable manifest; run etl-web-gcs for {trip_month} again.")

    def months(self, colors: Iterable[str], also: Also = "") -> dict[TripMonth, ListedMonth]:
        """Return every month of the colors. Send two listings per color, and read several manifests at a time."""
        return {
            manifest.trip_month: ListedMonth(manifest, present.size, finished)
            for color in dict.fromkeys(colors)
            for manifest, present, finished in (self._listed(color) if also else self._published(color))
        }

    def _published(self, color: str) -> list[tuple[Manifest, Object, bool]]:
        """Return a color's months, oldest first: the manifest, the object, and whether its run wrote the manifest."""
        return [(manifest, present, finished) for manifest, present, finished in self._listed(color) if present]

    def _listed(self, color: str) -> list[tuple[Manifest, Object, bool]]:
        """Return what `_published` returns, and the withdrawn months. A withdrawn month has an `Object` that is False."""
        objects = self.bucket.listing(f"{color}/")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            manifests = pool.map(self._read_manifest, self.bucket.listing(f"manifests/{color}/"))
            written = {manifest.key: manifest for manifest in manifests if manifest}
        found = [(manifest_of(present, written.get(key)), present) for key, present in objects.items()]
        there = [(manifest, present, manifest == written.get(present.key)) for manifest, present in found if manifest]
        keys = {present.key for _, present, _ in there}
        gone = [(m, Object(key), True) for key, m in written.items() if m.withdrawn_at and key not in keys]
        return sorted([*there, *gone], key=lambda listed: listed[1].key)

    def history(self, trip_month: TripMonth) -> list[Manifest]:
        """Return the manifest of each publication and withdrawal of a month, oldest first."""
        noted = map(self._read_manifest, self.bucket.listing(trip_month.history_key("")))
        last = self.current(trip_month) or self.written_of(trip_month)
        return timeline(*filter(None, [*noted, last]))

    def page(self, manifest: Manifest) -> str:
        """Return the URL of the month's object in Google's console."""
        return self.bucket.page(manifest.key)

    def append_history(self, manifest: Manifest) -> Manifest:
        """Add a manifest to its month's history, and return the entry.

        If an earlier attempt wrote the entry of this publication or withdrawal, write nothing and return that entry.
        """
        entry = f"{manifest.generation}-withdrawn" if manifest.withdrawn_at else f"{manifest.generation}"
        key = manifest.trip_month.history_key(entry)
        try:
            self.bucket.write_text(key, manifest.model_dump_json(indent=1), replaces=0)
        except Overtaken:
            return self._read_manifest(key) or manifest
        return manifest

    def remember(self, manifest: Manifest) -> None:
        """Write the month's manifest: the last step of publishing.

        Write nothing if the month has another generation now: the run that published that generation writes its manifest.
        """
        self._write_manifest(manifest, manifest.generation)

    def _write_manifest(self, manifest: Manifest, generation: int) -> None:
        """Write the month's manifest if its object has this generation (0: no object exists). Otherwise write nothing."""
        key = manifest.trip_month.manifest_key
        while True:
            current = self.bucket.stat(key)
            if not self.bucket.has_generation(manifest.trip_month.key, generation):
                return
            with suppress(Overtaken):  # another run wrote first: check again
                self.bucket.write_text(key, manifest.model_dump_json(indent=1), current.generation)
                return


def manifest_of(present: Object, written: Manifest | None) -> Manifest | None:
    """Return the written manifest if it belongs to this object, else the copy in the object's metadata.

    It belongs to the object if it names the object's generation. A moved or restored object has another generation. Then the
    manifest belongs to it if the copy is of the same load. The copy lacks later changes, such as a pin. Return None if the month
    is being withdrawn.
    """
    if written and written.generation == present.generation:
        return None if written.withdrawn_at else written
    carried = Manifest.unpacked(present.metadata.get(MANIFEST, ""))
    if carried and written and (written.started_at, written.sha256) == (carried.started_at, carried.sha256):
        carried = written
    return carried and carried.model_copy(update={"generation": present.generation})
