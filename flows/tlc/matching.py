"""Map the columns of one file to the canonical ones, or list how they differ from those of the file's era."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from flows.tlc.addresses import escaped
from flows.tlc.eras import ERAS, Era, era_like, indexes_of, lacking_in, meanings_of, meant_in, plain, since
from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import CODINGS, KEY, TRIP_COLUMNS, Column, Kind
from flows.tlc.sources import Ending
from flows.tlc.trips import SchemaRule, TripMonth

_KEY_NAMES = {column.name for column in KEY}

# The published Arrow types that convert to a kind without ambiguity. A value that cannot be converted is quarantined.
# pandas writes a column of texts or times without any value as floats (NaN): `clean` refuses one that has a number.
_TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_FLOAT_TYPES = ("double", "float", "halffloat")
_NUMBER_TYPES = ("int", "uint", "decimal", *_FLOAT_TYPES, "null", *_TEXT_TYPES)
_CONVERTIBLE: dict[Kind, tuple[str, ...]] = {
    "integer": _NUMBER_TYPES,
    "number": _NUMBER_TYPES,
    "datetime": ("timestamp", "null", *_FLOAT_TYPES, *_TEXT_TYPES),
    "text": ("null", *_FLOAT_TYPES, *_TEXT_TYPES),
}


@dataclass(frozen=True)
class Shape:
    """How one file's columns map to the canonical ones: `published[i]` is read as `canonical[i]`."""

    era: Era
    names: tuple[str, ...]  # all columns of the file, in order
    published: tuple[str, ...]
    canonical: tuple[Column, ...]
    empty: tuple[str, ...] = ()  # must have no value in any row; includes unnamed fields at the end
    new: tuple[str, ...] = ()  # unknown to the schema, and kept as published
    counting: tuple[str, ...] = ()  # must number the rows; they are not loaded

    def coded(self, column: Column) -> bool:
        """Return whether the file has texts where the canonical column has codes."""
        return column.name in self.era.coded.split()

    @property
    def filled(self) -> frozenset[str]:
        """The canonical columns that trips of this file can have values in. All others are null in every row."""
        coded = [column.name for column in self.canonical if self.coded(column)]
        names = {column.name for column in self.canonical} | {CODINGS[name].original for name in coded}
        return frozenset(names - {""} | _KEY_NAMES)

    def padded(self, fields: int) -> "Shape":
        """Return the shape of the same file with `fields` more fields at the end of each row, without names in the header."""
        unnamed = tuple(f"(field {len(self.names) + i + 1}, which has no name)" for i in range(fields))
        return replace(self, names=self.names + unnamed, empty=self.empty + unnamed)


class Difference(NamedTuple):
    """One line of the table of differences between a file's columns and those of its era."""

    column: str
    published: str
    expected: str
    since_when: str
    what_to_do: str


_MOST_COLUMNS = 200  # of a file; TLC's have 25 at most
_MOST_LISTED = 20  # differences in a message
_LONGEST_CELL = 60  # characters of a name or a type in it


def _cell(text: str) -> str:
    return escaped(text, _LONGEST_CELL)


