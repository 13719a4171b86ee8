"""Programs start fast: importing a program imports no library that only some runs need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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


# Prefect is imported once; each program is imported in a copy of that process.
_IMPORT_EACH = """
import gc, os, sys, prefect
before = set(sys.modules)
for program in sys.argv[1:]:
    if not (child := os.fork()):
        __import__(f"flows.{program}")
        print(program, *(set(sys.modules) - before), f"gc={gc.isenabled()}", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def imported_by() -> dict[str, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EACH, *PROGRAMS], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return {program: set(modules) for program, *modules in map(str.split, done.stdout.splitlines())}


@pytest.mark.parametrize("program", PROGRAMS)
def test_importing_a_program_imports_no_client_library_and_no_pandas(
    program: str, imported_by: dict[str, set[str]]
) -> None:
    assert not imported_by[program].intersection(NOT_NEEDED)
    assert f"flows.{program}" in imported_by[program]
    assert "gc=True" in imported_by[program]


_HELP_OF_EACH = """
import contextlib, gc, os, runpy, sys, prefect
for program in sys.argv[1:]:
    if not (child := os.fork()):
        sys.argv[1:] = ["--help"]
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(f"flows/{program}.py", run_name="__main__")
        print(program, gc.isenabled(), gc.get_freeze_count() > 100_000, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_program_collects_garbage_but_not_among_what_it_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HELP_OF_EACH, *PROGRAMS], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{program} True True" for program in PROGRAMS]
    assert done.stderr.count("Usage:") == len(PROGRAMS)


@pytest.mark.parametrize(
    ("chosen", "used"), [("", "jemalloc" if sys.platform == "linux" else "mimalloc"), ("mimalloc", "mimalloc")]
)
def test_arrow_uses_the_allocator_that_keeps_less_memory_unless_the_user_chose_another(chosen: str, used: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", "import flows.tlc.stream, pyarrow; print(pyarrow.default_memory_pool().backend_name)"],
        env=environment | ({"ARROW_DEFAULT_MEMORY_POOL": chosen} if chosen else {}),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [used]
    assert not done.stderr
