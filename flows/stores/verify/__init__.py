"""Verify a store's month against its manifest and the lake, and the lake's month against its raw file.

A check changes no trip. It writes only a fault that it found, into the manifest. The next run then loads the month again.
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


# One row per store: a function that makes its check from the opened store and the opened lake (None if the run uses no lake).
CHECKS: Mapping[Store, Callable[[Any, Any], Check]] = {
    "lake": _lake,
    "warehouse": _warehouse,
    "database": _database,
}
