"""Print the page about the canonical schema and its origins: `python -m flows.tlc.dictionary > docs/schema.md`."""

import datetime as dt
from collections.abc import Callable, Iterator
from functools import partial

from flows.tlc.eras import ALIASES, ERAS, Era, meant_by
from flows.tlc.schema import CODINGS, KEY, KINDS, SCHEMA_VERSION, TRIP_COLUMNS, Column
from flows.tlc.trips import COLORS, FIRST_MONTH

_WALL_CLOCK = "New York wall-clock"

_INTRODUCTION = f"""\
# The canonical schema

<!-- Made by `python -m flows.tlc.dictionary > docs/schema.md` from flows/tlc/schema.py and eras.py; do not edit. -->

Version {SCHEMA_VERSION}. These are the columns of a trip in the lake (Parquet), in BigQuery and in PostgreSQL, whatever its file
looked like. Names and order are those of TLC's newest files; PostgreSQL folds names to lower case. Every column except the key
may be null. A column that the month's file does not have is null in all its rows. A value that was published empty is null, too.

*In files* shows since when TLC publishes the column, in its Parquet files and in its legacy CSVs. The months are those of the
files' names. *Other names* shows the column's names in older files. Case and surrounding blanks of names differ between files
and are ignored.

To add a column, see [eras.md](eras.md). If a version of the schema added a column, the months with that `schema_version` or a
later one have it; in all other months it is null. `schema_version` is in the lake's manifests and in the tables `loads` of
BigQuery and PostgreSQL.
"""


def markdown() -> str:
    """Return the whole page."""
    return "\n".join([_INTRODUCTION, *(line for color in COLORS for line in _color(color))])


def _color(color: str) -> Iterator[str]:
    yield f"## {color}"
    yield ""
    yield "TLC's files begin with {}-{:02d}.".format(*FIRST_MONTH[color])
    yield ""
    yield "| column | lake | BigQuery | PostgreSQL | unit | meaning | in files | other names |"
    yield "|---|---|---|---|---|---|---|---|"
    for column in (*TRIP_COLUMNS[color], *KEY):
        kind = KINDS[column.kind]
        unit = column.unit or (_WALL_CLOCK if column.kind == "datetime" else "")
        files, names = ("made here", "") if column in KEY else (_in_files(color, column), _other_names(color, column))
        cells = (f"`{column.name}`", str(kind.arrow), kind.bigquery, kind.postgres, unit, column.meaning, files, names)
        yield f"| {' | '.join(cells)} |"
    yield ""


def _spans(eras: list[Era], belongs: list[bool]) -> str:
    """Return the months of the eras that belong, as spans such as 2009-01 to 2014-12."""
    spans = []
    begun = ""
    for era, here in zip(eras, belongs, strict=True):
        if here and not begun:
            begun = era.first
        elif begun and not here:
            spans.append(f"{begun} to {(dt.date.fromisoformat(f'{era.first}-01') - dt.timedelta(days=1)):%Y-%m}")
            begun = ""
    return ", ".join([*spans, *([f"{begun} on"] if begun else [])])


def _where(color: str, belongs: Callable[[Era], bool]) -> str:
    """Return the formats and months of the eras that belong, such as Parquet 2009-01 to 2014-12; CSV 2019-01 on."""
    parts = []
    for file_format, title in (("parquet", "Parquet"), ("csv", "CSV")):
        eras = sorted((e for e in ERAS if (e.color, e.format) == (color, file_format)), key=lambda e: e.first)
        if spans := _spans(eras, [belongs(era) for era in eras]):
            parts.append(f"{title} {spans}")
    return "; ".join(parts)


def _in_files(color: str, column: Column) -> str:
    for published, coding in CODINGS.items():
        if coding.original == column.name:
            return f"the text of `{published}`, where it has no code"
    return _where(color, lambda era: any(meant_by(color, name) == column for name in era.columns.split()))


def _other_names(color: str, column: Column) -> str:
    """Return the column's names in older files, with the months of those files."""
    names = [name for name in ALIASES.get(color, {}) if meant_by(color, name) == column]
    return ", ".join(f"`{name}` ({_where(color, partial(_has, name))})" for name in names)


def _has(name: str, era: Era) -> bool:
    return name in era.columns.split()


if __name__ == "__main__":
    print(markdown(), end="")
