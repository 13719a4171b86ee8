"""Compare published files with the three stores without the project's readers: rows, sums, digests, manifests and `loads`.

The expected trips come from the files themselves, through `csv` or pyarrow and the generator's table of column names. The stores
are read with plain clients. Of the product, only the names and types of the stored columns are used: its contract with readers.
"""

import csv
import gzip
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
import numpy as np
import pandas as pd
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from psycopg2.extras import RealDictCursor

from blocks import DATASET, LAKE_FOLDER
from flows.tlc.schema import Column, arrow_schema, columns
from flows.tlc.trips import TripMonth
from local.trip_files.layouts import field_of
from local.trip_files.made_up_trips import TEXT_CODES, in_force

Facts: TypeAlias = Mapping[str, Any]
"""Values that two copies of a month must have in common, by name."""
Read: TypeAlias = Callable[[str], list[dict[str, Any]]]
"""A database: a statement's rows."""

# TLC's codes for the words that yellow files have until 2014. A vendor without a code keeps its word in `vendor_text`.
# https://www.nyc.gov/assets/tlc/downloads/pdf/data_dictionary_trip_records_yellow.pdf
_VENDORS = {"CMT": 1, "VTS": 2}
_PAYMENTS = {"CRE": 1, "CRD": 1, "CAS": 2, "CSH": 2, "NO": 3, "NOC": 3, "DIS": 4}  # by a word's first letters
# The facts of each kind of column, besides the number of its values, as SQL that BigQuery and Postgres both accept.
_SQL = {
    "integer": ("SUM({})",),
    "number": ("SUM({})",),
    "datetime": ("MIN({})", "MAX({})"),
    "text": ("SUM(LENGTH({}))",),
}
# A whole number from each value: of a time, its day and second; of a text, its length, first and last character. The sum of these
# numbers, weighted with the rows' numbers, shows values that rows have exchanged. Numbers beyond the limits are left out, since
# the sums must fit into 64 bits; the other facts show them.
_LIMIT, _WEIGHTS = 10**12, 99_991
_WHOLE = {
    "integer": f"CASE WHEN {{0}} BETWEEN -{_LIMIT} AND {_LIMIT} THEN {{0}} END",
    "number": f"CASE WHEN {{0}} BETWEEN -{_LIMIT} AND {_LIMIT} THEN CAST(FLOOR({{0}} * 1000) AS BIGINT) END",
    "datetime": "EXTRACT(DAY FROM {0}) * 86400 + EXTRACT(HOUR FROM {0}) * 3600 + EXTRACT(MINUTE FROM {0}) * 60"
    " + CAST(FLOOR(EXTRACT(SECOND FROM {0})) AS BIGINT)",
    "text": "LENGTH({0}) * 10000 + ASCII({0}) * 100 + ASCII(RIGHT({0}, 1))",
}
_LOAD_FACTS = ("source_rows", "loaded", "filtered", "quarantined", "rule", "size", "sha256")


