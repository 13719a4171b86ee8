"""A source is a word or a URL template; a bad one is refused in words, and a good one cannot be made to say more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.connectors.web import source_of
from flows.tlc.errors import UnknownMonth
from flows.tlc.sources import PublishedFile, Source
from flows.tlc.trips import TripMonth

MONTH = TripMonth("green", 2021, 2)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLC_OFFICIAL_URL", "TLC_MIRROR_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("source", "url", "ending"),
    [
        (
            "official",
            "https://d37ci6vzurychx.cloudfront.net/trip-data/green_tripdata_2021-02.parquet",
            ".parquet",
        ),
        (
            "mirror",
            "https://github.com/DataTalksClub/nyc-tlc-data/releases/download/green/green_tripdata_2021-02.csv.gz",
            ".csv.gz",
        ),
        ("http://h:1/{color}_{year}-{month:02d}.csv", "http://h:1/green_2021-02.csv", ".csv"),
        ("file:///a b/{year:d}-{month}.csv.gz", "file:///a b/2021-2.csv.gz", ".csv.gz"),
        ("https://h/{year:04d}{month:02d}{{x}}.parquet", "https://h/202102{x}.parquet", ".parquet"),
    ],
)
def test_a_source_is_a_word_or_a_template(source: str, url: str, ending: str) -> None:
    assert source_of(source).url(MONTH) == url
    assert source_of(source).ending == ending


def test_the_environment_says_where_a_word_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", "http://127.0.0.1:1/{year}-{month:02d}.parquet")
    assert source_of("official").url(MONTH) == "http://127.0.0.1:1/2021-02.parquet"
    monkeypatch.setenv("TLC_OFFICIAL_URL", "")
    assert source_of("official").url(MONTH).startswith("https://d37ci6vzurychx.cloudfront.net/")
    monkeypatch.setenv("TLC_MIRROR_URL", "nonsense")
    with pytest.raises(UnknownMonth, match="'nonsense' is neither"):
        source_of("mirror")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("offical", "neither one of official, mirror nor an http(s):// or file:// URL template"),
        ("", "neither one of official, mirror"),
        ("/data/{year}-{month:02d}.csv", "neither one of official, mirror"),
        ("ftp://h/{year}-{month:02d}.csv", "neither one of official, mirror"),
        ("http://h/{year}-{month:02d}.zip", "must end in one of .parquet, .csv.gz, .csv"),
        ("http://h/{year}-{month:02d}", "must end in one of"),
        ("http://h/{year}-{month:02d}.csv?a=b", "must end in one of"),
        ("http://h/{month:02d}.csv", "every month one file"),
        ("http://h/{year}.csv", "every month one file"),
        ("http://h/trips.csv", "every month one file"),
        ("http://h/{year}-{month:02d}-{day}.csv", "unknown fields ['day']; use color, year, month"),
        ("http://h/{}-{year}-{month}.csv", "unknown fields ['']"),
        ("http://h/{0}-{year}-{month}.csv", "unknown fields ['0']"),
        ("http://h/{color.__class__}-{year}-{month}.csv", "unknown fields ['color.__class__']"),
        ("http://h/{color[0]}-{year}-{month}.csv", "unknown fields ['color[0]']"),
        ("http://h/{year}-{month:zz}.csv", "month may be written {month} or {month:02d}."),
        ("http://h/{year:999999999d}-{month}.csv", "year may be written {year} or {year:04d}."),
        ("http://h/{year}-{month:{color.__class__}}.csv", "month may be written"),
        ("http://h/{year}-{month!r}.csv", "month may be written"),
        ("http://h/{color:02d}-{year}-{month}.csv", "color may be written {color}."),
        ("http://h/{year}-{month.csv", "is not a URL template: expected '}' before end of string"),
        ("http://h/year}-{month}.csv", "is not a URL template: Single '}' encountered"),
        ("http://[h/{year}-{month}.csv", "is not a URL template: Invalid IPv6 URL"),
    ],
)
def test_a_bad_template_is_refused_with_what_to_write_instead(template: str, said: str) -> None:
    with pytest.raises(UnknownMonth) as refused:
        source_of(template)
    assert said in str(refused.value)
    assert "<class" not in str(refused.value)


def test_a_password_in_a_template_is_refused_and_not_repeated() -> None:
    with pytest.raises(UnknownMonth) as refused:
        Source("https://user:hunter2@h/{year}-{month}.csv")
    assert "user name or password" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@given(st.text(alphabet="{}colryeamnth:02d!r.[]_$ /", max_size=30))
def test_a_template_is_refused_at_once_or_gives_every_month_an_address_of_its_own(middle: str) -> None:
    try:
        source = Source(f"http://h/{middle}.csv")
    except UnknownMonth:
        return
    one, other = source.url(MONTH), source.url(TripMonth("green", 2021, 3))
    assert one != other
    assert len(one) < 200


@pytest.mark.parametrize(
    ("etag", "identity"), [('"a"', 'http://h/x.csv "a" 7'), (None, None)], ids=["versioned", "unversioned"]
)
def test_a_file_is_its_address_version_and_size(etag: str | None, identity: str | None) -> None:
    file = PublishedFile(trip_month=MONTH, url="http://h/x.csv", ending=".csv", etag=etag, last_modified="Mon", size=7)
    assert file.identity == identity
