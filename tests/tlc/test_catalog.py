"""Which months there are, and how a store's stands to its source's."""

import datetime as dt
import math

import pytest

from flows.connectors.known import known_file
from flows.tlc.catalog import Found, Held, Store, entry_of, known_files, months_ago, months_between, standing
from flows.tlc.errors import NotPublished, UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import TEMPLATES, PublishedFile
from flows.tlc.trips import TripMonth

TODAY = dt.date(2024, 3, 9)
MONTH = TripMonth("green", 2020, 1)
URL = MONTH.url(TEMPLATES["official"])
NOW = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
PUBLISHED = PublishedFile(
    trip_month=MONTH, url=URL, ending=".parquet", etag='"a"', last_modified="Mon, 1 Jan 2024 00:00:00 GMT", size=100
)
MANIFEST = Manifest(
    color="green", file_month=MONTH.file_month, url=URL, etag='"a"', last_modified=PUBLISHED.last_modified, size=100,
    sha256="0" * 64, era="any", columns=(), rule="all", source_rows=10, loaded=10, filtered={}, quarantined={},
    schema_version=SCHEMA_VERSION, package_version="1", flow_run_id="", started_at=NOW, published_at=NOW,
)  # fmt: skip


def test_a_range_of_months_begins_with_each_colors_first_and_is_in_order_of_time():
    assert list(map(str, months_between(["green", "yellow"], "2013-07", "2013-09", TODAY))) == [
        "yellow 2013-07", "green 2013-08", "yellow 2013-08", "green 2013-09", "yellow 2013-09",
    ]  # fmt: skip


def test_a_year_is_a_bound_as_a_whole_and_no_range_goes_beyond_today():
    assert len(months_between(["yellow"], "2019", "2020", TODAY)) == 24
    assert str(months_between(["yellow"], "2024", "2030", TODAY)[-1]) == "yellow 2024-03"
    assert str(months_between(["fhv"], "", "", TODAY)[0]) == "fhv 2015-01"


@pytest.mark.parametrize("bound", ["2019/01", "19-01", "2019-13", "last year"])
def test_a_bound_that_is_no_month_is_refused_with_an_example(bound: str):
    with pytest.raises(UnknownMonth, match="such as 2019-01"):
        months_between(["yellow"], bound, "", TODAY)


def test_a_range_without_a_month_is_refused():
    with pytest.raises(UnknownMonth, match="2030-01 to 2024-03"):
        months_between(["yellow"], "2030", "", TODAY)


def test_months_ago_counts_across_years():
    assert (months_ago(0, TODAY), months_ago(3, TODAY), months_ago(24, TODAY)) == ("2024-03", "2023-12", "2022-03")


@pytest.mark.parametrize(
    ("published", "held", "wanted"),
    [
        ({}, None, "new"),
        ({}, {}, "unchanged"),
        ({"etag": '"b"'}, {}, "re-published"),
        ({"size": 101}, {}, "re-published"),
        ({"size": None}, {}, "unchanged"),
        ({"etag": None}, {}, "unchanged"),
        ({"etag": None, "last_modified": "Tue, 2 Jan 2024 00:00:00 GMT"}, {}, "re-published"),
        ({"etag": None, "last_modified": None}, {}, "unchanged"),
        ({"etag": '"b"'}, {"url": "https://elsewhere/x.csv"}, "other source"),
        ({}, {"url": "https://elsewhere/x.parquet"}, "unchanged"),
        ({}, {"schema_version": 0}, "unchanged"),
        (None, {}, "gone"),
        (None, {"url": "https://elsewhere/x.csv"}, "not published"),
        (None, None, "not published"),
    ],
)
def test_a_month_stands_to_its_source_by_version_time_and_size(published, held, wanted):
    there = None if published is None else PUBLISHED.model_copy(update=published)
    here = None if held is None else MANIFEST.model_copy(update=held)
    assert standing(URL, there, here) == wanted


