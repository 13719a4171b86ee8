"""A verification reports differing rows and counts, and chooses the months of a sample."""

import pyarrow as pa
import pytest
from hypothesis import given

from flows.tlc.compare import FOREIGN, MISSING, NAMED, differences
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest
from flows.tlc.trips import TripMonth
from flows.tlc.verify import RowFaults, Verified, counts_of, keys_of, number_of, sampled
from tests.tlc.test_catalog import MANIFEST
from tests.tlc.test_compare import CUTS, EDITIONS, Edition, pieces, rows_of

GREEN = [TripMonth("green", 2021, month) for month in range(1, 13)]
FHV = [TripMonth("fhv", 2021, month) for month in range(1, 4)]


@pytest.mark.slow
@given(EDITIONS, EDITIONS, CUTS, CUTS)
def test_each_row_that_differs_is_named_with_its_columns(
    stored: Edition, expected_rows: Edition, cuts: list[int], other_cuts: list[int]
) -> None:
    expected = dict.fromkeys(expected_rows.keys() - stored.keys(), MISSING) | dict.fromkeys(
        stored.keys() - expected_rows.keys(), FOREIGN
    )
    for n in stored.keys() & expected_rows.keys():
        if names := [name for name, a, b in zip(("fare", "flag"), stored[n], expected_rows[n], strict=True) if a != b]:
            expected[n] = ", ".join(names)
    found = dict(differences(pieces(rows_of(stored), cuts), pieces(rows_of(expected_rows), other_cuts)))
    assert found.keys() == expected.keys()
    first = sorted(expected)[:NAMED]
    assert [found[n] for n in first] == [expected[n] for n in first]
    assert all(found[n] in ("", expected[n]) for n in expected)


def test_the_first_differing_rows_are_named_and_all_are_counted() -> None:
    faults = RowFaults("the lake")
    faults.add((n, "fare_amount, tip_amount") for n in (1_200, 7, 9, 8))
    faults.add([(11, MISSING), (10, FOREIGN)])
    assert faults.in_words() == [
        "6 rows differ from the lake: row 7: fare_amount, tip_amount; row 8: fare_amount, tip_amount;"
        " row 9: fare_amount, tip_amount; row 10 was not published; row 11 is missing; …"
    ]
    assert RowFaults("the lake").in_words() == []
    one = RowFaults("the raw file")
    one.add([(3, "tip_amount")])
    assert one.in_words() == ["1 row differs from the raw file: row 3: tip_amount"]


def test_a_manifest_with_wrong_counts_or_a_fault_is_a_difference() -> None:
    assert counts_of(MANIFEST) == []
    [text] = counts_of(MANIFEST.model_copy(update={"source_rows": 99}))
    assert text.startswith("the manifest does not add up: 99 rows published, but ")
    [text] = counts_of(MANIFEST.model_copy(update={"fault": "2026-01-01 00:00:00: 1 row differs"}))
    assert (
        text
        == "an earlier verification found damage, and no run loaded the month again: 2026-01-01 00:00:00: 1 row differs"
    )
    assert number_of("rows in x", 3, 3) == keys_of("x", 3, 3) == []
    assert number_of("rows in x", 1_000, 3) == ["rows in x: 1,000, the manifest says 3"]
    assert keys_of("x", 3, 5) == ["2 rows in x have the key of another row"]


def test_a_month_with_a_fault_counts_as_absent_for_every_run() -> None:
    damaged: Manifest = MANIFEST.model_copy(update={"fault": "found"})
    for manifest, same in ((MANIFEST, True), (damaged, False)):
        assert manifest.covers(MANIFEST.published, MANIFEST.rule) is same
        assert manifest.same_rows(MANIFEST) is same


def test_a_sample_has_some_months_of_each_color_and_depends_on_its_seed() -> None:
    chosen = sampled([*GREEN, *FHV], 2, 7)
    assert chosen == sampled([*FHV, *GREEN, *GREEN], 2, 7)
    assert sorted(month.color for month in chosen) == ["fhv", "fhv", "green", "green"]
    assert {tuple(sampled(GREEN, 2, seed)) for seed in range(20)} > {tuple(sampled(GREEN, 2, 7))}
    assert sampled([*GREEN, *FHV], 0, 7) == sorted([*GREEN, *FHV], key=lambda month: (month.file_month, month.color))
    assert len(sampled(FHV, 100, 7)) == 3
    with pytest.raises(TripDataError, match="sample is -1; give a number of months per color, or 0 for all"):
        sampled(GREEN, -1, 7)


def test_a_result_names_the_month_the_store_the_differences_and_the_command() -> None:
    differs = Verified("database", GREEN[0], ("rows in x: 1, the manifest says 2",), mend="run python flows/x.py")
    assert differs.status == "differs"
    assert str(differs) == (
        "green 2021-01 in the database: rows in x: 1, the manifest says 2. To mend it: run python flows/x.py"
    )
    assert Verified("database", GREEN[0], not_compared="the lake does not have the month").status == "not compared"
    assert Verified("database", GREEN[0]).status == "verified"


def test_two_empty_tables_do_not_differ() -> None:
    nothing: list[pa.Table] = []
    assert list(differences(nothing, nothing)) == []
