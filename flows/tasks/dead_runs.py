"""Find runs of `backfill` whose process died, and mark them as crashed. Prefect 2 shows them as Running for ever.

A live run writes its progress board every few seconds. All times come from the server's clock.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

SILENT_AFTER = 120
"""The default of `silent_after`: seconds without a heartbeat after which a run counts as dead."""
_ACTIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_NOT_ENDED = [*_ACTIVE, StateType.SCHEDULED, StateType.PAUSED]


async def boards_of(client: PrefectClient, runs: Sequence[FlowRun]) -> Mapping[UUID, dict[str, Any]]:
    """Return the progress board of each run, as its artifact. A run that has just begun has none."""
    where = {"artifacts": {"flow_run_id": {"any_": [str(run.id) for run in runs]}, "key": {"like_": "backfill-"}}}
    found = (await client._client.post("/artifacts/filter", json=where)).json() if runs else []
    # If the answer to a board's creation was lost, the run has two, and updates one of them.
    return {UUID(artifact["flow_run_id"]): artifact for artifact in sorted(found, key=lambda board: board["updated"])}


async def runs_tagged(client: PrefectClient, tag: str) -> list[FlowRun]:
    """Return the runs with a tag, oldest first."""
    runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))
    return sorted(runs, key=lambda run: str(run.created))


def is_final(run: FlowRun) -> bool:
    """Return whether a run has ended."""
    return bool(run.state and run.state.is_final())


def is_scheduled(run: FlowRun) -> bool:
    """Return whether a run waits for a machine."""
    return bool(run.state and run.state.is_scheduled())


async def mark_crashed(client: PrefectClient, run: FlowRun, why: str) -> None:
    """Mark a run as crashed in any state. If its process is alive, its board reads the new state, and no other month starts."""
    with suppress(ObjectNotFound):  # deleted meanwhile
        await client.set_flow_run_state(run.id, Crashed(message=why), force=True)


async def runs_left(client: PrefectClient, tag: str) -> list[FlowRun]:
    """Return the runs with a tag that have not ended."""
    # The server returns 200 runs at most, so ask only for these.
    return await client.read_flow_runs(flow_run_filter=_filter(_NOT_ENDED, tags=FlowRunFilterTags(all_=[tag])))


async def cancel(client: PrefectClient, tag: str) -> None:
    """Cancel the runs with a tag that have not ended. A run that has not started ends at once."""
    for run in await runs_left(client, tag):
        with suppress(ObjectNotFound):
            await client.set_flow_run_state(run.id, Cancelling())


def _filter(states: list[StateType], **more: Any) -> FlowRunFilter:
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states), name=None), **more)


async def crash_dead_backfills(me: UUID, tag_of: str) -> None:
    """Mark other back-fills as crashed if their last heartbeat is older than their `silent_after`, and cancel their batches.

    Args:
        me: The current run. It is not marked, and neither are its batches, which it follows itself.
        tag_of: Template of the tag of a run's batches, with `{id}`.
    """
    async with get_client() as client:
        mine, active = await client.read_flow_run(me), _filter(_ACTIVE)
        flows = FlowFilter(name=FlowFilterName(any_=["backfill"]))
        found = await client.read_flow_runs(flow_filter=flows, flow_run_filter=active)
        runs = [run for run in found if run.id != me and tag_of.format(id=me) not in run.tags]
        boards = await boards_of(client, [mine, *runs])
        now = _heartbeat(mine, boards) or dt.datetime.now(dt.UTC)
        for run in runs:
            silent = (now - (_heartbeat(run, boards) or now)).total_seconds()
            # The server knows only the parameters that were given: a run of a deployment may have none.
            if silent > float(run.parameters.get("silent_after", SILENT_AFTER)):
                why = f"its process is gone: no heartbeat for {silent:,.0f} s"
                await mark_crashed(client, run, why)
                await cancel(client, tag_of.format(id=run.id))
                get_run_logger().warning("another back-fill, %r, is marked as crashed: %s", run.name, why)


def _heartbeat(run: FlowRun, boards: Mapping[UUID, Mapping[str, Any]]) -> dt.datetime | None:
    """Return when a run wrote its board last. Without a board, return when its state changed last."""
    return dt.datetime.fromisoformat(boards[run.id]["updated"]) if run.id in boards else run.updated
