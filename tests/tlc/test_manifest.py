"""A manifest has the facts about a month in a store. As JSON, as a row and as a value, they are the same."""

import datetime as dt
import hashlib
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc import manifest as manifests
from flows.tlc.manifest import LOADS_COLUMNS, Manifest, Outcome, RawFile, StagedMonth, package_version, total
from flows.tlc.quality import Profile
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Rows
from tests.tlc.published import GREEN

BEGUN = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
PUBLISHED = PublishedFile(
    trip_month=GREEN, url="http://h/x.csv", ending=".csv", etag='"a"', last_modified="Mon", size=70
)
PROFILE = Profile(
    sums={"fare_amount": 12.5},
    days={dt.date(2021, 1, 2): 489},
    elsewhere={"2008-12": 1},
    quality={"distance of zero": 2},
)
RAW = RawFile(published=PUBLISHED, key="raw/x", generation=3, size=70, sha256="ab" * 32)


def staged(**changes: Any) -> StagedMonth:
    facts = {
        "raw": RAW,
        "rule": "all",
        "era": "green csv since 2019-01",
        "columns": ("VendorID", "Trip, type"),
        "profile": PROFILE,
        "key": "staging/x",
    }
    counts = {"source_rows": 500, "loaded": 490, "filtered": {"zero_passengers": 7}, "quarantined": {"not CSV": 3}}
    return StagedMonth.model_validate(facts | counts | {"started_at": BEGUN} | changes)


def manifest_with(**changes: Any) -> Manifest:
    return staged().manifest("run-1", key="green/x", generation=4).model_copy(update=changes)


def test_a_manifest_has_the_source_of_the_month_and_the_counts_of_its_rows() -> None:
    before = dt.datetime.now(dt.UTC)
    manifest = staged().manifest("run-1", key="green/x", generation=4, quarantine_key="quarantine/x")
    assert before <= manifest.published_at <= dt.datetime.now(dt.UTC)
    facts = {
        "color": "green",
        "file_month": dt.date(2021, 1, 1),
        "url": "http://h/x.csv",
        "etag": '"a"',
        "last_modified": "Mon",
        "size": 70,
        "sha256": "ab" * 32,
        "era": "green csv since 2019-01",
        "columns": ("VendorID", "Trip, type"),
        "rule": "all",
        "source_rows": 500,
        "loaded": 490,
        "filtered": {"zero_passengers": 7},
        "quarantined": {"not CSV": 3},
        "profile": PROFILE.model_dump(),
        "key": "green/x",
        "generation": 4,
        "quarantine_key": "quarantine/x",
        "schema_version": SCHEMA_VERSION,
        "package_version": package_version(),
        "flow_run_id": "run-1",
        "started_at": BEGUN,
    }
    assert manifest.model_dump().items() >= facts.items()
    assert manifest.trip_month == GREEN


def test_a_manifest_can_be_read_back_from_json_and_from_a_row_of_loads() -> None:
    manifest = manifest_with()
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    row = manifest.row()
    assert list(row) == [column.name for column in LOADS_COLUMNS]
    assert row["columns"] == '["VendorID", "Trip, type"]'
    assert Manifest.from_row(row) == manifest


def test_a_packed_manifest_leaves_out_the_profile_then_the_new_columns_if_there_is_no_room() -> None:
    months = Profile(elsewhere={f"{year}-{n:02d}": year * n**5 for year in range(1990, 2030) for n in range(1, 13)})
    names = tuple(hashlib.sha256(bytes([n])).hexdigest() for n in range(200))
    small, foreign = manifest_with(), manifest_with(profile=months, new_columns=names[:2])
    assert Manifest.unpacked(small.packed(3072)) == small
    assert Manifest.unpacked(foreign.packed(100_000)) == foreign
    assert Manifest.unpacked(foreign.packed(3072)) == foreign.model_copy(update={"profile": Profile()})
    wide = foreign.model_copy(update={"new_columns": names})
    packed = wide.packed(3072)
    assert len(packed) <= 3072
    assert Manifest.unpacked(packed) == wide.model_copy(update={"profile": Profile(), "new_columns": names[:1]})
    assert Manifest.unpacked(wide.packed(10)) is None


@given(
    st.dictionaries(st.text("ab':\"\\,{} é", max_size=8), st.integers(0, 10**12), max_size=4),
    st.lists(st.text("ab'\"\\, ", max_size=8), max_size=4),
    st.one_of(st.none(), st.text('ab"/W-', max_size=8)),
)
def test_any_reason_and_any_name_can_be_read_back_from_a_row(
    counts: dict[str, int], names: list[str], etag: str | None
) -> None:
    manifest = manifest_with(quarantined=counts, filtered=counts, columns=tuple(names), etag=etag)
    assert Manifest.from_row(manifest.row()) == manifest


def test_every_column_of_loads_is_a_field_of_the_manifest() -> None:
    assert {column.name for column in LOADS_COLUMNS} <= set(Manifest.model_fields)


