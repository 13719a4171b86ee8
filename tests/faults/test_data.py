"""Mutated trip files: each is loaded with the values of an independent reader, or refused clearly. Run by `make faults`."""

import os
from pathlib import Path

import pytest

from tests.faults.data import fuzz
from tests.faults.record import tried

COUNT = int(os.environ.get("FUZZ", "100000"))
SEED = int(os.environ.get("SEED", "0"))


def _try(count: int, seed: int, folder: Path) -> None:
    with tried("data", "a mutated trip file (CSV, gzip, Parquet) is read", count):
        found = fuzz(seed, count, os.cpu_count() or 2, folder)
        print(found)
        assert found["wrong"] == []
        assert sum(found["outcomes"].values()) == count
        assert found["outcomes"]["loaded"] > count / 20


@pytest.mark.faults
@pytest.mark.timeout(6 * 3600)
def test_many_mutated_files_are_read_correctly_or_refused(tmp_path: Path) -> None:
    _try(COUNT, SEED, tmp_path)


@pytest.mark.slow
def test_some_mutated_files_are_read_correctly_or_refused(tmp_path: Path) -> None:
    """This is part of `make test`, so it tries only a few inputs."""
    _try(5000, SEED, tmp_path)
