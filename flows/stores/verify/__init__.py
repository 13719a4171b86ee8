"""Verify what each store has of a month: against its manifest, against the lake, and the lake against its raw file.

A check reads, and changes no trip. The one thing that it writes is a fault that it found: into the manifest, so that the next
run loads the month again instead of answering `unchanged`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flows.stores.verify.findings import Check
from flows.tlc.trips import Store

# A check's module is imported when the check is made, because the store's client library is slow to import.


def _lake(store: Any, lake: Any) -> Check:
    from flows.stores.verify.lake import LakeCheck

    return LakeCheck(store)


def _warehouse(store: Any, lake: Any) -> Check:
    from flows.stores.verify.warehouse import WarehouseCheck

    return WarehouseCheck(store)


def _database(store: Any, lake: Any) -> Check:
    from flows.stores.verify.database import DatabaseCheck

    return DatabaseCheck(store, lake)


# One row per store: makes its check from the opened store, and from the opened lake if the run uses the lake.
CHECKS: Mapping[Store, Callable[[Any, Any], Check]] = {
    "lake": _lake,
    "warehouse": _warehouse,
    "database": _database,
}
