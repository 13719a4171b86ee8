"""What every task here has in common: whose it is, when it is tried again, how long it may take, what its cache depends on."""

import datetime as dt
import logging
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.task_runners import BaseTaskRunner, ConcurrentTaskRunner
from prefect.tasks import exponential_backoff

from flows.tlc.errors import TripDataError
from flows.tlc.manifest import RawFile

CACHE_FOR = dt.timedelta(days=1)
TIMEOUT = 6 * 60 * 60  # seconds; the largest month on a slow line


class _InWords(logging.Filter):
    """An error that is meant for people is logged as its text, without the way it came."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TripDataError):
            record.msg, record.args = "%s %s", (record.getMessage(), error)
            record.exc_info = record.exc_text = None
        return True


for _logger in ("prefect.flow_runs", "prefect.task_runs"):  # of Prefect's engine
    logging.getLogger(_logger).addFilter(_InWords())


def this_run() -> str:
    """The flow run that a task belongs to, for what the stores say of it; "" outside of any."""
    return str(flow_run.get_id() or "")


def task_runner() -> BaseTaskRunner:
    """Threads of this machine; or the Dask cluster whose scheduler `TRIPS_DASK_SCHEDULER` names, for a back-fill by many."""
    scheduler = os.environ.get("TRIPS_DASK_SCHEDULER")
    if not scheduler:
        return ConcurrentTaskRunner()  # type: ignore[no-untyped-call]
    from prefect_dask.task_runners import DaskTaskRunner  # a second of start-up, only where it is wanted

    return DaskTaskRunner(address=scheduler)


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """A wrong file, month or block stays wrong; anything else may pass."""
    return not isinstance(state.result(raise_on_failure=False), TripDataError)


RETRIES: Mapping[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=3),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "timeout_seconds": TIMEOUT,
}


def believed(task: Task[..., Any], still_true: Callable[[RawFile], bool], *arguments: Any) -> RawFile:
    """The file that `task` tells of; from its cache only what can be read and is `still_true`, else the task runs again."""
    state: Any = task.submit(*arguments).wait()
    if state.name == "Cached":
        with suppress(Exception):  # results live in files, and files vanish
            raw = RawFile.model_validate(state.result())
            if still_true(raw):
                return raw
        again = task.with_options(refresh_cache=True, task_run_name=task.task_run_name)
        state = again.submit(*arguments).wait()
    return RawFile.model_validate(state.result())


def cached_by(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return a cache key made of what the published file is, and of where it is put; never of its data."""
    published, into = parameters["published"], parameters["into"]
    if published.identity is None:
        return None
    return " ".join([context.task.task_key, published.identity, into.file_key or platform.node()])
