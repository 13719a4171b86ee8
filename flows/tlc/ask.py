"""The lake as tables with names: those that a query speaks of, and what BigQuery has to be told to read them in the bucket."""

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
    """The tables of the lake that a query, or a mere list of them, names: each that it may read, by whatever dialect."""
    unread = r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\bas\s+\w+"
    said = re.sub(unread, " ", sql, flags=re.IGNORECASE | re.DOTALL)  # texts, comments, aliases may well say yellow
    return [table for table in TABLES if re.search(rf"\b{table}\b", said, re.IGNORECASE)]


def external_table(table: str, dataset: str, uri: str) -> str:
    """The statement by which BigQuery makes `{dataset}.{table}_in_lake`, which reads the Parquet of a table of the lake.

    `uri` is the lake's own (`gs://bucket/folder/`). Types are told: BigQuery would guess them from one of the files, and
    older months lack columns.
    """
    name = f"{dataset_named(dataset)}.{table}_in_lake"
    if table == zones.TABLE:
        return _statement(name, zones.COLUMNS, f"{uri}{zones.KEY}")
    return _statement(name, columns(table), f"{uri}{table}/*.parquet")


def _statement(name: str, of: Sequence[Column], uri: str) -> str:
    fields = ",\n".join(
        f"  `{c.name}` {KINDS[c.kind].bigquery} OPTIONS (description = {_text(c.described)})" for c in of
    )
    options = f"  format = 'PARQUET',\n  uris = [{_text(uri)}]"
    return f"CREATE OR REPLACE EXTERNAL TABLE `{name}` (\n{fields}\n)\nOPTIONS (\n{options}\n);"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # BigQuery's own escapes are among JSON's
