"""Run SQL with DuckDB in this process. A query can read only the Arrow tables and datasets passed to it."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.tlc.errors import Unanswerable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

# A query may come from a form in the UI. It must not read this machine's files, use the network, load extensions or change
# these settings.
_CLOSED: dict[str, Any] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "memory_limit": "4GB",
    "temp_directory": "",  # a query must not fill the disk
}
LONGEST = 600.0  # seconds that a query may take
# DuckDB draws a progress bar on standard output while a query is slow. Only the answer may appear there.
# DuckDB allows every connection the files of its own database: in memory these are ./:memory: and ./:memory:.wal.
_SETTINGS = (
    "SET enable_progress_bar = false; SET disabled_filesystems = 'LocalFileSystem'; SET lock_configuration = true"
)
_READING = {"SELECT", "EXPLAIN", "MULTI"}  # types of statement; MULTI is PIVOT


@dataclass(frozen=True)
class Answer:
    """The first rows of a query's result. `more` is true if the result has further rows."""

    names: list[str]
    rows: list[tuple[Any, ...]]
    more: bool


def _duckdb() -> Any:
    try:
        import duckdb  # not a dependency of this package: only queries over the lake need it
    except ImportError:
        raise Unanswerable(
            "a query on this machine needs DuckDB: run `pip install duckdb`, or let BigQuery run the query (--engine bigquery)."
        ) from None
    return duckdb


def read_by(sql: str, tables: Iterable[str]) -> list[str]:
    """Return those of `tables` that a query reads, or all of them if DuckDB cannot parse the query."""
    duckdb = _duckdb()
    with duckdb.connect(config=_CLOSED) as connection:
        try:
            names = {name.casefold() for name in connection.get_table_names(sql)}
        except duckdb.Error:  # a wrong query, or several statements: `answer` reports the error
            return list(tables)
    return [table for table in tables if table in names]


def _require_select(connection: Any, sql: str) -> None:
    kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    if len(kinds) != 1 or kinds[0] not in _READING:
        raise Unanswerable(f"the query must be one SELECT statement, not {', '.join(kinds[:5]) or 'empty'}.")


def answer(sql: str, tables: "Mapping[str, ds.Dataset | pa.Table]", most: int) -> Answer:
    """Run a query over `tables` and return at most `most` rows. Raise `Unanswerable` if it fails, or takes too long."""
    duckdb = _duckdb()
    connection = duckdb.connect(config=_CLOSED)
    clock = threading.Timer(LONGEST, connection.interrupt)
    clock.daemon = True
    try:
        clock.start()
        connection.execute(_SETTINGS)
        _require_select(connection, sql)
        for name, table in tables.items():
            connection.register(name, table)
        result = connection.execute(sql)
        rows = result.fetchmany(most + 1)
        return Answer([column[0] for column in result.description or ()], rows[:most], len(rows) > most)
    except duckdb.InterruptException:
        raise Unanswerable(
            f"the query took more than {LONGEST:.0f} s; ask for fewer months, or let BigQuery run it (--engine bigquery)."
        ) from None
    except duckdb.Error as error:
        names = ", ".join(tables) or "none"
        # Not chained: the traceback would keep a reference to the connection.
        raise Unanswerable(f"the query cannot be answered (its tables: {names}): {error}") from None
    finally:
        clock.cancel()
        clock.join()  # it must not interrupt a closed connection
        connection.close()