@dataclass(frozen=True)
class PublishedMonth:
    """A month's file, and the numbers of its rows that no reader can convert."""

    trip_month: TripMonth
    path: Path
    bad_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What the stores must have of a month, for each rule of rows."""

    trip_month: TripMonth
    load: Mapping[str, Facts]
    """The facts of a manifest or a row of `loads`."""
    trips: Mapping[str, Facts]
    """The facts of the trips."""


def reconcile(months: Iterable[PublishedMonth], env: Mapping[str, str], processes: Executor) -> list[str]:
    """Return every difference between the files and the stores, as `month: store: what`.

    Args:
        months: All months that the stores must have.
        env: The addresses of the services, as in `Stack.env`.
        processes: Compares the files with the lake.
    """
    files = list(months)
    lake = f"{env['STORAGE_EMULATOR_HOST']}/download/storage/v1/b/{env['LAKE_BUCKET']}/o/"
    expected, findings = list[Expected](), list[str]()
    for month, differences in processes.map(compare_with_lake, files, [lake] * len(files)):
        expected.append(month)
        findings += differences
    findings += compare_with_database("warehouse", "all", expected, _warehouse(env))
    findings += compare_with_database("database", "with_passengers", expected, _database(env))
    findings += compare_quarantine("database", files, _database(env))
    return findings


def trips_of(month: PublishedMonth) -> pa.Table:
    """Return the trips of a published file in the canonical schema, without its bad rows."""
    color, file_month = month.trip_month.color, month.trip_month.file_month
    table = pq.read_table(month.path) if month.path.suffix == ".parquet" else _read_csv(month)
    numbers = np.arange(1, table.num_rows + 1)
    good = ~np.isin(numbers, month.bad_rows)
    table = table.filter(pa.array(good))
    published: dict[str, Any] = {}
    for name in table.column_names:
        # The fhv CSVs of 2018 have a second, empty column of the same meaning.
        if field_of(name) not in published or table[name].null_count < len(table):
            published[field_of(name)] = table[name]
    found: dict[str, Any] = {
        "file_month": pa.repeat(pa.scalar(file_month), len(table)),
        "row_number": pa.array(numbers[good]),
    }
    if pa.types.is_string(published["pickup"].type):
        published["pickup"] = published["pickup"].cast(pa.timestamp("us"))
    if in_force(color, f"{file_month:%Y-%m}", TEXT_CODES) and pa.types.is_string(published["vendor"].type):
        vendors, payments = published.pop("vendor").to_pylist(), published.pop("payment").to_pylist()
        found["VendorID"] = pa.array([_VENDORS.get(word) for word in vendors], pa.int64())
        found["vendor_text"] = pa.array([None if word in _VENDORS else word for word in vendors], pa.string())
        codes = [_PAYMENTS[word[:3].strip().upper()] if word else None for word in payments]
        found["payment_type"] = pa.array(codes, pa.int64())
    for column in columns(color):
        if column.name not in ("file_month", "row_number", "vendor_text", "payment_text"):
            found.setdefault(column.name, published.get(field_of(column.name)))
    return pa.table(
        [pa.nulls(len(table), f.type) if found.get(f.name) is None else found[f.name].cast(f.type) for f in arrow_schema(color)],
        schema=arrow_schema(color),
    )  # fmt: skip


def _read_csv(month: PublishedMonth) -> pa.Table:
    """Return a CSV file as texts; an empty field is null. Values beyond the header are left out."""
    with gzip.open(month.path, "rt", encoding="utf-8", newline="") as file:
        header, *lines = [row for row in csv.reader(file) if row]
    values = zip(*(([*line, *header])[: len(header)] for line in lines), strict=True)
    return pa.table([pa.array([v or None for v in column], pa.string()) for column in values], header)


def expected_of(month: PublishedMonth, trips: pa.Table) -> Expected:
    """Return what the stores must have of a month whose file has these trips."""
    content = month.path.read_bytes()
    subsets = {"all": trips, "with_passengers": trips}
    if "passenger_count" in trips.column_names:
        zero = pc.fill_null(pc.equal(trips["passenger_count"], 0), False)
        subsets["with_passengers"] = trips.filter(pc.invert(zero))
    load = {
        rule: {
            "source_rows": len(trips) + len(month.bad_rows),
            "loaded": len(rows),
            "filtered": len(trips) - len(rows),
            "quarantined": len(month.bad_rows),
            "rule": rule,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        for rule, rows in subsets.items()
    }
    facts = {rule: facts_of(rows, month.trip_month.color) for rule, rows in subsets.items()}
    return Expected(month.trip_month, load, facts)


def compare_with_lake(month: PublishedMonth, lake: str) -> tuple[Expected, list[str]]:
    """Return what the stores must have of a month, and where the lake's trips, manifest and quarantine differ from it.

    Args:
        month: The published month.
        lake: The address of the bucket's objects, without a key.
    """
    at, trips = month.trip_month, trips_of(month)
    expected = expected_of(month, trips)

    def get(key: str) -> io.BytesIO | None:
        answer = httpx.get(lake + quote(f"{LAKE_FOLDER}/{key}", safe=""), params={"alt": "media"}, trust_env=False)
        return None if answer.status_code == httpx.codes.NOT_FOUND else io.BytesIO(answer.raise_for_status().content)

    manifest, stored, rejects = get(at.manifest_key), get(at.key), get(at.quarantine_key)
    found = None
    if stored:
        rows = pq.read_table(stored).replace_schema_metadata()
        found = {**facts_of(rows, at.color), "digest": digest(rows)}
    bad = sorted(pq.read_table(rejects)["row_number"].to_pylist()) if rejects else []
    differences = _differences(f"{at}: lake", {**expected.trips["all"], "digest": digest(trips)}, found)
    loaded = _load_facts(json.load(manifest) if manifest else None)
    differences += _differences(f"{at}: lake: manifest", expected.load["all"], loaded)
    differences += _differences(f"{at}: lake: quarantine", {"row numbers": list(month.bad_rows)}, {"row numbers": bad})
    return expected, differences


def facts_of(trips: pa.Table, color: str) -> Facts:
    """Return the facts of trips in a table: their number, and for each column what `_SQL` says."""
    facts: dict[str, Any] = {"rows": len(trips)}
    weights = pa.array(np.remainder(trips["row_number"].to_numpy(), _WEIGHTS))
    for column in _compared(color):
        values = trips[column.name]
        facts[f"COUNT({column.name})"] = len(values) - values.null_count
        lengths = pc.utf8_length(values) if column.kind == "text" else values
        for expression in _SQL[column.kind]:
            name = expression.partition("(")[0].lower()
            facts[expression.format(column.name)] = getattr(pc, name)(lengths).as_py()
        if column.name != "row_number":
            facts[_by_row(column)] = pc.sum(pc.multiply(_whole(values, column.kind), weights)).as_py()
    return facts


def _by_row(column: Column) -> str:
    return f"{column.name}, by row,"


def _whole(values: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Return a whole number from each value, as `_WHOLE` does."""
    if kind == "datetime":
        parts = ((pc.day, 86400), (pc.hour, 3600), (pc.minute, 60), (pc.second, 1))
        return reduce(pc.add, (pc.multiply(part(values), seconds) for part, seconds in parts))
    if kind == "text":
        numbers = {
            text: len(text) * 10000 + ord(text[:1] or "\0") * 100 + ord(text[-1:] or "\0")
            for text in pc.unique(values.drop_null()).to_pylist()
        }
        return pa.array(map(numbers.get, values.to_pylist()), pa.int64())
    within = pc.and_(pc.greater_equal(values, -_LIMIT), pc.less_equal(values, _LIMIT))
    values = pc.if_else(within, values, None)
    return pc.floor(pc.multiply(values, 1000)).cast(pa.int64()) if kind == "number" else values


