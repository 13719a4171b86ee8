"""The policy of every task: its run's id, its task runner, retries, timeout and cache key."""

import datetime as dt
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.task_runners import BaseTaskRunner, ConcurrentTaskRunner
from prefect.tasks import exponential_backoff

from flows.tasks.notify import notifications
from flows.tlc.errors import TripDataError

CACHE_FOR = dt.timedelta(days=1)
TIMEOUT = 6 * 60 * 60  # seconds; enough for the largest month over a slow connection


class _InWords(logging.Filter):
    """Log an error that is meant for people as its text, without the traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TripDataError):
            record.msg, record.args = "%s %s", (record.getMessage(), error)
            record.exc_info = record.exc_text = None
        return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):  # of Prefect's engine
    logging.getLogger(_logger).addFilter(_InWords())


def this_run() -> str:
    """Return the id of the current flow run, for manifests and staging names; "" outside of a run."""
    return str(flow_run.get_id() or "")


def flow_options() -> dict[str, Any]:
    """Return the arguments of `@flow` that all flows that load data share: their task runner and notifications."""
    return {"task_runner": task_runner(), **notifications()}


def task_runner() -> BaseTaskRunner:
    """Return a runner that uses threads on this machine, or a Dask cluster for a large backfill.

    `TRIPS_DASK_SCHEDULER` has the address of the cluster's scheduler.
    """
    scheduler = os.environ.get("TRIPS_DASK_SCHEDULER")
    if not scheduler:
        return ConcurrentTaskRunner()  # type: ignore[no-untyped-call]
    from prefect_dask.task_runners import DaskTaskRunner  # takes a second to import, so only on request

    return DaskTaskRunner(address=scheduler)


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help. A `TripDataError` stays: a wrong file, month or block. Any other error may go away."""
    return not isinstance(state.result(raise_on_failure=False), TripDataError)


RETRIES: Mapping[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=3),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "timeout_seconds": TIMEOUT,
}


def cached_by(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return a cache key made of the published file's identity and of the place it is copied to, or None for no caching."""
    published, into = parameters["published"], parameters["into"]
    if published.identity is None:
        return None
    return " ".join([context.task.task_key, published.identity, into.bucket_block or platform.node()])