def _as_text(differences: Sequence[Difference]) -> str:
    """Return the table as text, with columns aligned for a fixed-width font, as in logs and terminals."""
    rows = [tuple(name.replace("_", " ") for name in Difference._fields), *differences[:_MOST_LISTED]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    more = [f"and {len(differences) - _MOST_LISTED} more"] if len(differences) > _MOST_LISTED else []
    return "\n".join([" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows] + more)


_FOR_GOOD = "if TLC changed it for good: docs/eras.md"
_ABSENT = f"get TLC's own file; {_FOR_GOOD}"
_TWICE = f"leave one of them out; {_FOR_GOOD}"
_KEYS_NAME = f"give the column another name, or get TLC's own file; {_FOR_GOOD}"
_TYPE = f"save the column as {{}}, or get TLC's own file; {_FOR_GOOD}"
_NAMELESS = "get TLC's own file; one saved by pandas: save it with index=False"
_ADD = {
    "strict": "add it (docs/eras.md), or load the lake alone, with schema=accept_new_columns",
    "accept_new_columns": "nothing: it would be kept as published",
}
_RENAMED = "\nIf an absent column is in the file under a new name, add that name to ALIASES in flows/tlc/eras.py."
_TLC_TYPES: dict[Kind, str] = {
    "integer": "int64",
    "number": "double",
    "datetime": "timestamp[us] without zone",
    "text": "string",
}
_WALL_CLOCK = "New York wall-clock, without zone"


def _unlike(era: Era, column: Column, published: pa.DataType) -> str:
    """Return the type that a column must have to convert without ambiguity; "" if it has such a type."""
    if pa.types.is_dictionary(published):  # how pandas saves a categorical column
        published = published.value_type
    simple = str(published).split("[")[0].split("(")[0].rstrip("0123456789")
    coded_number = column.name in era.coded.split() and simple in _CONVERTIBLE["number"]
    if simple not in _CONVERTIBLE[column.kind] and not coded_number:
        return column.kind
    if pa.types.is_timestamp(published) and published.tz is not None:
        return _WALL_CLOCK
    return ""


def _how_to_save(column: Column, expected: str) -> str:
    if expected == _WALL_CLOCK:
        return "save it so (pandas: dt.tz_convert('America/New_York').dt.tz_localize(None); Spark: TIMESTAMP_NTZ)"
    return _TYPE.format(_TLC_TYPES[column.kind])


def match(
    trip_month: TripMonth,
    ending: Ending,
    names: Sequence[str],
    types: Sequence[pa.DataType] | None = None,
    rule: SchemaRule = "strict",
) -> Shape:
    """Map a file's column names, and its Arrow types if it has any, to the canonical columns of its color.

    A column of today's schema is accepted in any month. Under the rule accept_new_columns, an unknown column with its own
    name becomes one of the shape's `new` columns. The message of a `SchemaMismatch` has a table of all columns that are unknown,
    missing for the era, repeated, or of a type that cannot be converted.
    """
    if len(names) > _MOST_COLUMNS:
        raise SchemaMismatch(
            f"{trip_month}: the file has {len(names):,} columns, the first is {_cell(repr(names[0]))}; a file of trips has fewer"
            f" than {_MOST_COLUMNS}. Nothing was loaded; get TLC's own file."
        )
    era = era_like(trip_month, ending, names)
    meant, lacking = meant_in(era, names), lacking_in(era, names)
    known = {name: column for name, column in meant.items() if column}
    given = Counter(meant.get(name) or plain(name) for name in names)
    wrong, new = [], []
    for place, name in enumerate(names):
        column = meant.get(name)
        shown, published = _cell(repr(name)), _cell(str(types[place])) if types else f"field {place + 1}"
        began = (column and since(era, column)) or "–"
        if given[column or plain(name)] > 1:
            wrong.append(Difference(shown, f"{published}, not alone", "one column", began, _TWICE))
        elif column:
            if types and (expected := _unlike(era, column, types[place])):
                wrong.append(Difference(shown, published, expected, began, _how_to_save(column, expected)))
        elif name not in meant:
            continue
        elif not name.strip():
            wrong.append(Difference(shown, published, "a name", "–", _NAMELESS))
        elif plain(name) in _KEY_NAMES:
            wrong.append(Difference(shown, published, "another name: this is the key's", "–", _KEYS_NAME))
        else:
            new.append(Difference(shown, published, "no such column", "–", _ADD[rule]))
    wrong += [Difference(repr(c.name), "absent", c.kind, since(era, c), _ABSENT) for c in lacking]
    if wrong or (new and rule == "strict"):
        raise SchemaMismatch(
            f"{trip_month}: the columns are not those of {era.name}. Nothing was loaded.\n{_as_text(new + wrong)}"
            + (_RENAMED if new and lacking else "")
        )
    empty = tuple(name for name in names if plain(name) in {plain(name) for name in era.empty.split()})
    unknown = tuple(name for name in meant if name not in known)
    counting = tuple(name for name, index in indexes_of(names).items() if index.counts)
    return Shape(era, tuple(names), tuple(known), tuple(known.values()), empty, unknown, counting)


def differences(color: str, names: Sequence[str], era: str = "") -> list[str]:
    """Return texts on how a file with columns `names` differs from the canonical schema: renamed, absent, additional.

    `era` is the name of its era. The columns that keep the texts of coded columns are not absent in an era that has such texts.
    """
    meanings = meanings_of(color)
    meant = {name: meanings.get(plain(name)) for name in names}
    renamed = [f"{_code(name)} → `{column.name}`" for name, column in meant.items() if column and column.name != name]
    found = set(meant.values())
    coded = " ".join(known.coded for known in ERAS if known.name == era).split()
    kept = {CODINGS[name].original for name in coded}
    absent = [f"`{c.name}`" for c in TRIP_COLUMNS[color] if c not in found and c.name not in kept]
    more = [_code(name) for name, column in meant.items() if column is None]
    lists = {"renamed": renamed, "not in the file, so null": absent, "in the file, without trip data": more}
    return [f"{what}: {', '.join(columns)}" for what, columns in lists.items() if columns] or [
        "columns: the canonical ones"
    ]


def _code(name: str) -> str:
    """Return a published name as code in Markdown. A backtick in it would end the code."""
    text = escaped(name, 80).replace("`", "'")
    return f"`{text}`"
