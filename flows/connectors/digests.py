"""Read the digests that a server sends for a file, and compare them with the bytes that arrive."""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import google_crc32c
import httpx

from flows.connectors.encodings import encodings
from flows.tlc.manifest import Verified


class _Digest(Protocol):
    def update(self, data: bytes, /) -> Any: ...
    def digest(self) -> bytes: ...


# How each kind is computed, the strongest first. SHA-1, CRC-32 and others are too weak, or no server sends them.
_KINDS: dict[Verified, Callable[[], _Digest]] = {
    "sha256": hashlib.sha256,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32c": google_crc32c.Checksum,
}
_LENGTHS: dict[Verified, int] = {"sha256": 32, "md5": 16, "crc32c": 4}

# Names of the kinds in headers.
_NAMES: dict[str, Verified] = {"sha-256": "sha256", "sha256": "sha256", "md5": "md5", "crc32c": "crc32c"}


# The response headers that carry digests. For each: the kind of digest ("" if each value names its kind), and what it covers:
# "file" (the whole file, even if the answer has only a range) or "answer" (the body of this answer).
# A multipart checksum of S3 ("…-12") is a digest of digests, not of the bytes. Its length does not match, so it is ignored.
_HEADERS = {
    "Repr-Digest": ("", "file"),  # RFC 9530: sha-256=:…:
    "Digest": ("", "file"),  # RFC 3230: SHA-256=…
    "Content-Digest": ("", "answer"),  # RFC 9530
    "x-goog-hash": ("", "file"),  # https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html
    "x-amz-checksum-sha256": ("sha256", "file"),
    "x-amz-checksum-crc32c": ("crc32c", "file"),
    "Content-MD5": ("md5", "answer"),  # RFC 1864
}
_VALUE = re.compile(r"\s*([A-Za-z0-9-]+)=:?([A-Za-z0-9+/=_-]+?):?\s*(?:,|$)")
_MD5_ETAG = re.compile(r'"([0-9a-fA-F]{32})"')


def _sent_otherwise(header: str, headers: Mapping[str, str]) -> bool:
    """Return whether a header may describe other bytes than the body: the store or a cache changed the encoding."""
    sent = encodings(headers.get("Content-Encoding"))
    if header == "x-goog-hash":
        return encodings(headers.get("x-goog-stored-content-encoding")) != sent
    return header.startswith("x-amz-") and bool(sent)


def _digests_sent(answer: httpx.Response) -> Iterator[tuple[Verified, bytes]]:
    """Yield each digest that an answer carries for the bytes of the whole file, as they are sent."""
    for header, (its_kind, covers) in _HEADERS.items():
        text = answer.headers.get(header, "")
        partial = covers == "answer" and answer.status_code != 200
        if not text or partial or _sent_otherwise(header, answer.headers):
            continue
        for name, value in [(its_kind, text.strip())] if its_kind else _VALUE.findall(text):
            kind = _NAMES.get(name.lower())
            try:
                digest = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                continue
            if kind and len(digest) == _LENGTHS[kind]:
                yield kind, digest


def _etag_is_md5(answer: httpx.Response) -> bool:
    """Return whether the server is S3 and its ETag is an MD5. It is not if a KMS key or the client's own key encrypts the file.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html (ETag)
    """
    encryption = answer.headers.get("x-amz-server-side-encryption", "AES256")
    own_key = "x-amz-server-side-encryption-customer-algorithm" in answer.headers
    return answer.headers.get("Server") == "AmazonS3" and encryption == "AES256" and not own_key


class Check:
    """Compare the bytes of a file, as they arrive, with the digests of the first answer."""

    def __init__(self, answer: httpx.Response) -> None:
        self._sent = dict(reversed([*_digests_sent(answer)]))
        # S3, MinIO, R2 and others use the MD5 as the ETag of files uploaded in one part.
        match = _MD5_ETAG.fullmatch(answer.headers.get("ETag", ""))
        self._etag = bytes.fromhex(match[1]) if match else None
        self._etag_counts = _etag_is_md5(answer)
        kinds = set(self._sent) | ({"md5"} if self._etag else set())
        self._digests = {kind: make() for kind, make in _KINDS.items() if kind in kinds}

    def add(self, piece: bytes) -> None:
        """Add the next bytes."""
        for digest in self._digests.values():
            digest.update(piece)

    def mismatch(self) -> str:
        """Return a text about the digest that the bytes do not match, or "" if they match all.

        An ETag that looks like an MD5 counts only if it comes from S3.
        """
        sent = dict(self._sent)
        if self._etag and self._etag_counts:
            sent.setdefault("md5", self._etag)
        for kind, value in sent.items():
            if (found := self._digests[kind].digest()) != value:
                return f"{kind} is {found.hex()}, the server sent {value.hex()}"
        return ""

    @property
    def matched(self) -> Verified:
        """The strongest digest that the bytes match; "" if there is none."""
        for kind, digest in self._digests.items():
            if digest.digest() in (self._sent.get(kind), self._etag if kind == "md5" else None):
                return kind
        return ""
