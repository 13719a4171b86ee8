"""The taxi zones as a small table in each store."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.stores.warehouse import Warehouse
from flows.tlc.errors import MisconfiguredBlock
from flows.tlc.manifest import Changes
from flows.tlc.trips import Store
from flows.tlc.zones import COLUMNS, KEY, RAW_KEY, TABLE, ZoneFile, ZonesOutcome, are_facts, changed, read_zones


def _is_own(text: str | None) -> bool:
    """Return whether a table's description or comment is one that this project wrote."""
    try:
        return are_facts(json.loads(text or "null"))
    except ValueError:
        return False


def _to_lake(store: Lake, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Write the raw file if its bytes are new, then the table if its rows are new.

    Raises:
        MisconfiguredBlock: One of the objects has no facts of this project.
        Overtaken: Another run wrote at the same time. The next attempt finds the zones unchanged, or newer.
    """
    bucket, zones = store.bucket, read_zones(file)
    raw, present = bucket.stat(RAW_KEY), bucket.stat(KEY)
    for there in (raw, present):
        if there and not are_facts(there.metadata):
            raise MisconfiguredBlock(
                f"{bucket.uri(there.key)} is not an object that this project wrote: its metadata lacks sha256 or package_version."
                " If it comes from a backup, copy it again with its metadata; otherwise move it away. Nothing was written."
            )
    changes = changed(store.table(present) if present else None, zones)
    facts = file.facts(run_id, changes)
    if raw.metadata.get("sha256") != file.sha256:
        with bucket.writer(RAW_KEY, facts, replaces=raw.generation) as out:
            out.write(file.content)
    outcome = ZonesOutcome.of("lake", zones.num_rows, changes)
    if outcome.status != "unchanged":
        with bucket.writer(KEY, facts, replaces=present.generation) as out:
            pq.write_table(zones, pa.PythonFile(out, mode="w"))
    return outcome


def _to_warehouse(store: Warehouse, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Replace the table if its rows are new. A new dataset is created in the location of the lake's bucket."""
    bigquery, zones = store.bigquery, read_zones(file)
    changes = changed(bigquery.read_table(TABLE, COLUMNS, _is_own), zones)
    outcome = ZonesOutcome.of("warehouse", zones.num_rows, changes)
    if outcome.status != "unchanged":
        bigquery.ensure_dataset(store.lake.bucket.location)
        bigquery.replace_table(TABLE, COLUMNS, zones, json.dumps(file.facts(run_id, changes)))
    return outcome


def _to_database(store: Database, file: ZoneFile, run_id: str) -> ZonesOutcome:
    """Write only the rows that differ, in one transaction."""
    rows = [tuple(zone.values()) for zone in read_zones(file).to_pylist()]

    def comment(inserted: int, updated: int, removed: int) -> str:
        return json.dumps(file.facts(run_id, Changes(inserted=inserted, updated=updated, removed=removed)))

    inserted, updated, removed = store.postgres.replace_table(TABLE, COLUMNS, rows, comment, _is_own)
    return ZonesOutcome.of("database", len(rows), Changes(inserted=inserted, updated=updated, removed=removed))


# One row per store. Each updates the store's table `zones`, stores the facts about the file with it, and writes only changes.
PUBLISH_ZONES: Mapping[Store, Callable[[Any, ZoneFile, str], ZonesOutcome]] = {
    "lake": _to_lake,
    "warehouse": _to_warehouse,
    "database": _to_database,
}
