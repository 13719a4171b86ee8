"""Prefect flows as courses on data engineering teach them: they use pandas, and pass frames between tasks.

`empty_flow` measures Prefect's own cost. Imports are inside the functions: no program imports what only another one needs.
"""

import gc
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_DATES = ["tpep_pickup_datetime", "tpep_dropoff_datetime"]


def empty_flow(imports: str, at_once: str, months: str, tasks: str, tasks_of_parent: str) -> None:
    """Measure Prefect's own cost: a parent flow of `tasks_of_parent` tasks and `months` flows of `tasks` tasks each.

    The tasks do nothing. If `months` is 0, run one flow of `tasks` tasks. It imports this project's modules as its programs do:
    the garbage collector is off meanwhile.
    """
    if imports.startswith("flows."):
        gc.disable()
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    from prefect import flow, task

    for module in imports.split(","):
        importlib.import_module(module)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()

    @task
    def nothing() -> None:
        """Do nothing."""

    @flow(name="empty-month")
    def month() -> None:
        for _ in range(int(tasks)):
            nothing()

    @flow(name="empty-months")
    def parent() -> None:
        for _ in range(int(tasks_of_parent)):
            nothing()
        with ThreadPoolExecutor(int(at_once)) as pool:
            for future in [pool.submit(copy_context().run, month) for _ in range(int(months))]:
                future.result()

    if int(months):
        parent()
    else:
        month()


def web_to_lake(url: str, key: str) -> None:
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


def web_to_postgres(url: str, table: str) -> None:
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
                df.to_sql(name=table, con=connection, if_exists="append", index=False)
            connection.commit()
        path.unlink()

    @flow(name="seed-web-to-postgres")
    def ingest() -> None:
        load(fetch(url))

    ingest()


def lake_to_warehouse(key: str, table: str) -> None:
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
