"""How a back-fill follows its batches: a busy server, runs that vanish, two boards of one run, cancellation."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running, Scheduled

from flows import backfill as program
from flows.backfill import backfill
from flows.tasks import batches, dead_runs
from flows.tasks.batches import Batches
from flows.tasks.board import Board
from flows.tasks.dead_runs import boards_of, cancel, crash_dead_backfills, runs_tagged
from flows.tasks.machines import Dask, Queue
from flows.tasks.policy import this_run
from flows.tlc.catalog import Found
from flows.tlc.errors import MonthsFailed
from flows.tlc.manifest import Manifest
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import TripMonth
from tests.flows.conftest import until
from tests.tlc.test_catalog import MANIFEST

MONTH = TripMonth("green", 2019, 1)
Start = Callable[[PrefectClient, Sequence[str]], Any]


@flow(name="batch-of-these-tests")
def batch() -> None:
    """A flow that is never run: only its runs' states matter."""


class Machines(Queue):
    """A work queue whose runs begin as `starts` says, one function for each start."""

    advice = ""

    def __init__(self, starts: Sequence[Start]) -> None:
        self.starts = iter(starts)

    async def start(self, client: PrefectClient, parameters: Mapping[str, Any], tags: Sequence[str]) -> None:
        await next(self.starts)(client, tags)


async def too_many_requests(client: PrefectClient, tags: Sequence[str]) -> None:
    request = httpx.Request("POST", "http://server/api")
    raise httpx.HTTPStatusError("429", request=request, response=httpx.Response(429, request=request))


async def run_that_is_deleted(client: PrefectClient, tags: Sequence[str]) -> None:
    run = await client.create_flow_run(batch, tags=tags, state=Pending())
    await client.delete_flow_run(run.id)


async def run_that_loads_nothing(client: PrefectClient, tags: Sequence[str]) -> None:
    await client.create_flow_run(batch, tags=tags, state=Completed(message="did nothing"))


async def write_board(client: PrefectClient, run: FlowRun, progress: Mapping[TripMonth, str]) -> None:
    """Write the board of a batch's run: the progress of each month."""
    rows = [{"month": str(m), "status": status, "rows": 1, "note": "a note"} for m, status in progress.items()]
    about = {"key": f"backfill-{run.id}", "type": "table", "flow_run_id": str(run.id), "data": json.dumps(rows)}
    await client._client.post("/artifacts/", json=about)


def run_with(state: State[Any], progress: Mapping[TripMonth, str]) -> Start:
    """Return the start of a run that has a state and a board."""

    async def start(client: PrefectClient, tags: Sequence[str]) -> None:
        run = await client.create_flow_run(batch, tags=tags, state=Pending())
        await write_board(client, run, progress)
        await client.set_flow_run_state(run.id, state, force=True)

    return start


run_that_loads = run_with(Completed(), {MONTH: "done"})


def followed(
    *starts: Start, months: Sequence[TripMonth] = (MONTH,), batch: int = 8, silent_after: float = 120
) -> tuple[dict[TripMonth, str], list[dict[str, Any]]]:
    """Follow batches, one at a time, and return the failures and the board."""

    @flow(name="back-fill-of-these-tests")
    def follow() -> tuple[dict[TripMonth, str], list[dict[str, Any]]]:
        with Board(min(10.0, silent_after / 6)) as board:
            board.plan(dict.fromkeys(months, 0))
            machines = Machines(starts)
            own = Batches(machines, board, {"machines": 1, "batch": batch, "silent_after": silent_after}, this_run())
            own._load(months)
            assert next(machines.starts, None) is None, "a batch was not needed"
            return own.failed, board.rows()

    return follow()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, prefect_api: dict[str, str]) -> None:
    monkeypatch.setattr(batches, "_POLL", 0.05)


def test_a_server_that_wants_fewer_requests_and_a_deleted_run_do_not_stop_a_backfill() -> None:
    failed, board = followed(too_many_requests, run_that_is_deleted, run_that_loads_nothing, run_that_loads_nothing)
    assert failed[MONTH].startswith("green 2019-01: tried 3 times without success; its run ")
    assert failed[MONTH].endswith(" ended as Completed: did nothing")
    assert {
        "month": f"batch of {MONTH}",
        "status": "its run was deleted from the Prefect server",
        "rows": "",
        "note": "",
    } in board


