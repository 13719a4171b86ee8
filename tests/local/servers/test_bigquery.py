"""The BigQuery stand-in (`local/servers/bigquery.py`) behaves like BigQuery for the clients that flows use."""

import datetime as dt
import io
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import google.api_core.exceptions
import pandas as pd
import pandas_gbq
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery, storage
from google.oauth2 import service_account

from local.servers.stack import Stack

JANUARY, FEBRUARY = dt.date(2021, 1, 1), dt.date(2021, 2, 1)
SCHEMA = [
    bigquery.SchemaField("file_month", "DATE"),
    bigquery.SchemaField("row_number", "INTEGER"),
    bigquery.SchemaField("pickup", "DATETIME"),
    bigquery.SchemaField("fare", "FLOAT"),
    bigquery.SchemaField("flag", "STRING"),
]
BY_MONTH = bigquery.TimePartitioning(type_="MONTH", field="file_month")


def trips(month: dt.date, rows: int, fare: float = 1.0) -> pa.Table:
    return pa.table(
        {
            "file_month": pa.array([month] * rows, pa.date32()),
            "row_number": pa.array(range(1, rows + 1), pa.int64()),
            "pickup": pa.array([dt.datetime(2021, 1, 31, 23, 59, 59, 123456)] * rows, pa.timestamp("us")),
            "fare": pa.array([fare] * rows, pa.float64()),
            "flag": pa.array(["N"] * rows, pa.string()),
        }
    )


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


class Warehouse:
    """A separate dataset with the partitioned table `yellow`, and methods to load and query it."""

    def __init__(self, bucket: str) -> None:
        self.client = bigquery.Client()
        self.dataset = f"{self.client.project}.t{uuid.uuid4().hex}"
        self.table = f"{self.dataset}.yellow"
        self._bucket = storage.Client().bucket(bucket)
        self.client.create_dataset(self.dataset)
        table = bigquery.Table(self.table, schema=SCHEMA)
        table.time_partitioning = BY_MONTH
        table.clustering_fields = ["pickup"]
        self.client.create_table(table)

    def put(self, content: pa.Table | bytes) -> str:
        name = f"test_bigquery/{uuid.uuid4().hex}.parquet"
        self._bucket.blob(name).upload_from_string(content if isinstance(content, bytes) else parquet(content))
        return f"gs://{self._bucket.name}/{name}"

    def load(
        self, content: pa.Table | bytes | str, into: str, job_id: str | None = None, **options: Any
    ) -> bigquery.LoadJob:
        settings = {"source_format": "PARQUET", "write_disposition": "WRITE_TRUNCATE", "schema": SCHEMA, **options}
        uri = content if isinstance(content, str) else self.put(content)
        config = bigquery.LoadJobConfig(**settings)
        job = self.client.load_table_from_uri(uri, f"{self.dataset}.{into}", job_id=job_id, job_config=config)
        job.result()
        return job

    def query(self, sql: str, **parameters: Any) -> bigquery.QueryJob:
        kinds = {dt.date: "DATE", int: "INT64", str: "STRING", float: "FLOAT64"}
        values = [bigquery.ScalarQueryParameter(name, kinds[type(value)], value) for name, value in parameters.items()]
        job = self.client.query(sql, job_config=bigquery.QueryJobConfig(query_parameters=values))
        job.result()
        return job

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.query(sql, **parameters).result()]

    def months(self) -> dict[dt.date, tuple[int, float]]:
        sql = f"SELECT file_month, COUNT(*), SUM(fare) FROM `{self.table}` GROUP BY 1"
        return {month: (count, fares) for month, count, fares in self.rows(sql)}


@pytest.fixture
def warehouse(stack: Stack) -> Iterator[Warehouse]:
    fresh = Warehouse(stack.env["LAKE_BUCKET"])
    yield fresh
    fresh.client.delete_dataset(fresh.dataset, delete_contents=True)
    fresh.client.close()


