"""Warnings are the last lines of a run's log and the first lines of its report."""

import json
import logging

import pytest

from flows.etl_web_gcs import etl_parent_flow
from flows.ingest_data import ingest_data
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs, dying
from tests.flows.test_new_columns import put
from tests.stores import Stores
from tests.strict_lake import StrictLake
from tests.tlc.published import csv_file, line, times

ODD, VALID = TripMonth("green", 2023, 10), TripMonth("green", 2023, 11)
ROWS = 400


def csv_month(month: TripMonth, rows: int, *odd: str, fare: str = "5") -> bytes:
    return csv_file(*[line(fare_amount=fare, tip_amount=str(n), **times(month)) for n in range(rows)], *odd)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("prefect.")
    ]
    caplog.clear()
    return messages


@pytest.mark.parametrize("flow", [etl_parent_flow, ingest_data], ids=lambda flow: flow.name)
def test_the_log_ends_with_the_months_that_have_warnings(
    flow, ours: Stores, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    name, store = ("etl-web-gcs", "lake") if flow is etl_parent_flow else ("ingest-data", "database")
    source = put(ours, VALID, csv_month(VALID, ROWS), ".csv")
    put(ours, ODD, csv_month(ODD, ROWS, line(passenger_count="many", **times(ODD))), ".csv")

    def run() -> list[str]:
        done = flow("green", 2023, [10, 11], **runs.places(flow) | {"source": source})
        assert done[1].warnings == ()
        return warned(caplog)

    def reports() -> tuple[str, str, str]:
        table = [text for text in runs.artifacts(f"{name}-months") if str(ODD) in text][-1]
        rows = {row["month"]: row.get("warnings", "") for row in json.loads(table)}
        odd, valid = (runs.artifacts(f"{m.stem.replace('_', '-')}-{store}")[-1] for m in (ODD, VALID))
        assert "Look at this" not in valid
        assert rows[str(VALID)] == ""
        return odd.splitlines()[2], rows[str(ODD)], valid

    where = ODD.quarantine_key if store == "lake" else "the table quarantine"
    first = f"1 of {ROWS + 1} rows are quarantined (1 × passenger_count: not a whole number); read them in {where}."
    last = f"look at 1 of 2 months: {ODD}; their reports and the warnings above say why"
    assert run() == [f"{ODD}: {first}", last]
    assert reports()[:2] == (f"**Look at this**: {first}", first)

    assert run() == []  # unchanged

    put(ours, ODD, csv_month(ODD, ROWS), ".csv")  # one row fewer
    [fewer, end] = run()
    assert f"{ODD}: re-published: {ROWS} rows, {ROWS + 1} were last known (-1); " in fewer
    assert end == last

    put(ours, ODD, csv_month(ODD, ROWS + 1, fare="7"), ".csv")  # more rows, and every other one differs
    [changed, end] = run()
    assert f"{ODD}: {ROWS + 1} rows changed in a month of {ROWS}; if you did not expect that" in changed
    assert end == last
    assert reports()[0].startswith(f"**Look at this**: {ROWS + 1} rows changed")


def test_a_few_new_rows_cause_no_warning(ours: Stores, runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    month = TripMonth("green", 2023, 12)
    source = put(ours, month, csv_month(month, ROWS), ".csv")
    for run in (runs.lake, runs.postgres):
        put(ours, month, csv_month(month, ROWS), ".csv")
        assert run(month, source=source).warnings == ()
        put(ours, month, csv_month(month, ROWS + 2), ".csv")
        outcome = run(month, source=source)
        assert (outcome.status, outcome.manifest.inserted, outcome.warnings) == ("replaced", 2, ())
    assert runs.warehouse(month).warnings == ()
    assert warned(caplog) == []
    assert f"re-published: {ROWS + 2} rows, {ROWS} were last known (+2)" in runs.logs()


@pytest.mark.parametrize(("store", "owner", "name"), [("lake", Lake, "remember"), ("postgres", Database, "publish")])
def test_a_retry_after_an_unreported_success_keeps_the_warnings(
    store: str, owner: type, name: str, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    month = TripMonth("green", 2022, 11 if store == "lake" else 12)
    run = getattr(runs, store)
    source = put(ours, month, csv_month(month, ROWS), ".csv")
    run(month, source=source)
    put(ours, month, csv_month(month, ROWS - 100), ".csv")
    with dying(owner, name, when="after", times=1) as died:
        outcome = run(month, source=source)
    assert died
    assert (outcome.status, outcome.changes.removed) == ("replaced", 100)
    fewer, changed = outcome.warnings
    assert fewer.startswith("re-published: 300 rows, 400 were last known")
    assert changed.startswith("100 rows changed in a month of 400")


def test_the_warehouse_repeats_the_lakes_warnings(ours: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2023, 9)
    source = put(ours, month, csv_month(month, ROWS), ".csv")
    runs.lake(month, source=source)
    assert runs.warehouse(month).warnings == ()
    put(ours, month, csv_month(month, ROWS - 100), ".csv")
    assert len(runs.lake(month, source=source).warnings) == 2
    fewer, changed = runs.warehouse(month).warnings
    assert fewer.startswith("re-published: 300 rows, 400 were last known")
    assert changed.startswith("100 rows changed in a month of 400")
