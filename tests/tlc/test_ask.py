"""The BigQuery statements for external tables are valid in its dialect and agree with the definition for the API client."""

import pytest
import sqlglot
from google.cloud import bigquery
from sqlglot import exp

from flows.tlc import zones
from flows.tlc.ask import TABLES, external_table, tables_of
from flows.tlc.schema import KINDS, columns
from flows.tlc.trips import COLORS

LAKE = "gs://my-taxi-lake/data/"


def parsed(table: str) -> exp.Create:
    statement = sqlglot.parse_one(external_table(table, "trips_data_all", LAKE), dialect="bigquery")
    assert isinstance(statement, exp.Create)
    return statement


def described(statement: exp.Create) -> list[tuple[str, str, str]]:
    """Return the name, type and description of each column, from the parsed statement."""
    return [
        (field.name, field.kind.sql("bigquery"), field.find(exp.Literal).this)
        for field in statement.find_all(exp.ColumnDef)
    ]


@pytest.mark.parametrize("table", TABLES)
def test_the_statement_has_every_canonical_column_with_its_type_and_meaning(table: str) -> None:
    wanted = zones.COLUMNS if table == zones.TABLE else columns(table)
    assert described(parsed(table)) == [(c.name, KINDS[c.kind].bigquery, c.described) for c in wanted]


@pytest.mark.parametrize("table", TABLES)
def test_the_statement_makes_an_external_table_over_the_parquet_of_the_lake(table: str) -> None:
    statement = parsed(table)
    assert (statement.kind, statement.this.this.sql("bigquery").replace("`", "")) == (
        "EXTERNAL TABLE" if statement.kind != "TABLE" else "TABLE", f"trips_data_all.{table}_in_lake",
    )  # fmt: skip
    text = external_table(table, "trips_data_all", LAKE)
    assert text.startswith("CREATE OR REPLACE EXTERNAL TABLE `")
    assert "format = 'PARQUET'" in text
    assert f'uris = ["{LAKE}{"zones/zones" if table == "zones" else f"{table}/*"}.parquet"]' in text
    assert text.endswith(");")


@pytest.mark.parametrize("color", COLORS)
def test_the_definition_for_the_api_client_describes_the_same_table(color: str) -> None:
    config = bigquery.ExternalConfig(bigquery.SourceFormat.PARQUET)
    config.source_uris = [f"{LAKE}{color}/*.parquet"]
    config.schema = [
        bigquery.SchemaField(name, kind, description=meaning) for name, kind, meaning in described(parsed(color))
    ]
    again = bigquery.ExternalConfig.from_api_repr(config.to_api_repr())
    assert [(field.name, field.field_type) for field in again.schema] == [
        (column.name, KINDS[column.kind].bigquery) for column in columns(color)
    ]
    assert again.source_uris == config.source_uris


def test_only_table_names_count_as_a_querys_tables() -> None:
    assert tables_of("select * from Green join zones on true") == ["green", "zones"]
    assert tables_of("select * from fhvhv") == ["fhvhv"]
    assert tables_of("select * from zones where service_zone in ('Yellow Zone', 'it''s green')") == ["zones"]
    assert tables_of("select 1 from greenish") == []
    assert tables_of("green, zones") == ["green", "zones"]
    assert tables_of("select count(*) as green from yellow -- not fhv\n/* nor\nfhvhv */") == ["yellow"]
