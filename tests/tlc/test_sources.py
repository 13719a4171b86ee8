"""A source is a name or a URL template. An invalid one is refused with advice, and a password in it is never shown."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.connectors.web import source_of
from flows.tlc.addresses import shown
from flows.tlc.errors import BadSource
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
        ("https://h/{year}-{month:02d}.csv?sig=a%2Fb", "https://h/2021-02.csv?sig=a%2Fb", ".csv"),
        ("file://localhost/{year}-{month:02d}.csv", "file://localhost/2021-02.csv", ".csv"),
        ("file:///who@where/{year}-{month:02d}.csv", "file:///who@where/2021-02.csv", ".csv"),
        ("http://[2001:db8::1]:80/{year}-{month:02d}.csv", "http://[2001:db8::1]:80/2021-02.csv", ".csv"),
    ],
)
def test_a_source_is_a_name_or_a_template(source: str, url: str, ending: str) -> None:
    assert source_of(source).url(MONTH) == url
    assert source_of(source).ending == ending


def test_the_environment_can_change_the_address_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", "http://127.0.0.1:1/{year}-{month:02d}.parquet")
    assert source_of("official").url(MONTH) == "http://127.0.0.1:1/2021-02.parquet"
    monkeypatch.setenv("TLC_OFFICIAL_URL", "")
    assert source_of("official").url(MONTH).startswith("https://d37ci6vzurychx.cloudfront.net/")
    monkeypatch.setenv("TLC_MIRROR_URL", "nonsense")
    with pytest.raises(BadSource, match="'nonsense' is neither"):
        source_of("mirror")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("offical", "neither one of official, mirror nor an http(s):// or file:// URL template"),
        ("", "neither one of official, mirror"),
        ("/data/{year}-{month:02d}.csv", "neither one of official, mirror"),
        ("ftp://h/{year}-{month:02d}.csv", "neither one of official, mirror"),
        ("http://h/{year}-{month:02d}.zip", "must end in one of .parquet, .csv.gz, .csv"),
        ("http://h/{year}-{month:02d}", "must end in one of"),
        ("http://h/{year}-{month:02d}?a=b.csv", "must end in one of"),
        ("http://h/{year}-{month:02d}.csv/", "must end in one of"),
        ("http://h/{year}-{month:02d}#.csv", "has a fragment"),
        ("file:///etc/passwd?{year}{month}.csv", "has a query or a fragment"),
        ("file:///etc/passwd#{year}{month}.csv", "has a query or a fragment"),
        ("file:///a/../etc/{year}{month}.csv", "without .. in it"),
        ("file:///a/%2e%2e/etc/{year}{month}.csv", "without .. in it"),
        ("file:///etc/passwd%00{year}{month}.csv", "is not an absolute path"),
        (
            "file://relative/{year}-{month}.csv",
            "names the host 'relative'; write file:/// and the file's absolute path",
        ),
        ("file://anyhost/etc/{year}-{month}.csv", "names the host 'anyhost'"),
        ("file://%6cocalhost/{year}-{month}.csv", "names the host"),
        ("file:/data/{year}-{month}.csv", "neither one of official, mirror"),
        ("http:\\\\h\\{year}-{month}.csv", "neither one of official, mirror"),
        ("http://h\\x/{year}-{month}.csv", "contains a backslash"),
        ("http:///{year}-{month}.csv", "has no valid host"),
        ("http://h:port/{year}-{month}.csv", "has no valid host"),
        ("http://h:99999/{year}-{month}.csv", "is not a URL"),
        ("http://h{year}/{month}.csv", "has a field in the host's name"),
        ("http://h/\x1b[31m{year}-{month}.csv", "cannot be printed"),
        ("http://h/\n{year}-{month}.csv", "cannot be printed"),
        ("http://h/\u202e{year}-{month}.csv", "cannot be printed"),
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
        ("http://[h/{year}-{month}.csv", "is not a URL: Invalid IPv6 URL"),
    ],
)
def test_the_error_for_an_invalid_template_gives_advice(template: str, message: str) -> None:
    with pytest.raises(BadSource) as refused:
        source_of(template)
    assert message in str(refused.value)
    assert "<class" not in str(refused.value)


CANARY = "hunter2"


@pytest.mark.parametrize(
    "template",
    [
        "https://user:hunter2@h/{year}-{month}.csv",
        "https://user:hunter2@[h/{year}-{month}.csv",
        "https://user:hunter2@h]/{year}-{month}.csv",
        "https://user:{hunter2@h/{year}-{month}.csv",
        "https://user:hunter2}@h/{year}-{month}.csv",
        "https://user:{hunter2}@h/{year}-{month}.csv",
        "https:/user:hunter2@h/{year}-{month}.csv",
        "https:user:hunter2@h/{year}-{month}.csv",
        "user:hunter2@h/{year}-{month}.csv",
        "https://user:hunter2/x@h/{year}-{month}.csv",
        "https://user:1/hunter2@h/{year}-{month}.csv",
        "https://user:1?hunter2@h/{year}-{month}.csv",
        "https://user:1#hunter2@h/{year}-{month}.csv",
        "https:\\\\user:hunter2@h\\{year}-{month}.csv",
        "https://user:hunter2\\@h/{year}-{month}.csv",
        "https://user:hunter2%40h/{year}-{month}.csv",
        "https://user%3Ahunter2%40h/{year}-{month}.csv",
        "https://user:hunter2\uff20h/{year}-{month}.csv",
        "https://user:hunter2\ufe6bh/{year}-{month}.csv",
        "https://user:hun\tter2@h/{year}-{month}.csv",
        "https://user:hunter2@h\n/{year}-{month}.csv",
        "ftp://user:hunter2@h/{year}-{month}.csv",
        "file://user:hunter2@h/{year}-{month}.csv",
        "HTTPS://user:hunter2@h/{year}",
    ],
)
@pytest.mark.parametrize("where", ["source", "environment"])
def test_a_password_in_a_template_is_refused_and_never_quoted(
    template: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", template)
    with pytest.raises(BadSource) as refused:
        source_of(template if where == "source" else "official")
    printed = "".join(traceback.format_exception(refused.value))
    assert "user" not in str(refused.value).replace("user name", "")
    assert not any(part in line for part in (CANARY, "hun\tter2") for line in printed.splitlines() if "Error" in line)
    assert "@" in str(refused.value) or "may contain a user name or password" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://h/a.csv", "http://h/a.csv"),
        ("http://h/a.csv?X-Amz-Signature=abc", "http://h/a.csv?…"),
        ("http://h/a\n\x1b.csv", r"http://h/a\n\x1b.csv"),
        ("http://h/" + "a" * 999, "http://h/" + "a" * 291 + "…"),
        ("http://u:p@h/", "an address (not shown: it may contain a user name or password)"),
        ("file:///a@b/c.csv", "file:///a@b/c.csv"),
    ],
)
def test_an_address_is_shown_without_possible_secrets(url: str, text: str) -> None:
    assert shown(url) == text


EDITION = PublishedFile(trip_month=MONTH, url="http://h/x.csv", ending=".csv", etag='"a"', last_modified="Mon", size=7)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({}, True),
        ({"size": None}, True),
        ({"size": 8}, False),
        ({"etag": 'W/"a"'}, True),
        ({"etag": 'W/"a"', "last_modified": "Tue"}, False),
        ({"last_modified": "Tue"}, True),  # a strong ETag identifies the bytes, even with another date
        ({"etag": '"b"'}, True),  # another server at the same address
        ({"etag": '"b"', "size": None}, False),
        ({"etag": '"b"', "last_modified": None}, False),
        ({"etag": '"b"', "last_modified": "Tue"}, False),
        ({"etag": None}, True),
        ({"etag": None, "last_modified": "Tue"}, False),
        ({"etag": None, "last_modified": None}, None),
        ({"etag": None, "last_modified": None, "size": 8}, False),
    ],
)
def test_two_answers_are_of_one_edition_if_size_etag_and_date_agree(
    other: dict[str, object], same: bool | None
) -> None:
    changed = EDITION.model_copy(update=other)
    assert EDITION.same_edition(changed) is same
    assert changed.same_edition(EDITION) is same


@given(st.text(alphabet="{}colryeamnth:02d!r.[]_$ /", max_size=30))
def test_a_template_is_refused_or_gives_every_month_a_different_address(middle: str) -> None:
    try:
        source = Source(f"http://h/{middle}.csv")
    except BadSource:
        return
    one, other = source.url(MONTH), source.url(TripMonth("green", 2021, 3))
    assert one != other
    assert len(one) < 200


@pytest.mark.parametrize(
    ("etag", "identity"), [('"a"', 'http://h/x.csv "a" 7'), (None, None)], ids=["versioned", "unversioned"]
)
def test_a_files_identity_is_its_address_etag_and_size(etag: str | None, identity: str | None) -> None:
    file = PublishedFile(trip_month=MONTH, url="http://h/x.csv", ending=".csv", etag=etag, last_modified="Mon", size=7)
    assert file.identity == identity
