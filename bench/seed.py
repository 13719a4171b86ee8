"""What a user would choose instead of this project, each as a program: `python -m bench.contenders NAME ARGUMENT…`.

`seed_…` are Prefect flows as courses on data engineering teach them: they use pandas, and pass frames between tasks.
The others do not use Prefect. They measure their own time, from the end of their imports.
Imports are inside the functions, so that no program imports what only another one needs.
"""

import importlib
import io
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from bench.process import MEASURED

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PIECE = 1 << 20
_BLOCK = 4 << 20  # the fastest size for plain pyarrow from 1 to 64 MB, by a tenth; each block is a row group
_DATES = ["tpep_pickup_datetime", "tpep_dropoff_datetime"]


@contextmanager
def _timed() -> Iterator[dict[str, Any]]:
    """Print the time that the block takes, and the values that it adds to the dict."""
    extra: dict[str, Any] = {}
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    yield extra
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(MEASURED + json.dumps({"wall_s": wall, "cpu_s": cpu, **extra}))


def empty_flow(imports: str, at_once: str, months: str, tasks: str) -> None:
    """Measure Prefect's own cost: a parent flow with `months` flows, each with `tasks` tasks, which do nothing."""
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    from prefect import flow, task

    for module in imports.split(","):
        importlib.import_module(module)

    @task
    def nothing() -> None:
        """Do nothing."""

    @flow(name="empty-month")
    def month() -> None:
        for _ in range(int(tasks)):
            nothing()

    @flow(name="empty-months")
    def parent() -> None:
        with ThreadPoolExecutor(int(at_once)) as pool:
            for future in [pool.submit(copy_context().run, month) for _ in range(int(months))]:
                future.result()

    if int(months):
        parent()
    else:
        month()


def seed_web_to_lake(url: str, key: str) -> None:
    """Read a file into a frame, write it to disk as gzip Parquet, and upload it to the bucket."""
    import pandas as pd
    from prefect import flow, task
    from prefect_gcp.cloud_storage import GcsBucket

    @task(retries=3)
    def fetch(url: str) -> "pd.DataFrame":
        return pd.read_parquet(url) if url.endswith(".parquet") else pd.read_csv(url, low_memory=False)

    @task
    def clean(df: "pd.DataFrame") -> "pd.DataFrame":
        for name in _DATES:
            df[name] = pd.to_datetime(df[name])
        return df

    @task
    def write_local(df: "pd.DataFrame") -> Path:
        path = Path(os.environ["TMPDIR"]) / "seed.parquet"
        df.to_parquet(path, compression="gzip")
        return path

    @task
    def write_gcs(path: Path) -> None:
        GcsBucket.load("ny-taxi-gcs").upload_from_path(from_path=path, to_path=key)
        path.unlink()

    @flow(name="seed-web-to-lake")
    def etl_web_to_gcs() -> None:
        write_gcs(write_local(clean(fetch(url))))

    etl_web_to_gcs()


def seed_web_to_postgres(url: str, table: str) -> None:
    """Download a file, and insert it with `to_sql` in frames of 100,000 rows."""
    from urllib.request import urlretrieve

    import pandas as pd
    from prefect import flow, task
    from prefect_sqlalchemy import SqlAlchemyConnector

    @task(retries=3)
    def fetch(url: str) -> Path:
        path = Path(os.environ["TMPDIR"]) / "seed.csv.gz"
        urlretrieve(url, path)  # noqa: S310 - our own loopback site
        return path

    @task
    def load(path: Path) -> None:
        with SqlAlchemyConnector.load("pg-connector").get_connection(begin=False) as connection:
            for df in pd.read_csv(path, iterator=True, chunksize=100_000, low_memory=False):
                for name in _DATES:
                    df[name] = pd.to_datetime(df[name])
                df = df[df["passenger_count"] != 0]  # noqa: PLW2901
                df.to_sql(name=table, con=connection, if_exists="append", index=False)
            connection.commit()
        path.unlink()

    @flow(name="seed-web-to-postgres")
    def ingest() -> None:
        load(fetch(url))

    ingest()


