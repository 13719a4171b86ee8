"""Quarantined rows are kept as published. A replay loads them after a rule has changed."""

import json
import math
from typing import Any

import pytest

from flows.connectors import scratch
from flows.replay_quarantine import replay_quarantine
from flows.stores import database
from flows.stores.database import Database
from flows.tlc import convert
from flows.tlc.errors import TripDataError
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, POSTGRES, Runs, dying
from tests.flows.test_new_columns import ACCEPT, extra, put
from tests.stores import Stores
from tests.tlc.published import csv_file, line, parquet_file, table, times

ROWS = 400
# A spreadsheet removes the seconds of a time. The present rule quarantines such rows.
BARE = "2021-01-01 00:15"
IN_POSTGRES = {"store": "database", "postgres_block": POSTGRES}


def csv_month(month: TripMonth, *odd: str) -> bytes:
    return csv_file(*[line(fare_amount=f"{n}.5", **times(month)) for n in range(ROWS - len(odd))], *odd)


def accept_times_without_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the rule: accept a time without seconds, with the seconds :00."""
    rule = convert._SPELLED["datetime"].replace(r":[0-5][0-9](\.[0-9]{1,6}0*)?$", r"(:[0-5][0-9])?$")
    assert rule != convert._SPELLED["datetime"]
    monkeypatch.setitem(convert._SPELLED, "datetime", rule)


def replay(month: TripMonth, **parameters: Any) -> Any:
    about = {"color": month.color, "year": month.year, "months": [month.month], "block_name": LAKE}
    return replay_quarantine(**(about | parameters), return_state=True)


def test_a_quarantined_line_of_a_csv_is_kept_as_published_with_its_position_and_reason(
    ours: Stores, runs: Runs
) -> None:
    month = TripMonth("green", 2024, 1)
    odd = {
        line(lpep_pickup_datetime=BARE): "lpep_pickup_datetime: not a datetime",
        line(passenger_count='"1.5"', store_and_fwd_flag=" é "): "passenger_count: not a whole number",
        line() + ",,7": "wrong number of fields",
        line(store_and_fwd_flag='"N"x'): "not CSV",
    }
    runs.lake(month, source=put(ours, month, csv_month(month, *odd), ".csv"))
    expected = [(ROWS - len(odd) + 1 + n, reason, text) for n, (text, reason) in enumerate(odd.items())]
    assert [(row["row_number"], row["reason"], row["original"]) for row in ours.quarantined(month)] == expected


def test_a_quarantined_row_of_a_parquet_file_keeps_every_value_as_published(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 2)
    fares = [math.inf if n == 41 else n / 4 for n in range(ROWS)]
    people = [2.5 if n == 7 else 1.0 for n in range(ROWS)]
    published = table(ROWS, month, fare_amount=fares, passenger_count=people)
    runs.lake(month, source=put(ours, month, parquet_file(published)))
    rejected = ours.quarantined(month)
    assert [(row["row_number"], row["reason"]) for row in rejected] == [
        (8, "passenger_count: not a whole number"),
        (42, "fare_amount: not a number"),
    ]
    for row in rejected:
        [values] = published.slice(row["row_number"] - 1, 1).to_pylist()
        values |= {name: f"{values[name]}.000000" for name in ("lpep_pickup_datetime", "lpep_dropoff_datetime")}
        values |= {"fare_amount": "inf"} if row["row_number"] == 42 else {}
        assert json.loads(row["original"]) == values


def test_a_replay_into_postgres_loads_the_rows_that_a_changed_rule_accepts(
    ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = TripMonth("green", 2024, 6)
    odd = [line(lpep_pickup_datetime=BARE), line(passenger_count='"ma""ny"'), line(store_and_fwd_flag='"N"x')]
    source = put(ours, month, csv_month(month, *odd), ".csv")
    runs.postgres(month, source=source)
    kept = "SELECT row_number, reason, original FROM quarantine WHERE color = 'green' AND file_month = %s ORDER BY 1"
    bare, *others = [
        (ROWS - 2, "lpep_pickup_datetime: not a datetime", odd[0]),
        (ROWS - 1, "passenger_count: not a whole number", odd[1]),
        (ROWS, "not CSV", odd[2]),
    ]
    assert ours.query(kept, month.file_month) == [bare, *others]

    accept_times_without_seconds(monkeypatch)
    [outcome] = replay(month, **IN_POSTGRES).result()
    assert (outcome.status, outcome.manifest.loaded, *dict(outcome.changes).values()) == (
        "replaced", ROWS - 2, 1, 0, 0,
    )  # fmt: skip
    assert f"{month}: quarantined rows loaded now: 1; still quarantined: 2" in runs.logs()
    assert ours.query(kept, month.file_month) == others
    assert str(ours.in_postgres(month)["lpep_pickup_datetime"][ROWS - 3].as_py()) == f"{BARE}:00"

    put(ours, month, csv_month(month), ".csv")
    for path in scratch.folder().glob(f"{month.stem}-*"):
        path.unlink()
    state = replay(month, **IN_POSTGRES)
    assert f"{month} was re-published at " in str(state.result(raise_on_failure=False))
    assert runs.postgres(month, source=source).manifest.quarantined == {}
    assert ours.query(kept, month.file_month) == []
    [outcome] = replay(month, **IN_POSTGRES).result()
    assert outcome.status == "unchanged"
    absent = replay(TripMonth("green", 2024, 12), **IN_POSTGRES)
    assert "green 2024-12 is not in Postgres; run ingest-data" in str(absent.result(raise_on_failure=False))


def test_postgres_publishes_a_month_and_its_quarantine_atomically(
    ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = TripMonth("green", 2024, 7)
    source = put(ours, month, csv_month(month, line(passenger_count="many")), ".csv")
    runs.postgres(month, source=source)

    def stored() -> tuple[Any, Any]:
        kept = "SELECT row_number, original FROM quarantine WHERE color = 'green' AND file_month = %s ORDER BY 1"
        return ours.in_postgres(month), ours.query(kept, month.file_month)

    before = stored()
    assert before[1] == [(ROWS, line(passenger_count="many"))]
    put(ours, month, csv_month(month, line(passenger_count="few"), line(passenger_count="some")), ".csv")
    with dying(Database, "_write_manifest", when="before"), pytest.raises(TripDataError):
        runs.postgres(month, source=source)
    assert stored() == before
    with monkeypatch.context() as patch:
        patch.setattr(database, "write_rejects", lambda *_: None)
        with pytest.raises(TripDataError, match=r"2 rows were quarantined, 0 would be stored. Nothing was published"):
            runs.postgres(month, source=source)
    assert stored() == before
    runs.postgres(month, source=source)
    assert stored()[1] == [(ROWS - 1, line(passenger_count="few")), (ROWS, line(passenger_count="some"))]
    staged = f"{month.postgres_partition}_staging%"
    assert ours.query("SELECT count(*) FROM pg_class WHERE relname LIKE %s", staged) == [(0,)]


def test_a_replay_in_the_lake_loads_the_rows_that_a_changed_rule_accepts_from_the_raw_file(
    ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = TripMonth("green", 2024, 3)
    odd = [line(lpep_pickup_datetime=BARE), line(lpep_dropoff_datetime=BARE), line(passenger_count="many")]
    assert runs.lake(month, source=put(ours, month, csv_month(month, *odd), ".csv")).manifest.loaded == ROWS - 3
    before = ours.manifest(month)
    ours.site.forget_requests()

    accept_times_without_seconds(monkeypatch)
    [outcome] = replay(month).result()
    assert (outcome.status, outcome.manifest.loaded, *dict(outcome.changes).values()) == (
        "replaced", ROWS - 1, 2, 0, 0,
    )  # fmt: skip
    assert f"{month}: quarantined rows loaded now: 2; still quarantined: 1" in runs.logs()
    assert [row["row_number"] for row in ours.quarantined(month)] == [ROWS]
    trips = ours.in_lake(month)
    assert str(trips["lpep_pickup_datetime"][ROWS - 3].as_py()) == f"{BARE}:00"
    assert ours.requests(month) == []
    after = ours.manifest(month)
    assert {key: after[key] for key in ("url", "etag", "sha256", "rule", "size")} == {
        key: before[key] for key in ("url", "etag", "sha256", "rule", "size")
    }
    assert runs.warehouse(month).manifest.loaded == ROWS - 1


def test_a_replay_keeps_the_options_with_which_a_month_was_loaded(
    ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = TripMonth("green", 2024, 4)
    empty = [line(passenger_count="0") + ",a", line(passenger_count="0", lpep_pickup_datetime=BARE) + ",b"]
    lines = [*[line(**times(month)) + ",c"] * ROWS, *empty, line(lpep_pickup_datetime=BARE) + ",d"]
    header = csv_file().decode().strip() + ",Code"
    source = put(ours, month, csv_file(*lines, header=header), ".csv")
    runs.lake(month, source=source, schema=ACCEPT, rows="with_passengers")
    accept_times_without_seconds(monkeypatch)
    [outcome] = replay(month).result()
    assert (outcome.manifest.loaded, outcome.manifest.filtered, outcome.manifest.quarantined) == (
        ROWS + 1,
        {"zero_passengers": 2},
        {},
    )
    assert f"{month}: quarantined rows loaded now: 1; still quarantined: 0" in runs.logs()
    assert extra(ours, month)["Code"].to_pylist() == ["c"] * ROWS + ["d"]
    assert month.quarantine_key not in ours.objects()
    assert runs.lake(month, source=source, rows="with_passengers").status == "unchanged"


def test_a_replay_skips_a_month_without_quarantine_and_fails_for_an_absent_month(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake(month)
    before = ours.objects_of(month)
    [outcome] = replay(month).result()
    assert outcome.status == "unchanged"
    assert f"{month} has no quarantined rows; it is not loaded" in runs.logs()
    assert ours.objects_of(month) == before
    absent = replay(TripMonth("green", 2024, 12))
    assert "green 2024-12 is not in the lake" in str(absent.result(raise_on_failure=False))


def test_a_replay_without_the_raw_file_fails_with_advice_and_changes_nothing(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 5)
    runs.lake(month, source=put(ours, month, csv_month(month, line(lpep_pickup_datetime=BARE)), ".csv"))
    ours.blob(month.raw_key(".csv")).delete()
    before = ours.objects_of(month)
    error = str(replay(month).result(raise_on_failure=False))
    assert "the file that it was made from" in error
    assert "run etl-web-gcs to fetch the month again" in error
    assert ours.objects_of(month) == before
