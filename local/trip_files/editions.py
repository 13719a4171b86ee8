"""How a later edition of a month differs from the first: which rows it changes, adds and removes.

The key of a row is its position in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ExpectedChanges:
    """The row counts by which two editions of a month differ. The key of a row is its position in the file."""

    inserted: int
    updated: int
    removed: int


def rows_of_edition(rows: int, edition: int) -> int:
    """Return the row count of an edition. The first has `rows`; even ones have a few more at the end, odd ones a few fewer."""
    few = max(1, rows // 500)
    return rows if edition == 1 else rows + few if edition % 2 == 0 else max(1, rows - few)


def touched(index: Ints, edition: int) -> Mask:
    """Return which rows an edition changes: one in a hundred by position, only even rows."""
    return cast(Mask, index % 100 == 2 * edition % 100) if edition > 1 else np.zeros(len(index), bool)


def expected_changes(rows: int, old: int, new: int) -> ExpectedChanges:
    """Return what a store must report when edition `new` of a month of `rows` rows replaces edition `old`."""
    before, after = rows_of_edition(rows, old), rows_of_edition(rows, new)
    common = min(before, after)
    differing = 0 if old == new else int(np.count_nonzero(_edited(common, rows, old) != _edited(common, rows, new)))
    return ExpectedChanges(max(0, after - before), differing, max(0, before - after))


def _edited(common: int, rows: int, edition: int) -> Ints:
    """Return one number per row: 0 if it equals the first edition's, 1 if it differs, -edition if the first lacks it."""
    index = np.arange(common)
    return np.where(index >= rows, -edition, touched(index, edition).astype(np.int64))