def digest(trips: pa.Table) -> str:
    """Return a digest of rows that does not depend on their order: the sum of the rows' hashes."""
    hashes = pd.util.hash_pandas_object(trips.to_pandas(date_as_object=False), index=False)
    return f"{int(hashes.sum()) % 2**64:016x}"


def _compared(color: str) -> list[Column]:
    return [column for column in columns(color) if column.name != "file_month"]


def _query(color: str) -> tuple[str, list[str]]:
    """Return a statement that both databases accept, with one row per month, and the names of its facts."""
    facts = {"rows": "COUNT(*)"}
    for column in _compared(color):
        for expression in ("COUNT({})", *_SQL[column.kind]):
            facts[expression.format(column.name)] = expression.format(column.name)
        if column.name != "row_number":
            whole = _WHOLE[column.kind].format(column.name)
            # The stand-in for BigQuery makes an operator of MOD, so it needs brackets.
            facts[_by_row(column)] = f"SUM(({whole}) * (MOD(row_number, {_WEIGHTS})))"
    selected = ", ".join(f"{fact} AS f{number}" for number, fact in enumerate(facts.values()))
    return f"SELECT file_month, {selected} FROM {{}}{color} GROUP BY file_month", [*facts]  # noqa: S608


def _warehouse(env: Mapping[str, str]) -> Read:
    options = {"api_endpoint": env["BIGQUERY_EMULATOR_HOST"]}
    client = bigquery.Client(env["GOOGLE_CLOUD_PROJECT"], AnonymousCredentials(), client_options=options)  # type: ignore[no-untyped-call]
    return lambda statement: [dict(row) for row in client.query_and_wait(statement.format(f"{DATASET}."))]


