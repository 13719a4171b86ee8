"""The months of a range, and the comparison of a store's month with its source."""

import datetime as dt
import math

import pytest

from flows.connectors.known_months import known_file, known_publication, last_known_rows
from flows.tlc.catalog import (
    Found,
    ListedMonth,
    Store,
    entry_of,
    known_files,
    months_ago,
    months_between,
    months_since,
    overdue,
    sync_status,
)
from flows.tlc.errors import NotPublished, UnknownMonth
from flows.tlc.manifest import Manifest, RawFile
from flows.tlc.schema import SCHEMA_VERSION
from flows.tlc.sources import TEMPLATES, PublishedFile
from flows.tlc.trips import COLORS, TripMonth

TODAY = dt.date(2024, 3, 9)
MONTH = TripMonth("green", 2020, 1)
URL = MONTH.url(TEMPLATES["official"])
LATER = "Tue, 2 Jan 2024 00:00:00 GMT"
NOW = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
PUBLISHED = PublishedFile(
    trip_month=MONTH, url=URL, ending=".parquet", etag='"a"', last_modified="Mon, 1 Jan 2024 00:00:00 GMT", size=100
)
MANIFEST = Manifest(
    color="green", file_month=MONTH.file_month, url=URL, etag='"a"', last_modified=PUBLISHED.last_modified, size=100,
    sha256="0" * 64, era="any", columns=(), rule="all", source_rows=10, loaded=10, filtered={}, quarantined={},
    schema_version=SCHEMA_VERSION, package_version="1", flow_run_id="", started_at=NOW, published_at=NOW,
)  # fmt: skip


def test_a_range_is_ordered_by_time_and_begins_with_each_colors_first_month():
    assert list(map(str, months_between(["green", "yellow"], "2013-07", "2013-09", TODAY))) == [
        "yellow 2013-07", "green 2013-08", "yellow 2013-08", "green 2013-09", "yellow 2013-09",
    ]  # fmt: skip


def test_a_year_as_a_bound_means_the_whole_year_up_to_today():
    assert len(months_between(["yellow"], "2019", "2020", TODAY)) == 24
    assert str(months_between(["yellow"], "2024", "2030", TODAY)[-1]) == "yellow 2024-03"
    assert str(months_between(["fhv"], "", "", TODAY)[0]) == "fhv 2015-01"


@pytest.mark.parametrize("bound", ["2019/01", "19-01", "2019-13", "last year"])
def test_the_error_for_an_invalid_bound_gives_an_example(bound: str):
    with pytest.raises(UnknownMonth, match="such as 2019-01"):
        months_between(["yellow"], bound, "", TODAY)


def test_a_range_without_a_month_is_refused():
    for until in ("", "2031"):
        with pytest.raises(UnknownMonth, match=r"^since \(2030\) is in the future\.$"):
            months_between(["yellow"], "2030", until, TODAY)
    with pytest.raises(UnknownMonth, match=r"^until \(2021\) is before since \(2022\); give an earlier since or "):
        months_between(["yellow"], "2022", "2021", TODAY)
    with pytest.raises(UnknownMonth, match=r"^until \(2008\) is before since \(2009-01\); give an earlier"):
        months_between(["yellow"], "", "2008", TODAY)
    with pytest.raises(UnknownMonth, match=r"no month up to 2009-02: .* begin with green 2013-08, fhvhv 2019-02"):
        months_between(["green", "fhvhv"], "2008-01", "2009-02", TODAY)


def test_months_since_counts_across_years():
    assert [months_since(TripMonth("green", *month), TODAY) for month in ((2024, 3), (2023, 12), (2022, 3))] == [
        0,
        3,
        24,
    ]


def test_months_ago_counts_across_years():
    assert (months_ago(0, TODAY), months_ago(3, TODAY), months_ago(24, TODAY)) == ("2024-03", "2023-12", "2022-03")