OLDER = MANIFEST.model_copy(update={"etag": '"0"', "sha256": "1" * 64})


@pytest.mark.parametrize(
    ("held", "behind"),
    [
        ({"lake": None, "warehouse": None}, ["lake", "warehouse"]),
        ({"lake": MANIFEST, "warehouse": None}, ["warehouse"]),
        ({"lake": MANIFEST, "warehouse": MANIFEST}, []),
        ({"lake": MANIFEST, "warehouse": OLDER}, ["warehouse"]),
        ({"lake": OLDER, "warehouse": OLDER, "database": MANIFEST}, ["lake", "warehouse"]),
        ({"lake": MANIFEST, "warehouse": MANIFEST, "database": OLDER}, ["database"]),
        ({"database": None}, ["database"]),
    ],
)
def test_only_stores_that_lag_are_brought_up_to_date_in_the_order_of_the_way(
    held: dict[Store, Manifest | None], behind: list[Store]
):
    assert Found(MONTH, URL, PUBLISHED, held).behind == behind


def test_a_month_in_the_lake_goes_on_to_the_warehouse_though_its_source_has_it_no_more():
    gone = Found(MONTH, URL, NotPublished("no"), {"lake": MANIFEST, "warehouse": None})
    assert (gone.stands("lake"), gone.behind) == ("gone", ["warehouse"])


def test_a_month_whose_run_died_before_its_end_is_done_again():
    held: dict[Store, Manifest | None] = {"lake": MANIFEST, "warehouse": MANIFEST}
    assert Found(MONTH, URL, PUBLISHED, held, unfinished=True).behind == ["lake"]
    assert Found(MONTH, URL, NotPublished("no"), held, unfinished=True).behind == []


def test_nothing_is_done_about_a_month_whose_source_gave_no_answer():
    lost = Found(MONTH, URL, ConnectionError("down"), {"lake": None, "warehouse": None})
    assert lost.behind == []
    assert isinstance(lost.unanswered, ConnectionError)


def test_the_catalog_tells_what_differs_from_the_source_and_from_what_was_known():
    known = known_files(["# of old", "file,rows,bytes,last_modified", "x.parquet,9,100,2022-07-18T19:25:14Z"])[
        "x.parquet"
    ]
    entry = entry_of(MONTH, Held(MANIFEST, 50), known, PUBLISHED.model_copy(update={"etag": '"b"'}), URL)
    assert entry.differs == ["re-published", "9 rows were known on 2022-07-18"]
    assert entry_of(MONTH, Held(MANIFEST, 50), None, PUBLISHED, URL).differs == []
    assert entry_of(MONTH, None, None, ConnectionError("down"), URL).differs == ["no answer"]
    assert entry_of(MONTH, None, None, None, URL).source is None


def test_the_known_counts_are_of_all_487_files_and_agree_with_those_published():
    assert [known_file(f"http://any/{name}.parquet").rows for name in (
        "green_tripdata_2019-04", "green_tripdata_2020-01", "green_tripdata_2021-01", "yellow_tripdata_2021-01",
    )] == [567_852, 447_770, 76_518, 1_369_769]  # fmt: skip
    every = [
        found
        for month in months_between(["yellow", "green", "fhv", "fhvhv"], "", "2024-05")
        if (found := known_file(month.url(TEMPLATES["official"])))
    ]
    assert len(every) == 487
    assert math.fsum(file.rows for file in every) == 3_693_957_005
    assert known_file(MONTH.url(TEMPLATES["mirror"])) is None


def test_a_count_that_is_not_the_last_known_is_told_in_words():
    assert MANIFEST.recount == ""
    assert MANIFEST.model_copy(update={"known_rows": 10}).recount == ""
    assert MANIFEST.model_copy(update={"known_rows": 12}).recount == "re-published: 10 rows, 12 were last known (-2)"
