"""The taxi zones that a trip's location ids refer to: one small file of TLC's, one small table in every store.

https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page (Taxi Zone Lookup Table). Ids 56/57 and 103–105 share a name.
264 and 265 are unknown places; their `N/A` is a text, not a missing value.
"""

import csv
import hashlib
import re
from collections.abc import Mapping
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from flows.tlc.addresses import escaped, shown, stored
from flows.tlc.errors import SchemaMismatch, UnreadableFile
from flows.tlc.manifest import Changes, package_version
from flows.tlc.reading import recognise
from flows.tlc.schema import KINDS, Column
from flows.tlc.trips import Store

OFFICIAL = "https://d37ci6vzurychx.cloudfront.net/misc/taxi_zone_lookup.csv"
TABLE = "zones"
RAW_KEY = "zones/taxi_zone_lookup.csv"
KEY = "zones/zones.parquet"
LARGEST = 1 << 20  # bytes; TLC's has 12,000

# TLC's own names; the first is the key.
COLUMNS = (
    Column("LocationID", "integer", "the number that trips have as PULocationID and DOLocationID"),
    Column("Borough", "text", "borough; EWR for Newark Airport, N/A outside of the city, Unknown"),
    Column("Zone", "text", "name of the zone; some zones share one"),
    Column("service_zone", "text", "Yellow Zone, Boro Zone, Airports, EWR, or N/A"),
)
SCHEMA = pa.schema([(column.name, KINDS[column.kind].arrow) for column in COLUMNS])


class ZoneFile(BaseModel):
    """The file of zones as published, with all its bytes: about 12,000."""

    model_config = ConfigDict(frozen=True)

    url: str
    etag: str | None
    last_modified: str | None
    content: bytes

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the bytes as published."""
        return hashlib.sha256(self.content).hexdigest()

    def facts(self, run_id: str, changes: Changes) -> dict[str, str]:
        """Return the facts that a store keeps with the table."""
        return {
            "url": stored(self.url),
            "etag": self.etag or "",
            "last_modified": self.last_modified or "",
            "sha256": self.sha256,
            "size": str(len(self.content)),
            **{name: str(count) for name, count in changes},
            "package_version": package_version(),
            "flow_run_id": run_id,
        }


def are_facts(stored: object) -> bool:
    """Return whether these are facts that this project stores with the zones. Every version stores the two names."""
    return isinstance(stored, Mapping) and {"sha256", "package_version"} <= stored.keys()


class ZonesOutcome(BaseModel):
    """The result of a run for the zones of one store."""

    model_config = ConfigDict(frozen=True)

    store: Store
    status: Literal["loaded", "replaced", "unchanged"]
    rows: int
    inserted: int
    updated: int
    removed: int

    @classmethod
    def of(cls, store: Store, rows: int, changes: Changes) -> "ZonesOutcome":
        """Return the outcome of `changes`, with `rows` zones in the store."""
        status: Literal["loaded", "replaced", "unchanged"] = "unchanged" if changes == Changes() else "replaced"
        return cls(store=store, status="loaded" if changes.inserted == rows else status, rows=rows, **dict(changes))

    def __str__(self) -> str:
        counts = f"{self.inserted} inserted, {self.updated} updated, {self.removed} removed"
        return f"zones: {self.status}; {self.rows} in the {self.store}, {counts}"


def read_zones(file: ZoneFile) -> pa.Table:
    """Return the file's zones as a table with `SCHEMA`, in the file's order.

    Raises:
        UnreadableFile: The file is not a complete, valid CSV of zones.
        SchemaMismatch: Its columns are not `COLUMNS`.
    """
    recognise(TABLE, ".csv", file.content, shown(file.url))
    try:
        text = file.content.decode("utf-8-sig")
        lines = csv.reader(text.splitlines(), strict=True)
        header = next((line for line in lines if line), [])
        rows = [(lines.line_num, line) for line in lines if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused(file, f"it is not CSV text ({error})") from error
    where = _positions(file, header)
    if not rows:
        raise _refused(file, "it has no zones")
    zones: dict[int, tuple[int | str | None, ...]] = {}
    for number, row in rows:
        if len(row) != len(header):
            raise _refused(file, f"line {number} has {len(row)} fields, the header {len(header)}")
        location_id, *texts = (row[position] for position in where)
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", location_id):
            raise _refused(file, f"line {number}: LocationID {location_id[:40]!r} is not a whole number")
        if (key := int(location_id)) in zones:
            raise _refused(file, f"line {number}: LocationID {key} is repeated; it is the key of the table")
        zones[key] = (key, *(value or None for value in texts))
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, zone, strict=True)) for zone in zones.values()], schema=SCHEMA)


def _refused(file: ZoneFile, why: str) -> UnreadableFile:
    return UnreadableFile(f"{TABLE}: {shown(file.url)} cannot be loaded: {why}. Nothing was loaded; check the source.")


def _positions(file: ZoneFile, header: list[str]) -> list[int]:
    """Return the position of each of `COLUMNS` in the file. The case of names varies between editions."""
    found = [name.strip().casefold() for name in header]
    wanted = [column.name.casefold() for column in COLUMNS]
    if not set(found) & set(wanted):
        raise SchemaMismatch(
            f"{TABLE}: {shown(file.url)} is not TLC's file of zones: none of its columns is one of {', '.join(SCHEMA.names)}."
            " Nothing was loaded; check the source."
        )
    if sorted(found) != sorted(wanted):
        wrong = [f"{column.name}: missing" for column in COLUMNS if column.name.casefold() not in found]
        unknown = [name for name, folded in zip(header, found, strict=True) if folded not in wanted]
        wrong += [f"'{escaped(name, 40)}': unknown" for name in unknown[:20]]
        wrong += [f"{len(unknown) - 20} more: unknown"] if len(unknown) > 20 else []
        wrong += [f"{name}: twice" for name in wanted if found.count(name) > 1]
        raise SchemaMismatch(
            f"{TABLE}: {shown(file.url)} has other columns than {', '.join(SCHEMA.names)} ({'; '.join(wrong)})."
            " Nothing was loaded; check the source, or add the column to flows/tlc/zones.py."
        )
    return [found.index(name) for name in wanted]


def changed(old: pa.Table | None, new: pa.Table) -> Changes:
    """Return the rows that replacing `old` with `new` inserts, updates and removes."""
    before, after = ({row["LocationID"]: row for row in zones.to_pylist()} if zones else {} for zones in (old, new))
    return Changes(
        inserted=len(after.keys() - before.keys()),
        updated=sum(before[key] != after[key] for key in before.keys() & after.keys()),
        removed=len(before.keys() - after.keys()),
    )