def test_a_table_keeps_its_layout(warehouse: Warehouse) -> None:
    table = warehouse.client.get_table(warehouse.table)
    assert table.time_partitioning == BY_MONTH
    assert table.clustering_fields == ["pickup"]


def test_a_load_replaces_its_month_and_no_other(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 100), "yellow$202101")
    warehouse.load(trips(FEBRUARY, 50), "yellow$202102")
    job = warehouse.load(trips(JANUARY, 70, fare=2.0), "yellow$202101")
    assert job.output_rows == 70
    assert warehouse.months() == {JANUARY: (70, 140.0), FEBRUARY: (50, 50.0)}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (lambda: trips(JANUARY, 5), google.api_core.exceptions.BadRequest, "belong to different partitions"),
        (lambda: b"<html>no such file</html>", google.api_core.exceptions.BadRequest, "Error while reading data"),
        (
            lambda: "gs://taxi-lake/none.parquet",
            google.api_core.exceptions.NotFound,
            "Not found: URI gs://taxi-lake/none",
        ),
        (
            lambda: trips(FEBRUARY, 5).append_column("tip", pa.array([1] * 5)),
            google.api_core.exceptions.BadRequest,
            r"Cannot add fields \(field: tip\)",
        ),
        (
            lambda: trips(FEBRUARY, 5).set_column(3, "fare", pa.array([1] * 5, pa.int64())),
            google.api_core.exceptions.BadRequest,
            "Field fare has changed type",
        ),
    ],
    ids=["another month", "not parquet", "no file", "unknown column", "integers for a float column"],
)
def test_a_load_that_fails_changes_nothing(
    warehouse: Warehouse, content: Callable[[], Any], error: type[Exception], message: str
) -> None:
    warehouse.load(trips(FEBRUARY, 50), "yellow$202102")
    job_id = uuid.uuid4().hex
    with pytest.raises(error, match=message):
        warehouse.load(content(), "yellow$202102", job_id)
    assert warehouse.months() == {FEBRUARY: (50, 50.0)}
    job = warehouse.client.get_job(job_id)
    assert job.state == "DONE"
    assert job.error_result


def test_columns_are_matched_by_name_and_a_missing_one_is_null(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 1).select(["fare", "pickup", "row_number", "file_month"]), "yellow$202101")
    assert warehouse.rows(f"SELECT * FROM `{warehouse.table}`") == [
        (JANUARY, 1, dt.datetime(2021, 1, 31, 23, 59, 59, 123456), 1.0, None)
    ]


def test_a_load_creates_the_table_that_it_describes(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 3), "made$202101", time_partitioning=BY_MONTH, clustering_fields=["pickup"])
    table = warehouse.client.get_table(f"{warehouse.dataset}.made")
    assert (table.num_rows, table.time_partitioning, table.clustering_fields) == (3, BY_MONTH, ["pickup"])


def test_a_load_without_a_schema_uses_the_files_schema(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 3), "inferred", schema=None)
    fields = warehouse.client.get_table(f"{warehouse.dataset}.inferred").schema
    assert [(field.name, field.field_type) for field in fields] == [(field.name, field.field_type) for field in SCHEMA]


def test_a_load_that_may_not_create_its_table_fails(warehouse: Warehouse) -> None:
    with pytest.raises(google.api_core.exceptions.NotFound, match=r"Not found: Table .*\.none"):
        warehouse.load(trips(JANUARY, 3), "none", create_disposition="CREATE_NEVER")


def test_a_job_id_can_be_used_once_and_looked_up_later(warehouse: Warehouse) -> None:
    uri, job_id = warehouse.put(trips(JANUARY, 3)), uuid.uuid4().hex
    warehouse.load(uri, "yellow$202101", job_id)
    with pytest.raises(google.api_core.exceptions.Conflict):
        warehouse.load(uri, "yellow$202101", job_id)
    job = warehouse.client.get_job(job_id)
    assert (job.state, job.output_rows, job.error_result) == ("DONE", 3, None)


