"""Find the files that TLC and its mirror published. They are in the folder `shared/data`, next to the repository."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Tests of every era use the files of `local.trip_files`. Tests with these real files prove that the two are alike.
needs_real_files = pytest.mark.skipif(
    not DATA.is_dir(), reason="published files are not part of the repository; they are read from ../shared/data"
)
