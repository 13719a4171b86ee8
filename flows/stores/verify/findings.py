"""The result of a check of a month, and the lake's month that other stores are compared with."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from flows.tlc.errors import MisconfiguredBlock
from flows.tlc.manifest import Manifest
from flows.tlc.trips import TripMonth
from flows.tlc.verify import Depth, Verified

if TYPE_CHECKING:
    from flows.stores import MonthStore
    from flows.stores.lake import Lake


@dataclass
class Findings:
    """What a check found about one month in one store."""

    manifest: Manifest | None
    differences: list[str] = field(default_factory=list)
    not_compared: str = ""
    remove: str = ""
    """The address of an object that no run replaces. A person must move it away first."""


class Check(Protocol):
    """Verifies the months of one store."""

    def months(self, colors: Iterable[str]) -> set[TripMonth]:
        """Return every month of the colors that has rows, an object or a manifest in the store, and those that are missing."""

    def strays(self, colors: Iterable[str]) -> list[Verified]:
        """Return the rows that belong to no month, one result per color that has any."""

    def verify(self, trip_month: TripMonth, depth: Depth, run: str) -> Findings:
        """Compare a month with what was published."""

    def mark(self, manifest: Manifest, fault: str) -> None:
        """Write a fault into the month's manifest. Write nothing if another run has replaced the manifest."""


def vanished(store: "MonthStore", trip_months: Iterable[TripMonth]) -> set[TripMonth]:
    """Return the months that a store should have: the last entry of their history is no withdrawal."""
    return {month for month in trip_months if (history := store.history(month)) and not history[-1].withdrawn_at}


class Reference(NamedTuple):
    """The lake's month to compare another store's month with, or the reason why they cannot be compared."""

    manifest: Manifest | None = None
    not_compared: str = ""
    difference: str = ""


def reference(lake: "Lake", manifest: Manifest) -> Reference:
    """Return the lake's month to compare another store's month with, or the reason why they cannot be compared."""
    try:
        present = lake.present(manifest.trip_month)
    except MisconfiguredBlock:
        return Reference(not_compared="another program wrote the lake's object")
    ours, why, difference = present.manifest, "", ""
    if ours is None:
        why = "the lake does not have the month"
    elif not present.finished or ours.fault:
        why = "the lake's month is itself damaged"
    elif ours.sha256 != manifest.sha256 and ours.url != manifest.url:
        why = "the lake has the month from another source"
    elif ours.sha256 != manifest.sha256 and (ours.pinned or manifest.pinned):
        why = "a person chose another edition than the lake's, or for the lake"
    elif ours.sha256 != manifest.sha256:
        difference = f"made from another edition (sha256 {manifest.sha256[:12]}…) than the lake's month"
    elif ours.rule not in ("all", manifest.rule):
        why = f"the lake has only the rows of the rule {ours.rule}"
    return Reference(None if why or difference else ours, why, difference)
