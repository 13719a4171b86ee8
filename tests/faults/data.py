"""Run the fuzz of fuzz.py in several processes, and find the input at which a process ended or hung."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_BATCH = 2000  # inputs per process: a process that ends early loses only its batch


def _batch(seed: int, first: int, last: int, folder: Path) -> dict[str, Any]:
    progress = folder / f"{first}.progress"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", *map(str, (seed, first, last, progress))], cwd=ROOT, env=dict(os.environ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    at = int(progress.read_text())
    what = f"WRONG: the process ended with {done.returncode}: {done.stderr[-1500:]}"
    return {"outcomes": {"WRONG": 1}, "wrong": [{"number": at, "what": what}], "slowest_s": 0, "largest_mb": 0}


def fuzz(seed: int, count: int, processes: int, folder: Path) -> dict[str, Any]:
    """Try `count` inputs, and return the outcomes, what is wrong, the slowest input's seconds and the largest growth."""
    size = min(_BATCH, -(-count // processes))
    starts = range(0, count, size)
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(lambda first: _batch(seed, first, min(count, first + size), folder), starts))
    outcomes: Counter[str] = Counter()
    for part in parts:
        outcomes.update(part["outcomes"])
    return {
        "outcomes": dict(outcomes),
        "wrong": [wrong for part in parts for wrong in part["wrong"]],
        "slowest_s": max(part["slowest_s"] for part in parts),
        "largest_mb": max(part["largest_mb"] for part in parts),
    }
