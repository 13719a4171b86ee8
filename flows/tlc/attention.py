"""What a person should look at after a month was published: rows that are missing, or more changes than a correction makes."""

from dataclasses import dataclass

from flows.tlc.addresses import shown
from flows.tlc.manifest import Manifest


@dataclass(frozen=True)
class Limit:
    """A share of rows above which a person should look at a month, and why."""

    share: float
    why: str


LIMITS = {
    "quarantined": Limit(0.0, "of the file's rows: each is a trip that the store lacks"),
    "fewer": Limit(0.0, "of the edition before: TLC adds late trips to a month, and seldom takes any away"),
    "changed": Limit(0.1, "of the month that was replaced: more is another file, or another rule, than a correction"),
}


def warnings_of(manifest: Manifest, before: Manifest | None) -> tuple[str, ...]:
    """Return what exceeds `LIMITS` in a month, in sentences; none if all is well.

    `before` is the manifest of the month that this one replaced in its store, if it replaced one.
    """
    found = []
    aside, known, changed = sum(manifest.quarantined.values()), manifest.known_rows or 0, _changed(manifest, before)
    if aside > LIMITS["quarantined"].share * manifest.source_rows:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in manifest.quarantined.items())
        found.append(
            f"{aside:,} of {manifest.source_rows:,} rows are quarantined ({reasons});"
            f" read them in {manifest.quarantine_key or 'the table quarantine'}."
        )
    if known - manifest.source_rows > LIMITS["fewer"].share * known:
        found.append(f"{manifest.recount}; check with the publisher that the file at {shown(manifest.url)} is whole.")
    if before and changed > LIMITS["changed"].share * before.loaded:
        found.append(
            f"{changed:,} rows changed in a month of {before.loaded:,}{_explained(manifest, before)};"
            " if you did not expect that, compare the file with its source."
        )
    if manifest.repeated:
        row, earlier = manifest.repeated
        found.append(
            f"the rows before row {row:,} are those before row {earlier:,}, byte for byte: a part of the file may be there twice;"
            " compare it with its source."
        )
    return tuple(found)


def _changed(manifest: Manifest, before: Manifest | None) -> int:
    """Return how many rows differ from the month before; at least, where it was replaced as a whole without comparing."""
    whole = before and (manifest.inserted, manifest.updated, manifest.removed) == (manifest.loaded, 0, before.loaded)
    if before and whole:
        return abs(manifest.loaded - before.loaded)
    return manifest.inserted + manifest.updated + manifest.removed


def _explained(manifest: Manifest, before: Manifest) -> str:
    """Return the rule or the source that the month before had, if it had another."""
    terms = (("rows", manifest.rule, before.rule), ("source", shown(manifest.url), shown(before.url)))
    other = [f"{name} was {then}, and is {now}" for name, now, then in terms if now != then]
    return f" ({'; '.join(other)})" if other else ""
