"""Files as TLC and its mirror published them. They are not ours to hand on: who has them puts them beside the checkout."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Every era is tried without them, by the files of `local.tripfiles`; these prove that those files are like the real ones.
needs_real_files = pytest.mark.skipif(
    not DATA.is_dir(), reason="published files are not part of the repository; they are read from ../shared/data"
)
