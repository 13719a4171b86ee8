"""Compute one comparable value of the stores' contents: every row by key, every manifest, object and table.

The value omits everything that differs between any two runs: run ids, times, generations and staging.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core.exceptions import NotFound
from google.cloud import bigquery, storage

from flows.tlc.trips import TEMPORARY_KEYS
from tests.stores import Stores, connected

# Facts about the run that published, not about the month.
_OF_THE_RUN = {"flow_run_id", "started_by", "started_at", "published_at", "generation", "replaces", "package_version"}
# A run that dies between a month's object and its manifest has already changed the rows, so the next run changes none. In
# Postgres both are one transaction, so the counts are compared there.
_CHANGES = {"inserted", "updated", "removed"}
_RAW_FACTS = ("url", "etag", "last_modified", "sha256", "verified")


def rows_digest(rows: pa.Table) -> str:
    """Return a digest of a table's names, types and values, in their order."""
    # Not the bytes of Arrow's own formats: they depend on how the rows were cut into chunks.
    text = f"{rows.schema.to_string(show_schema_metadata=False)}\n{rows.to_pydict()}"
    return f"{rows.num_rows} rows {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _facts(manifest: Mapping[str, Any], left_out: set[str]) -> dict[str, Any]:
    facts = {name: str(value) for name, value in sorted(manifest.items()) if name not in left_out}
    return facts | {"withdrawn_at": bool(manifest.get("withdrawn_at"))}  # whether, not when


def _publications(history: list[dict[str, Any]]) -> list[str]:
    """Return what was published and withdrawn, in order of the text."""
    named = ("color", "file_month", "sha256", "rule", "loaded", "pinned")
    return sorted(str([str(one[n]) for n in named] + [bool(one.get("withdrawn_at"))]) for one in history)


def _once(history: list[dict[str, Any]]) -> list[str]:
    """Return each publication once: a run that dies between a month and its manifest has a history entry, too."""
    return sorted(set(_publications(history)))


def lake(ours: Stores) -> dict[str, Any]:
    """Return what the lake has, except staging and cached results."""
    found, history = dict[str, Any](), list[dict[str, Any]]()
    for blob in storage.Client().list_blobs(ours.bucket, prefix="data/"):
        key = blob.name.removeprefix("data/")
        if key.startswith(TEMPORARY_KEYS):
            continue
        content = blob.download_as_bytes()
        if key.startswith("history/"):
            history.append(json.loads(content))
            continue
        if key.startswith("manifests/"):
            manifest = json.loads(content)
            month = storage.Client().bucket(ours.bucket).get_blob(f"data/{manifest['key']}")
            about = {"names its object": month is not None and month.generation == manifest["generation"]}
            found[key] = _facts(manifest, _OF_THE_RUN | _CHANGES) | about
        elif key.startswith("raw/"):
            facts = {name: (blob.metadata or {}).get(name) for name in _RAW_FACTS}
            found[key] = facts | {"bytes": hashlib.sha256(content).hexdigest()}
        elif key.endswith(".parquet"):
            found[key] = rows_digest(pq.read_table(io.BytesIO(content)))
        else:  # the zones as published
            found[key] = hashlib.sha256(content).hexdigest()
    return found | {"history": _once(history)}


def is_temporary(table: str) -> bool:
    """Return whether BigQuery deletes a table after a day. The stand-in does not keep that time, so the name decides."""
    return "_staging_" in table or "_verify_" in table


def warehouse(ours: Stores) -> dict[str, Any]:
    """Return what the warehouse has, except temporary tables."""
    client, found = bigquery.Client(), dict[str, Any]()
    try:
        tables = [client.get_table(item.reference) for item in client.list_tables(ours.dataset)]
    except NotFound:
        return found
    for table in tables:
        if is_temporary(table.table_id):
            continue
        rows = [dict(row) for row in client.list_rows(table)]
        if table.table_id == "loads_history":
            found[table.table_id] = _once(rows)
            continue
        if table.table_id == "loads":
            rows = [_facts(row, _OF_THE_RUN | _CHANGES) for row in rows]
        found[table.table_id] = _rows(rows)
    return found


def database(ours: Stores) -> dict[str, Any]:
    """Return what the database has, staging tables included: the next run of a month removes them."""
    found: dict[str, Any] = {}
    with connected(ours.postgres_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, relkind::text, (SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = c.oid),"
            " (SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = c.oid AND indisprimary)"
            " FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname"
        )
        for name, kind, parent, key in cursor.fetchall():
            cursor.execute(f'SELECT * FROM "{name}"')
            columns = [column.name for column in cursor.description]
            rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
            if name == "loads_history":
                found[name] = _publications(rows)
                continue
            if name == "loads":
                rows = [_facts(row, _OF_THE_RUN) for row in rows]
            found[name] = {"kind": kind, "parent": parent, "key": key, "rows": _rows(rows)}
    return found


def _rows(rows: list[dict[str, Any]]) -> Any:
    """Return rows in key order: a few rows unchanged, many rows as a digest."""
    texts = sorted(json.dumps(row, default=str, sort_keys=True) for row in rows)
    if len(texts) <= 20:
        return texts
    return f"{len(texts)} rows {hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}"


STORES = {"lake": lake, "warehouse": warehouse, "database": database}


def whole(ours: Stores) -> dict[str, Any]:
    """Return what all three stores have."""
    return {name: read(ours) for name, read in STORES.items()}


def different(expected: Any, found: Any, where: str = "") -> list[str]:
    """Return where two digests differ, one line for each place."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted(expected.keys() | found.keys())
        return [line for name in names for line in different(expected.get(name), found.get(name), f"{where}/{name}")]
    return [] if expected == found else [f"{where}: expected {expected}, found {found}"]


def staging(ours: Stores) -> list[str]:
    """Return what runs left in staging: objects, temporary tables of BigQuery, tables of Postgres."""
    left = [key for key in ours.objects() if key.startswith("staging/")]
    client = bigquery.Client()
    try:
        items = list(client.list_tables(ours.dataset))
    except NotFound:
        items = []
    left += [item.table_id for item in items if is_temporary(item.table_id)]
    tables = "SELECT relname FROM pg_class WHERE relname LIKE %s AND relkind = 'r'"
    left += [name for (name,) in ours.query(tables, "%\\_staging%")]
    return left


def locks(ours: Stores) -> list[tuple[Any, ...]]:
    """Return the advisory locks in the database."""
    return ours.query(
        "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
