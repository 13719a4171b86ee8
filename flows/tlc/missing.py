"""Find out how a file spells a missing value: TLC leaves it empty, R writes NA, databases NULL or \\N, pandas nan."""

import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.convert import is_text
from flows.tlc.errors import UnreadableFile
from flows.tlc.foreign import fields_of
from flows.tlc.matching import Shape
from flows.tlc.schema import MISSING
from flows.tlc.trips import TripMonth

_WORDS = frozenset(MISSING) - {""}
_ANY_WORD = re.compile("|".join(map(re.escape, _WORDS)).encode())


class Missing:
    """The words that one file uses for a missing value.

    In columns of numbers and datetimes these words are missing values. In columns of text they are missing values only if
    the first rows of the file use them for missing numbers. Otherwise they may be texts.
    """

    def __init__(self, trip_month: TripMonth, shape: Shape) -> None:
        columns = list(zip(shape.published, shape.canonical, strict=True))
        self._trip_month, self._names = trip_month, shape.names
        self._is_text = {name: column.kind == "text" or shape.coded(column) for name, column in columns}
        self._numbers = {name for name, column in columns if column.kind in ("integer", "number")}
        self._seen: dict[bool, set[str]] = {False: set(), True: set()}  # by whether the column is text
        self.words: tuple[str, ...] = ()

    def learn_from_lines(self, first: Iterable[bytes]) -> None:
        """Learn the words from the first lines of a CSV."""
        for line in filter(_ANY_WORD.search, first):
            fields = fields_of(line)
            if len(fields) == len(self._names):
                for name, field in zip(self._names, fields, strict=True):
                    if name in self._is_text and field.strip() in _WORDS:
                        self._seen[self._is_text[name]].add(field.strip())
        self.words = tuple(sorted(self._seen[False]))

    def look_at(self, rows: pa.Table, *, first: bool = False) -> None:
        """Note the words in these rows. Learn them if they are the `first` rows. Skip columns whose numbers are not texts."""
        for name, as_text in self._is_text.items():
            column = rows.column(name)
            if is_text(column.type) and (as_text or name in self._numbers):
                texts = pc.utf8_trim_whitespace(pc.unique(column)).to_pylist()
                self._seen[as_text].update(set(texts).intersection(_WORDS))
        if first:
            self.words = tuple(sorted(self._seen[False]))

    def numbers_are_texts(self, rows: pa.Table) -> bool:
        """Return whether the values of a column of numbers are texts, and may be words for a missing value."""
        return any(is_text(rows.column(name).type) for name in self._numbers)

    def without_words(self, rows: pa.Table) -> pa.Table:
        """Return the rows with null in place of the words in their columns of text."""
        for name in [name for name, as_text in self._is_text.items() if as_text and self.words]:
            column = rows.column(name)
            if is_text(column.type):
                is_word = pc.is_in(column, value_set=pa.array(self.words, column.type))
                place = rows.column_names.index(name)
                rows = rows.set_column(place, name, pc.if_else(is_word, pa.scalar(None, column.type), column))
        return rows

    def require_one_meaning(self) -> None:
        """Raise `UnreadableFile` if a word is a missing number, also occurs in a text column, and is not in the first rows."""
        both = self._seen[False] & self._seen[True] - set(self.words)
        if both:
            raise UnreadableFile(
                f"{self._trip_month}: {', '.join(sorted(both))} means missing numbers in this file, but not in its first"
                " rows. The word also occurs in columns of text, perhaps as a text. Nothing was loaded; save the file"
                " with empty fields for missing values."
            )
