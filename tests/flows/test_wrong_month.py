"""A file with the trips of another month is never published and never replaces a month, in any store."""

from typing import Any

import pytest

from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.tlc import pickups
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs
from tests.flows.test_new_columns import put
from tests.flows.test_replay import IN_POSTGRES, replay
from tests.stores import Stores
from tests.tlc.published import csv_file, line, parquet_file, table, times

ROWS = 400
JANUARY = TripMonth("green", 2021, 1)
WRONG_MONTH = f"{ROWS} of {ROWS} trips are of 2021-01: this is the file of another month"


def refused(state: Any) -> str:
    """Return the error of a failed run."""
    assert state.is_failed()
    return str(state.result(raise_on_failure=False))


def leftovers(ours: Stores, month: TripMonth) -> list[tuple[Any, ...]]:
    """Return the names of a month's staging tables."""
    return ours.query("SELECT relname FROM pg_class WHERE relname LIKE %s", f"{month.postgres_partition}_staging%")


@pytest.mark.parametrize("rows", ["all", "with_passengers"])
def test_the_file_of_another_month_is_refused_and_nothing_is_stored(rows: str, ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 8 if rows == "all" else 9)
    # Trips without passengers count too, because a rule may filter all trips of the right month.
    people = [0.0 if n % 2 else 1.0 for n in range(ROWS)]
    source = put(ours, month, parquet_file(table(ROWS, JANUARY, passenger_count=people)))
    for flow in (etl_web_gcs, ingest_data):
        error = refused(runs.of(flow, month, source=source, rows=rows))
        assert f"{month}: {WRONG_MONTH}. Check the source's address, and get the file of 2024-0" in error
    assert list(ours.objects_of(month)) == []
    assert ours.query("SELECT to_regclass(%s)", month.postgres_partition) == [(None,)]
    assert leftovers(ours, month) == []
    put(ours, month, parquet_file(table(ROWS, month)))
    assert (runs.lake(month, source=source).status, runs.postgres(month, source=source).status) == ("loaded", "loaded")


def test_filtered_trips_count_as_trips_of_the_month(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 10)
    empty = [line(passenger_count="0", **times(month))] * ROWS
    source = put(ours, month, csv_file(*empty, *[line()] * 50), ".csv")
    assert runs.postgres(month, source=source).manifest.loaded == 50
    assert runs.lake(month, source=source, rows="with_passengers").manifest.loaded == 50


def test_the_file_of_another_month_never_replaces_a_month_in_any_store(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 11)
    source = put(ours, month, parquet_file(table(ROWS, month)))
    runs.lake(month, source=source)
    runs.warehouse(month)
    runs.postgres(month, source=source)

    def stored() -> tuple[Any, ...]:
        objects = {key: at for key, at in ours.objects_of(month).items() if not key.startswith("staging/raw/")}
        return objects, ours.in_warehouse(month), ours.in_postgres(month), ours.loads(month)

    before = stored()
    put(ours, month, parquet_file(table(ROWS, JANUARY)))
    for flow in (etl_web_gcs, ingest_data):
        assert WRONG_MONTH in refused(runs.of(flow, month, source=source))
    assert runs.warehouse(month).status == "unchanged"
    assert stored() == before
    assert leftovers(ours, month) == []


def test_a_wrong_month_that_was_loaded_without_this_check_is_not_replayed(
    ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = TripMonth("green", 2022, 10)
    source = put(ours, month, csv_file(*[line()] * ROWS, line(passenger_count="many")), ".csv")
    with monkeypatch.context() as patch:
        patch.setattr(pickups, "OWN_SHARE", 0.0)
        runs.lake(month, source=source)
        runs.postgres(month, source=source)
    before = ours.objects_of(month), ours.in_postgres(month)
    for state in (replay(month), replay(month, **IN_POSTGRES)):
        assert WRONG_MONTH in refused(state)
    assert (ours.objects_of(month), ours.in_postgres(month)) == before
    assert leftovers(ours, month) == []
