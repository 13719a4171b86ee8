"""Run a program in its own process, and measure its time and memory.

`python -m bench.process MODULE FUNCTION ARGUMENT…` is such a program.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A contender that times itself ends its output with this word and a JSON object.
MEASURED = "measured "
_COUNTERS = Path("/proc/stat")


@contextmanager
def timed() -> Iterator[dict[str, Any]]:
    """Print the time that the block takes, and the values that it adds to the dict."""
    extra: dict[str, Any] = {}
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun, busy_before = time.perf_counter(), _busy_s()
    yield extra
    wall, busy = time.perf_counter() - begun, _busy_s() - busy_before
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(MEASURED + json.dumps({"wall_s": wall, "cpu_s": cpu, "busy_s": busy, **extra}))


class RunFailed(Exception):
    """A contender failed. The message has the last lines of its output."""


@dataclass(frozen=True)
class Run:
    """The cost of one run: seconds, CPU seconds, peak memory in MB. `measured` has what the program measured itself."""

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    measured: Mapping[str, Any]
    busy_s: float
    """The time that the machine's cores worked in any process meanwhile, summed over the cores; 0 on other systems than Linux."""


def measure(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Run:
    """Run a program to its end and measure it. Raise `RunFailed` with its last lines if it fails."""
    log = folder / "contender.log"
    with log.open("wb") as out:
        begun, busy_before = time.perf_counter(), _busy_s()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            # The kernel's counters for exactly this process and the children for which it waited.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall, busy = time.perf_counter() - begun, _busy_s() - busy_before
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = log.read_text("utf-8", "replace").splitlines()
    if process.returncode:
        raise RunFailed("\n".join([f"{' '.join(command)} ended with {process.returncode}:", *lines[-20:]]))
    measured: Mapping[str, Any] = next(
        (json.loads(line.removeprefix(MEASURED)) for line in reversed(lines) if line.startswith(MEASURED)), {}
    )
    cpu = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # macOS reports bytes, other systems KB
    return Run(measured.get("wall_s", wall), measured.get("cpu_s", cpu), peak, measured, measured.get("busy_s", busy))


def _busy_s() -> float:
    """Return the seconds since the machine's start in which its cores worked, summed over the cores; 0 if it is not Linux."""
    if not _COUNTERS.exists():
        return 0
    user, nice, system, _idle, _waiting, *interrupts = map(int, _COUNTERS.read_text("ascii").split(None, 8)[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
