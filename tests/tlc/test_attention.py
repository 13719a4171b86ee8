"""A month that lacks rows, or changed more than a correction would, is one to look at; an ordinary one is not."""

from typing import Any

import pytest

from flows.tlc.attention import MOST_CHANGED, warnings_of
from flows.tlc.manifest import Manifest
from tests.tlc.test_manifest import held as with_quarantine


def held(**changes: Any) -> Manifest:
    return with_quarantine(**({"source_rows": 1000, "loaded": 1000, "filtered": {}, "quarantined": {}} | changes))


def test_a_first_load_with_nothing_odd_has_no_warning() -> None:
    assert warnings_of(held(inserted=1000), None) == ()
    assert warnings_of(held(inserted=990, loaded=990, filtered={"zero_passengers": 10}, known_rows=1000), None) == ()


def test_quarantined_rows_are_named_with_where_to_read_them() -> None:
    odd = {"source_rows": 1002, "quarantined": {"not CSV": 1, "fare_amount: not a number": 1}}
    [warning] = warnings_of(held(**odd, quarantine_key="quarantine/x.parquet"), None)
    assert warning == (
        "2 of 1,002 rows are quarantined (1 × not CSV, 1 × fare_amount: not a number); read them in quarantine/x.parquet."
    )
    [warning] = warnings_of(held(**odd), held())
    assert "the table quarantine" in warning


def test_a_file_with_fewer_rows_than_before_is_named_and_one_with_more_is_not() -> None:
    [warning] = warnings_of(held(known_rows=1001), None)
    assert warning.startswith("re-published: 1,000 rows, 1,001 were last known (-1); ")
    assert warnings_of(held(known_rows=999), None) == ()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"inserted": 100}, False),
        ({"inserted": 101}, True),
        ({"inserted": 40, "updated": 40, "removed": 20}, False),
        ({"inserted": 40, "updated": 40, "removed": 21}, True),
        ({"updated": 1000}, True),
        ({}, False),
        # replaced as a whole, without comparing
        ({"inserted": 1000, "removed": 1000}, False),
        ({"inserted": 1200, "removed": 1000, "loaded": 1200, "source_rows": 1200}, True),
    ],
)
def test_a_month_of_which_more_than_a_tenth_changed_is_named(changes: dict[str, int], warned: bool) -> None:
    assert MOST_CHANGED == 0.1
    warnings = warnings_of(held(**changes), held())
    assert bool(warnings) is warned
    assert all("rows changed in a month of 1,000; if you did not" in warning for warning in warnings)


def test_another_rule_or_source_explains_many_changes() -> None:
    [warning] = warnings_of(held(removed=200, rule="with_passengers", url="http://h/y.csv"), held())
    assert "(rows was all, and is with_passengers; source was http://h/x.csv, and is http://h/y.csv)" in warning


def test_a_part_of_the_file_that_stands_there_twice_is_named() -> None:
    [warning] = warnings_of(held(repeated=(700, 300)), None)
    assert "that ends before row 700 is the same, byte for byte, as the part that ends before row 300" in warning
