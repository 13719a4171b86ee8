"""The policy of every task: run id, who started the run, task runner, retries, timeout and cache key."""

import asyncio
import datetime as dt
import getpass
import logging
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import CrashedRun
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import BaseTaskRunner, ConcurrentTaskRunner
from prefect.tasks import exponential_backoff
from prefect.utilities.asyncutils import Sync

from flows.tasks.notify import notifications
from flows.tlc.errors import TripDataError

P = ParamSpec("P")
R = TypeVar("R")

SCHEDULER = "TRIPS_DASK_SCHEDULER"  # in the environment: the address of a Dask cluster
CACHE_FOR = dt.timedelta(days=1)
_AGENTS_RUN = "PREFECT__FLOW_RUN_ID"  # in the environment: the run for which an agent or a worker started this process
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


def is_being_cancelled() -> bool:
    """Return whether somebody cancels this process's run of a deployment. SIGTERM alone can also mean that the machine stops."""
    if run_id := os.environ.get(_AGENTS_RUN):
        with suppress(Exception):  # without an answer of the server, the reason is unknown
            return bool(asyncio.run(_run_of(run_id)).state.is_cancelling())
    return False


def started_by() -> str:
    """Return who started this process's run, for the history: a schedule, a deployment, or a user.

    Call it in the flow: a task may run on another machine.
    """
    if of_deployment := os.environ.get(_AGENTS_RUN):
        with suppress(Exception):  # the month must not fail if the server does not answer
            return _started_by(of_deployment)
        return "a deployment"
    with suppress(KeyError, OSError):  # a container's user may have no name
        return getpass.getuser()
    return str(os.getuid())


async def _run_of(run_id: str) -> Any:
    async with get_client() as client:
        return await client.read_flow_run(run_id)


@lru_cache(maxsize=1)
def _started_by(run_id: str) -> str:
    async def ask() -> str:
        async with get_client() as client:
            run = await client.read_flow_run(run_id)
            flow = await client.read_flow(run.flow_id)
            name = (
                f"{flow.name}/{(await client.read_deployment(run.deployment_id)).name}"
                if run.deployment_id
                else flow.name
            )
        if run.auto_scheduled:
            return f"schedule of {name}"
        by = run.created_by  # Prefect Cloud knows its users; a server of one's own knows automations only
        return f"{str(by.type).lower()} {by.display_value} with {name}" if by and by.display_value else f"run of {name}"

    return asyncio.run(ask())


def flow_options() -> dict[str, Any]:
    """Return the arguments of `@flow` that all flows that load data share: their task runner and notifications."""
    return {"task_runner": task_runner(), **notifications()}


def task_runner() -> BaseTaskRunner:
    """Return a runner that uses threads on this machine, or a Dask cluster.

    `TRIPS_DASK_SCHEDULER` has the address of the cluster's scheduler.
    """
    scheduler = os.environ.get(SCHEDULER)
    if not scheduler:
        return ConcurrentTaskRunner()  # type: ignore[no-untyped-call]
    from prefect_dask.task_runners import DaskTaskRunner  # imported here because the import takes a second

    return DaskTaskRunner(address=scheduler)


class _Counters(dict[str, int]):
    """Counters by task, in place of those that Prefect numbers task runs with. Each counter begins at `first`."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> int:
        return self._first


def _count_on(context: FlowRunContext) -> None:
    """If a person retries the run, number its tasks and its child runs so that none has a number of an earlier attempt.

    Prefect finds the earlier ones by task and number. A retry loads only the missing months, so the number may belong to another
    month: Prefect would take that month's result. A child run that ended well would not run again, and its result is not stored.
    """
    attempt = context.flow_run.run_count if context.flow_run else 0
    if attempt > 1 and not isinstance(context.task_run_dynamic_keys, _Counters):
        context.task_run_dynamic_keys = _Counters(attempt * 100_000)


def submit(task: "Task[P, R]", *arguments: P.args, **named: P.kwargs) -> "PrefectFuture[R, Sync]":
    """Submit a task and return its future, once Prefect has created the task's run.

    Prefect ends the flow run if it cannot create the task run, for example because its server does not answer. It never completes
    the future then, so the flow would wait for ever, and keep its locks.

    Raises:
        CrashedRun: Prefect ended the flow run.
    """
    context = FlowRunContext.get()
    if context:
        _count_on(context)
    future: PrefectFuture[R, Sync] = task.submit(*arguments, **named)
    while not future._submitted.is_set():
        if context and context.background_tasks.cancel_scope.cancel_called:
            raise CrashedRun(f"Prefect could not start the task {task.name!r} and ended the run: see its log.")
        time.sleep(0.01)
    return future


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry can help. It cannot help after a `TripDataError`, such as a wrong file, month or block."""
    return not isinstance(state.result(raise_on_failure=False), TripDataError)


RETRIES: Mapping[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=3),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "timeout_seconds": TIMEOUT,
}


def cached_by(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return a cache key from the published file's identity and its destination, or None for no caching."""
    published, into = parameters["published"], parameters["into"]
    if published.identity is None:
        return None
    return " ".join([context.task.task_key, published.identity, into.bucket_block or platform.node()])
