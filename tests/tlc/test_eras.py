"""A file must have the columns of its era. Otherwise the month stops, and the error has one line per difference."""

from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

from flows.tlc.eras import ALIASES, ERAS, Era, era_of
from flows.tlc.errors import SchemaMismatch
from flows.tlc.matching import differences, match
from flows.tlc.schema import TRIP_COLUMNS
from flows.tlc.sources import Ending
from flows.tlc.trips import SchemaRule, TripMonth
from tests.tlc.published import GREEN, TRIP

NAMES = list(TRIP)
ACCEPT: SchemaRule = "accept_new_columns"
SOUND_TYPES = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "datetime": pa.timestamp("us"),
    "text": pa.string(),
}


@pytest.mark.parametrize(
    ("color", "year", "month", "ending", "first"),
    [
        ("yellow", 2019, 1, ".csv.gz", "2019-01"),
        ("yellow", 2009, 1, ".csv", "2009-01"),
        ("yellow", 2016, 12, ".csv.gz", "2016-07"),
        ("yellow", 2010, 3, ".parquet", "2010-01"),
        ("yellow", 2024, 12, ".parquet", "2011-01"),
        ("yellow", 2025, 1, ".parquet", "2025-01"),
        ("yellow", 2026, 5, ".parquet", "2025-01"),
        ("yellow", 2026, 6, ".parquet", "2026-06"),
        ("green", 2021, 1, ".csv", "2019-01"),
        ("green", 2030, 1, ".parquet", "2026-06"),
        ("fhv", 2019, 1, ".parquet", "2015-01"),
        ("fhvhv", 2019, 2, ".csv.gz", "2019-02"),
        ("fhvhv", 2025, 2, ".parquet", "2025-01"),
    ],
)
def test_a_month_belongs_to_the_last_era_that_has_begun(
    color: str, year: int, month: int, ending: Ending, first: str
) -> None:
    era = era_of(TripMonth(color, year, month), ending)
    assert (era.color, era.first) == (color, first)
    assert era.name == f"{color} {'parquet' if ending == '.parquet' else 'csv'} since {first}"


def test_the_error_for_a_month_before_every_era_names_the_first_known_month() -> None:
    with pytest.raises(
        SchemaMismatch, match=r"green 2013-08: the columns of TLC's parquet files .* begin with 2014-01"
    ):
        era_of(TripMonth("green", 2013, 8), ".parquet")


def test_a_color_without_any_era_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.tlc.eras.ERAS", ())
    with pytest.raises(SchemaMismatch, match="no era is known"):
        era_of(GREEN, ".csv")


def test_the_schema_has_every_column_of_every_era() -> None:
    for era in ERAS:
        known = {column.name.casefold() for column in TRIP_COLUMNS[era.color]}
        known |= {name.casefold() for name in ALIASES[era.color]}
        expected = era.columns.casefold().split()
        assert set(expected) <= known, era.name
        assert len(expected) == len(set(expected)), era.name


def test_every_alias_is_for_a_column_of_its_color() -> None:
    for color, aliases in ALIASES.items():
        assert set(aliases.values()) <= {column.name for column in TRIP_COLUMNS[color]}


def test_names_are_matched_without_case_and_blanks_and_kept_as_published() -> None:
    names = [f" {name.upper()} " for name in NAMES]
    shape = match(GREEN, ".csv", names)
    assert shape.published == tuple(names)
    assert [column.name for column in shape.canonical] == NAMES


def test_columns_are_matched_by_name_and_not_by_position() -> None:
    shape = match(GREEN, ".csv", NAMES[::-1])
    assert [column.name for column in shape.canonical] == NAMES[::-1]


def test_a_csv_may_have_the_columns_of_the_months_parquet_era() -> None:
    month = TripMonth("fhvhv", 2020, 4)
    names = era_of(month, ".parquet").columns.split()
    assert match(month, ".csv", names).era.name == "fhvhv parquet since 2019-02"
    with pytest.raises(SchemaMismatch, match="not those of fhvhv csv since 2019-02") as refused:
        match(month, ".csv", names[:-1])
    assert "'SR_Flag'" in [row[0] for row in table_of(refused)]


