"""Bring a month into a store in this process, without Prefect: call the functions that the tasks call, with retries."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar
from uuid import uuid4

import pytest

from flows.connectors.web import look_up, source_of
from flows.stores import Target
from flows.tasks.stores import open_store
from flows.tlc.errors import TripDataError
from flows.tlc.trips import Rows, Terms
from tests.faults.hooks import owner_of
from tests.faults.lab import CREDENTIALS, LAKE, POSTGRES, SMALL, Lab

T = TypeVar("T")
StoreName = Literal["lake", "warehouse", "database"]
RULE: Mapping[StoreName, Rows] = {"lake": "all", "warehouse": "all", "database": "with_passengers"}
_ATTEMPTS = 4  # RETRIES in flows/tasks/policy.py: one attempt and three retries


def retried(step: Callable[[], T]) -> T:
    """Call a step with a task's retries: again after a transient error, never after a `TripDataError`."""
    for attempt in range(_ATTEMPTS):
        try:
            return step()
        except TripDataError:
            raise
        except Exception:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def bring(
    lab: Lab, into: StoreName, source: str = "", env: Mapping[str, str] | None = None, postgres_block: str = POSTGRES
) -> Any:
    """Bring the month from a source, or from the lake, into one store, in small pieces. Return the outcome.

    Args:
        lab: The month and the stores.
        into: The store.
        source: A URL template; the lab's own by default.
        env: Environment variables for the clients, such as the address of a `Gate` instead of the lake.
        postgres_block: The block that opens the database.
    """
    month, run = lab.month, uuid4().hex

    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        for path, size in SMALL.items():
            patch.setattr(*owner_of(path), size)

        def opened() -> Any:
            return open_store(Target(into, LAKE, CREDENTIALS, lab.ours.dataset, postgres_block))

        def looked_up() -> Any:
            store = opened()
            store.check()
            found = (
                store.lake.required(month) if into == "warehouse" else look_up(source_of(source or lab.source), month)
            )
            return store.present(month), found

        present, found = retried(looked_up)
        if into != "warehouse" and present.covers(found, RULE[into]):
            return None
        raw = found if into == "warehouse" else retried(lambda: opened().extract(found, _nothing))
        staged = retried(lambda: opened().stage(raw, Terms(RULE[into]), run, _nothing))
        return retried(lambda: opened().publish(staged, present, run))


def _nothing(count: int, share: float) -> None:
    """Show no progress."""
