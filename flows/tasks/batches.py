"""Spread the months of a back-fill over machines in batches. If a batch dies, give its months to other batches."""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun

from flows.tasks.behind import Stores
from flows.tasks.board import Board
from flows.tasks.dead_runs import (
    boards_of,
    cancel,
    crash_dead_backfills,
    is_final,
    is_scheduled,
    mark_crashed,
    runs_left,
    runs_tagged,
)
from flows.tasks.machines import Machines
from flows.tasks.months import reason_of
from flows.tasks.notify import PART_OF_ANOTHER
from flows.tlc.catalog import Found
from flows.tlc.errors import MonthsFailed
from flows.tlc.manifest import Outcome, Status
from flows.tlc.trips import TripMonth

BATCHES_OF = "backfill-{id}"
"""The tag of all batches of a back-fill, by the id of its flow run."""
_POLL = 2.0  # seconds between two checks of the batches
_TRIES = 3  # how many batches may try a month; a batch that began no month counts as a try of each


@dataclass
class Batch:
    """Months that one machine loads in one run."""

    months: list[TripMonth]
    tag: str = field(default_factory=lambda: f"batch-{uuid4().hex[:12]}")
    heartbeat: object = None  # the states and board times at the last check
    changed_at: float = field(default_factory=time.monotonic)  # when they last changed
    started: bool = False


