"""Write the tables of docs/speed.md and their picture from `bench/results.json`: `python -m bench.page`."""

import json
from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from typing import Any

from bench import SMALL_MONTH

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = _ROOT / "bench" / "results.json"
PAGE = _ROOT / "docs" / "speed.md"
CHART = _ROOT / "docs" / "images" / "speed.svg"
_BEGIN, _END = "<!-- written by `make bench` -->\n", "<!-- end of what `make bench` writes -->\n"

Records = Sequence[Mapping[str, Any]]
TITLES = {
    "web_to_lake_csv": "web → lake, csv.gz",
    "web_to_lake_csv_4x": "web → lake, csv.gz, four times the rows",
    "web_to_lake_parquet": "web → lake, Parquet",
    "web_to_postgres_first": "web → Postgres, first load",
    "web_to_postgres_same": "web → Postgres, same month again",
    "web_to_postgres_changed": "web → Postgres, re-published with 1 % changed",
    "lake_to_warehouse": "lake → BigQuery (stand-in)",
    "twelve_months": "several months, web → lake",
    "small_months": f"several months of {SMALL_MONTH} trips, one at a time, web → lake",
    "start_up": "start of a program",
    "empty_flow": "empty flows, subtracted from the above",
}
NAMES = {
    "ours": "this project",
    "seed": "pandas script",
    "pyarrow": "plain pyarrow",
    "duckdb": "DuckDB",
    "dlt": "dlt, filesystem",
    "dlt_append": "dlt, append",
    "dlt_merge": "dlt, merge",
    "pg_bulk_ingest": "pg-bulk-ingest",
    "adbc": "ADBC, key added afterwards",
    "copy_keyed": "COPY of prepared text into a keyed table",
    "gunzip": "gunzip",
    "ours_one_at_a_time": "this project, one month at a time",
}
_BASES = {"start_up": "import prefect"}  # what the times are compared with, if it is not this project


def _ratios(records: Records, to: str = "ours") -> dict[str, float]:
    """Return each contender's net time relative to that of `to`, fastest first. It is empty if `to` took no time."""
    net = {str(record["contender"]): float(record["net_s"]) for record in records}
    base = net.get(to, 0)
    return {name: seconds / base for name, seconds in sorted(net.items(), key=lambda item: item[1])} if base else {}


def _of_first_load(changed: Mapping[str, Any], records: Records) -> str:
    """Return a sentence about the speed of a re-published month; none without a first load."""
    for first in records:
        if (first["work"], first["contender"]) == ("web_to_postgres_first", "ours") and changed["net_s"]:
            speed = first["net_s"] / first["rows"] * changed["rows"] / changed["net_s"]
            return f"The speed is {speed:.2f} × that of a first load.\n\n"
    return ""


def _machine(machine: Mapping[str, Any]) -> str:
    processor = f" of {machine['processor']}" if machine.get("processor") else ""
    lines = [
        f"Measured at revision {machine['revision']} on {machine['cpus']} cores{processor}, {machine['memory_gb']} GB, "
    ]
    facts = {"cpus", "processor", "memory_gb", "revision", "load", "system"}
    versions = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in facts)
    lines.append(f"{machine['system']}.\nVersions: {versions}.\n")
    if machine["load"] > machine["cpus"] / 4:
        lines.append(
            f"\n**The machine was busy**: its load was {machine['load']} before the run. Do not rely on these figures; "
            "run `make bench` on an idle machine.\n"
        )
    return "".join(lines)


def tables(machine: Mapping[str, Any], records: Records) -> str:
    """Return one Markdown table for each work, after a paragraph about the machine."""
    if not records:
        return "No run is recorded yet: run `make bench` on an idle machine.\n"
    parts = [_machine(machine)]
    for work, title in TITLES.items():
        of_work = [record for record in records if record["work"] == work]
        if not of_work:
            continue
        base = _BASES.get(work, "ours")
        ratios = _ratios(of_work, base)
        rows = max(record["rows"] for record in of_work)
        parts.append(f"\n### {title}\n\n" + (f"{rows:,} rows.\n\n" if rows else ""))
        if work == "small_months":
            fixed = float(of_work[0]["net_s"]) * SMALL_MONTH / rows
            parts.append(
                f"The fixed cost of a month is {fixed:.2f} s: the net time, divided by the number of months.\n\n"
            )
        if work == "web_to_postgres_changed":
            parts.append(_of_first_load(of_work[0], records))
        parts.append(
            f"| | × {NAMES.get(base, f'`{base}`')} | net s | wall s | CPU s | cores busy | peak MB | runs |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|\n"
        )
        for record in sorted(of_work, key=lambda record: float(record["net_s"])) if ratios else of_work:
            contender = record["contender"]
            ratio = f"{ratios[contender]:.2f}" if ratios else ""
            times = " | ".join(f"{record[name]:.2f}" for name in ("net_s", "wall_s", "cpu_s", "cores_busy"))
            name = NAMES.get(contender, f"`{contender}`")
            parts.append(f"| {name} | {ratio} | {times} | {record['peak_rss_mb']:.0f} | {record['runs']} |\n")
    return "".join(parts)


def chart(records: Records) -> str:
    """Return an SVG with one bar for each contender, as long as the logarithm of its time relative to this project's."""
    left, width, line = 300, 360, 20
    scale = width / 3  # pixels for a factor of ten, from a tenth to a hundred times
    y, parts = 20, []
    for work, title in TITLES.items():
        ratios = _ratios([record for record in records if record["work"] == work])
        if len(ratios) < 2:
            continue
        parts.append(f'<text x="10" y="{y + 5}" font-weight="bold">{title}</text>')
        for name, ratio in ratios.items():
            y += line
            end = left + scale * (1 + log10(min(max(ratio, 0.1), 100)))
            color = "#1a7f37" if name == "ours" else "#8c959f"
            parts.append(
                f'<text x="{left - 8}" y="{y + 5}" text-anchor="end">{NAMES[name]}</text>'
                f'<rect x="{left}" y="{y - 7}" width="{end - left:.1f}" height="14" fill="{color}"/>'
                f'<text x="{end + 6:.1f}" y="{y + 5}">× {ratio:.2f}</text>'
            )
        y += line + 12
    one = left + scale
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y}" font-family="sans-serif" font-size="13">\n'
        f'<rect width="760" height="{y}" fill="white"/>\n'
        + "\n".join(parts)
        + f'\n<line x1="{one}" y1="0" x2="{one}" y2="{y}" stroke="#1a7f37" stroke-dasharray="3"/>\n</svg>\n'
    )


def page(text: str, results: Mapping[str, Any]) -> str:
    """Return the page with the tables of these results."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{tables(results['machine'], results['records'])}\n{_END}{after}"


def write() -> None:
    """Write the page and the picture."""
    results = json.loads(RESULTS.read_text("utf-8"))
    PAGE.write_text(page(PAGE.read_text("utf-8"), results), "utf-8")
    CHART.write_text(chart(results["records"]), "utf-8")


if __name__ == "__main__":
    write()
