"""Notify people that a run ended, from the run's own process, with its row counts. A failed notification does not fail the run.

Prefect's server can notify, too (`python -m blocks.notify`). The server's notification covers a run whose process was killed,
too, but has no row counts and no duration. This module skips a block that the server already notifies.
"""

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterable
from typing import Any, cast

import httpx
from prefect import Flow
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunNotificationPolicyFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import get_settings_context
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_UI_URL

from flows.tlc.manifest import Outcome

PART_OF_ANOTHER = "backfill-batch"
"""The tag of the runs that another run started and reports."""
_PATIENCE = 10.0  # seconds that a run waits for a receiver; the message may still arrive later
_LONGEST = 1500  # characters of an error's text; the run's page has the whole text


def notifications() -> dict[str, Any]:
    """Return the arguments of `@flow` that turn notifications on: none unless `TRIPS_NOTIFY` names blocks."""
    if not os.environ.get("TRIPS_NOTIFY"):
        return {}
    return {event: [notify_run_ended] for event in ("on_completion", "on_failure", "on_crashed")}


def notify_run_ended(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Notify the blocks of `TRIPS_NOTIFY`, such as `slack-webhook/ny-taxi-notifications`, that a run ended.

    Do nothing for a subflow run or a batch of a back-fill: the run that started it sends the message.
    """
    if flow_run.parent_task_run_id is not None or PART_OF_ANOTHER in flow_run.tags:
        return
    # Prefect enables Apprise's own logging, which would log secret URLs.
    logging.getLogger("apprise").propagate = False
    log = flow_run_logger(flow_run, flow)
    names = re.split(r"[,\s]+", os.environ.get("TRIPS_NOTIFY", "").strip())

    settings = get_settings_context()

    def notify() -> None:
        try:
            with settings.copy():  # type: ignore[no-untyped-call]
                asyncio.run(_notify_all(names, flow_run, state, log))
        except Exception as error:
            log.warning("no notification of this run could be sent: %s", _in_words(error))

    # A daemon thread: the process does not wait for it to end.
    thread = threading.Thread(target=notify, name="notify", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        log.warning("%s did not answer in %.0f s; not waiting any longer", ", ".join(names), _PATIENCE)


async def _notify_all(
    names: Iterable[str], flow_run: FlowRun, state: State[Any], log: "logging.LoggerAdapter[Any]"
) -> None:
    async with get_client() as client:
        run = await client.read_flow_run(flow_run.id)
        flow = await client.read_flow(run.flow_id)
        result = await cast(Any, state).result(raise_on_failure=False, fetch=True)
        subject = f"{flow.name} / {run.name}: {state.name}"
        body = message(flow.name, run, state, result)

        async def notify(name: str) -> None:
            try:
                block = await cast(Any, Block.load(name))
                if not isinstance(block, NotificationBlock):
                    log.warning("%s of TRIPS_NOTIFY is not a notification block", name)
                elif not await _notified_by_server(client, block, run, state):
                    with block.raise_on_failure():
                        await cast(Any, block.notify(body, subject=subject))
            except Exception as error:
                log.warning("%s could not be notified; the run itself is not affected: %s", name, _in_words(error))

        await asyncio.gather(*map(notify, names))


def _in_words(error: Exception) -> str:
    """Describe an error without its text, which may quote a secret URL."""
    if isinstance(error, ValueError) and "Unable to find block document" in str(error):
        return "there is no such block; `python -m blocks.register` makes those of .env"
    status = f" {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else ""
    return type(error).__name__ + status


async def _notified_by_server(client: PrefectClient, block: Block, run: FlowRun, state: State[Any]) -> bool:
    """Return whether a notification policy of the server notifies the same block of the same state."""
    try:
        policies = await client.read_flow_run_notification_policies(FlowRunNotificationPolicyFilter(is_active=None))
    except httpx.HTTPStatusError:  # Prefect Cloud has none
        return False
    return any(
        policy.is_active
        and policy.block_document_id == block._block_document_id
        and (not policy.state_names or state.name in policy.state_names)
        and (not policy.tags or bool({*policy.tags} & {*run.tags}))
        for policy in policies
    )


def message(flow_name: str, run: FlowRun, state: State[Any], result: object) -> str:
    """Return the message about a run: flow, state, duration, parameters, rows, outcomes, error and link, one line each."""
    seconds = (state.timestamp - run.start_time).total_seconds() if run.start_time else 0.0
    parameters = ", ".join(f"{name}={value}" for name, value in run.parameters.items())
    lines = [
        f"{flow_name} / {run.name}: {state.name} after {seconds:,.1f} s",
        # A source with a password is refused, but it is still among the parameters.
        f"parameters: {_without_secrets(parameters)}",
    ]
    outcomes = _outcomes(result)
    for store in dict.fromkeys(outcome.store for outcome in outcomes):
        ours = [outcome for outcome in outcomes if outcome.store == store]
        published, there = sum(o.manifest.source_rows for o in ours), sum(o.in_store for o in ours)
        lines.append(f"rows: {published:,} published, {there:,} in the {store}")
    lines += [f"  - {outcome}" for outcome in outcomes]
    if not state.is_completed():
        text = _without_secrets(state.message or "unknown")
        lines.append(f"error: {text[:_LONGEST]}{'…' * (len(text) > _LONGEST)}")
    if PREFECT_UI_URL.value():
        lines.append(f"run: {PREFECT_UI_URL.value()}/flow-runs/flow-run/{run.id}")
    else:
        lines.append(f"run: {run.id}, not on any server: PREFECT_API_URL is not set")
    return "\n".join(lines)


def _without_secrets(text: str) -> str:
    """Remove possible secrets of addresses from a text: all before the last @ of each line, and every query."""
    return re.sub(r"\?[^\s'\"]*", "?…", re.sub(r"//.*@", "//***@", text)) if "://" in text else text


def _outcomes(result: object) -> list[Outcome]:
    """Return the outcomes in a run's result. If the run failed, return the outcomes of the loaded months."""
    months = getattr(result, "done", result)
    return [m for m in (months if isinstance(months, list | tuple) else [months]) if isinstance(m, Outcome)]