def seed_lake_to_warehouse(key: str, table: str) -> None:
    """Download an object from the bucket, read it into a frame, and load it with `to_gbq`."""
    import pandas as pd
    import pandas_gbq
    from prefect import flow, task
    from prefect_gcp import GcpCredentials
    from prefect_gcp.cloud_storage import GcsBucket

    @task(retries=3)
    def extract() -> Path:
        path = Path(os.environ["TMPDIR"]) / "seed.parquet"
        return Path(GcsBucket.load("ny-taxi-gcs").download_object_to_path(key, path))

    @task
    def transform(path: Path) -> "pd.DataFrame":
        return pd.read_parquet(path)

    @task
    def write_bq(df: "pd.DataFrame") -> None:
        credentials = GcpCredentials.load("de-zoom-key").get_credentials_from_service_account()
        project = os.environ["GOOGLE_CLOUD_PROJECT"]
        # Courses call `df.to_gbq`, which is deprecated and only calls this function.
        pandas_gbq.to_gbq(df, table, project, chunksize=500_000, if_exists="append", credentials=credentials)

    @flow(name="seed-lake-to-warehouse")
    def etl_gcs_to_bq() -> None:
        write_bq(transform(extract()))

    etl_gcs_to_bq()


def pyarrow(url: str, key: str) -> None:
    """Stream a file through Arrow into Parquet in the bucket, without raw copy, checks and Prefect."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq
    from google.cloud import storage

    whole, money, flag = pa.int64(), pa.float64(), pa.string()
    types: dict[str, pa.DataType] = dict.fromkeys(_DATES, pa.timestamp("us"))
    types |= dict.fromkeys(["VendorID", "passenger_count", "RatecodeID"], whole)
    types |= dict.fromkeys(["PULocationID", "DOLocationID", "payment_type"], whole)
    types |= {"store_and_fwd_flag": flag}

    def tables(web: Any) -> Iterator["pa.Table"]:
        if url.endswith(".parquet"):
            for batch in pq.ParquetFile(io.BytesIO(web.read())).iter_batches(1 << 17):
                wanted = pa.schema([(f.name, types.get(f.name, f.type)) for f in batch.schema])
                yield pa.Table.from_batches([batch]).cast(wanted)
            return
        text = pa.CompressedInputStream(pa.PythonFile(web, mode="r"), "gzip")
        names = [
            *("VendorID", *_DATES, "passenger_count", "trip_distance", "RatecodeID", "store_and_fwd_flag"),
            *("PULocationID", "DOLocationID", "payment_type", "fare_amount", "extra", "mta_tax", "tip_amount"),
            *("tolls_amount", "improvement_surcharge", "total_amount", "congestion_surcharge"),
        ]
        convert = pa_csv.ConvertOptions(column_types={name: types.get(name, money) for name in names})
        for batch in pa_csv.open_csv(text, pa_csv.ReadOptions(block_size=_BLOCK), convert_options=convert):
            yield pa.Table.from_batches([batch])

    with _timed():
        blob = storage.Client().bucket(os.environ["LAKE_BUCKET"]).blob(key)
        with urlopen(url) as web, blob.open("wb", chunk_size=8 << 20, ignore_flush=True) as out:  # noqa: S310
            writer = None
            for table in tables(web):
                writer = writer or pq.ParquetWriter(out, table.schema)
                writer.write_table(table)
            if writer:
                writer.close()


def copy_keyed(source: str, table: str) -> None:
    """COPY previously encoded text into a table with the same columns and key, without download and parsing."""
    import psycopg2

    from flows.tlc.schema import KINDS, columns

    described = ", ".join(f"{c.postgres_name} {KINDS[c.kind].postgres}" for c in columns("yellow"))
    with _timed():
        connection = psycopg2.connect(os.environ["POSTGRES_URL"])
        with connection, connection.cursor() as cursor, Path(source).open("rb") as text:
            cursor.execute(f"CREATE TABLE {table} ({described}, PRIMARY KEY (file_month, row_number))")
            cursor.copy_expert(f"COPY {table} FROM STDIN (FORMAT csv)", text, size=_PIECE)
        connection.close()


def gunzip(url: str) -> None:
    """Download and decompress a file and discard the text. This is the lower limit for every program that reads it."""
    with _timed() as extra, urlopen(url) as web:  # noqa: S310
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


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program
    for program in (
        empty_flow,
        seed_web_to_lake,
        seed_web_to_postgres,
        seed_lake_to_warehouse,
        pyarrow,
        copy_keyed,
        gunzip,
        preencode,
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
