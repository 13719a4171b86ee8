"""How a CSV file spells a missing value: TLC leaves the field empty, R writes NA, databases NULL or \\N, pandas can write nan."""

import csv
import re
from collections.abc import Iterable
from contextlib import suppress

from flows.tlc.eras import Shape
from flows.tlc.errors import UnreadableFile
from flows.tlc.trips import TripMonth

WORDS = ("NA", "N/A", "#N/A", "n/a", "NULL", "Null", "null", r"\N", "nan", "NaN", "NAN", "None", "<NA>", "NaT")
_BYTES = {word: re.compile(rb'(?:^|,)"?' + re.escape(word.encode()) + rb'"?(?=,|\r?$)', re.MULTILINE) for word in WORDS}


class Missing:
    """The words that one file has for a missing value.

    A word is one where it stands in a column of numbers or datetimes, which cannot mean it otherwise. In columns of text it
    is one too if the file's first rows show that the file spells missing values so: else it may be what was published.
    """

    def __init__(self, trip_month: TripMonth, shape: Shape, first_lines: Iterable[bytes]) -> None:
        self._trip_month = trip_month
        known = dict(zip(shape.published, shape.canonical, strict=True))
        columns = [known.get(name) for name in shape.names]
        self._kept = [column is not None and (column.kind == "text" or shape.coded(column)) for column in columns]
        self._converted = [column is not None and not kept for column, kept in zip(columns, self._kept, strict=True)]
        self._seen: dict[str, set[str]] = {"converted": set(), "kept": set()}
        lines = list(first_lines)
        self.words: tuple[str, ...] = ()
        self._note(lines, [word for word in WORDS if any(word.encode() in line for line in lines)])
        self.words = tuple(sorted(self._seen["converted"]))

    def look_at(self, block: bytes) -> None:
        """Note where a block has further words."""
        found = [word for word in WORDS if word not in self.words and word.encode() in block]
        if found := [word for word in found if _BYTES[word].search(block)]:
            self._note(block.split(b"\n"), found)

    def _note(self, lines: Iterable[bytes], words: list[str]) -> None:
        for line in lines if words else ():
            fields: list[str] = []
            with suppress(csv.Error):
                fields = next(csv.reader([line.rstrip(b"\r").decode(errors="replace")]), [])
            if len(fields) == len(self._kept):
                for field, kept, converted in zip(fields, self._kept, self._converted, strict=True):
                    if (kept or converted) and field.strip() in words:
                        self._seen["kept" if kept else "converted"].add(field.strip())

    def require_one_meaning(self) -> None:
        """Raise if a word that no first row has stands for a missing number, and in a text column for who knows what."""
        both = self._seen["converted"] & self._seen["kept"] - set(self.words)
        if both:
            raise UnreadableFile(
                f"{self._trip_month}: {', '.join(sorted(both))} stands for missing numbers in this file, but not in its first"
                " rows, and also in columns of text, where it may be a text. Nothing was loaded; save the file with empty fields"
                " for missing values."
            )
