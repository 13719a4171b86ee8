"""Many processes load the same month at once, or different months: each succeeds, and no row is stored twice."""

from typing import Any

import pytest

from flows.tlc.trips import TripMonth
from tests.faults import digest
from tests.faults.crash import require_whole
from tests.faults.lab import FLOWS, STORES_OF, FlowName, Lab, Reader
from tests.faults.record import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("flow", FLOWS)
def test_many_processes_can_load_the_same_month_at_once(flow: FlowName, count: int, over: bool, lab: Lab) -> None:
    expected, allowed = lab.expected(flow, over=over), lab.states(flow, over=over)
    with (
        tried("concurrency", f"the same month by {count} processes of `{flow}` at once", count),
        Reader(lab, STORES_OF[flow]) as reader,
    ):
        runs = [lab.start(flow) for _ in range(count)]
        for run in runs:
            run.succeeded(900)
        # The counts of changed rows belong to the run that published first.
        require_whole(lab, expected)
    assert all(states <= allowed[store] for store, states in reader.seen.items())


@pytest.mark.parametrize("flow", ["etl_web_gcs", "ingest_data", "etl_gcs_bq"])
def test_many_processes_can_load_different_months_at_once(flow: FlowName, lab: Lab) -> None:
    months = [TripMonth("green", 2019, n) for n in range(1, 6)]
    lab.wipe()
    for month in months:
        lab.publish(1, month)
        if flow == "etl_gcs_bq":
            lab.load("lake", month)

    def run(at_once: bool) -> dict[str, Any]:
        for month in months:
            started = lab.start(flow, month=month)
            if not at_once:
                started.succeeded()
        for one in list(lab.programs.running):
            one.succeeded(900)
        lab.sweep()
        assert digest.staging(lab.ours) == []
        return digest.whole(lab.ours)

    with tried("concurrency", f"{len(months)} months by as many processes of `{flow}` at once", len(months)):
        together = run(at_once=True)
        lab.wipe()
        if flow == "etl_gcs_bq":
            for month in months:
                lab.load("lake", month)
        assert digest.different(run(at_once=False), together) == []


def test_bring_up_to_date_and_parent_runs_can_load_a_month_at_once(lab: Lab) -> None:
    expected, allowed = lab.expected("bring_up_to_date", over=True), lab.states("bring_up_to_date", over=True)
    flows: tuple[FlowName, ...] = ("bring_up_to_date", "etl_web_gcs", "ingest_data")
    with (
        tried("concurrency", "`bring_up_to_date`, `etl_web_gcs` and `ingest_data` at once", len(flows)),
        Reader(lab, STORES_OF["bring_up_to_date"]) as reader,
    ):
        runs = [lab.start(flow) for flow in flows]
        for run in runs:
            run.succeeded(900)
        lab.start("bring_up_to_date").succeeded()
        require_whole(lab, expected)
    assert all(states <= allowed[store] for store, states in reader.seen.items())