@pytest.mark.parametrize("era", [era for era in ERAS if era.format == "csv"], ids=lambda era: era.name)
def test_a_parquet_may_have_the_columns_of_the_months_csv_era(era: Era) -> None:
    month = TripMonth(era.color, *map(int, era.first.split("-")))
    names = [*era.columns.split(), *era.empty.split()]
    shape = match(month, ".parquet", ["__index_level_0__", *names])
    assert shape.canonical == match(month, ".csv", names).canonical
    assert shape.empty == tuple(era.empty.split())
    assert shape.new == ()


@pytest.mark.parametrize(("first", "coded"), [("2009-01", True), ("2010-01", True), ("2015-01", False)])
def test_a_column_that_keeps_the_texts_of_a_code_is_called_absent_only_if_the_era_has_no_such_texts(
    first: str, coded: bool
) -> None:
    era = _of("yellow", "csv", first)
    [absent] = [
        line for line in differences("yellow", era.columns.split(), era.name) if line.startswith("not in the file")
    ]
    assert ("`vendor_text`" not in absent) == coded
    assert ("`payment_text`" not in absent) == coded
    assert "`cbd_congestion_fee`" in absent


def test_a_month_without_a_csv_era_must_have_the_columns_of_its_parquet_era() -> None:
    names = [name for name in _of("yellow", "parquet", "2011-01").columns.split() if name != "airport_fee"]
    match(TripMonth("yellow", 2021, 7), ".parquet", names)
    with pytest.raises(SchemaMismatch, match=r"'Airport_fee' +\| absent"):
        match(TripMonth("yellow", 2021, 8), ".parquet", names)


def _of(color: str, file_format: str, first: str) -> Era:
    return next(era for era in ERAS if (era.color, era.format, era.first) == (color, file_format, first))


@pytest.mark.parametrize("twice", ["Dispatching_base_num", "dispatching_base_NUM ", "SR_Flag"])
def test_a_repeated_column_is_refused_even_if_the_era_leaves_it_empty(twice: str) -> None:
    era = _of("fhv", "csv", "2018-01")
    names = [*era.columns.split(), *era.empty.split(), twice]
    with pytest.raises(SchemaMismatch, match=f"'{twice}' +\\| field 8, not alone"):
        match(TripMonth("fhv", 2018, 5), ".csv", names)


def test_an_older_month_may_have_a_column_of_a_newer_era() -> None:
    shape = match(GREEN, ".parquet", [*NAMES, "cbd_congestion_fee"])
    assert shape.canonical[-1].name == "cbd_congestion_fee"


def test_the_page_about_eras_shows_the_present_error_message() -> None:
    columns = [c for c in TRIP_COLUMNS["green"] if c.name != "extra"]
    names, types = [c.name for c in columns], [SOUND_TYPES[c.kind] for c in columns]
    with pytest.raises(SchemaMismatch) as refused:
        match(TripMonth("green", 2027, 1), ".parquet", [*names, "pool_fee"], [*types, pa.float64()])
    page = Path(__file__).resolve().parents[2] / "docs" / "eras.md"
    assert f"```text\n{refused.value}\n```" in page.read_text("utf-8")


def table_of(refused: pytest.ExceptionInfo[SchemaMismatch]) -> list[tuple[str, ...]]:
    """Return the cells of the table in an error, without the last column, the advice."""
    rows = [tuple(cell.strip() for cell in line.split(" | ")) for line in str(refused.value).splitlines()]
    return [row[:4] for row in rows if len(row) == 5][2:]


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (["Unnamed: 0", NAMES[0], "index", *NAMES[1:]], [("'index'", "field 3", "no such column", "–")]),
        ([*NAMES, ""], [("''", "field 21", "a name", "–")]),
        (NAMES[1:], [("'VendorID'", "absent", "integer", "2013-08")]),
        (
            [*NAMES, "vendorid"],
            [
                ("'VendorID'", "field 1, not alone", "one column", "2013-08"),
                ("'vendorid'", "field 21, not alone", "one column", "2013-08"),
            ],
        ),
        (
            [*NAMES, "new", "NEW "],
            [
                ("'new'", "field 21, not alone", "one column", "–"),
                ("'NEW '", "field 22, not alone", "one column", "–"),
            ],
        ),
        (
            ["Vendor", *NAMES[1:-1]],
            [
                ("'Vendor'", "field 1", "no such column", "–"),
                ("'VendorID'", "absent", "integer", "2013-08"),
                ("'congestion_surcharge'", "absent", "number", "2019-01"),
            ],
        ),
    ],
)
def test_each_difference_has_a_line_with_the_first_month_and_advice(
    names: list[str], lines: list[tuple[str, ...]]
) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".csv", names)
    assert table_of(refused) == lines
    message = str(refused.value)
    assert message.startswith(
        "green 2021-01: the columns are not those of green csv since 2019-01. Nothing was loaded.\n"
    )
    assert message.splitlines()[1].split(" | ")[-1] == "what to do"
    nameless = sum(line[2] == "a name" for line in lines)
    assert (message.count("docs/eras.md"), message.count("index=False")) == (len(lines) - nameless, nameless)
    assert ("under a new name" in message) == ("Vendor" in names)


