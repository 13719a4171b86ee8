"""How a CSV file spells a missing value: TLC leaves the field empty, R writes NA, databases NULL or \\N, pandas can write nan."""

import csv
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.eras import Shape
from flows.tlc.errors import UnreadableFile
from flows.tlc.schema import MISSING
from flows.tlc.trips import TripMonth

_WORDS = frozenset(MISSING) - {""}


class Missing:
    """The words that one file has for a missing value.

    A word is one where it stands in a column of numbers or datetimes, which cannot mean it otherwise. In columns of text it
    is one too if the file's first rows show that the file spells missing values so: else it may be what was published.
    """

    def __init__(self, trip_month: TripMonth, shape: Shape, first_lines: Iterable[bytes]) -> None:
        self._trip_month = trip_month
        self._kept = {
            name: column.kind == "text" or shape.coded(column)
            for name, column in zip(shape.published, shape.canonical, strict=True)
        }
        self._numbers = {
            n for n, c in zip(shape.published, shape.canonical, strict=True) if c.kind in ("integer", "number")
        }
        self._seen: dict[bool, set[str]] = {False: set(), True: set()}  # in columns that convert, in columns of text
        self.words: tuple[str, ...] = ()
        for line in first_lines:
            fields: list[str] = []
            with suppress(csv.Error):
                fields = next(csv.reader([line.decode(errors="replace")]), [])
            if len(fields) == len(shape.names):
                for name, field in zip(shape.names, fields, strict=True):
                    if name in self._kept and field.strip() in _WORDS:
                        self._seen[self._kept[name]].add(field.strip())
        self.words = tuple(sorted(self._seen[False]))

    def look_at(self, rows: pa.Table) -> None:
        """Note the words in further rows, given as texts, or as numbers where all of a column's are."""
        for name, kept in self._kept.items():
            column = rows.column(name)
            if pa.types.is_string(column.type) and (kept or name in self._numbers):
                texts = pc.utf8_trim_whitespace(pc.unique(column)).to_pylist()
                self._seen[kept].update(set(texts).intersection(_WORDS))

    def require_one_meaning(self) -> None:
        """Raise if a word that no first row has stands for a missing number, and in a text column for who knows what."""
        both = self._seen[False] & self._seen[True] - set(self.words)
        if both:
            raise UnreadableFile(
                f"{self._trip_month}: {', '.join(sorted(both))} stands for missing numbers in this file, but not in its first"
                " rows, and also in columns of text, where it may be a text. Nothing was loaded; save the file with empty fields"
                " for missing values."
            )