class Batches:
    """The batches of one back-fill.

    Args:
        machines: Where batches run.
        board: Where the months' progress is shown.
        parameters: The flow's parameters. A batch gets the same, with another `spread` and `months`.
        of_run: The id of the flow run of this back-fill.
    """

    def __init__(self, machines: Machines, board: Board, parameters: Mapping[str, Any], of_run: str) -> None:
        self._machines, self._board, self._of_run = machines, board, of_run
        self._parameters = dict(parameters) | {"spread": "here", "since": "", "until": ""}
        self._at_most, self._size = parameters["machines"], parameters["batch"]
        self._silent_after = float(parameters["silent_after"])
        self._running: list[Batch] = []
        self._next: Batch | None = None  # its start failed, or its answer was lost: try it again with the same tag
        self._waiting: deque[TripMonth] = deque()
        self._tries: Counter[TripMonth] = Counter()
        self.failed: dict[TripMonth, str] = {}
        self._warned = False
        self._log = get_run_logger()

    def load(
        self, work: Mapping[TripMonth, Found], look: Callable[[], tuple[Stores, list[Found]]]
    ) -> tuple[list[Outcome], list[tuple[str, str]]]:
        """Load months in batches until each is in every store or has failed. Return the outcomes and the failures.

        Args:
            work: The months, as compared with the stores.
            look: Lists the stores and compares them with the source again.

        Raises:
            MonthsFailed: `look` failed after some months had failed.
        """
        self.failed = {
            m: reason_of(m, month.source_error) for m, month in work.items() if month.source_error and not month.behind
        }
        left = [month for month in work if month not in self.failed]
        stores: Stores | None = None
        while left:
            self._load(left)
            try:
                stores, found = look()
            except Exception as error:
                if not self.failed:
                    raise
                self._show_failures()
                reasons = "".join(f"\n  - {reason}" for reason in self.failed.values())
                raise MonthsFailed(
                    f"the stores could not be compared with the source again: {str(error) or type(error).__name__}. Before that,"
                    f" {len(self.failed)} of {len(work)} months could not be loaded:{reasons}"
                ) from error
            again = [month for month in found if month.trip_month in work and month.trip_month not in self.failed]
            left = [month.trip_month for month in again if month.behind]
            for month in again:
                if month.source_error and not month.behind and self._is_behind(work[month.trip_month], stores):
                    self.failed[month.trip_month] = reason_of(month.trip_month, month.source_error)
        self._show_failures()
        done = [self._outcome(work[m], stores) for m in work if stores and m not in self.failed]
        return [outcome for outcome in done if outcome], [(str(m), reason) for m, reason in self.failed.items()]

    def _show_failures(self) -> None:
        for trip_month, reason in self.failed.items():
            self._board.set(trip_month, "failed", reason)
            self._log.error("could not be loaded: %s", reason)

    def _is_behind(self, month: Found, stores: Stores) -> bool:
        """Return whether a store that had to be loaded still has what it had before."""
        return any(stores.manifest(store, month.trip_month) == month.manifests[store] for store in month.behind)

    def _outcome(self, month: Found, stores: Stores) -> Outcome | None:
        """Return the outcome in the last store that was behind. Return None if the source no longer has the month."""
        store, note = month.behind[-1], self._board.line(month.trip_month).note
        manifest, before = stores.manifest(store, month.trip_month), month.manifests[store]
        status: Status = "replaced" if before and not before.withdrawn_at else "loaded"
        if manifest is None:
            return None
        return Outcome(store=store, status=status, manifest=manifest, warnings=(note,) if note else ())

    def _load(self, trip_months: Iterable[TripMonth]) -> None:
        """Load months in batches until each is done or has failed. If this run is interrupted, cancel the batches."""
        for trip_month in trip_months:
            self._wait_again(trip_month, "a batch reported it as loaded, but a store does not have it")
        try:
            asyncio.run(self._follow())
        except BaseException:
            self._log.warning("interrupted: the batches are cancelled")
            for batch in self._running:
                self._machines.forget(batch.tag)
            asyncio.run(self._cancel())
            raise

    async def _cancel(self) -> None:
        """Cancel the batches. If the machines are stopped next, wait until the steps in progress are finished."""
        tag, end = BATCHES_OF.format(id=self._of_run), time.monotonic() + self._machines.patience
        async with get_client() as client:
            await cancel(client, tag)
            while time.monotonic() < end and await runs_left(client, tag):
                await asyncio.sleep(_POLL)

    async def _follow(self) -> None:
        looked = time.monotonic()
        async with get_client() as client:
            while self._waiting or self._running:
                self._board.require_not_over()
                try:
                    # A back-fill that died just before this one began is silent only now.
                    if time.monotonic() - looked > self._silent_after:
                        await crash_dead_backfills(UUID(self._of_run), BATCHES_OF)
                        looked = time.monotonic()
                    while self._waiting and len(self._running) < self._at_most:
                        await self._start(client)
                    for batch in list(self._running):
                        await self._check_batch(client, batch)
                except httpx.HTTPError as error:
                    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 503
                    if status < 500 and status not in (408, 429):
                        raise
                    # No batch could send a heartbeat while the server was down.
                    self._log.warning("the Prefect server does not answer (%s); trying again", type(error).__name__)
                    for batch in self._running:
                        batch.changed_at = time.monotonic()
                await asyncio.sleep(_POLL)

    async def _start(self, client: PrefectClient) -> None:
        batch = self._next = self._next or Batch([*islice(self._waiting, self._size)])
        parameters = self._parameters | {"months": [str(month) for month in batch.months]}
        tags = [PART_OF_ANOTHER, BATCHES_OF.format(id=self._of_run), batch.tag]
        await self._machines.start(client, parameters, tags)
        self._next, batch.changed_at = None, time.monotonic()
        self._running.append(batch)
        for _ in batch.months:
            self._waiting.popleft()

    async def _check_batch(self, client: PrefectClient, batch: Batch) -> None:
        """Copy the progress of a batch to the board. If it ended or died, remove it and decide about its months."""
        # Ask before reading the states: when Dask reports that a run ended, the server already has its last state.
        lost = self._machines.lost(batch.tag)
        runs = await runs_tagged(client, batch.tag)
        if not runs and self._machines.creates_runs:
            lost = "its run was deleted from the Prefect server"
        boards = await boards_of(client, runs)
        seen = [self._copy_board(batch, boards.get(run.id)) for run in runs]
        heartbeat = ([run.state and run.state.id for run in runs], [board["updated"] for board in boards.values()])
        if heartbeat != batch.heartbeat:
            batch.heartbeat, batch.changed_at = heartbeat, time.monotonic()
        silent = time.monotonic() - batch.changed_at
        for run in () if self._machines.creates_runs else runs[:-1]:
            if not is_final(run):  # Dask started the batch again
                await self._crash(client, run, "its Dask worker died; another worker has the batch now")
        last = runs[-1] if runs else None
        batch.started = bool(last and not is_scheduled(last))
        if last and last.state and last.state.is_final():
            self._end(batch, seen[-1], f"its run {last.name!r} ended as {last.state.name}: {last.state.message}")
        elif lost or (silent > self._silent_after and batch.started):
            why = lost or f"no heartbeat for {silent:,.0f} s: its process or machine died"
            self._machines.forget(batch.tag)
            if last:
                await self._crash(client, last, why)
            else:
                self._board.incident(f"batch of {batch.months[0]}", why)
            self._end(batch, seen[-1] if seen else None, why)
        elif silent > self._silent_after and not any(other.started for other in self._running) and not self._warned:
            self._warned = True
            self._log.warning("no machine started a batch for %.0f s: %s?", silent, self._machines.advice)

    def _copy_board(self, batch: Batch, board: Mapping[str, Any] | None) -> set[TripMonth] | None:
        """Copy a run's board to this run's board, and return its months; None if the run has not compared the stores yet."""
        rows = {row["month"]: row for row in json.loads(board["data"])} if board else {}
        if not rows:
            return None
        there = {month for month in batch.months if str(month) in rows}
        for month in there:
            row = rows[str(month)]
            self._board.set(month, row["status"], row["note"], row["rows"])
        return there

    async def _crash(self, client: PrefectClient, run: FlowRun, why: str) -> None:
        await mark_crashed(client, run, why)
        self._board.incident(f"run {run.name}", f"marked as crashed: {why}")

    def _end(self, batch: Batch, seen: set[TripMonth] | None, why: str) -> None:
        """Decide about the months of an ended batch. `seen`: the months on the board of its last run; None without a board."""
        self._running.remove(batch)
        for month in batch.months:
            if seen is not None and month not in seen:  # every store already had it when the run began
                self._board.set(month, "done")
        # A try of at least one month: a batch that dies again and again comes to an end.
        begun = [month for month in batch.months if self._board.line(month).progress != "waits"]
        self._tries.update(begun if seen is not None and begun else batch.months)
        for month in batch.months:
            line = self._board.line(month)
            if line.progress == "failed":
                self.failed[month] = line.note
            elif line.progress != "done":
                self._wait_again(month, why)

    def _wait_again(self, trip_month: TripMonth, why: str) -> None:
        if self._tries[trip_month] < _TRIES:
            self._waiting.append(trip_month)
            self._board.set(trip_month, "waits")
        else:
            self.failed[trip_month] = f"{trip_month}: tried {_TRIES} times without success; {why}"
            self._board.set(trip_month, "failed", self.failed[trip_month])
