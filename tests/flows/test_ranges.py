"""A parent run loads a list or a range of months, and its log ends with the sum of their rows."""

import json
from typing import Any

import pytest

from flows.etl_gcs_bq import etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow
from flows.ingest_data import ingest_data
from flows.replay_quarantine import replay_quarantine
from flows.tlc.errors import UnknownMonth
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, Program, Runs
from tests.stores import Stores

RANGE = {"color": "yellow", "since": "2022-12", "until": "2023-01"}  # no other test of the file uses these months
MONTHS = [TripMonth("yellow", 2022, 12), TripMonth("yellow", 2023, 1)]
PARENTS = [etl_parent_flow, etl_gcs_bq_parent_flow, ingest_data, replay_quarantine]


def places(runs: Runs, flow: Any) -> dict[str, Any]:
    return {name: value for name, value in runs.places(flow).items() if name in flow.parameters.properties}


def test_every_parent_flow_loads_a_range_across_years_and_logs_the_sum_of_its_rows(ours: Stores, runs: Runs) -> None:
    rows = sum(ours.site.rows_of(m.color, m.year, m.month) for m in MONTHS)
    tables = {etl_parent_flow: "etl-web-gcs", etl_gcs_bq_parent_flow: "etl-gcs-bq", ingest_data: "ingest-data"}
    for flow in PARENTS:
        state = flow(**RANGE, **places(runs, flow), return_state=True)
        done = state.result()
        assert [outcome.trip_month for outcome in done] == MONTHS
        via = " via load_job" if flow is etl_gcs_bq_parent_flow else ""
        assert runs.name(state) == f"yellow 2022-12, 2023-01{via}"
        loaded = sum(outcome.manifest.loaded for outcome in done)
        store = done[0].store
        total = f"{rows:,} rows in 2 months"
        if store == "database":
            assert loaded < rows
            total = f"{rows:,} rows published, {loaded:,} in the database, in 2 months"
        assert total in runs.logs()
        if flow in tables:
            [table] = [text for text in runs.artifacts(f"{tables[flow]}-months") if "yellow 2022-12" in text]
            last = json.loads(table)[-1]
            assert (last["month"], last["status"], last["published"], last["in store"]) == (
                "all", "2 of 2 done", rows, loaded,
            )  # fmt: skip


def test_a_range_overrides_the_stored_parameters_of_a_deployment_and_the_log_says_so(runs: Runs) -> None:
    stored = {"color": "green", "year": 2021, "months": [1, 2, 3]}
    flow = etl_gcs_bq_parent_flow  # the lake does not have these months, so the error names them and nothing is loaded
    given = stored | {"since": 2016, "until": "2016-02"} | runs.places(flow)
    error = flow(**given, return_state=True).result(raise_on_failure=False)
    assert "2 of 2 months could not be loaded" in str(error)
    assert "green 2016-01" in str(error)
    assert "green 2016-02" in str(error)
    assert "since and until are given: year 2021 and months [1, 2, 3] are not used" in runs.logs()


@pytest.mark.parametrize("flow", PARENTS, ids=lambda flow: flow.name)
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "no month is named"),
        ({"since": "2019-02"}, "until is missing"),
        ({"until": "2019-02"}, "since is missing"),
        ({"since": "2019-03", "until": "2019-02"}, "until (2019-02) is before since (2019-03)"),
        ({"since": "2019-01", "until": "x"}, "until is 'x'"),
    ],
    ids=str,
)
def test_an_invalid_range_stops_a_run_before_any_work(
    flow: Any, given: dict[str, Any], reason: str, ours: Stores, runs: Runs
) -> None:
    ours.site.forget_requests()
    state = flow(color="green", **given, **places(runs, flow), return_state=True)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, UnknownMonth)
    assert reason in str(error)
    assert "Nothing was started" in str(error) or "give a month" in str(error)
    assert ours.site.requests == []
    assert not runs.task_runs(state)


def test_a_program_accepts_a_range_and_its_log_ends_with_the_sum(ours: Stores, program: Program) -> None:
    rows = sum(ours.site.rows_of("fhv", 2020, month) for month in (11, 12))
    options = ("--since", "2020-11", "--until", "2020-12", "--block-name", LAKE, "--source", ours.official)
    done = program("etl_web_gcs", "fhv", *options)
    assert done.returncode == 0, done.stderr
    assert f"{rows:,} rows in 2 months" in done.stderr
