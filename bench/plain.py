"""Plain tools that a user could combine without Prefect. `batches` also feeds the peers that take Arrow."""

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

from bench.process import timed

if TYPE_CHECKING:
    import pyarrow as pa

_PIECE = 1 << 20
_BLOCK = 4 << 20  # the fastest size for plain pyarrow from 1 to 64 MB, by a tenth; each block is a row group
_DATES = ("tpep_pickup_datetime", "tpep_dropoff_datetime")
_MONEY = (
    *("trip_distance", "fare_amount", "extra", "mta_tax", "tip_amount"),
    *("tolls_amount", "improvement_surcharge", "total_amount", "congestion_surcharge"),
)
WHOLE = ("VendorID", "passenger_count", "RatecodeID", "PULocationID", "DOLocationID", "payment_type")


def batches(url: str) -> "Iterator[pa.RecordBatch]":
    """Yield the trips of a yellow file from the web, with whole numbers as integers."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    types = {name: pa.int64() for name in WHOLE} | {name: pa.timestamp("us") for name in _DATES}
    with urlopen(url) as web:  # noqa: S310
        if url.endswith(".parquet"):
            for batch in pq.ParquetFile(io.BytesIO(web.read())).iter_batches(1 << 17):
                yield batch.cast(pa.schema([(f.name, types.get(f.name, f.type)) for f in batch.schema]))
            return
        types |= {name: pa.float64() for name in _MONEY} | {"store_and_fwd_flag": pa.string()}
        text = pa.CompressedInputStream(pa.PythonFile(web, mode="r"), "gzip")
        yield from pa_csv.open_csv(
            text, pa_csv.ReadOptions(block_size=_BLOCK), convert_options=pa_csv.ConvertOptions(column_types=types)
        )


def pyarrow(url: str, key: str) -> None:
    """Stream a file through Arrow into Parquet in the bucket, without raw copy, checks and Prefect."""
    import pyarrow.parquet as pq
    from google.cloud import storage

    with timed():
        blob = storage.Client().bucket(os.environ["LAKE_BUCKET"]).blob(key)
        with blob.open("wb", chunk_size=8 << 20, ignore_flush=True) as out:
            writer = None
            for batch in batches(url):
                writer = writer or pq.ParquetWriter(out, batch.schema)
                writer.write_batch(batch)
            if writer:
                writer.close()


def copy_keyed(source: str, table: str) -> None:
    """COPY previously encoded text into a table with the same columns and key, without download and parsing."""
    import psycopg2

    from flows.tlc.schema import KINDS, columns

    described = ", ".join(f"{c.postgres_name} {KINDS[c.kind].postgres}" for c in columns("yellow"))
    with timed():
        connection = psycopg2.connect(os.environ["POSTGRES_URL"])
        with connection, connection.cursor() as cursor, Path(source).open("rb") as text:
            cursor.execute(f"CREATE TABLE {table} ({described}, PRIMARY KEY (file_month, row_number))")
            cursor.copy_expert(f"COPY {table} FROM STDIN (FORMAT csv)", text, size=_PIECE)
        connection.close()


def gunzip(url: str) -> None:
    """Download and decompress a file and discard the text. This is the lower limit for every program that reads it."""
    with timed() as extra, urlopen(url) as web:  # noqa: S310
        inflate = zlib.decompressobj(wbits=31)
        lines = 0
        while piece := web.read(_PIECE):
            lines += inflate.decompress(piece).count(b"\n")
        extra["rows"] = lines - 1


def preencode(table: str, target: str) -> None:
    """Write the text that `copy_keyed` copies, encoded by the database itself."""
    import psycopg2

    connection = psycopg2.connect(os.environ["POSTGRES_URL"])
    with connection, connection.cursor() as cursor, Path(target).open("wb") as text:
        cursor.copy_expert(f"COPY (SELECT * FROM {table}) TO STDOUT (FORMAT csv)", text, size=_PIECE)
    connection.close()
