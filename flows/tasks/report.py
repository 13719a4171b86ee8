"""Report runs in the UI: one markdown artifact per month, one table per parent run."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.text import Text

from flows.tasks.picture import trips_per_day
from flows.tlc.addresses import escaped, shown
from flows.tlc.manifest import Manifest, Outcome, Verified, total
from flows.tlc.matching import differences
from flows.tlc.quality import RULES

_LONGEST = 4000  # characters of a cell
_MARKUP = {ord(letter): f"&#{ord(letter)};" for letter in "&<>[]|"}


def as_markdown(text: str) -> str:
    """Return text from outside, such as a column's name, without HTML, links, images and ends of table cells."""
    return escaped(text, _LONGEST).translate(_MARKUP)


def plain_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table artifact with all texts as plain text: the UI shows cells as markdown, and names as they are."""

    def plain(cell: Any) -> Any:
        return as_markdown(cell) if isinstance(cell, str) else cell

    return [{escaped(name, _LONGEST): plain(cell) for name, cell in row.items()} for row in rows]


def as_cell(value: object) -> Text:
    """Return a value for a table on a terminal, without markup and control characters."""
    return Text(escaped(str(value), _LONGEST))


def report(outcome: Outcome, before: Manifest | None, page: str) -> None:
    """Report one month, with its object's web page, if any. `before` is the previous calendar month, to compare with."""
    key = f"{outcome.trip_month.stem.replace('_', '-')}-{outcome.store}"
    create_markdown_artifact("\n".join(_lines(outcome, before, page)), key=key, description=str(outcome))


def _lines(outcome: Outcome, before: Manifest | None, page: str) -> Iterator[str]:
    manifest = outcome.manifest
    profile, month = manifest.profile, outcome.trip_month
    yield f"# {month} in the {outcome.store}: {outcome.status}"
    yield from (f"\n**Look at this**: {as_markdown(warning)}" for warning in outcome.warnings)
    yield from markdown_table(
        ("", "rows"),
        [
            ("published by the source", f"{manifest.source_rows:,}"),
            (f"**in the {outcome.store}**", f"**{manifest.loaded:,}**"),
            *((f"left out by rule `{rule}`", f"{count:,}") for rule, count in manifest.filtered.items()),
            *((f"quarantined: {reason}", f"{count:,}") for reason, count in manifest.quarantined.items()),
        ],
    )
    yield f"Inserted {manifest.inserted:,}, updated {manifest.updated:,}, removed {manifest.removed:,}."
    if profile.days:
        yield "\n" + trips_per_day(f"{month}: trips per day", profile.days, before.profile.days if before else {})
    if profile.sums:
        yield "\n## Sums"
        yield from markdown_table(("column", "US$"), [(name, f"{total:,.2f}") for name, total in profile.sums.items()])
    met = [(rule.name, rule.severity, n) for rule in RULES if (n := profile.quality.get(rule.name))]
    if met:
        yield "\n## Odd, and kept as published"
        yield from markdown_table(
            ("rule", "severity", "trips"), [(*about, f"{n:,}") for *about, n in dict.fromkeys(met)]
        )
    if profile.elsewhere:
        yield "\nTrips of other months in this file: " + ", ".join(f"{m} ({n:,})" for m, n in profile.elsewhere.items())
    yield "\n## The file"
    modified = as_markdown(manifest.last_modified or "unknown")
    yield f"- source: <{_link(manifest.url)}>, {manifest.size:,} bytes, last modified {modified}"
    if manifest.recount:
        yield f"- **{as_markdown(manifest.recount)}**"
    yield f"- sha256: `{manifest.sha256}`"
    yield f"- transfer check: {_CHECKED[manifest.verified]}"
    yield f"- looks like: {manifest.era}"
    yield from (
        f"- {line}"
        for line in differences(
            month.color, [c for c in manifest.columns if c not in manifest.new_columns], manifest.era
        )
    )
    if manifest.key:
        yield f"- object: [`{manifest.key}`]({page}), generation {manifest.generation}"
    if manifest.quarantined:
        yield f"- quarantine: `{manifest.quarantine_key or 'quarantine'}`"
    if manifest.new_columns:
        names = as_markdown(", ".join(manifest.new_columns))
        yield f"- **new columns**, which the schema does not know: {names}; `{manifest.extra_key}`"
    seconds = max((manifest.published_at - manifest.started_at).total_seconds(), 1e-3)
    yield f"- time: {seconds:,.1f} s, {manifest.source_rows / seconds:,.0f} rows/s"


def _link(url: str) -> str:
    """Return an address for the inside of `<…>`, where entities have no effect."""
    return re.sub(r"[<>\[\]|`\\]", lambda letter: f"%{ord(letter[0]):02X}", shown(url))


_CHECKED: dict[Verified, str] = {
    "": "no check of this transfer was recorded",
    "length": "the number of bytes equals the length that the server sent; it sent no digest",
    "crc32c": "the bytes have the CRC32C that the server sent",
    "md5": "the bytes have the MD5 that the server sent",
    "sha256": "the bytes have the SHA-256 that the server sent",
}


def markdown_table(names: tuple[str, ...], rows: Iterable[tuple[str, ...]], numbers: int = 1) -> Iterator[str]:
    """Yield the lines of a markdown table. Its last `numbers` columns are numbers, aligned to the right."""
    yield ""
    for row in (names, (*("---",) * (len(names) - numbers), *("---:",) * numbers), *rows):
        yield f"| {' | '.join(map(as_markdown, row))} |"
    yield ""


def report_months(key: str, done: Sequence[Outcome], failed: Sequence[tuple[str, str]]) -> None:
    """Report a parent run: one row per month with its outcome."""
    rows: list[dict[str, Any]] = [
        {
            "month": str(outcome.trip_month),
            "status": outcome.status,
            "published": outcome.manifest.source_rows,
            "in store": outcome.in_store,
            "left out": sum(outcome.manifest.filtered.values()),
            "quarantined": sum(outcome.manifest.quarantined.values()),
            "warnings": " ".join(outcome.warnings),
        }
        for outcome in done
    ]
    rows += [{"month": month, "status": f"failed: {reason}"} for month, reason in failed]
    if done:
        counts = ("published", "in store", "left out", "quarantined")
        sums = {name: sum(row.get(name, 0) for row in rows) for name in counts}
        rows.append({"month": "all", "status": f"{len(done)} of {len(rows)} done"} | sums)
    create_table_artifact(plain_rows(rows), key=key, description=total(done) if done else "No month is done")
