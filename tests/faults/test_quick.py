"""The short part of the fault suite, for `make test`: a few faults of each kind."""

import os

import pytest

from tests.faults.crash import Siege, require_whole
from tests.faults.lab import FlowName, Lab, chance
from tests.faults.proxy import Gate, Rule
from tests.faults.test_network import survived
from tests.strict_lake import StrictLake

# The last step of each flow that changes a store, and one step in the middle of etl_web_gcs.
_KILLS: dict[FlowName, list[dict[str, object]]] = {
    "etl_web_gcs": [
        {"kill_at": {"name": "flows.stores.raw_zone:RawZone.extract", "when": "after"}},
        {"kill_at": {"name": "flows.stores.lake:Lake.remember", "when": "before"}},
    ],
    "ingest_data": [{"kill_at": {"name": "flows.stores.database:Database._write_manifest", "when": "before"}}],
}


@pytest.mark.parametrize("flow", _KILLS)
def test_a_killed_run_over_a_published_month_leaves_nothing_behind(flow: FlowName, lab: Lab) -> None:
    siege = Siege(lab, flow, over=True)
    siege.begin()
    siege.under(_KILLS[flow])
    assert siege.kills == len(_KILLS[flow])


def test_a_cut_download_never_mixes_bytes(lab: Lab) -> None:
    at = chance("quick cut").randrange(370_000)
    with (
        Gate(lab.ours.site.url) as gate,
        survived(lab, "database", over=True, part="quick", fault="a cut download", url=gate.url) as run,
    ):
        gate.rules = [Rule("broken answer", "GET", r"green_tripdata_2019-06\.csv", at=at)]
        assert run(source=lab.source.replace(lab.ours.site.url, gate.url)) is None
        assert gate.happened


def test_an_upload_whose_answer_is_lost_is_recognised(lab: Lab) -> None:
    with (
        StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict,
        Gate(strict.url) as gate,
        survived(lab, "lake", over=True, part="quick", fault="a lost answer") as run,
    ):
        gate.rules = [Rule("lost answer", "PUT", "upload_id="), Rule("lost answer", "POST", "/rewriteTo/")]
        assert run(env={"STORAGE_EMULATOR_HOST": gate.url}) is None
        assert len(gate.happened) == 2


def test_two_processes_can_load_a_month_at_once(lab: Lab) -> None:
    expected = lab.expected("ingest_data", over=True)
    lab.prepare("ingest_data", over=True)
    for run in [lab.start("ingest_data") for _ in range(2)]:
        run.succeeded()
    require_whole(lab, expected)
