"""A month's names come from one class, and months that cannot exist are refused before any work."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc.ask import external_table
from flows.tlc.errors import ImpossibleDataset, UnknownMonth
from flows.tlc.sources import ENDINGS
from flows.tlc.trips import (
    COLORS,
    FIRST_MONTH,
    TripMonth,
    dataset_named,
    edition_key,
    in_words,
    month_named,
    requested_months,
    staged_key,
    temporary_names,
    trip_months,
)

TODAY = dt.date(2024, 5, 20)


def test_all_names_of_a_month_contain_its_color_and_month() -> None:
    month = TripMonth("yellow", 2021, 1)
    assert str(month) == "yellow 2021-01"
    assert month.stem == "yellow_tripdata_2021-01"
    assert month.file_month == dt.date(2021, 1, 1)
    assert month.partition == "202101"
    assert month.postgres_partition == "yellow_2021_01"
    assert month.raw_key(".csv.gz") == "raw/yellow/yellow_tripdata_2021-01.csv.gz"
    assert month.key == "yellow/yellow_tripdata_2021-01.parquet"
    assert month.quarantine_key == "quarantine/yellow/yellow_tripdata_2021-01.parquet"
    assert month.extra_key == "extra/yellow/yellow_tripdata_2021-01.parquet"
    assert month.manifest_key == "manifests/yellow/yellow_tripdata_2021-01.json"
    assert month.url("http://h/{color}/{year}/{month:02d}.csv") == "http://h/yellow/2021/01.csv"


def test_the_month_before_january_is_december_and_the_first_month_has_none_before() -> None:
    assert TripMonth("green", 2021, 1).previous == TripMonth("green", 2020, 12)
    assert TripMonth("green", 2020, 12).previous == TripMonth("green", 2020, 11)
    assert TripMonth("green", 2013, 8).previous is None


@given(
    st.sets(st.tuples(st.sampled_from(COLORS), st.integers(2020, 2100), st.integers(1, 12)), min_size=2, max_size=2),
)
def test_no_two_months_share_a_name(two: set[tuple[str, int, int]]) -> None:
    one, other = (TripMonth(*month) for month in two)
    for name in ("stem", "key", "quarantine_key", "extra_key", "manifest_key", "postgres_partition"):
        assert getattr(one, name) != getattr(other, name)


@pytest.mark.parametrize(
    ("color", "year", "months", "message"),
    [
        ("purple", 2021, [1], f"color 'purple' is unknown; use one of {', '.join(COLORS)}."),
        ("Yellow", 2021, [1], "color 'Yellow' is unknown"),
        ("yellow", 2021, [], "months is empty; name at least one, such as [1, 2, 3]."),
        ("yellow", 2021, [0, 13], "month 0 does not exist; months are 1 to 12. month 13 does not exist"),
        ("yellow", 2021, [1, -1, 2], "month -1 does not exist"),
        ("yellow", 2008, [12], "yellow 2008-12: TLC's yellow files begin with 2009-01."),
        ("green", 2013, [7, 8], "green 2013-07: TLC's green files begin with 2013-08."),
        ("fhv", 2014, [12], "begin with 2015-01."),
        ("fhvhv", 2019, [1], "begin with 2019-02."),
        ("yellow", 0, [1], "begin with 2009-01."),
        ("yellow", -2021, [1], "begin with 2009-01."),
        ("yellow", 2024, [5, 6], "yellow 2024-06 is in the future."),
        ("yellow", 2101, [1], "yellow 2101-01 is in the future."),
        ("yellow", 10_000, [1], "yellow 10000-01 is in the future."),
    ],
)
def test_all_months_are_refused_if_one_cannot_exist(color: str, year: int, months: list[int], message: str) -> None:
    with pytest.raises(UnknownMonth) as refused:
        trip_months(color, year, months, today=TODAY)
    assert message in str(refused.value)
    assert not months or "Nothing was started." in str(refused.value)


def test_a_reason_that_applies_to_all_months_is_given_once() -> None:
    with pytest.raises(UnknownMonth) as refused:
        trip_months("purple", 2021, [1, 2, 3])
    assert str(refused.value).count("purple") == 1


def test_months_keep_their_order_without_repeats() -> None:
    assert [m.month for m in trip_months("green", 2021, [3, 1, 3, 2, 1])] == [3, 1, 2]


def test_the_present_month_is_accepted_and_the_next_one_is_refused() -> None:
    assert trip_months("yellow", 2024, [5], today=TODAY) == [TripMonth("yellow", 2024, 5)]
    now = dt.datetime.now(dt.UTC).date()
    with pytest.raises(UnknownMonth, match="future"):
        trip_months("yellow", now.year + 1, [1])


@pytest.mark.parametrize("color", COLORS)
def test_the_first_month_of_each_color_is_accepted(color: str) -> None:
    assert TripMonth(color, *FIRST_MONTH[color]).file_month == dt.date(*FIRST_MONTH[color], 1)


@pytest.mark.parametrize("name", ["trips_data_all", "2021", "x" * 1024])
def test_a_dataset_may_have_any_name_that_bigquery_allows(name: str) -> None:
    assert dataset_named(name) == name


@pytest.mark.parametrize("name", ["", "a b", "my-dataset", "x" * 1025, "a\n", "a`; DROP TABLE b.loads; --", "é"])
def test_an_invalid_dataset_name_is_refused_before_it_is_part_of_sql(name: str) -> None:
    for refuses in (dataset_named, lambda name: external_table("green", name, "gs://lake/")):
        with pytest.raises(
            ImpossibleDataset, match="not a valid BigQuery dataset name: use letters, digits and underscores"
        ):
            refuses(name)


def asked(*given: object, color: str = "green") -> list[str]:
    return [f"{m.file_month:%Y-%m}" for m in requested_months(color, *given, today=TODAY)]  # type: ignore[arg-type]


def test_a_range_has_every_month_from_since_to_until_the_oldest_first() -> None:
    assert asked(None, None, "2020-11", "2021-02") == ["2020-11", "2020-12", "2021-01", "2021-02"]
    assert asked(None, None, "2021-02", "2021-02") == asked(2021, [2], "", "") == ["2021-02"]
    assert asked(None, None, " 2019-1", "2019-02 ") == ["2019-01", "2019-02"]
    assert len(asked(None, None, "2019", "2020")) == 24


def test_a_year_as_a_bound_means_only_its_existing_months() -> None:
    assert asked(None, None, "2013", "2013") == ["2013-08", "2013-09", "2013-10", "2013-11", "2013-12"]
    assert asked(None, None, "2009", "2013-08") == ["2013-08"]
    assert asked(None, None, "2024-04", "2024") == ["2024-04", "2024-05"]


def test_a_range_overrides_year_and_months() -> None:
    assert asked(2021, [1, 2, 3], "2019-02", "2019-03") == ["2019-02", "2019-03"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None, "", ""), "no month is named; give a year and months, such as 2021 and [1, 2, 3], or since and until"),
        ((None, [], "", ""), "no month is named"),
        ((2021, None, "", ""), "months is empty; name at least one"),
        ((2021, [], "", ""), "months is empty; name at least one"),
        ((None, [1], "", ""), "year is missing; give it with months"),
        ((None, None, "2019-02", ""), "until is missing; give the last month too, such as --until 2019-02"),
        ((2021, [1], "2019-02", ""), "until is missing"),
        ((None, None, "", "2019-02"), "until is 2019-02, and since is missing"),
        ((None, None, "2019-03", "2019-02"), "until (2019-02) is before since (2019-03)"),
        ((None, None, "2020", "2019"), "until (2019) is before since (2020)"),
        ((None, None, "2019-13", "2020-01"), "since is '2019-13'; give a month, such as 2019-01, or a year"),
        ((None, None, "2019-01", "March"), "until is 'March'; give a month"),
        ((None, None, "2013-07", "2014-01"), "green 2013-07: TLC's green files begin with 2013-08."),
        ((None, None, "2024-01", "2024-06"), "green 2024-06 is in the future."),
        ((None, None, "2010", "2012"), "green has no month from 2010 to 2012: TLC's green files begin with 2013-08"),
        ((None, None, "2025", "2030"), "green has no month from 2025 to 2030"),
    ],
)  # fmt: skip
def test_the_error_for_missing_or_invalid_months_gives_advice(given: tuple[object, ...], message: str) -> None:
    with pytest.raises(UnknownMonth) as refused:
        asked(*given)
    assert message in str(refused.value)


def test_an_unknown_color_is_refused_for_a_range_too() -> None:
    with pytest.raises(UnknownMonth, match="color 'purple' is unknown"):
        asked(None, None, "2019", "2020", color="purple")


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        ("2021-01", "2021-01", "green 2021-01"),
        ("2021-01", "2021-02", "green 2021-01, 2021-02"),
        ("2020-12", "2021-02", "green 2020-12 to 2021-02"),
    ],
)
def test_months_are_described_in_few_words(since: str, until: str, words: str) -> None:
    assert in_words(requested_months("green", None, None, since, until)) == words
    assert in_words(requested_months("green", 2021, [3, 1, 2], "", "")) == "green 2021-03, 2021-01, 2021-02"


def test_a_printed_month_can_be_parsed():
    assert month_named(" green 2021-01 ") == TripMonth("green", 2021, 1)
    for text in ("green", "green 2021", "gren 2021-01", "green 2021-13", "green 2012-01"):
        with pytest.raises(UnknownMonth):
            month_named(text)


def test_the_key_of_an_edition_is_next_to_the_published_file():
    key = edition_key(TripMonth("green", 2021, 1).raw_key(".csv.gz"), "0123456789abcdef")
    assert key == "raw/green/editions/green_tripdata_2021-01-0123456789ab.csv.gz"


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("run", ["01234567-89ab-cdef-0123-456789abcdef", "0123456789abcdef" * 2, "local"])
def test_every_key_that_is_made_for_a_run_is_temporary_and_no_other_is(color: str, run: str) -> None:
    month, names = TripMonth(color, 2021, 1), temporary_names(ENDINGS)
    published = [month.key, month.quarantine_key, month.extra_key, *map(month.raw_key, ENDINGS)]
    made = [month.results_key.replace("{flow_run.id}", run), *(staged_key(key, run) for key in published)]
    assert all(map(names.fullmatch, made))
    lasting = [*published, month.manifest_key, month.history_key("1"), edition_key(month.raw_key(".csv"), "a" * 64)]
    foreign = [staged_key(month.key, "final"), staged_key(month.raw_key(".txt"), run)]
    changed = [
        key for text in made for key in (f"{text}.bak", f"{text}\n", f"other/{text}", text.replace("trip", "model"))
    ]
    assert not any(map(names.fullmatch, [*lasting, *foreign, *changed]))
