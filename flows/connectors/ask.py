"""SQL by DuckDB, in this process, over Arrow tables and datasets; it reaches nothing but what it is given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from flows.tlc.errors import Unanswerable

# A query may come from a form in the UI: no files of the machine that runs it, no network, no extensions, no way back.
_CLOSED: dict[str, Any] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
}
# The answer alone belongs on the standard output; DuckDB would draw a bar there while a query is slow.
_SETTINGS = "SET enable_progress_bar = false; SET lock_configuration = true"


@dataclass(frozen=True)
class Answer:
    """The first rows of what a query gives, and whether there are more."""

    names: list[str]
    rows: list[tuple[Any, ...]]
    more: bool


def _duckdb() -> Any:
    try:
        import duckdb  # not among this package's dependencies: only who asks needs it
    except ImportError:
        raise Unanswerable(
            "asking the lake from here needs DuckDB: pip install duckdb; or let BigQuery ask it (--engine bigquery)."
        ) from None
    return duckdb


def read_by(sql: str, tables: Iterable[str]) -> list[str]:
    """Those of `tables` that a query reads; all of them where DuckDB cannot tell before it has run it."""
    duckdb = _duckdb()
    with duckdb.connect(config=_CLOSED) as connection:
        try:
            names = {name.casefold() for name in connection.get_table_names(sql)}
        except duckdb.Error:  # wrong, or several statements: `answer` will say which
            return list(tables)
    return [table for table in tables if table in names]


def answer(sql: str, tables: Mapping[str, ds.Dataset | pa.Table], most: int) -> Answer:
    """Run a query over `tables`; at most `most` rows are kept."""
    duckdb = _duckdb()
    connection = duckdb.connect(config=_CLOSED)
    try:
        connection.execute(_SETTINGS)
        for name, table in tables.items():
            connection.register(name, table)
        asked = connection.execute(sql)
        rows = asked.fetchmany(most + 1)
        return Answer([column[0] for column in asked.description or ()], rows[:most], len(rows) > most)
    except duckdb.Error as error:
        known = ", ".join(tables) or "none"
        # Not chained: its traceback would hold the connection.
        raise Unanswerable(f"the query cannot be answered (its tables: {known}): {error}") from None
    finally:
        connection.close()
