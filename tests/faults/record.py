"""Write down each fault that was tried, what was lost and how long recovery took, for the table in docs/reliability.md."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / ".local" / "faults.jsonl"
_WANTED = os.environ.get("FAULTS_FILE", "")  # set by `make faults`; other runs of the tests record nothing


class Trial:
    """One fault that is being tried. The test adds how long each recovery took. With `times` 0, it did not happen."""

    def __init__(self) -> None:
        self.times = 1
        self.recoveries: list[float] = []

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Measure the seconds until the stores are correct."""
        began = time.monotonic()
        yield
        self.recoveries.append(time.monotonic() - began)


@contextmanager
def tried(part: str, fault: str, times: int = 1) -> Iterator[Trial]:
    """Record a fault as tried. It counts as survived if the block ends without an error.

    Args:
        part: The part of the suite, such as crash.
        fault: What was done, in words for the table.
        times: How many single faults the block tries.
    """
    trial = Trial()
    trial.times = times
    lost = "not as expected"
    try:
        yield trial
        lost = ""
    finally:
        line = {"part": part, "fault": fault, "times": trial.times, "lost": lost, "recoveries_s": trial.recoveries}
        if _WANTED and trial.times:
            with Path(_WANTED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
