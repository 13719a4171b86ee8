"""Query the lake: find the tables that a query needs, log the bytes that were read, and show the answer."""

import csv
import math
import sys
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.console import Console
from rich.table import Column, Table

from flows.connectors.ask import Answer, answer, read_by
from flows.stores import Target
from flows.tasks.policy import RETRIES
from flows.tasks.report import as_cell, as_markdown, plain_rows
from flows.tasks.stores import open_store
from flows.tlc import zones
from flows.tlc.addresses import escaped
from flows.tlc.ask import TABLES, external_table, tables_of
from flows.tlc.errors import Gone, Unanswerable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

    from flows.stores.lake import Lake

MOST = 1000  # rows of an answer to show
_LONGEST = 4000  # characters of a value in the UI
_LONGEST_NAME = 300  # characters of a column's name in the UI


@task(name="ask lake", task_run_name="ask lake", **RETRIES)
def ask_lake(sql: str, block_name: str) -> Answer:
    """Answer a query over the lake's published months."""
    sizes: list[int] = []  # of the reads
    lake: Lake = open_store(Target("lake", block_name))
    lake.check()
    tables = {name: _table(lake, name, sizes.append) for name in _some(read_by(sql, tables_of(sql)))}
    found = answer(sql, tables, MOST)
    more = ", and more" if found.more else ""
    get_run_logger().info("%s rows%s; %.1f MB read from the lake", len(found.rows), more, sum(sizes) / 1e6)
    return found


def _some(tables: list[str]) -> list[str]:
    if tables:
        return tables
    raise Unanswerable(f"the query names no table of the lake; its tables are {', '.join(TABLES)}.")


def _table(lake: "Lake", name: str, on_read: Any) -> "ds.Dataset | pa.Table":
    if name != zones.TABLE:
        return lake.dataset(name, on_read)
    present = lake.bucket.stat(zones.KEY)
    if not present:
        raise Gone(f"the zones are not in the lake ({lake.bucket.uri(zones.KEY)}); run load-zones first.")
    return lake.table(present)


def statements(sql: str, block_name: str, dataset: str) -> str:
    """Return the SQL that creates BigQuery external tables for a query's tables, as `{dataset}.{table}_in_lake`."""
    lake: Lake = open_store(Target("lake", block_name))
    return "\n\n".join(external_table(name, dataset, lake.bucket.uri("")) for name in _some(tables_of(sql)))


def show_statements(text: str) -> None:
    """Print the statements, and show them in the UI."""
    print(text)
    create_markdown_artifact(f"```sql\n{text}\n```", key="query-lake-bigquery", description="External tables")


def show(found: Answer, sql: str) -> None:
    """Print the answer, as a table on a terminal and as CSV elsewhere, and show it in the UI."""
    if sys.stdout.isatty():
        table = Table(*(Column(as_cell(name)) for name in found.names))
        for row in found.rows:
            table.add_row(*map(as_cell, row))
        Console().print(table)
    else:
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerows([found.names, *found.rows])
    plain = [escaped(name, _LONGEST_NAME) for name in found.names]  # PIVOT makes names of the values of trips
    names = [name if plain.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(plain, 1)]
    rows = [dict(zip(names, map(_plain, row), strict=True)) for row in found.rows]
    more = f" (the first {MOST} rows)" if found.more else ""
    create_table_artifact(plain_rows(rows), key="query-lake", description=f"{as_markdown(sql)}{more}")


def _plain(value: Any) -> int | float | str | None:
    """Return a value for JSON, which has no number for infinity and NaN."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return escaped(str(value), _LONGEST)
