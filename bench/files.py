"""Make the files that all contenders use, and compute digests without the code of any contender.

These functions run in a separate process. Their imports must not enlarge the process that starts contenders: its memory at the
start is the minimum that the kernel reports as a contender's peak.
"""

import os
from pathlib import Path

import duckdb

from local.trip_files.writing import write_month

Digest = tuple[int, ...]
"""The number of rows, and sums over columns of every kind."""


def _second(column: str) -> str:
    parts = (("DAY", 86_400), ("HOUR", 3_600), ("MINUTE", 60), ("SECOND", 1))
    return " + ".join(f"EXTRACT({part} FROM {column}) * {seconds}" for part, seconds in parts)


_SUMMED = (
    *("passenger_count", "payment_type", "ROUND(trip_distance * 100)", "ROUND(total_amount * 100)"),
    *(_second("tpep_pickup_datetime"), _second("tpep_dropoff_datetime")),
)
# The same SQL for DuckDB, Postgres and BigQuery.
DIGEST = ", ".join(["COUNT(*)", *(f"SUM(CAST({column} AS BIGINT))" for column in _SUMMED)])


def make(path: Path, year: int, month: int, rows: int, edition: int) -> Digest:
    """Write a yellow month and return its digest."""
    write_month(path, "yellow", year, month, rows=rows, edition=edition)
    os.utime(path, (1_600_000_000 + edition, 1_600_000_000 + edition))
    return digest([path])


def digest(paths: list[Path]) -> Digest:
    """Return the digest of the rows of CSV or Parquet files, together."""
    if not paths:
        return (0,)
    read = "read_parquet" if paths[0].suffix == ".parquet" else "read_csv"
    [found] = (
        duckdb.connect().execute(f"SELECT {DIGEST} FROM {read}($paths)", {"paths": list(map(str, paths))}).fetchall()
    )
    return tuple(map(int, found))
