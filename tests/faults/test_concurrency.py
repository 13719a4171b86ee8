"""Many processes load the same month at once, or different months: each succeeds, and no row is stored twice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.tlc.trips import TripMonth
from tests.faults import digest
from tests.faults.crash import require_whole
from tests.faults.lab import AFTERWARDS, FLOWS, STORES_OF, FlowName, Lab, Reader, see, until
from tests.faults.record import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


CASES: list[tuple[FlowName, int, bool]] = [
    *((flow, count, over) for flow in FLOWS for count in (2, 4, 8) for over in (False, True)),
    *((flow, count, True) for flow in AFTERWARDS for count in (2, 4, 8)),
    *(("load_zones", count, False) for count in (2, 4, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("flow", "count", "over"), CASES)
def test_many_processes_of_a_flow_can_run_for_the_same_month_at_once(
    flow: FlowName, count: int, over: bool, lab: Lab
) -> None:
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
    reader.require_only(allowed)


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


def test_bring_up_to_date_a_backfill_and_other_runs_can_load_a_month_at_once(lab: Lab) -> None:
    expected, allowed = lab.expected("bring_up_to_date", over=True), lab.states("bring_up_to_date", over=True)
    flows: tuple[FlowName, ...] = ("bring_up_to_date", "backfill", "etl_web_gcs", "ingest_data")
    with (
        tried("concurrency", "`bring_up_to_date`, `backfill`, `etl_web_gcs` and `ingest_data` at once", len(flows)),
        Reader(lab, STORES_OF["bring_up_to_date"]) as reader,
    ):
        runs = [lab.start(flow) for flow in flows]
        for run in runs:
            run.succeeded(900)
        lab.start("bring_up_to_date").succeeded()
        require_whole(lab, expected)
    reader.require_only(allowed)


_AT_WORK = {"etl_web_gcs": ("Task run 'extract",), "ingest_data": ("waiting for it", "Task run 'extract")}  # in its log


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize(
    ("flow", "step"),
    [
        ("etl_web_gcs", "flows.tasks.bring:transform"),
        ("etl_web_gcs", "flows.tasks.bring:load"),
        ("ingest_data", "flows.tasks.bring:look_up"),
        ("ingest_data", "flows.tasks.bring:load"),
    ],
)
def test_two_versions_of_this_package_load_the_same_month_at_once(
    flow: FlowName, step: str, over: bool, lab: Lab, version_before: Path, tmp_path: Path
) -> None:
    """The new version pauses before a step until the earlier one is at work, too.

    Rows are compared, not manifests: the version that publishes last writes the facts that it knows.
    """
    [store], allowed = STORES_OF[flow], lab.states(flow, over=over)
    before = see(lab)[store]
    environment = lab.programs.env | {"PYTHONPATH": str(version_before), "TRIPS_SCRATCH": str(tmp_path / "scratch")}
    program = [sys.executable, str(version_before / "flows" / f"{flow}.py"), *map(str, lab.arguments(flow, lab.month))]
    output, go_on = tmp_path / "output.txt", tmp_path / "go.on"
    with (
        tried("concurrency", f"the same month by `{flow}` of two versions of this package at once", 2) as trial,
        Reader(lab, (store,)) as reader,
        output.open("w") as file,
    ):
        new = lab.start(flow, {"pause_at": {"name": step, "when": "before", "file": str(go_on)}})
        until(go_on.with_suffix(".reached").exists)
        old = subprocess.Popen(program, cwd=version_before, env=environment, stdout=file, stderr=subprocess.STDOUT)
        until(lambda: old.poll() is not None or any(word in output.read_text() for word in _AT_WORK[flow]))
        assert old.poll() is None, output.read_text()
        go_on.touch()
        new.succeeded()
        assert old.wait(300) == 0, output.read_text()
        trial.recoveries.append(0.0)
        assert see(lab)[store] in allowed[store] - {before}
        lab.start(flow).succeeded()
        assert see(lab)[store] in allowed[store] - {before}
        lab.sweep()
        assert digest.staging(lab.ours) == []
    reader.require_only(allowed)
