"""The drill's reconciliation reads files as the project does, by other code, and finds whatever differs in a store."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.trips import TripMonth
from local.reconciliation import (
    PublishedMonth,
    compare_quarantine,
    compare_with_database,
    compare_with_lake,
    digest,
    expected_of,
    trips_of,
)
from local.servers.stack import Stack
from local.trip_files.layouts import CSV_LAYOUTS, PARQUET_NAMES
from local.trip_files.writing import BadRows, write_month
from tests.stores import same

CSV = [(layout.color, layout.since, ".csv.gz") for layout in CSV_LAYOUTS]
PARQUET = [(color, since, ".parquet") for color, since, _ in PARQUET_NAMES]


def published(folder: Path, color: Any, month: str, ending: str, bad: int = 0) -> PublishedMonth:
    at = TripMonth(color, int(month[:4]), int(month[5:]))
    path = folder / f"{at.stem}{ending}"
    written = write_month(path, color, at.year, at.month, rows=600, bad_rows=BadRows(bad))
    return PublishedMonth(at, path, written.bad_row_numbers)


@pytest.mark.parametrize(("color", "month", "ending"), [*CSV, *PARQUET])
def test_the_trips_of_a_file_are_those_that_the_project_reads(
    tmp_path: Path, color: str, month: str, ending: str
) -> None:
    file = published(tmp_path, color, month, ending, 2 if ending == ".csv.gz" else 0)
    with file.path.open("rb") as opened:
        chunks = (
            parquet_chunks(file.trip_month, opened)
            if ending == ".parquet"
            else csv_chunks(file.trip_month, ".csv.gz", opened)
        )
        read = pa.concat_tables(chunk.trips for chunk in chunks)
    assert same(trips_of(file), read.replace_schema_metadata())


def test_a_digest_depends_on_every_value_and_not_on_the_order(tmp_path: Path) -> None:
    trips = trips_of(published(tmp_path, "green", "2020-05", ".parquet"))
    assert digest(trips.take(list(reversed(range(len(trips)))))) == digest(trips)
    for at, field in enumerate(trips.schema):
        moved = trips.column(at).take([*range(1, len(trips)), 0])
        if moved.null_count < len(trips) and not moved.equals(trips.column(at)):
            assert digest(trips.set_column(at, field, moved)) != digest(trips), field.name


def loads(month: TripMonth, facts: Mapping[str, Any]) -> pa.Table:
    """The row of `loads` that a store has of a month with these facts."""
    counts = {name: json.dumps({"some": facts[name]}) for name in ("filtered", "quarantined")}
    return pa.Table.from_pylist([{"color": month.color, "file_month": month.file_month, **facts, **counts}])


CHANGES = {
    "DELETE FROM green WHERE row_number = 7": "rows is ",
    "UPDATE green SET total_amount = total_amount + 0.01 WHERE row_number = 7": "SUM(total_amount) is ",
    "UPDATE green SET row_number = 8 WHERE row_number = 7": "SUM(row_number) is ",
    "UPDATE green SET store_and_fwd_flag = 'NN' WHERE store_and_fwd_flag = 'N'": "SUM(LENGTH(store_and_fwd_flag)) is ",
    "UPDATE green SET PULocationID = NULL WHERE row_number = 7": "COUNT(PULocationID) is ",
    **{
        f"UPDATE green SET {name} = other.{name} FROM (SELECT * FROM green WHERE row_number IN (7, 8)) other"
        " WHERE green.row_number IN (7, 8) AND green.row_number <> other.row_number": f"{name}, by row, is "
        for name in ("total_amount", "lpep_pickup_datetime", "PULocationID")
    },
    "UPDATE green SET store_and_fwd_flag = CASE store_and_fwd_flag WHEN 'N' THEN 'Y' ELSE 'N' END": "store_and_fwd_flag, by",
    "UPDATE green SET total_amount = 'NaN' WHERE row_number = 7": "SUM(total_amount) is ",
    "UPDATE green SET PULocationID = 9223372036854775807 WHERE row_number = 7": "PULocationID, by row, is ",
    "UPDATE green SET file_month = '2020-06-01'": "is missing",
    "UPDATE loads SET loaded = loaded - 1": "loads: loaded is ",
    "UPDATE loads SET sha256 = ''": "loads: sha256 is ",
    "DELETE FROM loads": "loads: is missing",
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_differs_in_a_database_is_named(tmp_path: Path, change: str) -> None:
    file = published(tmp_path, "green", "2020-05", ".parquet")
    trips = trips_of(file)
    expected = expected_of(file, trips)
    with duckdb.connect() as database:
        for name, table in (("green", trips), ("loads", loads(file.trip_month, expected.load["all"]))):
            database.register("arrow", table)
            database.execute(f"CREATE TABLE {name} AS SELECT * FROM arrow")

        def read(statement: str) -> list[dict[str, Any]]:
            rows = database.execute(statement.format(""))
            return [dict(zip([name for name, *_ in rows.description], row, strict=True)) for row in rows.fetchall()]

        assert compare_with_database("warehouse", "all", [expected], read) == []
        database.execute(change)
        found = compare_with_database("warehouse", "all", [expected], read)
    assert [line for line in found if line.startswith(f"green 2020-05: warehouse: {CHANGES[change]}")]


def test_quarantined_rows_that_differ_are_named(tmp_path: Path) -> None:
    file = published(tmp_path, "green", "2018-05", ".csv.gz", 2)
    month, bad = file.trip_month, list(file.bad_rows)
    rows = [{"color": "green", "file_month": month.file_month, "row_number": number} for number in bad]
    assert compare_quarantine("database", [file], lambda statement: rows) == []
    [line] = compare_quarantine("database", [file], lambda statement: rows[:1])
    assert line == f"green 2018-05: database: quarantine: row numbers are {bad[:1]}, must be {bad}"
    assert compare_quarantine("database", [], lambda statement: rows)


def test_whatever_differs_in_the_lake_is_named(tmp_path: Path, stack: Stack) -> None:
    lake = stack.env["STORAGE_EMULATOR_HOST"]
    httpx.post(f"{lake}/storage/v1/b", json={"name": "reconciliation"}).raise_for_status()
    file = published(tmp_path, "green", "2020-05", ".parquet", 1)
    month, trips = file.trip_month, trips_of(file)

    def differences(changes: Mapping[str, bytes]) -> list[str]:
        for key, content in changes.items():
            address = f"{lake}/upload/storage/v1/b/reconciliation/o"
            httpx.post(
                address, params={"uploadType": "media", "name": f"data/{key}"}, content=content
            ).raise_for_status()
        return compare_with_lake(file, f"{lake}/download/storage/v1/b/reconciliation/o/")[1]

    def parquet(table: pa.Table) -> bytes:
        out = pa.BufferOutputStream()
        pq.write_table(table, out)
        return out.getvalue().to_pybytes()

    assert differences({}) == [
        "green 2020-05: lake: is missing",
        "green 2020-05: lake: manifest: is missing",
        f"green 2020-05: lake: quarantine: row numbers is [], must be {list(file.bad_rows)}",
    ]
    manifest = {
        **expected_of(file, trips).load["all"],
        "filtered": {},
        "quarantined": {"passenger_count: not a whole number": 1},
    }
    whole = {
        month.key: parquet(trips),
        month.manifest_key: json.dumps(manifest).encode(),
        month.quarantine_key: parquet(pa.table({"row_number": pa.array(file.bad_rows)})),
    }
    assert differences(whole) == []
    swapped = trips.set_column(
        trips.schema.get_field_index("row_number"),
        "row_number",
        trips["row_number"].take([1, 0, *range(2, len(trips))]),
    )
    *by_row, found = differences({month.key: parquet(swapped)})
    assert found.startswith("green 2020-05: lake: digest is ")
    assert any(line.startswith("green 2020-05: lake: total_amount, by row, is ") for line in by_row)
    [found] = differences(whole | {month.manifest_key: json.dumps(manifest | {"source_rows": 1}).encode()})
    assert found == "green 2020-05: lake: manifest: source_rows is 1, must be 600"
