"""Changes between two editions are counted as a comparison of two dictionaries counts them, for any chunk size."""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc.compare import compare
from flows.tlc.manifest import Changes

SCHEMA = pa.schema([("fare", pa.float64()), ("flag", pa.string()), ("row_number", pa.int64())])
Edition = dict[int, tuple[float | None, str | None]]


def rows_of(edition: Edition) -> pa.Table:
    rows = [{"fare": fare, "flag": flag, "row_number": n} for n, (fare, flag) in sorted(edition.items())]
    return pa.Table.from_pylist(rows, SCHEMA)


def pieces(table: pa.Table, cuts: list[int]) -> Iterator[pa.Table]:
    """Yield the table in parts. Some are empty and some have several chunks."""
    bounds = [0, *sorted(cut % (table.num_rows + 1) for cut in cuts), table.num_rows]
    for start, stop in itertools.pairwise(bounds):
        middle = (start + stop) // 2
        yield pa.concat_tables([table.slice(start, middle - start), table.slice(middle, stop - middle)])


VALUES = st.tuples(st.sampled_from([None, 0.0, 1.5]), st.sampled_from([None, "", "N"]))
EDITIONS = st.dictionaries(st.integers(1, 40), VALUES, max_size=40)
CUTS = st.lists(st.integers(0, 50), max_size=6)


@given(EDITIONS, EDITIONS, CUTS, CUTS)
def test_changes_are_those_of_two_dictionaries(
    old: Edition, new: Edition, old_cuts: list[int], new_cuts: list[int]
) -> None:
    assert compare(pieces(rows_of(old), old_cuts), pieces(rows_of(new), new_cuts)) == Changes(
        inserted=len(new.keys() - old.keys()),
        updated=sum(old[n] != new[n] for n in old.keys() & new.keys()),
        removed=len(old.keys() - new.keys()),
    )


@given(EDITIONS, CUTS, CUTS)
def test_an_edition_does_not_differ_from_itself(edition: Edition, one: list[int], other: list[int]) -> None:
    assert compare(pieces(rows_of(edition), one), pieces(rows_of(edition), other)) == Changes()


@pytest.mark.parametrize(
    ("now", "updated"), [([None, None, None], 0), ([None, "x", None], 1), (["x", "x", "x"], 3)], ids=str
)
def test_a_column_that_the_older_edition_lacks_counts_as_null(now: list[str | None], updated: int) -> None:
    old = rows_of({1: (1.0, "N"), 2: (2.0, None), 3: (None, "N")})
    new = old.append_column("request_source", pa.array(now, pa.string()))
    assert compare([old], [new]) == Changes(updated=updated)


def test_two_empty_editions_have_no_changes() -> None:
    assert compare([], []) == Changes()
