"""The file of another month never becomes a month, and never replaces one, in any store."""

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
SAID = f"{ROWS} of {ROWS} trips are of 2021-01: this is the file of another month"


def refused(state: Any) -> str:
    """Why a run failed."""
    assert state.is_failed()
    return str(state.result(raise_on_failure=False))


def leftovers(ours: Stores, month: TripMonth) -> list[tuple[Any, ...]]:
    """Staging tables of a month."""
    return ours.query("SELECT relname FROM pg_class WHERE relname LIKE %s", f"{month.postgres_partition}_staging%")


@pytest.mark.parametrize("rows", ["all", "with_passengers"])
def test_the_file_of_another_month_is_refused_and_leaves_nothing(rows: str, ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 8 if rows == "all" else 9)
    # Those who carried nobody count too: a rule may leave out all trips that are of the month.
    people = [0.0 if n % 2 else 1.0 for n in range(ROWS)]
    source = put(ours, month, parquet_file(table(ROWS, JANUARY, passenger_count=people)))
    for flow in (etl_web_gcs, ingest_data):
        said = refused(runs.of(flow, month, source=source, rows=rows))
        assert f"{month}: {SAID}. Check the source's address, and get the file of 2024-0" in said
    assert list(ours.objects_of(month)) == []
    assert ours.query("SELECT to_regclass(%s)", month.postgres_partition) == [(None,)]
    assert leftovers(ours, month) == []
    put(ours, month, parquet_file(table(ROWS, month)))
    assert (runs.lake(month, source=source).status, runs.postgres(month, source=source).status) == ("loaded", "loaded")


def test_trips_that_a_rule_leaves_out_count_as_trips_of_the_month(ours: Stores, runs: Runs) -> None:
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

    def there() -> tuple[Any, ...]:
        objects = {key: at for key, at in ours.objects_of(month).items() if not key.startswith("staging/raw/")}
        return objects, ours.in_warehouse(month), ours.in_postgres(month), ours.loads(month)

    before = there()
    put(ours, month, parquet_file(table(ROWS, JANUARY)))
    for flow in (etl_web_gcs, ingest_data):
        assert SAID in refused(runs.of(flow, month, source=source))
    assert runs.warehouse(month).status == "unchanged"
    assert there() == before
    assert leftovers(ours, month) == []


def test_a_month_from_before_this_check_is_not_replayed(
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
        assert SAID in refused(state)
    assert (ours.objects_of(month), ours.in_postgres(month)) == before
    assert leftovers(ours, month) == []