def test_merge_on_false_replaces_a_month_atomically_and_fast(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 60_000), "yellow$202101")
    warehouse.load(trips(FEBRUARY, 50), "yellow$202102")
    warehouse.load(trips(JANUARY, 70_000, fare=2.0), "staging")
    columns = ", ".join(field.name for field in SCHEMA)
    job = warehouse.query(
        f"MERGE `{warehouse.table}` T USING `{warehouse.dataset}.staging` S ON FALSE"
        f" WHEN NOT MATCHED BY TARGET THEN INSERT ({columns}) VALUES ({columns})"
        " WHEN NOT MATCHED BY SOURCE AND T.file_month = @m THEN DELETE",
        m=JANUARY,
    )
    assert job.num_dml_affected_rows == 130_000
    assert warehouse.months() == {JANUARY: (70_000, 140_000.0), FEBRUARY: (50, 50.0)}
    assert job.ended - job.started < dt.timedelta(seconds=10)  # a comparison of every pair of rows would take minutes


def test_merge_by_key_updates_inserts_and_deletes(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 10), "yellow$202101")
    warehouse.load(trips(JANUARY, 8, fare=2.0), "staging")
    columns = ", ".join(field.name for field in SCHEMA)
    job = warehouse.query(
        f"MERGE `{warehouse.table}` T USING `{warehouse.dataset}.staging` S"
        " ON T.file_month = S.file_month AND T.row_number = S.row_number"
        " WHEN MATCHED AND T.fare IS DISTINCT FROM S.fare THEN UPDATE SET fare = S.fare"
        f" WHEN NOT MATCHED BY TARGET THEN INSERT ({columns}) VALUES ({columns})"
        " WHEN NOT MATCHED BY SOURCE AND T.file_month = @m THEN DELETE",
        m=JANUARY,
    )
    assert job.num_dml_affected_rows == 10
    assert warehouse.months() == {JANUARY: (8, 16.0)}


def replaced(warehouse: Warehouse, more: str = "") -> str:
    return (
        f"BEGIN TRANSACTION; DELETE FROM `{warehouse.table}` WHERE file_month = @m;"
        f" INSERT INTO `{warehouse.table}` SELECT * FROM `{warehouse.dataset}.staging`; {more} COMMIT TRANSACTION"
    )


def test_a_transaction_is_atomic_and_its_statements_get_the_jobs_parameters(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 10), "yellow$202101")
    warehouse.load(trips(FEBRUARY, 5), "yellow$202102")
    warehouse.load(trips(JANUARY, 8, fare=2.0), "staging")
    note = f"INSERT INTO `{warehouse.table}` (file_month, flag, fare) VALUES (@m, @said, @none);"
    parameters = [
        bigquery.ScalarQueryParameter("m", "DATE", JANUARY),
        bigquery.ScalarQueryParameter("said", "STRING", "done; COMMIT"),
        bigquery.ScalarQueryParameter("none", "FLOAT64", None),
    ]
    config = bigquery.QueryJobConfig(query_parameters=parameters)
    job = warehouse.client.query(replaced(warehouse, note), job_config=config)
    assert list(job.result()) == []
    assert job.statement_type == "SCRIPT"
    assert warehouse.months() == {JANUARY: (9, 16.0), FEBRUARY: (5, 5.0)}
    assert warehouse.client.get_table(warehouse.table).num_rows == 14


@pytest.mark.parametrize("wrong", ["INSERT INTO nowhere.at_all VALUES (1);", "SELECT ERROR('no');", "SELECT 1 / 0;"])
def test_a_transaction_whose_last_statement_fails_changes_nothing(warehouse: Warehouse, wrong: str) -> None:
    warehouse.load(trips(JANUARY, 10), "yellow$202101")
    warehouse.load(trips(JANUARY, 8, fare=2.0), "staging")
    with pytest.raises(google.api_core.exceptions.GoogleAPICallError):
        warehouse.query(replaced(warehouse, wrong), m=JANUARY)
    assert warehouse.months() == {JANUARY: (10, 10.0)}
    warehouse.query(replaced(warehouse), m=JANUARY)
    assert warehouse.months() == {JANUARY: (8, 16.0)}