def published(**changes: Any) -> PublishedFile:
    return PUBLISHED.model_copy(update=changes)


@pytest.mark.parametrize(
    ("file", "rule", "covered"),
    [
        (published(), "all", True),
        (published(last_modified="Tue"), "all", True),
        (published(size=None), "all", True),
        (published(), "with_passengers", False),
        (published(etag='"b"'), "all", True),  # another server at the same address
        (published(etag='"b"', last_modified="Tue"), "all", False),
        (published(etag=None), "all", True),
        (published(etag=None, last_modified="Tue"), "all", False),
        (published(size=71), "all", False),
        (published(url="http://h/y.csv"), "all", False),
    ],
)
def test_a_manifest_covers_the_same_edition_of_the_same_file_with_the_same_rule(
    file: PublishedFile, rule: Rows, covered: bool
) -> None:
    assert manifest_with().covers(file, rule) is covered


def test_a_source_without_etag_and_date_is_never_covered() -> None:
    silent = {"etag": None, "last_modified": None}
    assert not manifest_with(**silent).covers(published(**silent), "all")


@pytest.mark.parametrize(
    ("raw", "rule", "holds"),
    [
        (RAW, "all", True),
        (RAW.model_copy(update={"published": published(etag=None, url="http://h/y.csv")}), "all", True),
        (RAW, "with_passengers", False),
        (RAW.model_copy(update={"sha256": "cd" * 32}), "all", False),
    ],
)
def test_a_store_has_a_month_if_it_has_its_bytes(raw: RawFile, rule: Rows, holds: bool) -> None:
    assert manifest_with().has_bytes(raw, rule) is holds


def test_a_manifest_of_an_older_schema_does_not_count() -> None:
    old = manifest_with(schema_version=SCHEMA_VERSION - 1)
    assert not old.covers(PUBLISHED, "all")
    assert not old.has_bytes(RAW, "all")


def test_the_manifest_gets_the_new_etag_and_date_of_an_unchanged_file() -> None:
    touched = published(etag='"b"', last_modified="Tue", url="http://h/y.csv")
    seen = manifest_with().seen_at(RAW.model_copy(update={"published": touched}))
    assert seen.covers(touched, "all")
    assert seen.model_dump(exclude={"url", "etag", "last_modified"}) == manifest_with().model_dump(
        exclude={"url", "etag", "last_modified", "published_at"}
    ) | {"published_at": seen.published_at}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"url": "elsewhere", "flow_run_id": "run-2"}, True),
        ({"generation": 9, "replaces": 4}, True),
        ({"generation": 9, "replaces": 4, "updated": 1}, False),
        ({"generation": 9, "replaces": 3}, False),
        ({"sha256": "cd" * 32}, False),
        ({"rule": "with_passengers"}, False),
        ({"schema_version": 0}, False),
    ],
)
def test_a_store_has_the_lakes_rows_unless_the_lakes_object_has_changed(changes: dict[str, Any], same: bool) -> None:
    assert manifest_with().same_rows(manifest_with(**changes)) is same


def test_an_outcome_is_printed_as_one_readable_line() -> None:
    assert str(Outcome(store="lake", status="loaded", manifest=manifest_with())) == (
        "green 2021-01: loaded; 500 rows published, 490 in the lake, 7 left out (zero_passengers), 3 quarantined (not CSV)"
    )
    replaced = Outcome(
        store="database", status="replaced", manifest=manifest_with(loaded=1_234_567, inserted=1, updated=2_000)
    )
    assert str(replaced).startswith("green 2021-01: replaced; 500 rows published, 1,234,567 in the database")
    assert str(replaced).endswith("1 inserted, 2,000 updated, 0 removed")


def test_a_manifest_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        manifest_with().loaded = 0


def test_a_checkout_that_is_not_installed_has_the_version_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(manifests, "version", lambda _: "1.2.3")
    assert package_version() == "1.2.3"
    monkeypatch.setattr(manifests, "version", missing)
    assert package_version() == "unknown"


def test_the_rows_of_several_months_are_summed_for_each_store() -> None:
    whole = Outcome(store="lake", status="loaded", manifest=manifest_with(source_rows=7_019_375, loaded=7_019_375))
    other = Outcome(store="lake", status="unchanged", manifest=manifest_with(source_rows=7_832_545, loaded=7_832_545))
    less = Outcome(store="database", status="loaded", manifest=manifest_with(source_rows=1_500, loaded=1_490))
    assert total([whole, other]) == "14,851,920 rows in 2 months"
    assert total([whole]) == "7,019,375 rows in 1 month"
    assert total([less, less]) == "3,000 rows published, 2,980 in the database, in 2 months"
    assert total([whole, less]) == (
        "7,019,375 rows in 1 month in the lake; 1,500 rows published, 1,490 in the database, in 1 month"
    )
