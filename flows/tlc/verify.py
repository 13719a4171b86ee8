"""The result of verifying a month in a store: the differences from the published month, and how to mend them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from flows.tlc.compare import NAMED
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest
from flows.tlc.trips import COLORS, Store, TripMonth

Depth = Literal["counts", "rows", "raw"]
VerifyStatus = Literal["verified", "differs", "not compared"]


@dataclass
class RowFaults:
    """The rows of a month that are not as published."""

    what: str
    """What the rows were compared with, for messages."""
    count: int = 0
    first: dict[int, str] = field(default_factory=dict)

    def add(self, faults: Iterable[tuple[int, str]]) -> None:
        """Count rows that differ, and keep the first of them. Each is its row number, and what is wrong with it."""
        for row_number, fault in faults:
            self.count += 1
            self.first[row_number] = fault
            if len(self.first) > NAMED:
                del self.first[max(self.first)]

    def in_words(self) -> list[str]:
        """Return one sentence, or none if no row differs."""
        if not self.count:
            return []
        named = "; ".join(
            f"row {number}{' ' if fault.startswith(('is ', 'was ')) else ': '}{fault}"
            for number, fault in sorted(self.first.items())
        )
        more = "; …" if self.count > len(self.first) else ""
        return [f"{self.count:,} {'row differs' if self.count == 1 else 'rows differ'} from {self.what}: {named}{more}"]


@dataclass(frozen=True)
class Verified:
    """What a verification found about one month in one store, or about rows that belong to no month."""

    store: Store
    trip_month: TripMonth | str
    """The month; or a color, for rows that belong to no month."""
    differences: tuple[str, ...] = ()
    not_compared: str = ""
    """Why the rows were not compared although the depth requires it; "" if they were."""
    mend: str = ""
    """What mends it: a command, or a statement."""

    @property
    def status(self) -> VerifyStatus:
        """Return the result in a word or two."""
        if self.differences:
            return "differs"
        return "not compared" if self.not_compared else "verified"

    def __str__(self) -> str:
        text = f"{self.trip_month} in the {self.store}: {'; '.join(self.differences)}."
        return f"{text} To mend it: {self.mend}" if self.mend else text


def counts_of(manifest: Manifest) -> list[str]:
    """Return what is wrong with the counts of a manifest itself, and the fault that an earlier verification found."""
    found = []
    if manifest.fault:
        found.append(f"an earlier verification found damage, and no run loaded the month again: {manifest.fault}")
    left_out, quarantined = sum(manifest.filtered.values()), sum(manifest.quarantined.values())
    if manifest.source_rows != manifest.loaded + left_out + quarantined:
        found.append(
            f"the manifest does not add up: {manifest.source_rows:,} rows published, but {manifest.loaded:,} loaded +"
            f" {left_out:,} left out + {quarantined:,} quarantined"
        )
    return found


def number_of(what: str, found: int, expected: int) -> list[str]:
    """Return one sentence if two counts differ, else none."""
    return [] if found == expected else [f"{what}: {found:,}, the manifest says {expected:,}"]


def keys_of(table: str, keys: int, rows: int) -> list[str]:
    """Return one sentence if a table has fewer keys than rows, else none."""
    return [] if keys == rows else [f"{rows - keys:,} rows in {table} have the key of another row"]


def sampled(trip_months: Iterable[TripMonth], sample: int, seed: int) -> list[TripMonth]:
    """Return `sample` months of each color, chosen at random; all if `sample` is 0. Oldest first, then by color."""
    if sample < 0:
        raise TripDataError(f"sample is {sample}; give a number of months per color, or 0 for all.")
    every = sorted(set(trip_months), key=lambda month: (month.file_month, month.color))
    if not sample:
        return every
    chance = random.Random(seed)  # noqa: S311 - a sample, not a secret
    by_color = ([month for month in every if month.color == color] for color in COLORS)
    chosen = {month for months in by_color for month in chance.sample(months, min(sample, len(months)))}
    return [month for month in every if month in chosen]
