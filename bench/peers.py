"""Libraries that a user could choose instead, each used as its documentation recommends for speed; docs/speed.md says how.

They run in `.venv-bench`, which has no package of this project. They measure their own time, from the end of their imports.
"""

import csv
import datetime as dt
import gzip
import os
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from bench.plain import WHOLE, batches
from bench.process import timed

if TYPE_CHECKING:
    import pyarrow as pa

# gcsfs asks Google over gRPC for the kind of a bucket; a stand-in cannot answer that.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
_FILE_MONTH = dt.date(2021, 1, 1)
_KEY = ["file_month", "row_number"]


def _keyed(url: str) -> "Iterator[pa.RecordBatch]":
    """Yield the batches with the key that this project stores, and with names that Postgres need not quote."""
    import pyarrow as pa

    first = 1
    for batch in batches(url):
        after = first + len(batch)
        key = [pa.repeat(pa.scalar(_FILE_MONTH), len(batch)), pa.arange(first, after)]
        names = [name.lower() for name in batch.schema.names]
        yield pa.RecordBatch.from_arrays([*batch.columns, *key], names=[*names, *_KEY])
        first = after


def _bucket() -> dict[str, str]:
    return {"token": "anon", "endpoint_url": os.environ["STORAGE_EMULATOR_HOST"]}


def _dlt(destination: Any, rows: Any, disposition: Any = "append", key: list[str] | None = None) -> None:
    import dlt

    folder = Path(os.environ["TMPDIR"]) / "dlt"
    with timed():
        pipeline = dlt.pipeline("bench", destination=destination, dataset_name="dlt", pipelines_dir=str(folder))
        pipeline.run(
            rows, table_name="yellow", loader_file_format="parquet", write_disposition=disposition, primary_key=key
        )
    shutil.rmtree(folder)  # the next run is a first one again


def dlt(url: str) -> None:
    """Pass Arrow batches to dlt, which writes them to Parquet in the bucket without its normalizer for Python objects."""
    from dlt.destinations import filesystem

    _dlt(filesystem(f"gs://{os.environ['LAKE_BUCKET']}", kwargs=_bucket()), batches(url))


def dlt_append(url: str) -> None:
    """Append Arrow batches to a table without a key, as Parquet through ADBC."""
    import adbc_driver_postgresql.dbapi  # noqa: F401 - dlt uses it
    from dlt.destinations import postgres

    _dlt(postgres(os.environ["POSTGRES_URL"]), _keyed(url))


def dlt_merge(url: str) -> None:
    """Merge Arrow batches by their key with dlt's upsert, as Parquet through ADBC."""
    import adbc_driver_postgresql.dbapi  # noqa: F401 - dlt uses it
    from dlt.destinations import postgres

    _dlt(postgres(os.environ["POSTGRES_URL"]), _keyed(url), {"disposition": "merge", "strategy": "upsert"}, _KEY)


def pg_bulk_ingest(url: str) -> None:
    """Replace a keyed table by the rows of the CSV file, in one batch and without an upsert."""
    import sqlalchemy as sa
    from pg_bulk_ingest import Delete, Upsert, ingest

    def column(name: str) -> "sa.Column[Any]":
        kind = sa.BIGINT if name in WHOLE else sa.TIMESTAMP if name.endswith("datetime") else sa.Double
        return sa.Column(name.lower(), sa.TEXT if name.endswith("flag") else kind)

    with timed(), urlopen(url) as web, gzip.open(web, "rt", newline="") as text:  # noqa: S310
        lines = csv.reader(text)
        key = (sa.Column("file_month", sa.DATE, primary_key=True), sa.Column("row_number", sa.BIGINT, primary_key=True))
        metadata = sa.MetaData()
        table = sa.Table("pg_bulk_ingest", metadata, *map(column, next(lines)), *key, schema="public")

        def whole_file(_high_watermark: Any) -> Iterator[tuple[None, None, Iterator[Any]]]:
            rows = (
                (table, (*(value or None for value in line), _FILE_MONTH, number))
                for number, line in enumerate(lines, start=1)
            )
            yield None, None, rows

        engine = sa.create_engine(os.environ["POSTGRES_URL"].replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            ingest(connection, metadata, whole_file, upsert=Upsert.OFF, delete=Delete.BEFORE_FIRST_BATCH)


def adbc(url: str) -> None:
    """Ingest a stream of Arrow batches with ADBC, which uses binary COPY, and add the key afterwards."""
    import pyarrow as pa
    from adbc_driver_postgresql import dbapi

    with timed():
        rest = _keyed(url)
        first = next(rest)
        stream = pa.RecordBatchReader.from_batches(first.schema, chain([first], rest))
        with dbapi.connect(os.environ["POSTGRES_URL"]) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest("adbc", stream, mode="create")
            cursor.execute(f"ALTER TABLE adbc ADD PRIMARY KEY ({', '.join(_KEY)})")
            connection.commit()


def duckdb(url: str, key: str) -> None:
    """Download a file, and copy it with one statement to Parquet in the bucket, through the file system of gcsfs."""
    import duckdb
    from fsspec import filesystem

    path = Path(os.environ["TMPDIR"]) / url.rpartition("/")[2]
    with timed():
        with urlopen(url) as web, path.open("wb") as out:  # noqa: S310
            shutil.copyfileobj(web, out, 1 << 20)
        with duckdb.connect() as connection:
            connection.register_filesystem(filesystem("gcs", **_bucket()))
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"COPY (FROM '{path}') TO 'gs://{os.environ['LAKE_BUCKET']}/{key}' (FORMAT parquet)")
    path.unlink()
