"""The site behaves like S3 and GitHub, serves generated files, and fails on request."""

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from local.servers.site import Site
from local.trip_files.damages import with_damage
from local.trip_files.writing import write_month

pytestmark = pytest.mark.usefixtures("own_servers")
ROOT = Path(__file__).resolve().parents[3]
OFFICIAL = "/trip-data/green_tripdata_2021-01.parquet"
NAME = "green_tripdata_2021-01.parquet"
# Shared by all clients: otherwise httpx loads all certificates for each client, and no request here is encrypted.
TLS = ssl.create_default_context()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "state", rows=300) as site:
        yield site


@pytest.fixture
def web(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, timeout=10, verify=TLS) as client:
        yield client


def test_an_official_month_is_generated_at_its_first_request_and_never_changes(
    site: Site, web: httpx.Client, tmp_path: Path
) -> None:
    first = web.get(OFFICIAL)
    write_month(tmp_path / NAME, "green", 2021, 1, rows=site.rows_of("green", 2021, 1))
    assert first.status_code == 200
    assert first.content == (tmp_path / NAME).read_bytes() == web.get(OFFICIAL).content
    assert first.headers["ETag"] == f'"{hashlib.md5(first.content, usedforsecurity=False).hexdigest()}"'
    assert first.headers["Accept-Ranges"] == "bytes"
    assert int(first.headers["Content-Length"]) == len(first.content)


def test_the_sizes_of_months_vary_around_the_given_number_of_rows(site: Site) -> None:
    sizes = {site.rows_of("yellow", 2021, month) for month in range(1, 13)}
    assert len(sizes) > 6
    assert all(270 <= rows <= 330 for rows in sizes)


def test_head_has_all_headers_and_no_body(site: Site, web: httpx.Client) -> None:
    head, got = web.head(OFFICIAL), web.get(OFFICIAL)
    for name in ("Content-Length", "ETag", "Last-Modified", "Content-Type"):
        assert head.headers[name] == got.headers[name]
    assert head.content == b""
    assert [(request.method, request.sent) for request in site.requests] == [("HEAD", 0), ("GET", len(got.content))]


def test_a_file_is_not_sent_again_if_etag_or_date_match(site: Site, web: httpx.Client) -> None:
    known = web.get(OFFICIAL).headers
    site.forget_requests()
    for name, value in (
        ("If-None-Match", known["ETag"]),
        ("If-None-Match", f'"other", W/{known["ETag"]}'),
        ("If-None-Match", "*"),
        ("If-Modified-Since", known["Last-Modified"]),
    ):
        again = web.get(OFFICIAL, headers={name: value})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", known["ETag"])
    assert sum(request.sent for request in site.requests) == 0
    for stale in (
        {"If-None-Match": '"other"'},
        {"If-Modified-Since": formatdate(0, usegmt=True)},
        {"If-Modified-Since": "?"},
    ):
        assert web.get(OFFICIAL, headers=stale).status_code == 200


