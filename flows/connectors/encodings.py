"""Content encodings: what a server did to a file's bytes on their way, undone."""

import zlib
from collections.abc import Iterable, Iterator

from flows.tlc.addresses import escaped
from flows.tlc.errors import UnreadableFile
from flows.tlc.sources import Ending

_GZIP = b"\x1f\x8b"
_TELLING = 4096  # bytes of gzip that surely give the first bytes of what is inside
_PIECE = 1 << 20  # bytes inflated at once: a well compressed piece would make many times its size

# Names of what is no content coding, written where a charset or a transfer encoding was meant: the bytes are the file's.
_MISTAKEN = {"utf-8", "utf8", "us-ascii", "iso-8859-1", "binary", "8bit", "7bit", "none", "null"}
# aws-chunked names how an object was uploaded, not what is sent: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
_NONE = {"", "identity", "aws-chunked"} | _MISTAKEN
_PACKED = {"gzip", "x-gzip"}


def encodings(header: str | None) -> list[str]:
    """Return the encodings that a `Content-Encoding` header names and that change bytes."""
    return [word for word in (part.strip().lower() for part in (header or "").split(",")) if word not in _NONE]


def decoded(about: object, url: str, ending: Ending, header: str | None, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the file's own bytes from those that were sent with this `Content-Encoding`.

    A `.csv.gz` is gzip by itself, and many servers call that its encoding: it is unpacked only if gzip is inside of gzip.
    What is not packed, whatever its header says, stays as it is.
    """
    named = encodings(header)
    if not named:
        yield from pieces
        return
    if len(named) > 1 or named[0] not in _PACKED:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding {escaped(', '.join(named), 40)!r}, though none was asked for; have it"
            " published without, or fetch the file by another program and name it with file://. Nothing was loaded."
        )
    sent = iter(pieces)
    begun = bytearray()
    for piece in sent:
        begun += piece
        if len(begun) >= _TELLING:
            break
    head = bytes(begun)
    packed = head.startswith(_GZIP) and (ending != ".csv.gz" or _inside(head).startswith(_GZIP))
    whole = _chained(head, sent)
    yield from _inflated(about, url, whole) if packed else whole


def _chained(head: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _inside(head: bytes) -> bytes:
    """Return the first bytes that a gzip file's beginning holds."""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 16)
    except zlib.error:
        return b""


def _inflated(about: object, url: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    try:
        for data in pieces:
            while data:
                if inflate.eof:  # gzip may have several members
                    inflate = zlib.decompressobj(wbits=31)
                if text := inflate.decompress(data, _PIECE):
                    yield text
                data = inflate.unconsumed_tail or inflate.unused_data  # noqa: PLW2901
    except zlib.error as error:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding gzip, and that is damaged ({error})."
            " Nothing was loaded; run again. If that does not help, download the file and name it with file://."
        ) from error
    if not inflate.eof:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding gzip, and that ends too early."
            " Nothing was loaded; run again. If that does not help, download the file and name it with file://."
        )
