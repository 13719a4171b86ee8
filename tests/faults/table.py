"""Collect the results of the fault suite in results.json, and write the table of docs/reliability.md from them.

`python -m tests.faults.table` reads .local/faults.jsonl. A new result of a fault replaces the old one; other results stay.
"""

import json
import os
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.faults.record import FILE, ROOT

RESULTS = ROOT / "tests" / "faults" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- table: written by `make reliability` -->\n", "<!-- end of the table -->\n"


def collected(lines: list[dict[str, Any]], revision: str, seed: int) -> list[dict[str, Any]]:
    """Return one record per fault: how often it was tried, what was lost, and how long recovery took."""
    by_fault: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_fault[line["part"], line["fault"]].append(line)
    records = []
    for (part, fault), found in by_fault.items():
        seconds = [one for line in found for one in line["recoveries_s"]]
        records.append(
            {
                "part": part,
                "fault": fault,
                "tried": sum(line["times"] for line in found),
                "not_survived": sum(bool(line["lost"]) for line in found),
                "recovery_median_s": round(statistics.median(seconds), 1) if seconds else None,
                "recovery_longest_s": round(max(seconds), 1) if seconds else None,
                "seed": seed,
                "revision": revision,
            }
        )
    return records


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all records in order; a new one replaces the old one of its fault."""
    records = {(record["part"], record["fault"]): record for record in [*old, *new]}
    return [records[key] for key in sorted(records)]


def table(records: list[dict[str, Any]]) -> str:
    """Return the records as a Markdown table, and the sum of each part."""
    lines = ["| part | fault | tried | lost | recovery, median | longest |", "|---|---|---:|---|---:|---:|"]

    def seconds(value: float | None) -> str:
        return "–" if value is None else "none needed" if value == 0 else f"{value:.1f} s"

    for record in records:
        lost = "nothing" if not record["not_survived"] else f"**not as expected in {record['not_survived']} cases**"
        times = f"{seconds(record['recovery_median_s'])} | {seconds(record['recovery_longest_s'])}"
        lines.append(f"| {record['part']} | {record['fault']} | {record['tried']:,} | {lost} | {times} |")
    parts: dict[str, int] = defaultdict(int)
    for record in records:
        parts[record["part"]] += record["tried"]
    total = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    revisions = ", ".join(sorted({record["revision"] for record in records}))
    return f"Tried: {total}. Revisions: {revisions}.\n\n" + "\n".join(lines) + "\n"


def page(text: str, records: list[dict[str, Any]]) -> str:
    """Return the page with this table."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{table(records)}\n{_END}{after}"


def main() -> None:
    """Write results.json and the page."""
    lines = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()] if FILE.exists() else []
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    old = json.loads(RESULTS.read_text("utf-8"))["records"] if RESULTS.exists() else []
    records = merged(old, collected(lines, revision, int(os.environ.get("SEED", "0"))))
    Path(RESULTS).write_text(json.dumps({"records": records}, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8"), records), "utf-8")
    print(f"{len(records)} faults in {RESULTS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
