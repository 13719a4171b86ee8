"""Whatever a parameter is, the names made from it for SQL, addresses, keys and shells are plain, or the run is refused."""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.stores.origins import origin_of
from flows.tasks import stores
from flows.tlc.ask import external_table
from flows.tlc.errors import MisconfiguredBlock, TripDataError
from flows.tlc.sources import Source
from flows.tlc.trips import (
    COLORS,
    Terms,
    TripMonth,
    bound_of,
    dataset_named,
    edition_key,
    month_named,
    staged_key,
)

_NASTY = ["'", '"', "`", ";", "--", "/*", "\\", "$(id)", "${HOME}", "|", "&", "\n", "\x00", "../", "%2e%2e/", "%00", "{0}",
          "{x.y}", "@", "#", "?", " ", "\u202e", "ａ", "１", "é", "\ud7ff", "<b>", "=1+1", "DROP TABLE yellow"]  # fmt: skip
_PLAIN = ["yellow", "green 2021-01", "2021-01", "trips_data_all", "a" * 12, "0123456789abcdef", "ny-taxi-gcs",
          "https://h.example/{year}-{month:02d}.csv"]  # fmt: skip
hostile = st.lists(st.sampled_from(_NASTY + _PLAIN) | st.text(max_size=20), min_size=1, max_size=4).map("".join)

_NAME = re.compile(r"[A-Za-z0-9_]+")
_KEY = re.compile(r"[a-z0-9_]+(?:/[a-z0-9_.-]+)+")


def names_of(month: TripMonth) -> None:
    """Require that every name of a month is plain."""
    assert month.color in COLORS
    assert _NAME.fullmatch(month.postgres_partition)
    assert re.fullmatch(r"\d{6}", month.partition)
    keys = [month.key, month.quarantine_key, month.extra_key, month.manifest_key, month.raw_key(".csv.gz")]
    keys += [month.history_key("1"), staged_key(month.key, "run"), edition_key(month.raw_key(".csv"), "f" * 64)]
    assert all(_KEY.fullmatch(key) and ".." not in key for key in keys)


@given(hostile, st.integers(-(10**6), 10**6), st.integers(-100, 100))
def test_a_months_names_are_plain_or_the_month_does_not_exist(color: str, year: int, month: int) -> None:
    for given_color in (color, "green"):
        try:
            made = TripMonth(given_color, year, month)
        except TripDataError:
            continue
        names_of(made)


@given(hostile)
def test_a_text_names_a_month_or_a_bound_of_plain_numbers_or_is_refused(text: str) -> None:
    for parse in (lambda: names_of(month_named(text)), lambda: bound_of("since", text, 1)):
        try:
            parse()
        except TripDataError:
            continue


@given(hostile)
def test_a_dataset_is_letters_digits_and_underscores_or_is_refused(text: str) -> None:
    _plain_or_refused(dataset_named, text, _NAME)
    try:
        statement = external_table("green", text, "gs://bucket/data/")
    except TripDataError:
        return
    assert statement.count("`") % 2 == 0
    assert statement.startswith(f"CREATE OR REPLACE EXTERNAL TABLE `{text}.green_in_lake` (")


@pytest.mark.slow
@given(hostile)
def test_an_edition_is_hexadecimal_or_is_refused(text: str) -> None:
    def name(edition: str) -> str:
        origin = origin_of("official", edition, Terms(), [TripMonth("green", 2021, 1)])
        return str(getattr(origin, "name", ""))

    _plain_or_refused(name, text, re.compile("([0-9a-f]{12,64})?"))


@given(hostile)
def test_a_template_leads_to_one_host_or_is_refused(text: str) -> None:
    try:
        source = Source(text)
    except TripDataError:
        return
    urls = {urlsplit(source.url(TripMonth("green", 2021, month))) for month in (1, 2)}
    assert len(urls) == 2
    assert {(url.scheme, url.netloc) for url in urls} == {urlsplit(source.template)[:2]}


@given(hostile)
def test_a_block_name_is_letters_digits_and_dashes_or_no_request_is_made(text: str) -> None:
    asked: list[str] = []

    class Kind:
        @staticmethod
        def load(name: str) -> str:
            asked.append(name)
            return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "resolve_name", lambda path: Kind)
        try:
            stores.load_block("gcs-bucket", text)
        except MisconfiguredBlock:
            assert asked == []
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in asked)


def _plain_or_refused(make: Callable[[str], str], text: str, plain: re.Pattern[str]) -> None:
    try:
        made = make(text)
    except TripDataError:
        return
    assert plain.fullmatch(made)
