"""Create a separate lake, warehouse and database on the session's servers, and read their contents as Arrow tables."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from google.cloud import bigquery, storage
from google.cloud.storage import Blob
from psycopg2 import sql

from flows.tlc.schema import TRIP_COLUMNS, arrow_schema
from flows.tlc.trips import TripMonth
from local.servers.site import Request, Site


@dataclass(frozen=True)
class Stores:
    """A site, a bucket, a dataset and a database that only one test module uses."""

    site: Site
    bucket: str
    dataset: str
    postgres_url: str

    @property
    def official(self) -> str:
        """The `source` of the Parquet files."""
        return self.site.url + "/trip-data/{color}_tripdata_{year}-{month:02d}.parquet"

    @property
    def mirror(self) -> str:
        """The `source` of the CSV files."""
        return self.site.url + "/mirror/{color}/{color}_tripdata_{year}-{month:02d}.csv.gz"

    def requests(self, month: TripMonth) -> list[Request]:
        """Return the site's requests for a month, without redirects."""
        return [r for r in self.site.requests if month.stem in r.path and r.status != 302]

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return the generation of each object of the lake whose key begins with `prefix`."""
        return {
            blob.name.removeprefix("data/"): blob.generation
            for blob in storage.Client().list_blobs(self.bucket, prefix=f"data/{prefix}")
        }

    def objects_of(self, month: TripMonth) -> dict[str, int]:
        """Return the generation of each of a month's objects, without Prefect's results and the month's history."""
        return {
            key: generation
            for key, generation in self.objects().items()
            if month.stem in key and not key.startswith(("results/", "history/"))
        }

    def blob(self, key: str) -> Blob:
        """Return one object of the lake."""
        return storage.Client().bucket(self.bucket).blob(f"data/{key}")

    def manifest(self, month: TripMonth) -> dict[str, Any]:
        """Return a month's manifest from the lake."""
        manifest: dict[str, Any] = json.loads(self.blob(month.manifest_key).download_as_bytes())
        return manifest

    def in_lake(self, month: TripMonth) -> pa.Table:
        """Return a month's trips from the lake, in the order of the object."""
        with self.blob(month.key).open("rb") as file:
            return pq.read_table(file).replace_schema_metadata()

    def quarantined(self, month: TripMonth) -> list[dict[str, Any]]:
        """Return a month's quarantined rows from the lake."""
        with self.blob(month.quarantine_key).open("rb") as file:
            return list(pq.read_table(file).to_pylist())

    def in_warehouse(self, month: TripMonth, dataset: str | None = None) -> pa.Table:
        """Return a month's trips from the warehouse, ordered by key."""
        query = f"SELECT * FROM {dataset or self.dataset}.{month.color} WHERE file_month = '{month.file_month}'"
        rows = [dict(row) for row in bigquery.Client().query_and_wait(f"{query} ORDER BY row_number")]
        return pa.Table.from_pylist(rows, schema=arrow_schema(month.color))

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the rows that the database answers to a statement."""
        with connected(self.postgres_url) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def in_postgres(self, month: TripMonth) -> pa.Table:
        """Return a month's trips from the database, ordered by key."""
        schema = arrow_schema(month.color)
        names = ", ".join(schema.names)
        query = f"SELECT {names} FROM {month.color} WHERE file_month = %s ORDER BY row_number"
        rows = self.query(query, month.file_month)
        return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)

    def published(self, month: TripMonth) -> pa.Table:
        """Return the trips of a month's Parquet file at the site, as a store has them."""
        return as_published(self.site.file(f"{month.stem}.parquet"), month)

    def loads(self, month: TripMonth) -> dict[str, Any]:
        """Return a month's row of `loads` in the database."""
        attributes = (
            "SELECT attname FROM pg_attribute WHERE attrelid = 'loads'::regclass AND attnum > 0 ORDER BY attnum"
        )
        names = [name for (name,) in self.query(attributes)]
        [row] = self.query("SELECT * FROM loads WHERE color = %s AND file_month = %s", month.color, month.file_month)
        return dict(zip(names, row, strict=True))


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """Connect to a database. Commit at the end of the block, or roll back after an error, and close the connection."""
    connection = psycopg2.connect(url)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@contextmanager
def own_database(name: str) -> Iterator[str]:
    """Create a database on the session's server and yield its URL. Drop the database at the end."""
    url = os.environ["POSTGRES_URL"]
    admin = psycopg2.connect(url)
    admin.autocommit = True
    try:
        admin.cursor().execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield url.rpartition("/")[0] + f"/{name}"
    finally:
        admin.close()
        admin = psycopg2.connect(url)  # a test may have restarted the server
        admin.autocommit = True
        admin.cursor().execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.close()


@contextmanager
def stores(folder: Path, name: str, rows: int = 2000) -> Iterator[Stores]:
    """Create stores for one test module. `name` must be valid for a bucket and for a database."""
    httpx.post(f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b", json={"name": name}).raise_for_status()
    with own_database(name) as url, Site(folder / "site", rows=rows) as site:
        yield Stores(site, name, name.replace("-", "_"), url)


def as_published(path: Path, month: TripMonth) -> pa.Table:
    """Return the canonical trips of a published file that has no bad rows, read without the project's readers."""
    if path.name.endswith(".parquet"):
        published = pq.read_table(path)
    else:
        every = pa_csv.ConvertOptions(strings_can_be_null=True, null_values=[""])
        published = pa_csv.read_csv(path, convert_options=every)
    columns = {name.strip().casefold(): published.column(name) for name in published.column_names}
    count = published.num_rows
    columns["file_month"] = pa.chunked_array([pa.repeat(pa.scalar(month.file_month), count)])
    columns["row_number"] = pa.chunked_array([pa.array(range(1, count + 1), pa.int64())])
    schema = arrow_schema(month.color)
    return pa.table(
        [columns[f.name.casefold()].cast(f.type) if f.name.casefold() in columns else pa.nulls(count, f.type) for f in schema],
        schema=schema,
    )  # fmt: skip


def with_passengers(trips: pa.Table) -> pa.Table:
    """Return the trips without those whose passenger count is zero."""
    if "passenger_count" not in trips.column_names:
        return trips
    return trips.filter(pc.invert(pc.fill_null(pc.equal(trips["passenger_count"], 0), False)))


def same(left: pa.Table, right: pa.Table) -> bool:
    """Return whether two tables have the same names, types, order, nulls and values."""
    return left.schema.equals(right.schema) and left.combine_chunks().equals(right.combine_chunks())


def csv_month(month: TripMonth, rows: list[str]) -> bytes:
    """Return a CSV file with these rows under the header of 2019 and later."""
    names = TRIP_COLUMNS[month.color]
    header = ",".join(c.name for c in names if c.name not in ("Airport_fee", "cbd_congestion_fee", "request_source"))
    return "\r\n".join([header, *rows, ""]).encode()
