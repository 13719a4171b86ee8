"""Return warnings about a published month that a person should check: rows are missing, or unusually many changed."""

from flows.tlc.addresses import shown
from flows.tlc.manifest import Manifest

# The share of a month's rows that a correction may change. A wrong file or another rule changes more.
MOST_CHANGED = 0.1


def warnings_of(manifest: Manifest, before: Manifest | None) -> tuple[str, ...]:
    """Return one sentence for each reason to check a month.

    The reasons are: rows are quarantined; the file has fewer rows than the previous edition, although TLC seldom removes rows;
    more rows changed than `MOST_CHANGED`; a part of the file is repeated.

    Args:
        manifest: The manifest of the published month.
        before: The manifest of the month that it replaced in its store, or None if it replaced none.
    """
    found = []
    if manifest.quarantined:
        quarantined = sum(manifest.quarantined.values())
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in manifest.quarantined.items())
        found.append(
            f"{quarantined:,} of {manifest.source_rows:,} rows are quarantined ({reasons});"
            f" read them in {manifest.quarantine_key or 'the table quarantine'}."
        )
    if manifest.source_rows < (manifest.known_rows or 0):
        found.append(f"{manifest.recount}; check with the publisher that the file at {shown(manifest.url)} is whole.")
    changed = _changed(manifest, before)
    if before and changed > MOST_CHANGED * before.loaded:
        found.append(
            f"{changed:,} rows changed in a month of {before.loaded:,}{_explained(manifest, before)};"
            " if you did not expect that, compare the file with its source."
        )
    if manifest.repeated:
        row, earlier = manifest.repeated
        found.append(
            f"the file may have a part twice: the part that ends before row {row:,} is the same, byte for byte, as the part"
            f" that ends before row {earlier:,}; compare the file with its source."
        )
    return tuple(found)


def _changed(manifest: Manifest, before: Manifest | None) -> int:
    """Return how many rows changed. If the two months were not compared, return the difference of their row counts."""
    whole = before and (manifest.inserted, manifest.updated, manifest.removed) == (manifest.loaded, 0, before.loaded)
    if before and whole:
        return abs(manifest.loaded - before.loaded)
    return manifest.inserted + manifest.updated + manifest.removed


def _explained(manifest: Manifest, before: Manifest) -> str:
    """Return the earlier rule and source, for a message, if they changed."""
    terms = (("rows", manifest.rule, before.rule), ("source", shown(manifest.url), shown(before.url)))
    other = [f"{name} was {then}, and is {now}" for name, now, then in terms if now != then]
    return f" ({'; '.join(other)})" if other else ""
