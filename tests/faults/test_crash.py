"""Kill a flow's process with SIGKILL at every step: the next run restores the expected state. Run by `make faults`."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.faults.crash import Siege, at_events, at_steps, recorded, require_whole, steps_of
from tests.faults.lab import AFTERWARDS, FLOWS, PROGRAMS, STORES_OF, FlowName, Lab, Reader, chance, see
from tests.faults.programs import ROOT, Programs
from tests.faults.record import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]
KILLS = int(os.environ.get("KILLS", "12"))  # at random events in each case, besides the kills at steps
CASES: list[tuple[FlowName, bool]] = [
    *((flow, over) for flow in FLOWS for over in (False, True)), *((flow, True) for flow in AFTERWARDS), ("load_zones", False)
]  # fmt: skip
_STATE = {False: "empty stores", True: "a published month"}


@pytest.mark.parametrize(("flow", "over"), CASES)
def test_a_flow_killed_at_any_step_recovers(flow: FlowName, over: bool, lab: Lab) -> None:
    siege = Siege(lab, flow, over)
    with recorded(siege, f"`{flow}` killed before and after each step, {_STATE[over]}"):
        siege.begin()
        siege.under(at_steps(steps_of(flow, over=over)))


@pytest.mark.parametrize(("flow", "over"), CASES)
def test_a_flow_killed_at_random_events_recovers(flow: FlowName, over: bool, lab: Lab) -> None:
    siege = Siege(lab, flow, over)
    with recorded(siege, f"`{flow}` killed at random sends, receives, statements and renames, {_STATE[over]}"):
        siege.begin()
        random = chance(f"events {flow} {over}")
        siege.under(at_events(lab, siege, KILLS, random.randint))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_program_killed_at_random_times_recovers(flow: FlowName, lab: Lab, programs: Programs) -> None:
    """`python flows/x.py` in a process that imports everything itself, killed after a random time."""
    expected, allowed = lab.expected(flow, over=True), lab.states(flow, over=True)
    random = chance(f"moments {flow}")
    with tried("crash", f"`python flows/{flow}.py` killed at random moments", 3) as trial:
        killed = 0
        while killed < trial.times:
            with Reader(lab, STORES_OF[flow]) as reader:
                process = subprocess.Popen(
                    [sys.executable, f"flows/{PROGRAMS.get(flow, flow)}.py", *map(str, lab.arguments(flow, lab.month))], cwd=ROOT,
                    env=programs.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
                assert process.stdout
                process.stdout.readline()  # the run is created
                time.sleep(random.uniform(0, 3))
                process.send_signal(signal.SIGKILL)
                output, _ = process.communicate()
                assert process.returncode in (0, -signal.SIGKILL), output
                now = see(lab)
                assert all(now[store] in states for store, states in allowed.items())
            reader.require_only(allowed)
            if process.returncode:
                killed += 1
            else:  # it ended before it was killed
                lab.prepare(flow, over=True)
        with trial.recovering():
            lab.start(flow).succeeded()
        require_whole(lab, expected)
