"""Decode the `Content-Encoding` in which a server sends a file."""

from collections.abc import Iterable, Iterator

from flows.tlc.addresses import escaped
from flows.tlc.errors import UnreadableFile
from flows.tlc.gunzip import DamagedGzip, ImplausibleGzip, beginning, inflated
from flows.tlc.sources import Ending

_GZIP = b"\x1f\x8b"
_ENOUGH = 4096  # bytes of gzip; enough to decompress the first bytes of the content

# Not content codings: some servers write a charset or a transfer encoding here. The bytes are the file's own.
_MISTAKEN = {"utf-8", "utf8", "us-ascii", "iso-8859-1", "binary", "8bit", "7bit", "none", "null"}
# aws-chunked says how an object was uploaded, not how it is sent: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
_NONE = {"", "identity", "aws-chunked"} | _MISTAKEN
_PACKED = {"gzip", "x-gzip"}


def encodings(header: str | None) -> list[str]:
    """Return those encodings of a `Content-Encoding` header that change the bytes."""
    return [word for word in (part.strip().lower() for part in (header or "").split(",")) if word not in _NONE]


def decoded(about: object, url: str, ending: Ending, header: str | None, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the file's own bytes from the bytes that were sent with this `Content-Encoding`.

    A `.csv.gz` is itself gzip, and many servers declare that as its encoding. It is decompressed only if it is gzip inside gzip.
    Bytes that are not gzip stay as they are, whatever the header says.

    Raises:
        UnreadableFile: The encoding is not gzip, or the gzip data is damaged, incomplete or implausible.
    """
    named = encodings(header)
    if not named:
        yield from pieces
        return
    if len(named) > 1 or named[0] not in _PACKED:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding {escaped(', '.join(named), 40)!r}, although the request allows"
            " none; download the file with another program and name it with file://. Nothing was loaded."
        )
    sent = iter(pieces)
    begun = bytearray()
    for piece in sent:
        begun += piece
        if len(begun) >= _ENOUGH:
            break
    head = bytes(begun)
    packed = head.startswith(_GZIP) and (ending != ".csv.gz" or beginning(head, 16).startswith(_GZIP))
    whole = _chained(head, sent)
    yield from _inflated(about, url, whole) if packed else whole


def _chained(head: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _inflated(about: object, url: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from inflated(pieces)
    except DamagedGzip as error:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding gzip, and {error}."
            " Nothing was loaded; run again. If that does not help, download the file and name it with file://."
        ) from error
    except ImplausibleGzip as error:
        raise UnreadableFile(
            f"{about}: {url} is sent with Content-Encoding gzip: {error}. Nothing was loaded; check the source."
        ) from error
