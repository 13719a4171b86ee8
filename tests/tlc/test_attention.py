"""A month gets a warning if it has fewer rows than before, quarantined rows, or more changes than a correction has."""

from typing import Any

import pytest

from flows.tlc.attention import MOST_CHANGED, warnings_of
from flows.tlc.manifest import Manifest
from tests.tlc.test_manifest import manifest_with as with_quarantine


def manifest_with(**changes: Any) -> Manifest:
    return with_quarantine(**({"source_rows": 1000, "loaded": 1000, "filtered": {}, "quarantined": {}} | changes))


def test_an_ordinary_first_load_has_no_warning() -> None:
    assert warnings_of(manifest_with(inserted=1000), None) == ()
    assert (
        warnings_of(manifest_with(inserted=990, loaded=990, filtered={"zero_passengers": 10}, known_rows=1000), None)
        == ()
    )


def test_a_warning_says_where_to_read_quarantined_rows() -> None:
    odd = {"source_rows": 1002, "quarantined": {"not CSV": 1, "fare_amount: not a number": 1}}
    [warning] = warnings_of(manifest_with(**odd, quarantine_key="quarantine/x.parquet"), None)
    assert warning == (
        "2 of 1,002 rows are quarantined (1 × not CSV, 1 × fare_amount: not a number); read them in quarantine/x.parquet."
    )
    [warning] = warnings_of(manifest_with(**odd), manifest_with())
    assert "the table quarantine" in warning


def test_fewer_rows_than_before_cause_a_warning_and_more_rows_do_not() -> None:
    [warning] = warnings_of(manifest_with(known_rows=1001), None)
    assert warning.startswith("re-published: 1,000 rows, 1,001 were last known (-1); ")
    assert warnings_of(manifest_with(known_rows=999), None) == ()


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"inserted": 100}, False),
        ({"inserted": 101}, True),
        ({"inserted": 40, "updated": 40, "removed": 20}, False),
        ({"inserted": 40, "updated": 40, "removed": 21}, True),
        ({"updated": 1000}, True),
        ({}, False),
        # replaced without a comparison
        ({"inserted": 1000, "removed": 1000}, False),
        ({"inserted": 1200, "removed": 1000, "loaded": 1200, "source_rows": 1200}, True),
    ],
)
def test_changes_in_more_than_a_tenth_of_a_month_cause_a_warning(changes: dict[str, int], warned: bool) -> None:
    assert MOST_CHANGED == 0.1
    warnings = warnings_of(manifest_with(**changes), manifest_with())
    assert bool(warnings) is warned
    assert all("rows changed in a month of 1,000; if you did not" in warning for warning in warnings)


def test_the_warning_names_another_rule_or_source_as_the_cause_of_many_changes() -> None:
    [warning] = warnings_of(manifest_with(removed=200, rule="with_passengers", url="http://h/y.csv"), manifest_with())
    assert "(rows was all, and is with_passengers; source was http://h/x.csv, and is http://h/y.csv)" in warning


def test_a_repeated_part_of_a_file_causes_a_warning() -> None:
    [warning] = warnings_of(manifest_with(repeated=(700, 300)), None)
    assert "that ends before row 700 is the same, byte for byte, as the part that ends before row 300" in warning