@pytest.mark.parametrize(
    ("published", "stored", "expected"),
    [
        ({}, None, "new"),
        ({}, {}, "unchanged"),
        ({"etag": '"b"', "last_modified": LATER}, {}, "re-published"),
        ({"etag": '"b"'}, {}, "unchanged"),
        ({"etag": 'W/"a"'}, {}, "unchanged"),
        ({"size": 101}, {}, "re-published"),
        ({"size": None}, {}, "unchanged"),
        ({"etag": None}, {}, "unchanged"),
        ({"etag": None, "last_modified": LATER}, {}, "re-published"),
        ({"etag": None, "last_modified": None}, {}, "unchanged"),
        ({"etag": '"b"', "last_modified": LATER}, {"url": "https://elsewhere/x.csv"}, "other source"),
        ({}, {"url": "https://elsewhere/x.parquet"}, "unchanged"),
        ({}, {"schema_version": 0}, "unchanged"),
        (None, {}, "gone"),
        (None, {"url": "https://elsewhere/x.csv"}, "not published"),
        (None, None, "not published"),
    ],
)
def test_the_sync_status_depends_on_etag_time_and_size(published, stored, expected):
    at_source = None if published is None else PUBLISHED.model_copy(update=published)
    in_store = None if stored is None else MANIFEST.model_copy(update=stored)
    assert sync_status(URL, at_source, in_store) == expected


OLDER = MANIFEST.model_copy(
    update={"etag": '"0"', "last_modified": "Sun, 31 Dec 2023 00:00:00 GMT", "sha256": "1" * 64}
)


