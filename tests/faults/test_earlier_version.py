"""Stores that an earlier version wrote need no migration, and that version can use those of this one. Run by `make faults`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.lab import PROGRAMS, STORES_OF, FlowName, Lab, see
from tests.faults.record import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


class Versions:
    """Runs flows of both versions for the lab's month."""

    def __init__(self, lab: Lab, before: Path, scratch: Path) -> None:
        self._lab, self._before, self._scratch = lab, before, scratch

    def earlier(self, *flows: FlowName) -> None:
        """Run flows of the earlier version, one after the other."""
        environment = self._lab.programs.env | {"PYTHONPATH": str(self._before), "TRIPS_SCRATCH": str(self._scratch)}
        for flow in flows:
            program = self._before / "flows" / f"{PROGRAMS.get(flow, flow)}.py"
            words = map(str, self._lab.arguments(flow, self._lab.month))
            done = subprocess.run(
                [sys.executable, program, *words], cwd=self._before, env=environment, capture_output=True, text=True, check=False
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr

    def this(self, *flows: FlowName) -> dict[str, str]:
        """Run flows of this version, one after the other. Return what readers see."""
        for flow in flows:
            self._lab.start(flow).succeeded()
        return see(self._lab)


@pytest.fixture
def versions(lab: Lab, version_before: Path, tmp_path: Path) -> Versions:
    return Versions(lab, version_before, tmp_path / "scratch")


def test_this_version_uses_the_stores_of_an_earlier_one_as_they_are(versions: Versions, lab: Lab) -> None:
    states = lab.states("bring_up_to_date", over=True)
    lab.wipe()
    lab.publish(1)
    with tried(
        "upgrade", "stores of an earlier version: verified, brought up to date, an edition loaded again, withdrawn"
    ):
        versions.earlier("load_zones", "etl_web_gcs", "etl_gcs_bq", "ingest_data")
        first = see(lab)
        assert all(first[store] in states[store] for store in STORES_OF["bring_up_to_date"])
        assert versions.this("bring_up_to_date", "verify", "load_zones") == first
        lab.publish(2)
        second = versions.this("bring_up_to_date", "verify")
        assert {store: {first[store], second[store]} for store in first} == states
        assert versions.this("load_edition", "etl_gcs_bq", "load_edition_database", "verify") == first
        withdrawn = versions.this("withdraw", "verify")
        assert (withdrawn["lake"], withdrawn["warehouse"], withdrawn["database"][:7]) == ("absent", "absent", "0 rows ")
        assert versions.this("etl_web_gcs", "etl_gcs_bq", "ingest_data", "verify") == second


def test_an_earlier_version_replaces_a_month_of_this_one(versions: Versions, lab: Lab) -> None:
    states = lab.states("bring_up_to_date", over=True)
    first = see(lab)
    with tried("upgrade", "an earlier version loads a new edition over this version's months, then this version runs"):
        versions.earlier("etl_web_gcs", "etl_gcs_bq", "ingest_data")
        second = see(lab)
        assert {store: {first[store], second[store]} for store in first} == states
        assert versions.this("bring_up_to_date", "verify") == second