def test_differences_of_all_kinds_are_in_one_error() -> None:
    names = ["Vendor", *NAMES[1:], "tip"]
    types = [pa.string(), *_types({"fare_amount": pa.bool_()})[1:], pa.float64()]
    for rule in get_args(SchemaRule):
        with pytest.raises(SchemaMismatch) as refused:
            match(GREEN, ".parquet", names, types, rule)
        assert table_of(refused) == [
            ("'Vendor'", "string", "no such column", "–"),
            ("'tip'", "double", "no such column", "–"),
            ("'fare_amount'", "bool", "number", "2014-01"),
            ("'VendorID'", "absent", "integer", "2014-01"),
        ]


def test_new_columns_are_accepted_if_a_user_says_so() -> None:
    shape = match(GREEN, ".parquet", ["new", *NAMES, "Also New "], [pa.bool_(), *_types({}), pa.date32()], ACCEPT)
    assert shape.new == ("new", "Also New ")
    assert shape.published == tuple(NAMES)
    assert match(GREEN, ".csv", NAMES, rule=ACCEPT).new == ()


@pytest.mark.parametrize(
    ("names", "column"),
    [
        ([*NAMES, ""], "''"),
        ([*NAMES, " "], "' '"),
        ([*NAMES, "Row_Number"], "'Row_Number'"),
        ([*NAMES, "new", "New"], "'new'"),
        ([*NAMES[1:], "new"], "'VendorID'"),
    ],
)
def test_other_differences_stop_the_month_under_both_rules(names: list[str], column: str) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".csv", names, rule=ACCEPT)
    assert column in [row[0] for row in table_of(refused)]


@pytest.mark.parametrize("nested", [pa.list_(pa.int8()), pa.struct({"a": pa.int8()}), pa.map_(pa.string(), pa.int8())])
def test_a_new_column_may_have_nested_values(nested: pa.DataType) -> None:
    shape = match(GREEN, ".parquet", [*NAMES, "new"], [*_types({}), nested], ACCEPT)
    assert shape.new == ("new",)


@pytest.mark.parametrize("name", ["__index_level_0__", "index", "Unnamed: 0", ""])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_an_index_before_the_columns_is_ignored(name: str, ending: Ending) -> None:
    shape = match(GREEN, ending, [name, *NAMES], [pa.int64(), *_types({})])
    assert shape.published == tuple(NAMES)
    assert shape.names == (name, *NAMES)
    assert (shape.new, shape.counting) == ((), (name,) if not name else ())


@pytest.mark.parametrize(
    ("name", "accepted"), [("__index_level_0__", True), ("index", True), ("Unnamed: 0", True), ("", False)]
)
def test_an_index_after_the_columns_is_ignored_if_it_has_the_name_of_one(name: str, accepted: bool) -> None:
    if accepted:
        assert match(GREEN, ".csv", [*NAMES, name]).published == tuple(NAMES)
        return
    with pytest.raises(SchemaMismatch, match="a name"):
        match(GREEN, ".csv", [*NAMES, name])


@pytest.mark.parametrize("name", ["index", "Unnamed: 0", ""])
def test_a_column_in_the_middle_is_not_an_index(name: str) -> None:
    with pytest.raises(SchemaMismatch, match=f"'{name}' +. field 2"):
        match(GREEN, ".csv", [NAMES[0], name, *NAMES[1:]])


