"""The lake as named tables. Find the tables that a query needs, and write the SQL for BigQuery to read them."""

import json
import re
from collections.abc import Sequence
from typing import Literal

from flows.tlc import zones
from flows.tlc.schema import KINDS, Column, columns
from flows.tlc.trips import COLORS, dataset_named

Engine = Literal["duckdb", "bigquery"]
TABLES: tuple[str, ...] = (*COLORS, zones.TABLE)


def tables_of(sql: str) -> list[str]:
    """Return the tables of the lake that a query in any SQL dialect may read. `sql` may also be a list of table names."""
    # Strings, comments and aliases may contain "yellow".
    rest = re.sub(r"(?is)'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\bas\s+\w+", " ", sql)
    return [table for table in TABLES if re.search(rf"\b{table}\b", rest, re.IGNORECASE)]


def external_table(table: str, dataset: str, uri: str) -> str:
    """Return the SQL that creates the external table `{dataset}.{table}_in_lake` over a table's Parquet files in the lake.

    The SQL names all columns and types. BigQuery would otherwise infer them from one file, and older months lack columns.
    `uri` is the lake's, such as `gs://bucket/folder/`.
    """
    name = f"{dataset_named(dataset)}.{table}_in_lake"
    if table == zones.TABLE:
        return _statement(name, zones.COLUMNS, f"{uri}{zones.KEY}")
    return _statement(name, columns(table), f"{uri}{table}/*.parquet")


def _statement(name: str, table_columns: Sequence[Column], uri: str) -> str:
    fields = ",\n".join(
        f"  `{c.name}` {KINDS[c.kind].bigquery} OPTIONS (description = {_text(c.described)})" for c in table_columns
    )
    options = f"  format = 'PARQUET',\n  uris = [{_text(uri)}]"
    return f"CREATE OR REPLACE EXTERNAL TABLE `{name}` (\n{fields}\n)\nOPTIONS (\n{options}\n);"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # BigQuery's string literals accept JSON's escapes
