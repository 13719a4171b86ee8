"""A download is compared with the server's checksum, decompressed, limited in size, and never a mix of two editions."""

import base64
import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import google_crc32c
import pytest

from flows.connectors import request, web
from flows.connectors.request import ATTEMPTS
from flows.connectors.web import Download, look_up, zone_file
from flows.tlc import gunzip
from flows.tlc.errors import AskAgainLater, NotPublished, Unreachable, UnreadableFile
from flows.tlc.manifest import Verified
from flows.tlc.sources import LARGEST, Source
from flows.tlc.trips import TripMonth
from local.servers.site import Site, _Handler
from tests.connectors.test_web import BODY, MONTH, NAME, PATH, asked, official

CSV = "green_tripdata_2021-01.csv"
SHA256, MD5 = hashlib.sha256(BODY).digest(), hashlib.md5(BODY, usedforsecurity=False).digest()
CRC32C = google_crc32c.Checksum(BODY).digest()
NONE = base64.b64encode(bytes(32)).decode()


def text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_servers: None) -> Iterator[Site]:
    monkeypatch.setattr(request.time, "sleep", lambda seconds: None)
    with Site(tmp_path / "site", rows=200) as site:
        site.put(NAME, BODY)
        yield site


def legacy(site: Site, ending: str) -> Source:
    return Source(f"{site.url}/legacy/{{color}}_tripdata_{{year}}-{{month:02d}}{ending}")


def fetched(site: Site) -> tuple[bytes, Verified]:
    download = Download(look_up(official(site), MONTH))
    return b"".join(download), download.verified


@pytest.mark.parametrize(
    ("headers", "how"),
    [
        ({}, "md5"),  # the site's ETag is the MD5, as on S3
        ({"ETag": '"abc"'}, "length"),
        ({"ETag": f'"{"0" * 32}"'}, "length"),  # 32 digits, but from a server whose ETags need not be MD5
        ({"ETag": f'W/"{MD5.hex()}"'}, "length"),
        ({"Repr-Digest": f"sha-512=:AAAA:, sha-256=:{text(SHA256)}:"}, "sha256"),
        ({"Digest": f"MD5={text(MD5)},SHA-256={text(SHA256)}"}, "sha256"),
        ({"Content-Digest": f"sha-256=:{text(SHA256)}:"}, "sha256"),
        ({"x-amz-checksum-sha256": text(SHA256)}, "sha256"),
        ({"ETag": '"a"', "x-amz-checksum-crc32c": text(CRC32C)}, "crc32c"),
        ({"ETag": '"a"', "x-amz-checksum-crc32c": f"{text(CRC32C)}-12"}, "length"),  # a checksum of parts
        ({"ETag": '"a"', "x-goog-hash": f"crc32c={text(CRC32C)}"}, "crc32c"),
        ({"ETag": '"a"', "x-goog-hash": f"crc32c={text(CRC32C)},md5={text(MD5)}"}, "md5"),
        ({"ETag": '"a"', "x-goog-hash": f"crc32c={text(bytes(4))}", "x-goog-stored-content-encoding": "gzip"}, "length"),
        ({"ETag": '"a"', "Content-MD5": text(MD5)}, "md5"),
        ({"ETag": '"a"', "Content-MD5": "nonsense"}, "length"),
        ({"ETag": f'"{"0" * 32}"', "Server": "AmazonS3", "x-amz-server-side-encryption": "aws:kms"}, "length"),
    ],
)  # fmt: skip
def test_the_strongest_checksum_of_the_server_is_checked(big: Site, headers: dict[str, str], how: str) -> None:
    big.fault(PATH, times=None, headers=headers)
    assert fetched(big) == (BODY, how)


def test_without_checksum_and_length_nothing_counts_as_verified(big: Site) -> None:
    big.fault(PATH, times=None, headers={"ETag": ""}, missing=("length", "ranges"))
    assert fetched(big) == (BODY, "")


@pytest.mark.parametrize(
    "headers",
    [
        {"Repr-Digest": f"sha-256=:{NONE}:"},
        {"Digest": f"SHA-256={NONE}"},
        {"x-amz-checksum-sha256": NONE},
        {"x-goog-hash": f"crc32c={text(bytes(4))},md5={text(MD5)}"},
        {"Content-MD5": text(bytes(16))},
        {"ETag": f'"{"0" * 32}"', "Server": "AmazonS3"},
        {"ETag": f'"{"0" * 32}"', "Server": "AmazonS3", "x-amz-server-side-encryption": "AES256"},
    ],
)  # fmt: skip
def test_bytes_with_a_wrong_checksum_are_refused_and_can_be_retried(big: Site, headers: dict[str, str]) -> None:
    big.fault(PATH, times=None, headers=headers)
    found = look_up(official(big), MONTH)
    with pytest.raises(
        Unreachable, match=r"do not match the digest that the server sent \((sha256|md5|crc32c) is .*, the server sent"
    ):
        list(Download(found))