def test_num_rows_is_correct_after_every_write(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 10), "yellow$202101")
    warehouse.query(f"DELETE FROM `{warehouse.table}` WHERE row_number > @n", n=4)
    assert warehouse.client.get_table(warehouse.table).num_rows == 4


def test_a_schema_update_may_only_add_nullable_columns(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 2), "yellow$202101")
    table = warehouse.client.get_table(warehouse.table)
    table.schema = [*table.schema, bigquery.SchemaField("cbd_congestion_fee", "FLOAT")]
    warehouse.client.update_table(table, ["schema"])
    assert warehouse.rows(f"SELECT COUNT(*), COUNT(cbd_congestion_fee) FROM `{warehouse.table}`") == [(2, 0)]
    after = warehouse.client.get_table(warehouse.table)
    assert after.time_partitioning == BY_MONTH
    after.schema = after.schema[1:]
    with pytest.raises(google.api_core.exceptions.BadRequest, match="file_month is missing in new schema"):
        warehouse.client.update_table(after, ["schema"])
    retyped = warehouse.client.get_table(warehouse.table)
    retyped.schema = [*retyped.schema[:-1], bigquery.SchemaField("cbd_congestion_fee", "STRING")]
    with pytest.raises(google.api_core.exceptions.BadRequest, match="cbd_congestion_fee has changed type"):
        warehouse.client.update_table(retyped, ["schema"])


def test_to_gbq_appends_with_a_table_schema(warehouse: Warehouse, stack: Stack) -> None:
    frame = pd.DataFrame(
        {
            "file_month": [JANUARY] * 3,
            "row_number": pd.array([1, 2, 3], "Int64"),
            "pickup": pd.to_datetime(["2021-01-02 03:04:05.000006"] * 3),
            "fare": [1.0, None, 2.0],
            "flag": [None] * 3,
        }
    )
    credentials = service_account.Credentials.from_service_account_file(
        stack.env["GOOGLE_APPLICATION_CREDENTIALS"], scopes=["https://www.googleapis.com/auth/cloud-platform"]
    )
    for _ in range(2):
        pandas_gbq.to_gbq(
            frame,
            f"{warehouse.dataset.partition('.')[2]}.staged",
            project_id=warehouse.client.project,
            if_exists="append",
            table_schema=[{"name": field.name, "type": field.field_type} for field in SCHEMA],
            credentials=credentials,
            progress_bar=False,
        )
    staged = f"{warehouse.dataset}.staged"
    assert [field.field_type for field in warehouse.client.get_table(staged).schema] == [f.field_type for f in SCHEMA]
    assert warehouse.rows(f"SELECT COUNT(*), COUNT(fare), COUNT(flag), MIN(pickup) FROM `{staged}`") == [
        (6, 4, 0, dt.datetime(2021, 1, 2, 3, 4, 5, 6))
    ]


def test_readers_do_not_disturb_loads(warehouse: Warehouse) -> None:
    warehouse.load(trips(JANUARY, 5_000), "yellow$202101")
    january, done = warehouse.put(trips(JANUARY, 5_000)), threading.Event()
    seen: set[int] = set()

    def read() -> None:
        client = bigquery.Client()
        while not done.is_set():
            seen.add(len(list(client.list_rows(warehouse.table, selected_fields=SCHEMA[1:2]))))
        client.close()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        assert warehouse.load(january, "yellow$202101").output_rows == 5_000
    done.set()
    reader.join()
    assert seen == {5_000}


def test_tables_and_jobs_survive_a_kill(stack: Stack) -> None:
    warehouse, job_id = Warehouse(stack.env["LAKE_BUCKET"]), uuid.uuid4().hex
    warehouse.load(trips(JANUARY, 3), "yellow$202101", job_id)
    stack.executors["warehouse"].kill()
    stack.executors["warehouse"].start()
    assert warehouse.months() == {JANUARY: (3, 3.0)}
    assert warehouse.client.get_table(warehouse.table).time_partitioning == BY_MONTH
    assert warehouse.client.get_job(job_id).output_rows == 3
