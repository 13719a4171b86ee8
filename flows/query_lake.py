"""Query the lake: `python flows/query_lake.py "select count(*) from green where file_month = '2021-01-01'"`."""

import gc
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow

from blocks import DATASET, GCS_BUCKET
from flows.tasks.ask import ask_lake, show, show_statements, statements
from flows.tasks.command import run_as_program
from flows.tasks.policy import submit, task_runner
from flows.tlc.ask import Engine
from flows.tlc.trips import Dataset


@flow(name="query-lake", flow_run_name="query lake by {engine}", task_runner=task_runner())
def query_lake(
    sql: str, block_name: str = GCS_BUCKET, engine: Engine = "duckdb", dataset: Dataset = DATASET
) -> list[dict[str, Any]]:
    """Answer a query from the lake itself. Only the months and columns that the query needs are read.

    Args:
        sql: A query over the tables yellow, green, fhv, fhvhv (published months, canonical columns) and zones.
        block_name: Name of the GcsBucket block that is the lake.
        engine: duckdb (answers on this machine) or bigquery (prints the SQL that creates external tables for the query).
        dataset: BigQuery dataset for the external tables.
    """
    if engine == "bigquery":
        show_statements(statements(sql, block_name, dataset))
        return []
    found = submit(ask_lake, sql, block_name).result()
    show(found, sql)
    return [dict(zip(found.names, row, strict=True)) for row in found.rows]


if __name__ == "__main__":
    run_as_program(query_lake)