def test_the_checksum_of_a_resumed_download_covers_the_whole_file(big: Site) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=700_000, times=3, headers={"Repr-Digest": f"sha-256=:{text(SHA256)}:"})
    download = Download(found)
    assert b"".join(download) == BODY
    assert download.verified == "sha256"


@pytest.mark.parametrize(
    ("first", "then", "ranges"),
    [
        ({"ETag": 'W/"a"'}, {"ETag": '"a"'}, True),
        ({"ETag": '"a"'}, {"ETag": 'W/"a"'}, False),
        ({"ETag": '"a"'}, {"ETag": '"b"'}, False),  # another server: If-Range fails, so the file is read from the start
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}, True),
        ({"ETag": ""}, {"ETag": ""}, True),
        ({"ETag": "", "Last-Modified": ""}, {"ETag": "", "Last-Modified": ""}, False),
        ({"ETag": 'W/"a"', "Last-Modified": ""}, {"ETag": 'W/"a"', "Last-Modified": ""}, False),
    ],
)
def test_a_download_is_resumed_with_a_range_only_if_the_edition_can_be_named(
    big: Site, first: dict[str, str], then: dict[str, str], ranges: bool
) -> None:
    big.fault(PATH, headers=first, times=None, methods=("HEAD",))
    big.fault(PATH, headers=first, times=1 if first.get("ETag") else 2, cut_after=1_000_000, methods=("GET",))
    big.fault(PATH, headers=then, times=None)
    assert b"".join(Download(look_up(official(big), MONTH))) == BODY
    assert asked(big)[-1][1] == (206 if ranges else 200)


@pytest.mark.parametrize("missing", [("etag", "last_modified"), ("etag", "last_modified", "length", "ranges")])
def test_a_file_without_etag_and_date_is_never_a_mix_of_two_editions(big: Site, missing: tuple[str, ...]) -> None:
    big.fault(PATH, missing=missing, times=None, methods=("HEAD",))
    found = look_up(official(big), MONTH).model_copy(update={"etag": None, "last_modified": None})
    big.fault(PATH, missing=missing, cut_after=1_200_000)
    big.fault(PATH, missing=missing, times=None)
    pieces = iter(Download(found))
    next(pieces)
    big.put(NAME, BODY[:4] + BODY[-5:3:-1] + b"PAR1")  # the same length
    with pytest.raises(AskAgainLater, match="was re-published while it was being read"):
        list(pieces)


def test_a_range_that_ends_too_early_is_followed_by_another(big: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, cut_after=700_000)
    real = _Handler._range

    def short(self: Any, size: int, headers: dict[str, str]) -> Any:
        span = real(self, size, headers)
        return (span[0], min(span[1], span[0] + 900_000)) if isinstance(span, tuple) else span

    monkeypatch.setattr("local.servers.site._Handler._range", short)
    assert b"".join(Download(found)) == BODY


def month_csv(site: Site) -> bytes:
    return site.file(CSV).read_bytes()


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "identity", "aws-chunked", "GZIP", "utf-8"])
def test_a_csv_that_a_server_compresses_for_transfer_is_decompressed(big: Site, encoding: str) -> None:
    content = month_csv(big)
    packed = encoding.lower() in ("gzip", "x-gzip")
    if encoding in ("x-gzip", "GZIP"):
        big.put(CSV, gzip.compress(content))
    big.fault(f"/legacy/{CSV}", encoding=encoding, times=None)
    found = look_up(legacy(big, ".csv"), MONTH)
    assert (found.size is None) == packed
    download = Download(found)
    assert b"".join(download) == content
    assert download.verified


@pytest.mark.parametrize("depth", ["single", "double"])
def test_a_csv_gz_stays_compressed_with_any_content_encoding(big: Site, depth: str) -> None:
    content = gzip.compress(month_csv(big))
    name = f"{CSV}.gz"
    big.put(name, content)
    kind = {"Content-Type": "text/csv"}
    if depth == "double":  # the server compresses the compressed file again
        big.fault(f"/legacy/{name}", encoding="gzip", headers=kind, times=None)
    else:  # the header describes the file itself
        big.fault(f"/legacy/{name}", headers=kind | {"Content-Encoding": "gzip"}, times=None)
    assert b"".join(Download(look_up(legacy(big, ".csv.gz"), MONTH))) == content


def test_a_parquet_file_that_a_server_compresses_for_transfer_is_resumed(big: Site) -> None:
    big.fault(PATH, encoding="gzip", times=None, methods=("HEAD",))
    big.fault(PATH, encoding="gzip", cut_after=400_000, times=3, methods=("GET",))
    big.fault(PATH, encoding="gzip", times=None)
    assert b"".join(Download(look_up(official(big), MONTH))) == BODY


def test_a_content_encoding_with_a_very_high_ratio_is_refused(big: Site) -> None:
    big.put(CSV, gzip.compress(month_csv(big) + b"0,0\n" * (2 << 20)))
    big.fault(f"/legacy/{CSV}", headers={"Content-Encoding": "gzip"}, times=None)
    download = Download(look_up(legacy(big, ".csv"), MONTH))
    with (
        patch.object(gunzip, "LIMIT", (100, 1 << 20)),
        pytest.raises(UnreadableFile, match="no trip file shrinks so much"),
    ):
        list(download)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, br"])
