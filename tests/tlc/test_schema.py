"""The canonical schema is one, in every store, whatever the store's rules for names."""

import pytest

from flows.tlc.schema import KINDS, TRIP_COLUMNS, arrow_schema, columns
from flows.tlc.trips import COLORS


def test_every_color_has_a_schema() -> None:
    assert set(TRIP_COLUMNS) == set(COLORS)


@pytest.mark.parametrize("color", COLORS)
def test_a_trip_ends_with_its_key_and_no_name_is_there_twice_in_any_case(color: str) -> None:
    names = [column.postgres_name for column in columns(color)]
    assert names[-2:] == ["file_month", "row_number"]
    assert len(names) == len(set(names))
    assert all(name.isidentifier() and name == name.lower() for name in names)


@pytest.mark.parametrize("color", COLORS)
def test_every_column_says_what_it_means_and_has_a_type_in_every_store(color: str) -> None:
    assert arrow_schema(color).names == [column.name for column in columns(color)]
    for column in columns(color):
        assert column.meaning
        assert KINDS[column.kind].bigquery
        assert KINDS[column.kind].postgres
        assert column.kind != "number" or column.unit, f"{column.name} has no unit: its sums and its page would lack it"
