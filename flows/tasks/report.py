"""What a run leaves for people in the UI: a markdown artifact a month, a table a parent run."""

from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.tlc.manifest import Manifest, Outcome


def report(outcome: Outcome, manifest: Manifest) -> None:
    """Tell of one month: what was loaded, from where, what was set aside and why."""
    seconds = max((manifest.published_at - manifest.started_at).total_seconds(), 1e-3)
    lines = [
        f"# {outcome.trip_month} in the {outcome.store}: {outcome.status}",
        "",
        "| | rows |",
        "|---|---:|",
        f"| published by the source | {manifest.source_rows:,} |",
        f"| **in the {outcome.store}** | **{manifest.loaded:,}** |",
        *(f"| left out by rule `{rule}` | {count:,} |" for rule, count in manifest.filtered.items()),
        *(f"| quarantined: {reason} | {count:,} |" for reason, count in manifest.quarantined.items()),
        "",
        f"Inserted {outcome.inserted:,}, updated {outcome.updated:,}, removed {outcome.removed:,}.",
        "",
        f"- source: <{manifest.url}>, {manifest.size:,} bytes, last modified {manifest.last_modified or 'unknown'}",
        *([f"- **{manifest.recount}**"] if manifest.recount else []),
        f"- sha256: `{manifest.sha256}`",
        f"- looks like: {manifest.era}; columns as published: {', '.join(manifest.columns)}",
        *([f"- object: `{manifest.key}`, generation {manifest.generation}"] if manifest.key else []),
        *([f"- quarantine: `{manifest.quarantine_key}`"] if manifest.quarantine_key else []),
        f"- time: {seconds:,.1f} s, {manifest.source_rows / seconds:,.0f} rows/s",
    ]
    key = f"{outcome.trip_month.stem.replace('_', '-')}-{outcome.store}"
    create_markdown_artifact("\n".join(lines), key=key, description=str(outcome))


def report_months(key: str, done: Sequence[Outcome], failed: Sequence[tuple[str, str]]) -> None:
    """Tell of a parent run: every month with what became of it."""
    rows: list[dict[str, Any]] = [
        {
            "month": str(outcome.trip_month),
            "status": outcome.status,
            "published": outcome.source_rows,
            "in store": outcome.loaded,
            "left out": sum(outcome.filtered.values()),
            "quarantined": sum(outcome.quarantined.values()),
        }
        for outcome in done
    ]
    rows += [{"month": month, "status": f"failed: {reason}"} for month, reason in failed]
    create_table_artifact(rows, key=key, description="Months of this run")