def test_the_error_for_an_unrequested_encoding_names_it(big: Site, encoding: str) -> None:
    big.fault(PATH, headers={"Content-Encoding": encoding}, times=None)
    with pytest.raises(
        UnreadableFile, match=f"is sent with Content-Encoding '{encoding}', although the request allows none"
    ):
        list(Download(look_up(official(big), MONTH)))


def test_truncated_gzip_is_refused(big: Site) -> None:
    big.put(CSV, gzip.compress(month_csv(big))[:-9])
    big.fault(f"/legacy/{CSV}", headers={"Content-Encoding": "gzip"}, times=None)
    with pytest.raises(UnreadableFile, match="Content-Encoding gzip, and the gzip data is truncated"):
        list(Download(look_up(legacy(big, ".csv"), MONTH)))


@pytest.mark.parametrize("known", ["length", "endless", "packed"])
def test_a_file_larger_than_any_month_is_refused(big: Site, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LARGEST, ".parquet", 2_000_000 if known != "endless" else 8_000_000)
    fault: dict[str, dict[str, Any]] = {
        "length": {},
        "endless": {"endless": True, "missing": ("ranges",)},
        "packed": {"encoding": "gzip"},
    }
    if known == "packed":
        big.put(NAME, b"PAR1" + bytes(3_000_000))
    big.fault(PATH, times=None, **fault[known])
    with pytest.raises(UnreadableFile, match=r"has more than [28],000,000 bytes.*it is not a month of trips"):
        list(Download(look_up(official(big), MONTH)))


def test_endless_headers_cause_a_timeout(big: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_HEAD_WITHIN", 0.3)
    monkeypatch.setattr(request, "ANSWER_WITHIN", 0.3)
    big.fault(PATH, drip=0.05, times=None)
    with pytest.raises(Unreachable, match="cannot be reached: ReadTimeout"):
        look_up(official(big), MONTH)
    assert len(asked(big)) == 3  # a HEAD and two GETs


@pytest.mark.parametrize("drop", [b"x", b""])
def test_a_body_that_drips_evenly_causes_a_timeout(big: Site, drop: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_up(official(big), MONTH)
    monkeypatch.setattr(request, "WINDOW", 0.2)

    def dripping(self: Any, file: Any, start: int, stop: int, *arguments: Any, **named: Any) -> None:
        while not self.site.stopping.wait(0.02):
            self.wfile.write(b"1\r\n" + file.read(1) + b"\r\n" if drop else b"0")

    monkeypatch.setattr("local.servers.site._Handler._body", dripping)
    big.fault(PATH, missing=("length",), times=None)
    with pytest.raises(Unreachable, match=r"broke off after \d+ bytes: ReadTimeout"):
        list(Download(found))
    assert sum(method == "GET" for method, *_ in asked(big)) == ATTEMPTS


def test_a_slow_reader_causes_no_timeout(big: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "WINDOW", 0.3)
    found = look_up(official(big), MONTH)
    pieces = iter(Download(found))
    content = next(pieces)
    threading.Event().wait(1)
    assert content + b"".join(pieces) == BODY


def test_a_zone_file_is_checked_limited_and_decompressed_too(big: Site) -> None:
    path = "/misc/taxi_zone_lookup.csv"
    url = big.url + path
    plain = zone_file(url).content
    big.fault(path, encoding="gzip")
    assert zone_file(url).content == plain
    big.fault(path, headers={"Content-MD5": text(bytes(16))})
    with pytest.raises(Unreachable, match="do not match the digest that the server sent"):
        zone_file(url)
    big.fault(path, endless=True)
    with pytest.raises(UnreadableFile, match="not a zone look-up"):
        zone_file(url)
    with pytest.raises(NotPublished):
        zone_file(f"file://{os.devnull}/x.csv")
    with pytest.raises(UnreadableFile, match="is a folder"):
        zone_file("file:///tmp")


def test_a_signed_link_is_read_and_its_signature_is_not_shown(big: Site) -> None:
    source = Source(official(big).template + "?X-Amz-Signature=hunter2&X-Amz-Expires=60")
    big.fault(PATH, status=403, times=None, methods=("HEAD",))
    assert b"".join(Download(look_up(source, MONTH))) == BODY
    with pytest.raises(NotPublished) as raised:
        look_up(source, TripMonth("green", 2026, 1))
    assert "hunter2" not in str(raised.value)
    assert "?…" in str(raised.value)


def test_an_html_page_instead_of_the_file_is_not_taken_for_a_new_edition(big: Site) -> None:
    found = look_up(official(big), MONTH)
    big.fault(PATH, body="html", times=None)
    with pytest.raises(UnreadableFile, match="it is an HTML or XML page"):
        list(Download(found))