@pytest.mark.parametrize("columns", [201, 100_000])
def test_a_header_with_very_many_names_is_refused_at_once(columns: int) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".csv", ["x" * 10_000] * columns)
    assert f"the file has {columns:,} columns, the first is 'xxx" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_error_has_at_most_twenty_differences_and_shortens_long_names() -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".csv", [*NAMES, *(f"{n}{'x' * 10_000}" for n in range(180))])
    message = str(refused.value)
    assert len(table_of(refused)) == 20
    assert message.endswith("\nand 160 more")
    assert len(message) < 5_000


def test_a_difference_of_columns_is_not_reported_as_damage() -> None:
    types = [
        pa.list_(pa.string()),
        *_types({"fare_amount": pa.bool_(), "lpep_pickup_datetime": pa.timestamp("us", "UTC")})[1:],
    ]
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".parquet", [*NAMES, "extra", "row_number", "new", ""], [*types, *[pa.float64()] * 4])
    message = str(refused.value)
    assert "again" not in message
    assert "damaged" not in message
    assert "save the column as double" in message
    assert "tz_convert('America/New_York')" in message


def test_the_error_for_a_csv_of_a_month_without_a_parquet_era_has_its_table() -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(TripMonth("green", 2013, 8), ".csv", NAMES[1:])
    assert ("'VendorID'", "absent", "integer", "2013-08") in table_of(refused)


def test_the_error_for_a_file_without_columns_lists_every_expected_name() -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".parquet", [], [])
    assert str(refused.value).count("| absent ") == len(NAMES)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("VendorID", pa.int8()),
        ("VendorID", pa.uint64()),
        ("VendorID", pa.float64()),
        ("VendorID", pa.float32()),
        ("VendorID", pa.null()),
        ("VendorID", pa.string()),
        ("fare_amount", pa.int32()),
        ("fare_amount", pa.large_string()),
        ("ehail_fee", pa.null()),
        ("lpep_pickup_datetime", pa.timestamp("s")),
        ("lpep_pickup_datetime", pa.timestamp("ns")),
        ("lpep_pickup_datetime", pa.string()),
        ("store_and_fwd_flag", pa.large_string()),
        ("store_and_fwd_flag", pa.null()),
        ("store_and_fwd_flag", pa.string_view()),
        ("store_and_fwd_flag", pa.binary_view()),
        ("store_and_fwd_flag", pa.binary()),
        ("store_and_fwd_flag", pa.dictionary(pa.int8(), pa.large_binary())),
        ("store_and_fwd_flag", pa.float64()),
        ("lpep_pickup_datetime", pa.float64()),
        ("fare_amount", pa.float16()),
        ("fare_amount", pa.decimal32(5, 2)),
        ("fare_amount", pa.decimal256(60, 2)),
        ("VendorID", pa.decimal128(38, 0)),
    ],
)
def test_a_type_that_can_be_converted_without_a_guess_is_accepted(name: str, published: pa.DataType) -> None:
    assert match(GREEN, ".parquet", NAMES, _types({name: published})).published == tuple(NAMES)


@pytest.mark.parametrize(
    ("name", "published", "expected"),
    [
        ("VendorID", pa.bool_(), "integer"),
        ("VendorID", pa.timestamp("us"), "integer"),
        ("VendorID", pa.duration("s"), "integer"),
        ("fare_amount", pa.duration("s"), "number"),
        ("lpep_pickup_datetime", pa.date32(), "datetime"),
        ("lpep_pickup_datetime", pa.int64(), "datetime"),
        ("lpep_pickup_datetime", pa.timestamp("us", "UTC"), "New York wall-clock, without zone"),
        ("store_and_fwd_flag", pa.int64(), "text"),
        ("store_and_fwd_flag", pa.binary(1), "text"),
        ("store_and_fwd_flag", pa.dictionary(pa.int8(), pa.int64()), "text"),
        ("store_and_fwd_flag", pa.list_(pa.string()), "text"),
    ],
)
def test_a_type_that_needs_a_guess_is_refused(name: str, published: pa.DataType, expected: str) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        match(GREEN, ".parquet", NAMES, _types({name: published}), ACCEPT)
    assert table_of(refused) == [(repr(name), str(published), expected, "2014-01")]


def _types(changed: dict[str, pa.DataType]) -> list[pa.DataType]:
    kinds = {column.name: SOUND_TYPES[column.kind] for column in TRIP_COLUMNS["green"]}
    return [changed.get(name, kinds[name]) for name in NAMES]