def _database(env: Mapping[str, str]) -> Read:
    def read(statement: str) -> list[dict[str, Any]]:
        with (
            closing(psycopg2.connect(env["POSTGRES_URL"])) as connection,
            connection.cursor(cursor_factory=RealDictCursor) as cursor,
        ):
            cursor.execute(statement.format(""))
            return [dict(row) for row in cursor]

    return read


def compare_with_database(store: str, rule: str, months: Sequence[Expected], read: Read) -> list[str]:
    """Return where a store's tables differ from the months. It is asked once per color, and once for `loads`.

    Args:
        store: The name of the store in the differences.
        rule: The rule of rows with which the store was loaded.
        months: All months that the store must have.
        read: Returns the rows of a statement, in which {} is what precedes a table's name.
    """
    differences = list[str]()
    loads = {(row["color"], row["file_month"]): row for row in read("SELECT * FROM {}loads")}
    trips: dict[Any, Facts] = {}
    for color in sorted({month.trip_month.color for month in months}):
        statement, names = _query(color)
        for row in read(statement):
            file_month, *values = row.values()
            trips[color, file_month] = dict(zip(names, values, strict=True))
    for month in months:
        key = month.trip_month.color, month.trip_month.file_month
        where = f"{month.trip_month}: {store}"
        differences += _differences(where, month.trips[rule], trips.pop(key, None))
        differences += _differences(f"{where}: loads", month.load[rule], _load_facts(loads.pop(key, None)))
    unknown = sorted({**trips, **loads})
    return differences + [f"{color} {month:%Y-%m}: {store}: has a month without a file" for color, month in unknown]


def compare_quarantine(store: str, months: Iterable[PublishedMonth], read: Read) -> list[str]:
    """Return where the row numbers in a store's table `quarantine` differ from those of the rows that cannot be converted."""
    found: dict[Any, list[int]] = {}
    for row in read("SELECT color, file_month, row_number FROM {}quarantine ORDER BY row_number"):
        found.setdefault((row["color"], row["file_month"]), []).append(row["row_number"])
    expected = {(m.trip_month.color, m.trip_month.file_month): list(m.bad_rows) for m in months if m.bad_rows}
    return [
        f"{color} {month:%Y-%m}: {store}: quarantine: row numbers are {found.get((color, month), [])}, must be"
        f" {expected.get((color, month), [])}"
        for color, month in sorted({**found, **expected})
        if found.get((color, month)) != expected.get((color, month))
    ]


def _load_facts(manifest: Mapping[str, Any] | None) -> Facts | None:
    """Return the facts of a manifest or a row of `loads` that follow from the file."""
    if manifest is None:
        return None
    facts = {name: manifest[name] for name in _LOAD_FACTS}
    for name in ("filtered", "quarantined"):
        counts = json.loads(facts[name]) if isinstance(facts[name], str) else facts[name]
        facts[name] = sum(counts.values())
    return facts


def _differences(where: str, expected: Facts, found: Facts | None) -> list[str]:
    if found is None:
        return [f"{where}: is missing"]
    return [
        f"{where}: {name} is {found.get(name)}, must be {value}"
        for name, value in expected.items()
        if not _same(value, found.get(name))
    ]


def _same(expected: Any, found: Any) -> bool:
    """Return whether two values are equal. The order of a sum may change the last digits of a float."""
    numbers = (int, float, Decimal)
    if isinstance(expected, float) and isinstance(found, numbers):
        return math.isclose(expected, found, rel_tol=1e-9, abs_tol=1e-6)
    return bool(expected == found)
