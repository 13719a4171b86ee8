"""Downloads from the web: unpublished months, failing servers, broken connections and files with wrong content."""

import hashlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from flows.connectors import request, transfer, web
from flows.connectors.guard import Client
from flows.connectors.request import ATTEMPTS, LONGEST_WAIT
from flows.connectors.web import Download, look_up, look_up_all, source_of
from flows.tlc.errors import AskAgainLater, NotPublished, TripDataError, Unreachable, UnreadableFile
from flows.tlc.sources import PublishedFile, Source
from flows.tlc.trips import TripMonth
from local.servers.site import Site

MONTH = TripMonth("green", 2021, 1)
NAME = "green_tripdata_2021-01.parquet"
PATH = f"/trip-data/{NAME}"
# Large enough for several chunks, and different at every position.
BODY = b"PAR1" + b"".join(n.to_bytes(4, "big") for n in range(800_000)) + b"PAR1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site", rows=200) as site:
        yield site


@pytest.fixture
def big(site: Site) -> Site:
    site.put(NAME, BODY)
    return site


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace `sleep`, and return the list of the seconds."""
    waits: list[float] = []
    monkeypatch.setattr(request.time, "sleep", waits.append)
    monkeypatch.setattr(request.random, "uniform", lambda _, most: most)
    return waits


def official(site: Site) -> Source:
    return Source(f"{site.url}/trip-data/{{color}}_tripdata_{{year}}-{{month:02d}}.parquet")


def mirror(site: Site) -> Source:
    return Source(f"{site.url}/mirror/{{color}}/{{color}}_tripdata_{{year}}-{{month:02d}}.csv.gz")


def asked(site: Site) -> list[tuple[str, int, str | None]]:
    return [(request.method, request.status, request.range) for request in site.requests]


def test_a_look_up_is_one_request_without_a_body(site: Site) -> None:
    found = look_up(official(site), MONTH)
    path = site.file(NAME)
    assert found == PublishedFile(
        trip_month=MONTH,
        url=f"{site.url}{PATH}",
        ending=".parquet",
        etag=f'"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"',
        last_modified=formatdate(path.stat().st_mtime, usegmt=True),
        size=path.stat().st_size,
    )
    assert [(request.method, request.sent) for request in site.requests] == [("HEAD", 0)]


def test_a_look_up_shows_whether_a_month_is_unchanged(site: Site) -> None:
    first = look_up(official(site), MONTH)
    assert look_up(official(site), MONTH) == first
    assert sum(request.sent for request in site.requests) == 0
    site.republish(NAME)
    assert look_up(official(site), MONTH).identity != first.identity


def test_a_redirect_is_followed_and_the_original_address_is_kept(site: Site) -> None:
    found = look_up(mirror(site), MONTH)
    assert found.url == f"{site.url}/mirror/green/green_tripdata_2021-01.csv.gz"
    assert [request.status for request in site.requests] == [302, 200]
    assert hashlib.sha256(b"".join(Download(found))).digest() == _digest(site.file("green_tripdata_2021-01.csv.gz"))


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.mark.parametrize(("status", "word"), [(403, "HTTP 403"), (404, "HTTP 404"), (410, "HTTP 410")])
def test_an_unpublished_month_is_reported_and_not_retried(
    site: Site, waits: list[float], status: int, word: str
) -> None:
    site.fault(PATH, status=status, times=None)
    with pytest.raises(NotPublished) as raised:
        look_up(official(site), MONTH)
    assert f"green 2021-01 is not published at {site.url}{PATH} ({word})" in str(raised.value)
    assert "TLC publishes about two months late" in str(raised.value)
    assert asked(site) == [("HEAD", status, None), ("GET", status, "bytes=0-0")]
    assert waits == []


def test_a_month_after_the_newest_is_not_published(site: Site) -> None:
    with pytest.raises(NotPublished, match=r"green 2026-01 is not published .*HTTP 403"):
        look_up(official(site), TripMonth("green", 2026, 1))
    with pytest.raises(NotPublished, match=r"green 2021-08 is not published .*HTTP 404"):
        look_up(mirror(site), TripMonth("green", 2021, 8))


@pytest.mark.parametrize("status", [400, 401, 407, 418, 204, 300])
def test_a_permanent_error_status_is_not_retried(site: Site, waits: list[float], status: int) -> None:
    site.fault(PATH, status=status, times=None)
    with pytest.raises(UnreadableFile, match=rf"green 2021-01: http.*answered HTTP {status}; check the source"):
        look_up(official(site), MONTH)
    assert waits == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_transient_error_status_is_retried_with_growing_pauses(site: Site, waits: list[float], status: int) -> None:
    site.fault(PATH, status=status, times=ATTEMPTS - 1)
    assert look_up(official(site), MONTH).size == site.file(NAME).stat().st_size
    assert waits == [1, 2, 4, 8]
    assert [request.status for request in site.requests] == [status] * 4 + [
        206
    ]  # the last request is a GET of one byte


def test_a_server_that_stays_down_is_unreachable_which_a_task_retries(site: Site, waits: list[float]) -> None:
    site.fault(PATH, status=503, times=None)
    with pytest.raises(Unreachable, match=f"answered HTTP 503 {ATTEMPTS} times; try again later") as raised:
        look_up(official(site), MONTH)
    assert not isinstance(raised.value, TripDataError)
    assert len(site.requests) == ATTEMPTS
    assert len(waits) == ATTEMPTS - 1


MANY = [TripMonth("green", year, month) for year in (2018, 2019, 2020, 2021) for month in range(1, 13)]


@pytest.mark.parametrize(("answered", "most"), [(0, 4), (2, 16)])
def test_a_source_that_goes_down_is_not_asked_for_every_month(answered: int, most: int, site: Site) -> None:
    for month in MANY[answered:]:
        site.fault(f"/trip-data/{month.stem}.parquet", status=503, times=None)
    found = look_up_all(official(site), MANY)
    assert [month for month in MANY if isinstance(found[month], PublishedFile)] == MANY[:answered]
    assert all(isinstance(found[month], Unreachable) for month in MANY[answered:])
    asked = {request.path for request in site.requests}
    assert answered + most <= len(asked) <= answered + most + 2 * web._ASKING  # some were in progress
    assert str(found[MANY[-1]]).startswith("green 2021-12 was not looked up: ")


def test_a_short_outage_costs_only_the_months_that_it_met(site: Site) -> None:
    met = [*MANY[4:16], *MANY[20:30]]
    for month in met:
        site.fault(f"/trip-data/{month.stem}.parquet", status=503, times=None)
    found = look_up_all(official(site), MANY)
    assert [month for month in MANY if isinstance(found[month], Unreachable)] == met


def test_a_source_that_asks_for_a_pause_is_not_asked_again(site: Site) -> None:
    site.fault("/trip-data/green_tripdata_2018-06.parquet", status=429, retry_after=100_000, times=None)
    found = look_up_all(official(site), MANY)
    assert isinstance(found[MANY[5]], AskAgainLater)
    assert all(isinstance(found[month], AskAgainLater) for month in MANY[9:])


@pytest.mark.parametrize(
    ("asks", "waited"),
    [
        (7, 7),
        (0, 0),
        (str(int(LONGEST_WAIT)), LONGEST_WAIT),
        ("soon", 1),
        ("-5", 1),
        ("²", 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)
def test_the_seconds_in_retry_after_are_respected(
    site: Site, waits: list[float], asks: int | str, waited: float
) -> None:
    site.fault(PATH, status=429, retry_after=asks)
    look_up(official(site), MONTH)
    assert waits == [waited]


def test_a_date_in_retry_after_is_respected(site: Site, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(request.time, "time", lambda: now)
    site.fault(PATH, status=503, retry_after=formatdate(int(now) + 90, usegmt=True))
    look_up(official(site), MONTH)
    assert waits == [int(now) + 90 - now]


@pytest.mark.parametrize("asks", [str(int(LONGEST_WAIT) + 1), "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_long_retry_after_ends_the_attempts(site: Site, waits: list[float], asks: str) -> None:
    site.fault(PATH, status=503, retry_after=asks, times=None)
    with pytest.raises(AskAgainLater, match=r"answered HTTP 503 and asks for \d+ s; try again then"):
        look_up(official(site), MONTH)
    assert len(site.requests) == 1
    assert waits == []


def test_a_host_that_does_not_answer_is_unreachable(waits: list[float], own_servers: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so no server can answer
        source = Source(f"http://127.0.0.1:{taken.getsockname()[1]}/{{year}}-{{month:02d}}.csv")
        with pytest.raises(Unreachable, match=r"127.0.0.1:\d+/2021-01.csv cannot be reached: ConnectError"):
            look_up(source, MONTH)
    assert waits == [1, 2, 4, 8]


def test_too_many_redirects_are_refused(site: Site, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.max_redirects = 0  # the mirror's redirect exceeds this limit
    monkeypatch.setattr(web, "Client", lambda: client)
    with pytest.raises(UnreadableFile, match=r"cannot be opened .*redirects.*check the source"):
        look_up(mirror(site), MONTH)
    assert waits == []


@pytest.mark.parametrize(
    "fault",
    [
        {"missing": ("head",)},
        *({"status": status} for status in (400, 401, 403, 404, 405, 410, 500, 501)),
        {"headers": {"Content-Length": "0"}},
        {"headers": {"ETag": ""}},
        {"headers": {"Content-Type": "text/html"}},
        {"missing": ("length",)},
        {"body": "html"},
        {"encoding": "gzip"},
        {"drip": 0.2},
        {"stall": 1.5},
    ],
    ids=str,
)
def test_if_head_gives_no_facts_a_get_of_the_first_byte_does(
    big: Site, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = look_up(official(big), MONTH)
    big.forget_requests()
    monkeypatch.setattr(web, "_HEAD_WITHIN", 0.3)
    big.fault(PATH, times=None, methods=("HEAD",), **fault)
    assert look_up(official(big), MONTH) == known
    assert asked(big)[-1] == ("GET", 206, "bytes=0-0")
    assert sum(request.sent for request in big.requests if request.method == "GET") == 1
    assert b"".join(Download(known)) == BODY


@pytest.mark.parametrize("fault", [{"missing": ("ranges",)}, {"status": 416, "times": 1}, {"status": 400, "times": 1}])
def test_without_head_and_ranges_a_get_is_ended_after_its_headers(big: Site, fault: dict[str, Any]) -> None:
    big.fault(PATH, missing=("head",), times=None, methods=("HEAD",))
    big.fault(PATH, methods=("GET",), **fault)
    found = look_up(official(big), MONTH)
    assert found.size == len(BODY)
    assert b"".join(Download(found)) == BODY


def test_a_size_that_only_head_gives_is_not_trusted(big: Site) -> None:
    big.fault(PATH, times=None, methods=("HEAD",), headers={"Content-Length": "17809"})
    assert b"".join(Download(look_up(official(big), MONTH))) == BODY


@pytest.mark.parametrize("missing", ["etag", "last_modified", "length"])
def test_a_missing_header_gives_none(site: Site, missing: str) -> None:
    site.fault(PATH, missing=(missing, "ranges"), times=None)
    found = look_up(official(site), MONTH)
    unknown = {"etag": "etag", "last_modified": "last_modified", "length": "size"}[missing]
    assert [name for name in ("etag", "last_modified", "size") if getattr(found, name) is None] == [unknown]


def test_a_file_is_read_exactly_in_large_chunks_with_one_request(big: Site) -> None:
    pieces = list(Download(look_up(official(big), MONTH)))
    assert b"".join(pieces) == BODY
    assert all(len(piece) >= web.PIECE for piece in pieces[:-1])
    assert [(method, status) for method, status, _ in asked(big)] == [("HEAD", 200), ("GET", 200)]


def test_a_small_file_is_read(site: Site) -> None:
    found = look_up(official(site), MONTH)
    assert b"".join(Download(found)) == site.file(NAME).read_bytes()


def test_a_broken_download_is_resumed_at_the_last_byte(big: Site, waits: list[float]) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=700_000, times=3)
    assert b"".join(Download(found)) == BODY
    gets = [request for request in big.requests if request.method == "GET"]
    assert [(request.status, request.range) for request in gets] == [
        (200, None),
        (206, "bytes=700000-"),
        (206, "bytes=1400000-"),
        (206, "bytes=2100000-"),
    ]
    assert sum(request.sent for request in gets) == len(BODY)
    assert waits == [1, 1, 1]


def test_a_download_that_breaks_often_continues_while_bytes_arrive(big: Site) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=200_000, times=3 * ATTEMPTS)
    assert b"".join(Download(found)) == BODY


def test_a_download_without_progress_fails_after_its_attempts(big: Site, waits: list[float]) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=1000)
    big.fault(PATH, cut_after=0, times=None)
    with pytest.raises(Unreachable, match="broke off after 1000 bytes"):
        list(Download(found))
    assert waits == [1, 2, 4, 8]


def test_a_transient_error_during_a_download_is_retried(big: Site) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=1_500_000)
    big.fault(PATH, status=503, times=2)
    assert b"".join(Download(found)) == BODY


def test_without_ranges_a_download_starts_again_and_skips_the_first_bytes(big: Site) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=2_000_001, missing=("ranges",))
    big.fault(PATH, missing=("ranges",), times=None)
    assert b"".join(Download(found)) == BODY
    assert [status for method, status, _ in asked(big) if method == "GET"] == [200, 200]


@pytest.mark.parametrize("missing", [(), ("etag",), ("ranges",)], ids=["etag", "time only", "no ranges"])
def test_a_file_republished_during_a_download_is_never_mixed(big: Site, missing: tuple[str, ...]) -> None:
    big.fault(PATH, missing=missing)
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=1_200_000, missing=missing)
    big.fault(PATH, missing=missing, times=None)
    pieces = iter(Download(found))
    next(pieces)
    _republish(big)
    with pytest.raises(AskAgainLater, match="was re-published while it was being read; run again"):
        list(pieces)


@pytest.mark.parametrize("missing", [(), ("etag",)], ids=["etag", "time only"])
def test_a_file_republished_after_its_look_up_is_refused(big: Site, missing: tuple[str, ...]) -> None:
    big.fault(PATH, missing=missing, times=None)
    found = look_up(official(big), MONTH)
    _republish(big)
    with pytest.raises(AskAgainLater, match="re-published"):
        list(Download(found))


def _republish(site: Site) -> None:
    """Replace the file with other bytes of the same length and a date one day later."""
    site.put(NAME, BODY[:4] + BODY[-5:3:-1] + b"PAR1")
    path = site.find(NAME)
    assert path
    younger = path.stat().st_mtime + 86400
    os.utime(path, (younger, younger))


def test_a_wrong_range_is_refused(big: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=1_000_000)
    monkeypatch.setattr("local.servers.site._Handler._range", lambda *_: (5, len(BODY)))
    big.fault(PATH, missing=("ranges",), methods=("HEAD",))
    with pytest.raises(Unreachable, match="was asked to continue at byte 0 and did not"):
        list(Download(found))


def test_a_connection_that_breaks_after_the_last_byte_is_no_error(big: Site, waits: list[float]) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, missing=("length",), cut_after=len(BODY))  # chunked, without the last chunk
    assert b"".join(Download(found)) == BODY
    assert waits == []


@pytest.mark.parametrize("wrong", [-1, 1, 5_000])
def test_a_wrong_size_from_head_does_not_truncate_a_chunked_answer(big: Site, wrong: int) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, missing=("length",), times=None)
    assert b"".join(Download(found.model_copy(update={"size": len(BODY) + wrong}))) == BODY


@pytest.mark.parametrize("facts", [{"size": 20}, {"etag": 'W/"another"'}, {"etag": '"another"', "last_modified": None}])
def test_a_head_that_contradicts_every_get_is_ignored(
    big: Site, facts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look_up(official(big), MONTH).model_copy(update=facts)
    asked_of = transfer.described_file
    monkeypatch.setattr(
        transfer, "described_file", lambda *about: found if about[3].request.method == "HEAD" else asked_of(*about)
    )
    assert b"".join(Download(found)) == BODY


def test_a_file_whose_etag_differs_in_every_answer_is_read(big: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_up(official(big), MONTH)
    asked_of, number = transfer.described_file, itertools.count()
    monkeypatch.setattr(
        transfer,
        "described_file",
        lambda *about: asked_of(*about).model_copy(update={"etag": f'"node-{next(number)}"', "last_modified": None}),
    )
    assert b"".join(Download(found)) == BODY


def test_a_file_of_unknown_size_is_read_to_its_end(big: Site) -> None:
    big.fault(PATH, missing=("length", "ranges"), times=None)
    found = look_up(official(big), MONTH)
    assert found.size is None
    assert b"".join(Download(found)) == BODY


@pytest.mark.parametrize(
    ("body", "message"),
    [("html", "it is an HTML or XML page"), ("lfs_pointer", "it is a Git LFS pointer")],
)
@pytest.mark.parametrize("source", [official, mirror])
def test_the_error_for_another_file_names_its_format(site: Site, body: str, message: str, source: object) -> None:
    assert callable(source)
    site.fault("*", body=body, times=None)
    found = look_up(source(site), MONTH)
    with pytest.raises(UnreadableFile, match=f"green 2021-01: http.*cannot be read: {message}.*Nothing was loaded"):
        list(Download(found))


def test_half_a_parquet_file_is_refused_as_truncated(site: Site) -> None:
    site.fault(PATH, body="truncated", times=None)
    found = look_up(official(site), MONTH)
    with pytest.raises(UnreadableFile, match="is truncated, or something was appended to it"):
        list(Download(found))


def test_an_empty_file_is_refused(site: Site) -> None:
    site.put(NAME, b"")
    with pytest.raises(UnreadableFile, match="cannot be read: it is empty"):
        list(Download(look_up(official(site), MONTH)))


def test_the_error_for_a_month_removed_after_its_look_up_says_so(site: Site) -> None:
    found = look_up(official(site), MONTH)
    site.fault(PATH, status=403)
    with pytest.raises(
        NotPublished, match=r"green 2021-01: .* existed when it was looked up, and now answers HTTP 403"
    ):
        list(Download(found))


def test_a_reader_that_stops_early_closes_the_connection(big: Site) -> None:
    pieces = iter(Download(look_up(official(big), MONTH)))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert [status for method, status, _ in asked(big) if method == "GET"] == [200]


@pytest.mark.parametrize("folder", ["plain", "with blanks", "100%", "100%25", "é#?"])
def test_local_files_in_folders_with_any_name_are_read(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "green_2021-01.parquet"
    path.parent.mkdir()
    path.write_bytes(BODY)
    source = source_of(f"file://{quote(str(path.parent))}/{{color}}_{{year}}-{{month:02d}}.parquet")
    found = look_up(source, MONTH)
    assert (found.etag, found.size) == (f"sha256:{hashlib.sha256(BODY).hexdigest()}", len(BODY))
    assert b"".join(Download(found)) == BODY


def test_a_file_url_may_contain_blanks(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "2021-01.parquet").write_bytes(BODY)
    found = look_up(Source(f"file://{tmp_path}/a b/{{year}}-{{month:02d}}.parquet"), MONTH)
    assert b"".join(Download(found)) == BODY


def test_a_missing_local_file_counts_as_not_published(tmp_path: Path) -> None:
    (tmp_path / "2021-02.csv").touch()
    for source in (
        f"file://{tmp_path}/{{year}}-{{month:02d}}.csv",
        f"file://{tmp_path}/2021-02.csv/{{year}}-{{month:02d}}.csv",
    ):
        with pytest.raises(NotPublished, match=r"green 2021-01 is not at file://.*: there is no file /.*2021-01.csv"):
            look_up(Source(source), MONTH)


def test_the_error_for_a_folder_a_device_or_a_loop_names_it(tmp_path: Path) -> None:
    source = Source(f"file://{tmp_path}/{{year}}-{{month:02d}}.parquet")
    (tmp_path / "2021-01.parquet").mkdir()
    with pytest.raises(UnreadableFile, match="is a folder, such as Spark writes: name one file, or join the folder"):
        look_up(source, TripMonth("green", 2021, 1))
    os.mkfifo(tmp_path / "2021-02.parquet")
    (tmp_path / "2021-03.parquet").symlink_to("/dev/zero")
    for month in (2, 3):
        with pytest.raises(UnreadableFile, match="is a device, a pipe or a socket"):
            look_up(source, TripMonth("green", 2021, month))
    (tmp_path / "2021-04.parquet").symlink_to("2021-04.parquet")
    with pytest.raises(UnreadableFile, match=r"2021-04\.parquet cannot be read"):
        look_up(source, TripMonth("green", 2021, 4))


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Run the test as a user who may not read the file of January."""
    (tmp_path / "2021-01.csv").touch(mode=0)
    own = os.geteuid()
    os.seteuid(own or 65534)
    yield
    os.seteuid(own)


def test_an_unreadable_local_file_is_refused(tmp_path: Path, unprivileged: None) -> None:
    with pytest.raises(
        UnreadableFile, match=r"2021-01.csv cannot be read \(Permission denied\); check its permissions"
    ):
        look_up(Source(f"file://{tmp_path}/{{year}}-{{month:02d}}.csv"), MONTH)


def test_a_local_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "2021-01.parquet"
    path.write_bytes(BODY)
    found = look_up(Source(f"file://{tmp_path}/{{year}}-{{month:02d}}.parquet"), MONTH)
    path.write_bytes(BODY[:4] + BODY[-5:3:-1] + b"PAR1")
    with pytest.raises(AskAgainLater, match="was changed while it was being read"):
        list(Download(found))


def test_the_environment_sets_the_address_of_official(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", official(site).template)
    assert look_up(source_of("official"), MONTH).url == f"{site.url}{PATH}"


def test_the_pause_between_attempts_has_a_limit() -> None:
    assert [request.pause(attempt) for attempt in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
