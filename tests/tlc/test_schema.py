"""The canonical schema is the same in every store, in spite of their different rules for names."""

import pytest

from flows.tlc.schema import KINDS, TRIP_COLUMNS, arrow_schema, columns
from flows.tlc.trips import COLORS


def test_every_color_has_a_schema() -> None:
    assert set(TRIP_COLUMNS) == set(COLORS)


@pytest.mark.parametrize("color", COLORS)
def test_the_key_comes_last_and_names_are_unique_without_case(color: str) -> None:
    names = [column.postgres_name for column in columns(color)]
    assert names[-2:] == ["file_month", "row_number"]
    assert len(names) == len(set(names))
    assert all(name.isidentifier() and name == name.lower() for name in names)


@pytest.mark.parametrize("color", COLORS)
def test_every_column_has_a_meaning_and_a_type_in_every_store(color: str) -> None:
    assert arrow_schema(color).names == [column.name for column in columns(color)]
    for column in columns(color):
        assert column.meaning
        assert KINDS[column.kind].bigquery
        assert KINDS[column.kind].postgres
        assert column.kind != "number" or column.unit, (
            f"{column.name} has no unit, which reports and docs/schema.md show"
        )
