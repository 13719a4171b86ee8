"""Memory does not grow with the file: web → lake of a month and of one four times as large, each in a process of its own."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.tlc.trips import TripMonth
from local.tripfiles import write_month
from tests.flows.conftest import LAKE, ROOT
from tests.stores import Stores

pytestmark = pytest.mark.operations

# What the tasks call, without Prefect's engine. Not ru_maxrss, which begins with what the process that started this one had.
PROGRAM = """
import re, sys
from pathlib import Path
from flows.connectors.web import look_up, source_of
from flows.tasks.extract import copy_to_lake
from flows.tasks.stores import lake_of
from flows.tasks.transform import canonical_in_lake
from flows.tlc.trips import TripMonth

source, block, color, year, month = sys.argv[1:]
lake = lake_of(block)
raw = copy_to_lake(lake, look_up(source_of(source), TripMonth(color, int(year), int(month))))
staged = canonical_in_lake(lake, raw, "all", "memory", lambda *_: None)
print(staged.loaded, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


ROWS = 400_000  # below, not everything that is bounded has been filled
MOST = 80  # MB; measured 57 for either kind of file; the 1,200,000 more trips would take 190


def four_times(path: Path) -> None:
    """Write the trips of a file four times over in its place."""
    if path.suffix == ".parquet":
        pq.write_table(pa.concat_tables([pq.read_table(path)] * 4), path, compression="gzip", compression_level=1)
        return
    content = path.read_bytes()
    trips = gzip.compress(gzip.decompress(content).partition(b"\n")[2], 1)
    path.write_bytes(content + trips * 3)


@pytest.mark.parametrize("ending", ["csv.gz", "parquet"])
def test_a_file_four_times_as_large_takes_hardly_more_memory(
    ending: str, ours: Stores, prefect_api: dict[str, str], tmp_path: Path
) -> None:
    month = TripMonth("yellow", 2021, 5)
    path = tmp_path / f"{month.stem}.{ending}"
    write_month(path, "yellow", month.year, month.month, rows=ROWS)
    source = ours.mirror if ending == "csv.gz" else ours.official

    def peak(rows: int) -> float:
        """MB at the peak of a process that brings the file as it is now into the lake."""
        ours.site.put(path.name, path)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, source, LAKE, month.color, str(month.year), str(month.month)],
            cwd=ROOT, env=os.environ | prefect_api, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        loaded, kilobytes = map(int, done.stdout.split())
        assert loaded == rows
        return kilobytes / 1024

    small = peak(ROWS)
    four_times(path)
    large = peak(4 * ROWS)
    assert large - small < MOST, (small, large)
