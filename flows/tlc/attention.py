"""Return warnings about a published month that a person should check: rows are missing, or unusually many changed."""

from dataclasses import dataclass

from flows.tlc.addresses import shown
from flows.tlc.manifest import Manifest


@dataclass(frozen=True)
class Limit:
    """A share of rows above which a person should check a month, and why."""

    share: float
    why: str


LIMITS = {
    "quarantined": Limit(0.0, "of the file's rows: each is a trip that the store lacks"),
    "fewer": Limit(0.0, "of the previous edition: TLC adds late trips to a month, and seldom removes any"),
    "changed": Limit(
        0.1, "of the month that was replaced: more changes mean another file or another rule, not a correction"
    ),
}


def warnings_of(manifest: Manifest, before: Manifest | None) -> tuple[str, ...]:
    """Return one sentence for each of `LIMITS` that a month exceeds, and for a repeated part of its file.

    Args:
        manifest: The manifest of the published month.
        before: The manifest of the month that it replaced in its store, or None if it replaced none.
    """
    found = []
    quarantined, expected, changed = (
        sum(manifest.quarantined.values()),
        manifest.known_rows or 0,
        _changed(manifest, before),
    )
    if quarantined > LIMITS["quarantined"].share * manifest.source_rows:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in manifest.quarantined.items())
        found.append(
            f"{quarantined:,} of {manifest.source_rows:,} rows are quarantined ({reasons});"
            f" read them in {manifest.quarantine_key or 'the table quarantine'}."
        )
    if expected - manifest.source_rows > LIMITS["fewer"].share * expected:
        found.append(f"{manifest.recount}; check with the publisher that the file at {shown(manifest.url)} is whole.")
    if before and changed > LIMITS["changed"].share * before.loaded:
        found.append(
            f"{changed:,} rows changed in a month of {before.loaded:,}{_explained(manifest, before)};"
            " if you did not expect that, compare the file with its source."
        )
    if manifest.repeated:
        row, earlier = manifest.repeated
        found.append(
            f"the rows before row {row:,} are those before row {earlier:,}, byte for byte: the file may have a part twice;"
            " compare it with its source."
        )
    return tuple(found)


def _changed(manifest: Manifest, before: Manifest | None) -> int:
    """Return how many rows differ from the replaced month. If the two were not compared, return the least that must differ."""
    whole = before and (manifest.inserted, manifest.updated, manifest.removed) == (manifest.loaded, 0, before.loaded)
    if before and whole:
        return abs(manifest.loaded - before.loaded)
    return manifest.inserted + manifest.updated + manifest.removed


def _explained(manifest: Manifest, before: Manifest) -> str:
    """Return, for a message, the rule or the source of the replaced month if it was another one."""
    terms = (("rows", manifest.rule, before.rule), ("source", shown(manifest.url), shown(before.url)))
    other = [f"{name} was {then}, and is {now}" for name, now, then in terms if now != then]
    return f" ({'; '.join(other)})" if other else ""