@pytest.mark.parametrize(
    ("stored", "behind"),
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
def test_only_stores_that_are_behind_are_updated_the_lake_first(
    stored: dict[Store, Manifest | None], behind: list[Store]
):
    assert Found(MONTH, URL, PUBLISHED, stored).behind == behind


def test_the_warehouse_gets_a_month_from_the_lake_even_if_the_source_removed_it():
    gone = Found(MONTH, URL, NotPublished("no"), {"lake": MANIFEST, "warehouse": None})
    assert (gone.status("lake"), gone.behind) == ("gone", ["warehouse"])


def test_a_month_whose_run_did_not_finish_is_loaded_again():
    stored: dict[Store, Manifest | None] = {"lake": MANIFEST, "warehouse": MANIFEST}
    assert Found(MONTH, URL, PUBLISHED, stored, unfinished=True).behind == ["lake"]
    assert Found(MONTH, URL, NotPublished("no"), stored, unfinished=True).behind == []


def test_a_month_whose_source_did_not_answer_is_not_loaded():
    lost = Found(MONTH, URL, ConnectionError("down"), {"lake": None, "warehouse": None})
    assert lost.behind == []
    assert isinstance(lost.unanswered, ConnectionError)


def test_the_catalog_shows_differences_from_the_source_and_from_the_known_counts():
    known = known_files(["# of old", "file,rows,bytes,last_modified", "x.parquet,9,100,2022-07-18T19:25:14Z"])[
        "x.parquet"
    ]
    entry = entry_of(
        MONTH,
        ListedMonth(MANIFEST, 50),
        known,
        PUBLISHED.model_copy(update={"etag": '"b"', "last_modified": LATER}),
        URL,
    )
    assert entry.differs == ["re-published", "9 rows were known on 2022-07-18"]
    assert entry_of(MONTH, ListedMonth(MANIFEST, 50), None, PUBLISHED, URL).differs == []
    assert entry_of(MONTH, None, None, ConnectionError("down"), URL).differs == ["no answer"]
    assert entry_of(MONTH, None, None, None, URL).source is None


def test_the_known_counts_cover_all_487_files_and_agree_with_the_published_ones():
    assert [known_file(month.url(TEMPLATES["official"])).rows for month in (
        TripMonth("green", 2019, 4), TripMonth("green", 2020, 1), TripMonth("green", 2021, 1), TripMonth("yellow", 2021, 1),
    )] == [567_852, 447_770, 76_518, 1_369_769]  # fmt: skip
    every = [
        found
        for month in months_between(COLORS, "", "2024-05")
        if (found := known_file(month.url(TEMPLATES["official"])))
    ]
    assert len(every) == 487
    assert math.fsum(file.rows for file in every) == 3_693_957_005


@pytest.mark.parametrize(
    "url",
    [MONTH.url(TEMPLATES["mirror"]), f"http://127.0.0.1/trip-data/{MONTH.stem}.parquet", f"{URL}?copy=1", f"{URL}x"],
)
def test_the_known_counts_apply_only_to_tlcs_own_files(url: str):
    assert known_file(url) is None


def test_a_month_is_known_to_be_published_from_tlcs_counts_or_the_mirrors_range():
    assert known_publication(MONTH, URL) == "447,770 rows on 2022-06-30"
    mirror = TEMPLATES["mirror"]
    known = [m for m in months_between(COLORS, "2018", "2022") if known_publication(m, m.url(mirror))]
    assert (str(known[0]), str(known[-1]), len(known)) == ("yellow 2019-01", "fhvhv 2021-07", 4 * 31 - 1)
    assert known_publication(MONTH, "http://h/x.parquet") == ""


FORBIDDEN = NotPublished("no", 403)
WITHDRAWN = MANIFEST.model_copy(update={"withdrawn_at": NOW})
PINNED = MANIFEST.model_copy(update={"pinned": "0123456789ab"})


@pytest.mark.parametrize(
    ("answer", "stored", "known", "words"),
    [
        (FORBIDDEN, {}, "", None),
        (FORBIDDEN, {"lake": None}, "", None),
        (FORBIDDEN, {"lake": MANIFEST.model_copy(update={"url": "https://elsewhere/x.parquet"})}, "", None),
        (FORBIDDEN, {"lake": MANIFEST}, "", "(10 rows in the lake, 2024-01-01), but https://"),
        (
            NotPublished("no", 410),
            {"database": MANIFEST},
            "",
            "answered HTTP 410: a proxy or firewall may be blocking this",
        ),
        (
            FORBIDDEN,
            {"lake": None},
            "9 rows on 2022-07-18",
            "green 2020-01 was published before (9 rows on 2022-07-18)",
        ),
        (NotPublished("no"), {"lake": MANIFEST}, "", f"but there is no file at {URL}: it was moved or deleted"),
        (PUBLISHED, {"lake": MANIFEST}, "9 rows", None),
        (FORBIDDEN, {"lake": WITHDRAWN, "warehouse": WITHDRAWN}, "9 rows", None),
        (FORBIDDEN, {"lake": WITHDRAWN, "database": None}, "9 rows", None),
        (FORBIDDEN, {"lake": PINNED, "warehouse": MANIFEST, "database": PINNED}, "9 rows", None),
        (FORBIDDEN, {"lake": WITHDRAWN, "database": PINNED}, "9 rows", None),
        (FORBIDDEN, {"lake": PINNED, "database": MANIFEST}, "9 rows", "10 rows in the database, 2024-01-01; 9 rows)"),
        (FORBIDDEN, {"lake": PINNED, "database": None}, "9 rows", "green 2020-01 was published before"),
        (FORBIDDEN, {"lake": None, "database": PINNED}, "9 rows", "green 2020-01 was published before"),
        (FORBIDDEN, {"lake": PINNED.model_copy(update={"fault": "1 row"})}, "9 rows", None),
        (ConnectionError("down"), {"lake": PINNED}, "9 rows", "down"),
        (
            FORBIDDEN,
            {"lake": WITHDRAWN, "database": MANIFEST},
            "9 rows",
            "(10 rows in the database, 2024-01-01; 9 rows)",
        ),
    ],
)
def test_the_refusal_of_a_published_month_is_an_error(answer, stored, known, words):
    wrong = Found(MONTH, URL, answer, stored, known=known).source_error
    assert (words in str(wrong)) if words else wrong is None


def test_a_damaged_month_that_is_pinned_is_mended_although_its_source_refuses_it():
    damaged = PINNED.model_copy(update={"fault": "1 row is missing"})
    found = Found(MONTH, URL, FORBIDDEN, {"lake": damaged, "database": PINNED})
    assert found.behind == ["lake"]
    assert (found.decided("lake"), found.decided("database")) == (None, "pinned")


@pytest.mark.parametrize(
    ("newest", "since", "within", "words"),
    [
        ("2024-01", "2023", 2, ""),
        ("2024-01", "2023", 1, "green: the newest month published at the site is 2024-01, more than 1 months ago"),
        ("2024-01", "2023", 0, ""),
        ("", "2023", 4, "green: no month since 2023-01 is published at the site"),
        ("", "2023-12", 4, ""),  # no request was sent for 2023-11
        ("", "2023-11", 4, "green: no month since 2023-11"),
    ],
)
def test_a_color_without_a_new_month_is_overdue_if_the_requests_cover_that_time(newest, since, within, words):
    def found(answer_of_others, older=()):
        return [
            Found(
                m, "", PUBLISHED if newest and f"{m.file_month:%Y-%m}" <= newest else answer_of_others, {"lake": None}
            )
            for m in [*older, *months_between(["green"], since, "", TODAY)]
        ]

    message = overdue("green", found(FORBIDDEN), within, "the site", TODAY)
    assert message.startswith(words) if words else message == ""
    assert overdue("yellow", found(FORBIDDEN), within, "the site", TODAY) == ""
    assert overdue("green", found(ConnectionError("down")), within, "the site", TODAY) == ""
    assert overdue("green", found(FORBIDDEN, [TripMonth("green", 2019, 1)]), within, "the site", TODAY)[:5] == words[:5]


def test_the_catalog_marks_a_published_month_that_the_source_refuses():
    assert entry_of(MONTH, None, None, FORBIDDEN, URL, "9 rows on 2022-07-18").differs == ["refused"]
    assert entry_of(MONTH, None, None, FORBIDDEN, URL).differs == []
    for known in ("", "9 rows on 2022-07-18"):
        assert entry_of(MONTH, ListedMonth(MANIFEST, 50), None, FORBIDDEN, URL, known).differs == ["refused"]
        for status in (404, 410, None):  # None: a missing local file
            absent = NotPublished("no", status)
            assert entry_of(MONTH, ListedMonth(MANIFEST, 50), None, absent, URL, known).differs == ["gone"]


def test_the_last_known_rows_are_those_of_the_edition_before_or_the_shipped_ones():
    def rows(known, sha256, url=URL):
        raw = RawFile(published=PUBLISHED.model_copy(update={"url": url}), key="", generation=0, size=1, sha256=sha256)
        return last_known_rows(raw, MANIFEST.model_copy(update={"known_rows": known, "url": url}))

    shipped = known_file(URL).rows
    assert rows(7, "1" * 64) == MANIFEST.source_rows == 10
    assert rows(7, MANIFEST.sha256) == 7
    assert rows(None, MANIFEST.sha256) == shipped > 10
    assert rows(None, MANIFEST.sha256, "https://elsewhere.example/file.parquet") is None
    assert last_known_rows(RawFile(published=PUBLISHED, key="", generation=0, size=1, sha256=""), None) == shipped


def test_a_changed_row_count_is_described_in_words():
    assert MANIFEST.recount == ""
    assert MANIFEST.model_copy(update={"known_rows": 10}).recount == ""
    assert MANIFEST.model_copy(update={"known_rows": 12}).recount == "re-published: 10 rows, 12 were last known (-2)"


def test_a_pinned_or_withdrawn_month_is_not_behind_and_bigquery_follows_a_pinned_lake():
    other = PUBLISHED.model_copy(update={"etag": '"b"', "size": 101})
    pinned = MANIFEST.model_copy(update={"pinned": "1" * 12, "sha256": "1" * 64})
    gone = MANIFEST.withdrawn("run")
    assert (gone.removed, gone.flow_run_id, gone.published_at) == (10, "run", gone.withdrawn_at)

    def found(**manifests: Manifest | None) -> Found:
        return Found(MONTH, URL, other, manifests, unfinished="lake" in manifests)  # type: ignore[arg-type]

    assert found(lake=MANIFEST).behind == ["lake"]
    assert (found(lake=pinned).status("lake"), found(lake=pinned).behind) == ("pinned", [])
    assert Found(MONTH, URL, PUBLISHED, {"lake": pinned}).status("lake") == "unchanged"
    assert (found(database=gone).status("database"), found(database=gone).behind) == ("withdrawn", [])
    assert found(lake=pinned, warehouse=MANIFEST).behind == ["warehouse"]
    assert found(lake=MANIFEST, warehouse=gone).behind == ["lake"]
    assert found(lake=gone, warehouse=MANIFEST).behind == []
    assert found(lake=gone, warehouse=None).status("warehouse") == "withdrawn"


def test_a_withdrawn_month_has_no_fault_any_more():
    damaged = MANIFEST.model_copy(update={"fault": "a row is missing"})
    assert damaged.withdrawn("").fault == ""


def test_the_catalog_marks_a_withdrawn_month_and_does_not_list_it():
    entry = entry_of(MONTH, ListedMonth(MANIFEST.withdrawn("run"), 0), None, None, URL)
    assert entry.listed is None
    assert entry.differs == [f"withdrawn on {dt.datetime.now(dt.UTC):%Y-%m-%d}"]
    pinned = ListedMonth(MANIFEST.model_copy(update={"pinned": "0" * 12}), 1)
    assert entry_of(MONTH, pinned, None, None, URL).differs == ["pinned to edition 000000000000"]
