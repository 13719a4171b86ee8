"""Unknown columns stop a month by default. If a user accepts them, a separate object keeps them as published."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.connectors.bucket import Bucket
from flows.connectors.web import look_up, source_of
from flows.etl_web_gcs import etl_web_gcs
from flows.stores.lake import Lake
from flows.tlc.errors import SchemaMismatch
from flows.tlc.manifest import Manifest, Present
from flows.tlc.trips import SchemaRule, Terms, TripMonth
from tests.flows.conftest import LAKE, Runs, dying, lake_of, no_progress
from tests.stores import Stores
from tests.tlc.published import HEADER, csv_file, line, parquet_file, table, times

ROWS = 300
ACCEPT: SchemaRule = "accept_new_columns"
NEW: dict[str, Any] = {
    "fuel": pa.array([Decimal(n) / 8 for n in range(ROWS)], pa.decimal128(9, 3)),
    "Stops": pa.array([[n, n + 1] if n % 3 else None for n in range(ROWS)], pa.list_(pa.int16())),
    "day": pa.array([dt.date(2022, 1, 1)] * ROWS),
}
PASSENGERS = [0.0 if n in (5, 6, 250) else 1.5 if n == 7 else 1.0 for n in range(ROWS)]  # row 7 cannot be converted


def put(ours: Stores, month: TripMonth, content: bytes, ending: str = ".parquet") -> str:
    """Publish a month's file on the site and return its `source`."""
    ours.site.put(f"{month.stem}{ending}", content)
    return ours.official if ending == ".parquet" else ours.site.url + "/legacy/{color}_tripdata_{year}-{month:02d}.csv"


def extra(ours: Stores, month: TripMonth) -> pa.Table:
    with ours.blob(month.extra_key).open("rb") as file:
        return pq.read_table(file)


def refused(runs: Runs, month: TripMonth, source: str, schema: SchemaRule = "strict") -> str:
    state = runs.of(etl_web_gcs, month, source=source, schema=schema)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, SchemaMismatch)
    return str(error)


def test_new_columns_stop_a_month_unless_they_are_accepted_and_then_are_kept_as_published(
    ours: Stores, runs: Runs
) -> None:
    month = TripMonth("green", 2022, 1)
    source = put(ours, month, parquet_file(table(ROWS, month, passenger_count=PASSENGERS, **NEW)))
    error = refused(runs, month, source)
    assert [line.split(" | ")[0].strip() for line in error.splitlines()[3:]] == ["'fuel'", "'Stops'", "'day'"]
    assert ours.objects_of(month) == {}

    outcome = runs.lake(month, source=source, schema=ACCEPT, rows="with_passengers")
    assert (outcome.manifest.loaded, outcome.manifest.filtered, outcome.manifest.quarantined) == (
        ROWS - 4, {"zero_passengers": 3}, {"passenger_count: not a whole number": 1},
    )  # fmt: skip
    kept = extra(ours, month)
    assert kept.schema.names == ["row_number", *NEW]
    assert kept["row_number"].to_pylist() == ours.in_lake(month)["row_number"].to_pylist()
    rows = pa.array([number - 1 for number in kept["row_number"].to_pylist()])
    for name, published in NEW.items():
        assert kept[name].combine_chunks().equals(published.take(rows)), name
    assert not set(NEW) & set(ours.in_lake(month).column_names)
    assert set(ours.objects_of(month)) == {
        month.raw_key(".parquet"), month.key, month.quarantine_key, month.extra_key, month.manifest_key,
    }  # fmt: skip
    manifest = ours.manifest(month)
    assert (manifest["new_columns"], manifest["extra_key"]) == (list(NEW), month.extra_key)
    assert not set(NEW) & set(manifest["columns"])
    assert '"fuel": "0.875"' in ours.quarantined(month)[0]["original"]  # the quarantined row keeps its values
    assert f"{month}: TLC has NEW COLUMNS: fuel, Stops, day. Only {month.extra_key} has them" in runs.logs()
    [artifact] = runs.artifacts("green-tripdata-2022-01-lake")
    assert "**new columns**, which the schema does not know: fuel, Stops, day" in artifact


