"""Check that the first and last bytes of a file fit its ending: most files that are not trip files fail here."""

from flows.tlc.errors import UnreadableFile
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth

_PARQUET_MAGIC = b"PAR1"
_GZIP_MAGIC = b"\x1f\x8b"
_BEGINNING = 512  # bytes, about the header; the reader reports a NUL among the rows, because it can name the row


def recognise(about: TripMonth | str, ending: Ending, head: bytes, url: str) -> None:
    """Raise `UnreadableFile` if the first bytes of a file do not fit its ending.

    Args:
        about: What the message begins with, such as the month.
        ending: The format that the file must have.
        head: The first bytes of the file; 64 are enough to recognise most formats.
        url: The name of the file in the message.
    """
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    what = ""
    if not head:
        what = "it is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "it is a Git LFS pointer, not the file: download it with Git LFS or from its publisher"
    elif start.startswith((b"<<<<<<<", b">>>>>>>", b"=======")):
        what = "it begins with merge-conflict markers: get the original file"
    elif start.startswith(b"<"):  # <!doctype, <html, <?xml, a comment, a lone element
        what = "it is an HTML or XML page, most likely an error message: open the address in a browser"
    elif start.startswith((b"{", b"[", b"404", b"403", b"%pdf", b"pk\x03\x04")):
        what = "it is JSON, PDF, ZIP (XLSX) or an error message: open the address in a browser, and get the file itself"
    elif ending != ".parquet" and start.startswith((b"\xff\xfe", b"\xfe\xff")):
        what = "it is UTF-16 text: save it as UTF-8"
    elif ending == ".parquet" and not head.startswith(_PARQUET_MAGIC):
        what = "it is not Parquet (no PAR1 at the beginning)"
    elif ending == ".csv.gz" and not head.startswith(_GZIP_MAGIC):
        what = "it is not gzip"
    elif ending == ".csv" and (head.startswith((_GZIP_MAGIC, _PARQUET_MAGIC)) or b"\x00" in head[:_BEGINNING]):
        what = "it is binary, not CSV text: check that the source's ending is right, and that the file was compressed only once"
    if what:
        raise UnreadableFile(f"{about}: {url} cannot be read: {what}. Nothing was loaded.")


def recognise_end(trip_month: TripMonth, ending: Ending, tail: bytes, url: str) -> None:
    """Raise `UnreadableFile` if `tail`, the last bytes of a Parquet file called `url`, does not end with its footer."""
    if ending == ".parquet" and not tail.endswith(_PARQUET_MAGIC):
        raise UnreadableFile(
            f"{trip_month}: {url} is truncated, or something was appended to it: it does not end with a Parquet footer."
            " Nothing was loaded; fetch the file again. If the new copy has the same error, the publisher's own file is damaged:"
            " take the month from another source."
        )
