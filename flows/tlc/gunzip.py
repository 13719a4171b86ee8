"""Inflate gzip data piece by piece. isal inflates about three times as fast as zlib."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from isal import isal_zlib

_SLICE = 128 << 10  # bytes given to the inflater at once: it copies the rest of them at the end of each member
_EMPTY = 1_000  # consecutive members without text; files made of parts have none or one between two parts
# The text may be 100 times as large as the compressed bytes; 1 GiB is always allowed. TLC's CSVs shrink to an eighth.
LIMIT = 100, 1 << 30
_PIECE = 1 << 20  # most bytes inflated at once: a small compressed piece can inflate to many times its size
_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # the stub calls the class an instance


class DamagedGzip(Exception):
    """The gzip data is damaged, or does not end with a complete member."""


class ImplausibleGzip(Exception):
    """The gzip data is not damaged, but nobody packs trips like this. Its text is a sentence without its end."""


def inflated(compressed: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of gzip data, which may have several members, and padding between them.

    Raises:
        DamagedGzip: The data is damaged or truncated. Its text continues a sentence about the file.
        ImplausibleGzip: The text is too large for its compressed size, or a thousand members in a row have no text.
    """
    inflate = isal_zlib.decompressobj(wbits=31)
    times, least = LIMIT
    read = made = empty = 0
    try:
        for data in _slices(compressed):
            read += len(data)
            while data:
                if inflate.eof:
                    data = data.lstrip(b"\x00")  # noqa: PLW2901 - padding between members is legal
                    if not data:
                        break
                    inflate = isal_zlib.decompressobj(wbits=31)
                if text := inflate.decompress(data, _PIECE):
                    made, empty = made + len(text), 0
                    if made > max(least, times * read):
                        raise ImplausibleGzip(
                            f"{read:,} bytes of gzip contain more than {made:,} bytes of text; no trip file shrinks so much"
                        )
                    yield text
                empty += inflate.eof
                if empty > _EMPTY:
                    raise ImplausibleGzip(f"the gzip data has more than {_EMPTY:,} members in a row without text")
                data = inflate.unconsumed_tail or inflate.unused_data  # noqa: PLW2901
    except _ERROR as error:
        raise DamagedGzip(f"the gzip data is damaged ({error})") from error
    if not inflate.eof:
        raise DamagedGzip("the gzip data is truncated, or something was appended to it")


def _slices(compressed: Iterable[bytes]) -> Iterator[bytes]:
    for data in compressed:
        for at in range(0, len(data), _SLICE):
            yield data[at : at + _SLICE]


def beginning(compressed: bytes, most: int) -> bytes:
    """Return up to `most` bytes of the content, given the beginning of gzip data; b"" if it is damaged."""
    with suppress(_ERROR):
        return bytes(isal_zlib.decompressobj(wbits=31).decompress(compressed, most))
    return b""
