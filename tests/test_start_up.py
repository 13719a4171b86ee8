"""A program starts fast: importing it imports nothing that only some runs need."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.stem for path in (PROJECT / "flows").glob("*.py") if path.stem != "__init__")

# The client libraries of the stores, and pandas. Arrow imports pandas for the first scalar, array of Python values or dataset.
NOT_NEEDED = (
    "dask",
    "duckdb",
    "google.auth",
    "google.cloud",
    "pandas",
    "pandas_gbq",
    "pgpq",
    "prefect_dask",
    "prefect_gcp",
    "prefect_sqlalchemy",
    "psycopg2",
    "pyarrow.dataset",
    "pyarrow.parquet",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_importing_a_program_imports_no_client_library_and_no_pandas(program: str) -> None:
    code = (
        f"import sys, prefect; before = set(sys.modules); import flows.{program}; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded.intersection(NOT_NEEDED)
    assert f"flows.{program}" in loaded
