"""Make the files that all contenders use, and count rows without the code of any contender.

These functions run in a separate process. Their imports must not enlarge the process that starts contenders: its memory at the
start is the minimum that the kernel reports as a contender's peak.
"""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from local.trip_files.writing import write_month


def make(path: Path, year: int, month: int, rows: int, edition: int) -> tuple[int, int]:
    """Write a yellow month. Return its number of trips, and the number of those whose passenger count is null or not zero."""
    write_month(path, "yellow", year, month, rows=rows, edition=edition)
    os.utime(path, (1_600_000_000 + edition, 1_600_000_000 + edition))
    if path.suffix == ".parquet":
        passengers = pq.read_table(path, columns=["passenger_count"])["passenger_count"]
    else:
        options = pa_csv.ConvertOptions(
            include_columns=["passenger_count"], column_types={"passenger_count": pa.int64()}
        )
        passengers = pa_csv.read_csv(path, convert_options=options)["passenger_count"]
    nobody = pc.sum(pc.equal(passengers, 0)).as_py() or 0
    return len(passengers), len(passengers) - nobody


def rows_in_parquet(paths: list[Path]) -> int:
    """Return the number of rows of Parquet files, by their footers."""
    return sum(pq.read_metadata(path).num_rows for path in paths)