def test_a_month_that_did_not_run_when_its_batch_died_is_not_tried() -> None:
    """The first month ends each batch that has it. The others go on without it."""
    bad, *good = months = [TripMonth("green", 2019, n) for n in (1, 2, 3)]
    dies = run_with(Crashed(message="killed"), {bad: "running"} | dict.fromkeys(good, "waits"))
    loads = run_with(Completed(), dict.fromkeys(good, "done"))
    failed, _ = followed(dies, dies, dies, loads, months=months)
    assert list(failed) == [bad]
    assert "tried 3 times without success" in failed[bad]


def test_months_of_a_dead_batch_are_started_again_after_all_others() -> None:
    months = [TripMonth("green", 2019, n) for n in (1, 2)]
    dies = run_with(Crashed(message="killed"), {months[0]: "running"})
    failed, _ = followed(dies, *(run_with(Completed(), {m: "done"}) for m in reversed(months)), months=months, batch=1)
    assert not failed


@pytest.mark.parametrize("progress", [{}, {"green 2019-01": "waits", "green 2019-02": "waits"}])
def test_a_batch_that_dies_for_ever_before_its_first_month_ends(progress: dict[Any, str]) -> None:
    months = [TripMonth("green", 2019, n) for n in (1, 2)]
    failed, _ = followed(*[run_with(Crashed(message="killed"), progress)] * 3, months=months)
    assert list(failed) == months


def test_a_batch_whose_start_was_not_answered_is_started_again_with_the_same_tags() -> None:
    seen: list[Sequence[str]] = []

    async def unanswered(client: PrefectClient, tags: Sequence[str]) -> None:
        seen.append(tags)
        raise httpx.ReadTimeout("the answer was lost")

    async def answered(client: PrefectClient, tags: Sequence[str]) -> None:
        seen.append(tags)
        await run_that_loads(client, tags)

    assert not followed(unanswered, answered)[0]
    assert seen[0] == seen[1]


def test_a_batch_of_the_queue_that_is_started_twice_has_one_run() -> None:
    async def starts() -> int:
        async with get_client() as client:
            queue = Queue.__new__(Queue)  # without a server that other processes reach
            queue._deployment = await client.read_deployment(
                await client.create_deployment(await client.create_flow(batch), "of-these-tests")
            )
            for _ in range(2):
                await queue.start(client, {}, ["of-a-back-fill", "started-twice"])
            return len(await runs_tagged(client, "started-twice"))

    assert asyncio.run(starts()) == 1


def test_no_run_of_the_queue_is_crashed_because_its_batch_has_a_newer_one() -> None:
    async def two_runs(client: PrefectClient, tags: Sequence[str]) -> None:
        first = await client.create_flow_run(batch, tags=tags, state=Running())
        await run_that_loads(client, tags)
        ids.append(first.id)

    ids: list[UUID] = []
    assert not followed(two_runs)[0]
    assert state_of(ids[0]) == "Running"


def test_only_runs_that_have_not_ended_are_cancelled() -> None:
    async def ends() -> list[str]:
        async with get_client() as client:
            states: list[State[Any]] = [Completed(), Scheduled(), Pending()]
            for state in states:
                await client.create_flow_run(batch, tags=["to-cancel"], state=state)
            await cancel(client, "to-cancel")
            return sorted(str(run.state and run.state.name) for run in await runs_tagged(client, "to-cancel"))

    assert asyncio.run(ends()) == ["Cancelled", "Cancelling", "Completed"]


def test_the_board_that_a_run_still_updates_counts() -> None:
    """A run has two boards if the answer to the first one's creation was lost."""

    async def newest() -> bool:
        async with get_client() as client:
            run = await client.create_flow_run(batch)
            about = {"key": f"backfill-{run.id}", "type": "table", "flow_run_id": str(run.id)}
            two = [(await client._client.post("/artifacts/", json=about)).json()["id"] for _ in range(2)]
            await client._client.patch(f"/artifacts/{two[1]}", json={"data": "[]"})
            return bool((await boards_of(client, [run]))[run.id]["id"] == two[1])

    assert all(asyncio.run(newest()) for _ in range(6))  # the server sorts them at random


def test_a_board_that_was_deleted_is_written_again() -> None:
    async def board_of_this_run(*, delete: bool = False) -> bool:
        async with get_client() as client:
            boards = await boards_of(client, [await client.read_flow_run(UUID(this_run()))])
            for artifact in boards.values() if delete else ():
                await client.delete_artifact(UUID(artifact["id"]))
            return bool(boards)

    @flow(name="back-fill-with-a-deleted-board")
    def run() -> None:
        with Board(0.1):
            until(lambda: asyncio.run(board_of_this_run(delete=True)), 30)
            until(lambda: asyncio.run(board_of_this_run()), 30)

    run()


