"""The page about the canonical schema is generated from the code and describes every column."""

import re
from pathlib import Path

import pytest

from flows.tlc.dictionary import markdown
from flows.tlc.eras import ALIASES
from flows.tlc.schema import columns
from flows.tlc.trips import COLORS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "schema.md"


def rows(color: str) -> dict[str, list[str]]:
    """Return the cells of each column's line in the table of a color."""
    [section] = re.findall(rf"^## {color}$(.*?)(?=^## |\Z)", markdown(), re.MULTILINE | re.DOTALL)
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells for cells in lines}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), "python -m flows.tlc.dictionary > docs/schema.md"


@pytest.mark.parametrize("color", COLORS)
def test_every_column_has_a_meaning_and_the_months_that_have_it(color: str) -> None:
    table = rows(color)
    assert list(table) == [column.name for column in columns(color)]
    for name, cells in table.items():
        assert len(cells[5]) > 3, name
        assert re.search(r"\d{4}-\d\d on|\d{4}-\d\d to \d{4}-\d\d|made here|the text of", cells[6]), name


@pytest.mark.slow
def test_the_months_and_older_names_are_those_of_the_files() -> None:
    yellow = rows("yellow")
    assert yellow["pickup_longitude"][6] == "Parquet 2009-01 to 2010-12; CSV 2009-01 to 2016-06"
    assert yellow["cbd_congestion_fee"][6] == "Parquet 2025-01 on"
    assert yellow["vendor_text"][6] == "the text of `VendorID`, where it has no code"
    assert yellow["fare_amount"][4:6] == ["US$", "time and distance"]
    assert rows("fhv")["pickup_datetime"][7].startswith("`Pickup_date` (CSV 2015-01 to 2016-12)")
    for color in COLORS:
        for old, now in ALIASES.get(color, {}).items():
            assert f"`{old}`" in rows(color)[now][7]
