"""The canonical schema and where it comes from, as a page for people: `python -m flows.tlc.dictionary > docs/schema.md`."""

from collections.abc import Iterator

from flows.tlc.eras import ALIASES, ERAS, Era, meant_by
from flows.tlc.schema import CODINGS, KEY, KINDS, SCHEMA_VERSION, TRIP_COLUMNS, Column
from flows.tlc.trips import COLORS, FIRST_MONTH

_WALL_CLOCK = "New York wall-clock"

_INTRODUCTION = f"""\
# The canonical schema

<!-- Made by `python -m flows.tlc.dictionary > docs/schema.md` from flows/tlc/schema.py and eras.py; do not edit. -->

Version {SCHEMA_VERSION}. What a trip looks like in the lake (Parquet), in BigQuery and in PostgreSQL, whatever its file was.
Names and order are TLC's own, of its newest files; PostgreSQL folds names to lower case. Every column but the key may be null: a
column that the month's files did not have is null in all its rows, and so is a value that was published empty.

*In files* tells since when TLC publishes the column, in its Parquet files and in its legacy CSVs (a month is that of the file's
name); *by other names* what older files call it. Case and blanks around a name differ between files, and do not count.

How a column is added: [eras.md](eras.md). Which months carry a column that a version added: those whose `schema_version`, in the
lake's manifests and in the tables `loads` of BigQuery and PostgreSQL, is that version or a later one; in all others it is null.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(line for color in COLORS for line in _color(color))])


def _color(color: str) -> Iterator[str]:
    yield f"## {color}"
    yield ""
    yield "TLC's files begin with {}-{:02d}.".format(*FIRST_MONTH[color])
    yield ""
    yield "| column | lake | BigQuery | PostgreSQL | unit | meaning | in files | by other names |"
    yield "|---|---|---|---|---|---|---|---|"
    for column in (*TRIP_COLUMNS[color], *KEY):
        kind = KINDS[column.kind]
        unit = column.unit or (_WALL_CLOCK if column.kind == "datetime" else "")
        files, names = ("made here", "") if column in KEY else (_in_files(color, column), _other_names(color, column))
        cells = (f"`{column.name}`", str(kind.arrow), kind.bigquery, kind.postgres, unit, column.meaning, files, names)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _eras(color: str, file_format: str) -> list[Era]:
    return sorted((e for e in ERAS if (e.color, e.format) == (color, file_format)), key=lambda e: e.first)


def _month_before(month: str) -> str:
    year, number = map(int, month.split("-"))
    return f"{year - 1}-12" if number == 1 else f"{year}-{number - 1:02d}"


def _spans(eras: list[Era], belongs: list[bool]) -> str:
    """The months of the eras that belong, as spans of them."""
    spans = []
    begun = ""
    for era, here in zip(eras, belongs, strict=True):
        if here and not begun:
            begun = era.first
        elif begun and not here:
            spans.append(f"{begun} to {_month_before(era.first)}")
            begun = ""
    return ", ".join([*spans, *([f"{begun} on"] if begun else [])])


def _in_files(color: str, column: Column) -> str:
    for published, coding in CODINGS.items():
        if coding.original == column.name:
            return f"the text of `{published}`, where it has no code"
    parts = []
    for file_format, title in (("parquet", "Parquet"), ("csv", "CSV")):
        eras = _eras(color, file_format)
        if spans := _spans(eras, [any(meant_by(color, name) == column for name in e.columns.split()) for e in eras]):
            parts.append(f"{title} {spans}")
    return "; ".join(parts)


def _other_names(color: str, column: Column) -> str:
    """What older files call the column, and which ones."""
    names = []
    for name in ALIASES[color]:
        if meant_by(color, name) == column:
            where = []
            for file_format, title in (("parquet", "Parquet"), ("csv", "CSV")):
                eras = _eras(color, file_format)
                if spans := _spans(eras, [name in e.columns.split() for e in eras]):
                    where.append(f"{title} {spans}")
            names.append(f"`{name}` ({'; '.join(where)})")
    return ", ".join(names)


if __name__ == "__main__":
    print(markdown(), end="")