def test_a_heartbeat_is_sent_while_the_stores_and_the_source_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compared(Exception):
        pass

    async def board_of_this_run() -> bool:
        async with get_client() as client:
            run: FlowRun = await client.read_flow_run(UUID(this_run()))
            return run.id in await boards_of(client, [run])

    def slow(*arguments: Any) -> Any:
        until(lambda: asyncio.run(board_of_this_run()), 30)
        raise Compared

    monkeypatch.setattr(program, "list_stores", slow)
    with pytest.raises(Compared):
        backfill("2019-01", "2019-01", ["green"])


@flow(name="backfill")
def other_backfill(silent_after: int = 0) -> None:
    """A back-fill that is never run, with the name of the real one."""


def test_a_dead_run_that_was_started_with_no_parameters_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a deployment has only the parameters that were given: the default of `silent_after` counts."""
    monkeypatch.setattr(dead_runs, "SILENT_AFTER", 0.2)

    async def mark() -> list[str]:
        async with get_client() as client:
            given: list[dict[str, Any]] = [{}, {"silent_after": 60}]
            runs = [await client.create_flow_run(other_backfill, parameters=p, state=Running()) for p in given]
            await asyncio.sleep(0.5)
            me = await client.create_flow_run(batch, state=Running())
            await crash_dead_backfills(me.id, "none-{id}")
            return [str((await client.read_flow_run(run.id)).state_name) for run in runs]

    @flow
    def run() -> list[str]:
        return asyncio.run(mark())

    assert run() == ["Crashed", "Running"]


FEBRUARY = TripMonth("green", 2019, 2)


def compared(month: TripMonth, error: Exception | None = None) -> Found:
    """Return a month that no store has. `error`: the source's, if it does not answer."""
    url = f"https://source/{month.stem}.parquet"
    file = PublishedFile(trip_month=month, url=url, ending=".parquet", etag='"a"', last_modified=None, size=100)
    return Found(month, url, error or file, {"lake": None})


def loaded(look: Callable[[], tuple[Any, list[Found]]], *starts: Start) -> tuple[list[Any], list[tuple[str, str]]]:
    """Load two months in batches of one, then compare the stores again with `look`. Return the outcomes and the failures."""

    @flow(name="back-fill-of-these-tests")
    def load() -> tuple[list[Any], list[tuple[str, str]]]:
        with Board(10) as board:
            work = {month: compared(month) for month in (MONTH, FEBRUARY)}
            board.plan(dict.fromkeys(work, 0))
            parameters = {"machines": 1, "batch": 1, "silent_after": 120}
            return Batches(Machines(starts), board, parameters, this_run()).load(work, look)

    return load()


fails = run_with(Completed(), {MONTH: "failed"})
loads_february = run_with(Completed(), {FEBRUARY: "done"})


def test_failed_months_are_named_if_the_stores_cannot_be_compared_again() -> None:
    def look() -> tuple[Any, list[Found]]:
        raise ValueError("the lake is down")

    with pytest.raises(
        MonthsFailed, match=r"again: the lake is down\. .* 1 of 2 months could not be loaded:\n  - a note"
    ):
        loaded(look, fails, loads_february)
    with pytest.raises(ValueError, match="the lake is down"):
        loaded(look, run_that_loads, loads_february)


def test_a_month_without_an_answer_of_the_source_fails_unless_the_stores_have_it_now() -> None:
    class Listed:
        def manifest(self, store: str, month: TripMonth) -> Manifest | None:
            return MANIFEST if month == MONTH else None

    def look() -> tuple[Any, list[Found]]:
        return Listed(), [compared(month, OSError("no answer")) for month in (MONTH, FEBRUARY)]

    outcomes, failures = loaded(look, run_that_loads, loads_february)
    assert failures == [("green 2019-02", "green 2019-02: no answer")]
    assert len(outcomes) == 1


def state_of(run: UUID) -> str:
    async def read() -> str:
        async with get_client() as client:
            return str((await client.read_flow_run(run)).state_name)

    return asyncio.run(read())


def run_that_just_died() -> UUID:
    async def create() -> UUID:
        async with get_client() as client:
            run: FlowRun = await client.create_flow_run(other_backfill, parameters={"silent_after": 1}, state=Running())
            return run.id

    return asyncio.run(create())