def test_accepted_columns_stay_accepted_only_for_the_same_file(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2022, 2)
    source = put(ours, month, parquet_file(table(ROWS, month, **NEW)))
    runs.lake(month, source=source, schema=ACCEPT)
    before = ours.objects_of(month)
    assert runs.lake(month, source=source).status == "unchanged"
    assert "its new columns (fuel, Stops, day) were accepted" in runs.logs()
    put(ours, month, parquet_file(table(ROWS, month, fare_amount=[2.0] * ROWS, **NEW)))
    assert "'fuel'" in refused(runs, month, source)
    after = ours.objects_of(month)
    assert {key: after[key] for key in before} == before  # the raw file too


def test_a_republished_month_without_new_columns_removes_the_earlier_ones(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2022, 3)
    source = put(ours, month, parquet_file(table(ROWS, month, **NEW)))
    runs.lake(month, source=source, schema=ACCEPT)
    put(ours, month, parquet_file(table(ROWS, month)))
    assert runs.lake(month, source=source, schema=ACCEPT).status == "replaced"
    assert month.extra_key not in ours.objects()
    manifest = ours.manifest(month)
    assert (manifest["new_columns"], manifest["extra_key"]) == ([], "")


def test_new_columns_of_a_csv_are_kept_as_text_even_with_bad_lines(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2022, 4)
    texts = ["007", "", " x ", "1e3", "N/A"] * 60
    lines = [line(fare_amount=str(n), **times(month)) + f",{text}" for n, text in enumerate(texts)]
    lines[4] = line() + ',"a ""quoted"", one"'
    lines[9] = line() + ",too,many"
    content = csv_file(*lines, header=HEADER + ",Code")
    source = put(ours, month, content, ".csv")
    assert "'Code' | field 21" in refused(runs, month, source)
    outcome = runs.lake(month, source=source, schema=ACCEPT)
    assert outcome.manifest.quarantined == {"wrong number of fields": 1}
    texts[4] = 'a "quoted", one'
    kept = extra(ours, month)
    assert kept.schema.types == [pa.int64(), pa.string()]
    assert dict(zip(*kept.to_pydict().values(), strict=True)) == {
        n + 1: text or None for n, text in enumerate(texts) if n != 9
    }


@pytest.mark.parametrize(
    ("n", "content", "ending"),
    [
        (5, parquet_file(table(ROWS, trip_type=None, **NEW)), ".parquet"),
        (6, parquet_file(table(ROWS, trip_type=[True] * ROWS, **NEW)), ".parquet"),
        (7, csv_file(line() + ",x", header=HEADER + ","), ".csv"),
    ],
    ids=["a missing column", "a wrong kind", "an unnamed field"],
)
def test_other_schema_changes_stop_the_month_even_if_new_columns_are_accepted(
    n: int, content: bytes, ending: str, ours: Stores, runs: Runs
) -> None:
    month = TripMonth("green", 2022, n)
    error = refused(runs, month, put(ours, month, content, ending), ACCEPT)
    assert ("'trip_type'" if ending == ".parquet" else "a name") in error
    assert ours.objects_of(month) == {}


def test_a_refused_file_stays_if_another_run_publishes_it_meanwhile(
    ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, lake, history = TripMonth("green", 2022, 10), lake_of(LAKE), Lake.history
    source = put(ours, month, parquet_file(table(ROWS, month, **NEW)))
    raw = lake.extract(look_up(source_of(source), month), no_progress)

    def late(store: Lake, trip_month: TripMonth) -> list[Manifest]:
        found = history(store, trip_month)
        monkeypatch.setattr(Lake, "history", history)
        store.publish(store.stage(raw, Terms(schema=ACCEPT), "other", no_progress), Present(), "other")
        return found

    monkeypatch.setattr(Lake, "history", late)
    with pytest.raises(SchemaMismatch):
        lake.stage(raw, Terms(), "strict", no_progress)
    assert lake.has(raw)
    assert lake.raw_of(lake.required(month)).sha256 == raw.sha256


@pytest.mark.parametrize(("n", "owner", "name"), [(8, Bucket, "copy"), (9, Lake, "remember")])
def test_a_retried_load_still_stores_the_new_columns(n: int, owner: type, name: str, ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2022, n)
    source = put(ours, month, parquet_file(table(ROWS, month, **NEW)))
    with dying(owner, name, when="after", times=2):
        runs.lake(month, source=source, schema=ACCEPT)
    assert extra(ours, month).num_rows == ROWS
    assert set(ours.objects_of(month)) == {
        month.raw_key(".parquet"), month.key, month.extra_key, month.manifest_key,
    }  # fmt: skip