def test_the_site_serves_ranges(web: httpx.Client) -> None:
    whole = web.get(OFFICIAL)
    size, content = len(whole.content), whole.content
    for asked, expected in (
        ("bytes=0-99", content[:100]),
        ("bytes=100-", content[100:]),
        ("bytes=-8", content[-8:]),
        (f"bytes=5-{size * 2}", content[5:]),
    ):
        part = web.get(OFFICIAL, headers={"Range": asked})
        assert (part.status_code, part.content) == (206, expected)
    assert web.get(OFFICIAL, headers={"Range": "bytes=0-99"}).headers["Content-Range"] == f"bytes 0-99/{size}"
    beyond = web.get(OFFICIAL, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    for unknown in ("bytes=0-1,5-6", "rows=1-2", "bytes=-"):
        assert web.get(OFFICIAL, headers={"Range": unknown}).status_code == 200


def test_if_range_with_another_edition_gets_the_whole_file(web: httpx.Client) -> None:
    known = web.head(OFFICIAL).headers
    for condition, status in (
        (known["ETag"], 206),
        (known["Last-Modified"], 206),
        ('"other"', 200),
        (formatdate(0, usegmt=True), 200),
    ):
        assert web.get(OFFICIAL, headers={"Range": "bytes=0-9", "If-Range": condition}).status_code == status


@pytest.mark.parametrize(
    "month",
    [
        "yellow_tripdata_2026-01",
        "yellow_tripdata_2008-12",
        "green_tripdata_2013-12",
        "fhvhv_tripdata_2019-01",
        "yellow_tripdata_2021-13",
    ],
)
def test_an_unpublished_month_is_forbidden_as_on_s3(month: str, web: httpx.Client) -> None:
    answer = web.get(f"/trip-data/{month}.parquet")
    assert answer.status_code == 403
    assert "<Code>AccessDenied</Code>" in answer.text
    assert answer.headers["Content-Type"] == "application/xml"
    assert web.head(f"/trip-data/{month}.parquet").status_code == 403


def test_the_mirror_redirects_to_its_months(web: httpx.Client) -> None:
    moved = web.get("/mirror/green/green_tripdata_2021-07.csv.gz")
    assert moved.status_code == 302
    assert web.get(moved.headers["Location"]).content[:2] == b"\x1f\x8b"
    assert web.get("/mirror/green/green_tripdata_2021-07.csv", follow_redirects=True).text.startswith("VendorID,")
    for month in ("2018-12", "2021-08"):
        assert web.get(f"/mirror/green/green_tripdata_{month}.csv.gz").status_code == 404
    assert web.get("/legacy/green_tripdata_2013-08.csv").text.startswith("VendorID,lpep_pickup_datetime,Lpep_")


def test_real_files_are_served_instead_of_generated_ones(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"real")
    with Site(tmp_path / "state", files=tmp_path) as site:
        assert httpx.get(site.url + OFFICIAL, verify=TLS).content == b"real"
        with pytest.raises(ValueError, match="this site generated"):
            site.republish(NAME)


def test_a_republished_month_has_another_etag_date_and_content(site: Site, web: httpx.Client) -> None:
    old = web.get(OFFICIAL)
    site.republish(NAME)
    new = web.get(
        OFFICIAL, headers={"If-None-Match": old.headers["ETag"], "If-Modified-Since": old.headers["Last-Modified"]}
    )
    assert new.status_code == 200
    assert new.headers["Last-Modified"] != old.headers["Last-Modified"]
    web.post("/republish", json={"name": NAME, "edition": 1}).raise_for_status()
    assert web.get(OFFICIAL).content == old.content


def test_a_file_from_put_is_served(site: Site, web: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"two")
    site.put(NAME, b"one")
    assert web.get(OFFICIAL).content == b"one"
    site.put(NAME, tmp_path / "file")
    assert web.get(OFFICIAL).content == b"two"
    site.put("yellow_tripdata_2030-01.parquet", b"early")
    assert web.get("/trip-data/yellow_tripdata_2030-01.parquet").content == b"early"


def test_a_fault_applies_to_the_given_number_of_requests(site: Site, web: httpx.Client) -> None:
    site.fault("*2021-01*", times=2, status=503, retry_after=7, methods=["GET"])
    assert web.head(OFFICIAL).status_code == 200
    failed = web.get(OFFICIAL)
    assert (failed.status_code, failed.headers["Retry-After"]) == (503, "7")
    assert [web.get(OFFICIAL).status_code for _ in range(2)] == [503, 200]


def test_a_cut_connection_ends_at_the_given_byte_and_a_range_can_continue(site: Site, web: httpx.Client) -> None:
    size = int(web.head(OFFICIAL).headers["Content-Length"])
    site.fault(OFFICIAL, cut_after=1000)
    with pytest.raises(httpx.RemoteProtocolError):
        web.get(OFFICIAL)
    assert site.requests[-1].sent == 1000
    assert len(web.get(OFFICIAL, headers={"Range": "bytes=1000-"}).content) == size - 1000


def test_a_stall_pauses_before_or_in_the_answer(site: Site, web: httpx.Client) -> None:
    for where in ({}, {"stall_at": 100}):
        site.fault(OFFICIAL, stall=0.6, **where)
        with pytest.raises(httpx.ReadTimeout):
            web.get(OFFICIAL, timeout=0.2)
        assert web.get(OFFICIAL).status_code == 200


def test_a_stalled_request_does_not_delay_the_end_of_the_site(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        site.fault("/healthz", stall=60)
        ended: list[Exception] = []

        def wait() -> None:
            try:
                httpx.get(f"{site.url}/healthz", timeout=30)
            except httpx.HTTPError as gone:
                ended.append(gone)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not site.traffic.requests:
            time.sleep(0.01)
        started = time.monotonic()
    waiting.join()
    assert time.monotonic() - started < 2
    assert len(ended) == 1


def test_a_server_may_lack_etags_dates_ranges_lengths_or_head(site: Site, web: httpx.Client) -> None:
    whole = web.get(OFFICIAL)
    site.fault(OFFICIAL, times=None, missing=["etag", "last_modified", "ranges", "length", "head"])
    bare = web.get(OFFICIAL, headers={"Range": "bytes=0-9", "If-None-Match": whole.headers["ETag"]})
    assert (bare.status_code, bare.content) == (200, whole.content)
    assert not {"etag", "last-modified", "accept-ranges", "content-length"} & set(bare.headers)
    assert web.head(OFFICIAL).status_code == 405
    site.heal()
    assert "etag" in web.head(OFFICIAL).headers


def test_a_wrong_body_has_status_200(site: Site, web: httpx.Client) -> None:
    whole = web.get(OFFICIAL).content
    for body in ("html", "lfs_pointer", "truncated"):
        site.fault(OFFICIAL, body=body)
    page, pointer, truncated = (web.get(OFFICIAL) for _ in range(3))
    assert {page.status_code, pointer.status_code, truncated.status_code} == {200}
    assert "<html>" in page.text
    assert pointer.text.startswith("version https://git-lfs")
    assert truncated.content == whole[: len(whole) // 2]


def test_a_fault_can_name_a_damage_of_the_file(site: Site, web: httpx.Client) -> None:
    path = "/legacy/green_tripdata_2021-01.csv.gz"
    whole = web.get(path)
    for damage in ("gzip_members", "excel_dates", "conflict_markers"):
        site.fault(path, body=damage)
        answer = web.get(path)
        assert answer.content == with_damage(whole.content, ".csv.gz", damage)
        assert answer.headers["ETag"] != whole.headers["ETag"]
    assert web.get(path).content == whole.content


def test_another_process_can_set_faults_and_read_the_log(web: httpx.Client) -> None:
    web.post("/faults", json={"path": OFFICIAL, "status": 500, "times": None}).raise_for_status()
    assert web.get(OFFICIAL).status_code == 500
    web.delete("/faults").raise_for_status()
    assert web.get(OFFICIAL, headers={"Range": "bytes=0-3"}).content == b"PAR1"
    log = web.get("/requests").json()
    assert [(line["status"], line["range"]) for line in log] == [(500, None), (206, "bytes=0-3")]
    web.delete("/requests")
    assert web.get("/requests").json() == []
    assert web.post("/faults", json={"pth": "x"}).status_code == 400
    assert web.post("/nothing").status_code == 404


def test_it_serves_health_tokens_and_zones(web: httpx.Client) -> None:
    assert web.get("/healthz").status_code == 200
    token = web.post("/token", data={"grant_type": "jwt"}).json()
    assert token == {"access_token": "local", "token_type": "Bearer", "expires_in": 3600}
    zones = web.get("/misc/taxi_zone_lookup.csv").text.splitlines()
    assert len(zones) == 266
    assert zones[265] == '265,"N/A","Outside of NYC","N/A"'
    assert web.get("/elsewhere").status_code == 404


def test_one_connection_serves_several_requests(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(site.url.rpartition(":")[2]))
    sockets = set()
    for method, path in (
        ("GET", OFFICIAL),
        ("HEAD", OFFICIAL),
        ("GET", "/trip-data/none"),
        ("POST", "/token"),
        ("GET", OFFICIAL),
    ):
        connection.request(method, path, body=json.dumps({}) if method == "POST" else None)
        connection.getresponse().read()
        sockets.add(id(connection.sock))
    connection.close()
    assert len(sockets) == 1


def test_simultaneous_first_requests_generate_one_file(site: Site, tmp_path: Path) -> None:
    bodies: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: bodies.append(httpx.get(site.url + OFFICIAL, verify=TLS).content))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bodies) == 8
    assert len(set(bodies)) == 1
    assert [path.name for path in (tmp_path / "state").rglob("*") if path.is_file()] == [NAME]


def test_a_large_file_is_sent_fast(site: Site, web: httpx.Client) -> None:
    site.put(NAME, os.urandom(1 << 20) * 200)
    web.head(OFFICIAL)  # computes the ETag before the measurement
    started, received = time.monotonic(), 0
    with socket.create_connection(("127.0.0.1", int(site.url.rpartition(":")[2]))) as raw:
        raw.sendall(f"GET {OFFICIAL} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        while count := raw.recv_into(buffer):
            received += count
    assert received > 200 << 20
    assert received / (time.monotonic() - started) > 200e6  # about 2 GB/s on an idle machine


def test_it_runs_as_a_program_and_stops_at_sigterm(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["--port", str(port), "--state", str(tmp_path), "--rows", "50"]
        command = [sys.executable, "-m", "local.servers.site", *options]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"cannot serve on 127.0.0.1:{port}")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout
            url = program.stdout.readline().split()[-1]
            path = tmp_path / NAME
            path.write_bytes(httpx.get(url + OFFICIAL, timeout=60).content)
            program.send_signal(signal.SIGTERM)
            assert program.wait(10) == 0
        finally:
            program.kill()  # `with` waits for the program, which would not end after a failure above
    assert 45 <= pq.read_metadata(path).num_rows <= 55


def test_a_fault_can_replace_and_omit_headers(site: Site, web: httpx.Client) -> None:
    site.fault("*", headers={"ETag": 'W/"a"', "Last-Modified": "", "Server": "AmazonS3"}, methods=["GET"])
    assert web.head(OFFICIAL).headers["ETag"] != 'W/"a"'
    got = web.get(OFFICIAL).headers
    assert (got["ETag"], got["Server"]) == ('W/"a"', "AmazonS3")
    assert "Last-Modified" not in got


def test_a_fault_can_compress_the_body(site: Site, web: httpx.Client) -> None:
    plain = web.get(OFFICIAL).content
    site.fault("*", encoding="gzip")
    packed = web.get(OFFICIAL)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.content == plain  # httpx decompresses
    assert int(packed.headers["Content-Length"]) != len(plain)


def test_an_endless_body_continues_until_the_client_disconnects(site: Site, web: httpx.Client) -> None:
    size = len(web.get(OFFICIAL).content)
    site.fault("*", endless=True)
    with web.stream("GET", OFFICIAL) as answer:
        assert "Content-Length" not in answer.headers
        came = 0
        for piece in answer.iter_raw():
            came += len(piece)
            if came > 5 * size:
                break


def test_a_fault_can_send_headers_slowly(site: Site, web: httpx.Client) -> None:
    site.fault("*", drip=0.05)
    with pytest.raises(httpx.ReadTimeout):
        web.get(OFFICIAL, timeout=0.04)