def test_a_backfill_that_died_just_before_is_marked_while_batches_are_followed() -> None:
    """Its last heartbeat is too new when the next one begins. The batches of the next one are not marked in the same way."""
    dead = run_that_just_died()

    async def run_that_dies(client: PrefectClient, tags: Sequence[str]) -> None:
        await client.create_flow_run(other_backfill, parameters={"silent_after": 1}, tags=tags, state=Running())

    failed, board = followed(run_that_dies, run_that_loads, silent_after=2)
    assert state_of(dead) == "Crashed"
    assert not failed
    assert board[1]["status"].endswith("its process or machine died")


@pytest.mark.parametrize(("patience", "state"), [(30, "Cancelled"), (0, "Cancelling"), (0.2, "Cancelling")])
def test_machines_that_are_stopped_after_a_cancellation_let_the_runs_end_first(
    patience: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run takes a second to end. The back-fill waits for it, but not for ever."""
    monkeypatch.setattr(Machines, "patience", patience)
    ids: list[UUID] = []

    def end_later() -> None:
        async def end() -> None:
            async with get_client() as client:
                while (await client.read_flow_run(ids[0])).state_name != "Cancelling":
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1)
                await client.set_flow_run_state(ids[0], Cancelled())

        asyncio.run(end())

    ending = Thread(target=copy_context().run, args=(end_later,))  # a copy of the context has Prefect's settings

    async def run_that_is_slow_to_end(client: PrefectClient, tags: Sequence[str]) -> None:
        ids.append((await client.create_flow_run(batch, tags=tags, state=Running())).id)
        ending.start()
        raise KeyboardInterrupt

    @flow(name="back-fill-that-is-interrupted")
    def interrupted() -> str:
        with Board(10) as board:
            board.plan({MONTH: 0})
            machines = Machines([run_that_is_slow_to_end])
            own = Batches(machines, board, {"machines": 1, "batch": 8, "silent_after": 120}, this_run())
            with pytest.raises(KeyboardInterrupt):
                own._load([MONTH])
            return state_of(ids[0])

    try:
        assert interrupted() == state
    finally:
        ending.join()


@pytest.mark.parametrize(("address", "waits"), [("", True), ("tcp://10.0.0.5:8786", False)])
def test_only_dask_workers_of_this_machine_are_waited_for(
    address: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster is a stand-in: a real one takes seconds to start, and only its kind matters."""
    monkeypatch.setattr("flows.tasks.machines.require_server", lambda spread: None)
    for name in ("Client", "LocalCluster"):
        monkeypatch.setattr(f"distributed.{name}", lambda *arguments, **named: "a cluster")
    assert bool(Dask(address, 2).patience) == waits


class NothingToLoad:
    """Stores that have every month. `while_compared` runs while they are compared with the source."""

    def __init__(self, while_compared: Callable[[], object]) -> None:
        self._while_compared = while_compared

    def compare(self, source: Any, months: Any) -> list[Any]:
        self._while_compared()
        return []


def test_a_backfill_that_died_just_before_is_marked_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = run_that_just_died()
    stores = NothingToLoad(lambda: time.sleep(2))
    monkeypatch.setattr(program, "list_stores", lambda *arguments: stores)
    assert backfill("2019-01", "2019-01", ["green"], silent_after=1) == []
    assert state_of(dead) == "Crashed"


def test_a_batch_marks_no_other_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = run_that_just_died()
    stores = NothingToLoad(lambda: time.sleep(2))
    monkeypatch.setattr(program, "list_stores", lambda *arguments: stores)
    assert backfill(months=["green 2019-01"], silent_after=1) == []
    assert state_of(dead) == "Running"


@pytest.mark.parametrize("error", [None, ValueError("Prefect refuses every task of a cancelled run")])
def test_a_backfill_that_is_cancelled_outside_of_its_months_ends_as_cancelled(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(run: UUID) -> None:
        async with get_client() as client:
            await client.set_flow_run_state(run, Cancelling(), force=True)

    def cancel_this_run() -> None:
        ids.append(UUID(this_run()))
        asyncio.run(ask(ids[0]))
        if error:
            raise error

    ids: list[UUID] = []
    monkeypatch.setattr(program, "list_stores", lambda *arguments: NothingToLoad(cancel_this_run))
    assert backfill("2019-01", "2019-01", ["green"], return_state=True).is_cancelled()
    assert state_of(ids[0]) == "Cancelled"
