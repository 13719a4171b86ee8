"""The progress board of a back-fill: the status of each month. It is shown on the terminal, in the log and as one artifact.

The artifact is also the run's heartbeat. The run writes it again every few seconds until its process ends. Prefect 2 has no
heartbeat: a run whose process was killed stays Running for ever.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import PrefectClient, get_client
from prefect.runtime import flow_run
from rich import box
from rich.table import Table

from flows.tasks.progress import live_table
from flows.tasks.report import as_cell, plain_rows
from flows.tlc.manifest import Outcome
from flows.tlc.trips import TripMonth

Progress = Literal["waits", "running", "done", "failed"]
_LOG_EVERY = 30.0  # seconds between two log lines, without a terminal
_SHOWN = 12  # months on the terminal at once


class RunIsOver(BaseException):
    """The run was cancelled, or another run marked it as crashed."""


@dataclass(frozen=True)
class Line:
    """One month on the board."""

    progress: Progress = "waits"
    rows: int = 0  # written to the stores by this run
    note: str = ""


class Board:
    """The months of a back-fill. Use it with `with`: the block shows the board and sends heartbeats.

    The end of the block raises `RunIsOver` if this run was cancelled or marked as crashed.

    Args:
        every: Seconds between two heartbeats.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._sizes: Mapping[TripMonth, int] | None = None
        self._lines: dict[TripMonth, Line] = {}
        self._incidents: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._begun = self._logged = time.monotonic()
        self._over = threading.Event()
        self._closing = threading.Event()
        self._run, self._log = str(flow_run.get_id()), get_run_logger()
        self._artifact = ""
        self._live = live_table(self._on_terminal)

    def plan(self, sizes: Mapping[TripMonth, int]) -> None:
        """Put the months on the board. `sizes`: the bytes of their files, 0 if unknown, for the estimate of the time left."""
        with self._lock:
            self._sizes, self._lines = sizes, {trip_month: Line() for trip_month in sizes}
            self._begun = time.monotonic()

    def set(self, trip_month: TripMonth, progress: Progress, note: str = "", rows: int | None = None) -> None:
        """Set the status of a month. `rows` replaces the count of the month's rows."""
        with self._lock:
            kept = self._lines[trip_month].rows if rows is None else rows
            self._lines[trip_month] = Line(progress, kept, note)

    def line(self, trip_month: TripMonth) -> Line:
        """Return the status of a month."""
        with self._lock:
            return self._lines[trip_month]

    def add(self, trip_month: TripMonth, outcome: Outcome) -> None:
        """Count the rows that a run wrote to one store."""
        with self._lock:
            line = self._lines[trip_month]
            rows = 0 if outcome.status == "unchanged" else outcome.in_store
            self._lines[trip_month] = Line(line.progress, line.rows + rows, line.note)

    def incident(self, what: str, text: str) -> None:
        """Add an event that a person should see, such as a run that died."""
        self._log.error("%s: %s", what, text)
        with self._lock:
            self._incidents.append((what, text))

    def require_not_over(self, *, ask: bool = False) -> None:
        """Raise `RunIsOver` if this run was cancelled or marked as crashed, as of the last heartbeat (`ask`: as of now)."""
        if ask:
            with suppress(Exception):  # if the API does not answer, the last heartbeat decides
                asyncio.run(self._ask())
        if self._over.is_set():
            raise RunIsOver

    async def _ask(self) -> None:
        async with get_client() as client:
            await self._check_run(client)

    async def _check_run(self, client: PrefectClient) -> None:
        run = await client.read_flow_run(UUID(self._run))
        if run.state and (run.state.is_final() or run.state.is_cancelling()):
            self._over.set()

    @property
    def summary(self) -> str:
        """Return one line: how many months are done, running and failed, rows, rows per second and the time left."""
        if self._sizes is None:
            return "comparing the stores with the source"
        with self._lock:
            lines = dict(self._lines)
        counts = Counter(line.progress for line in lines.values())
        seconds = max(time.monotonic() - self._begun, 1e-3)
        rows = sum(line.rows for line in lines.values())
        known = [size for size in self._sizes.values() if size]
        mean = sum(known) / len(known) if known else 1
        weights = {trip_month: self._sizes.get(trip_month) or mean for trip_month in lines}
        ended = sum(weights[m] for m, line in lines.items() if line.progress in ("done", "failed"))
        left = sum(weights.values()) - ended
        parts = [f"{counts[name]} {word}" for name, word in _WORDS.items() if counts[name]] or ["nothing to do"]
        parts += [f"{rows:,} rows", f"{rows / seconds:,.0f} rows/s"] if rows else []
        if ended and left:
            parts.append(f"about {_time(seconds * left / ended)} left")
        return ", ".join(parts)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table for the UI: the summary, the incidents, then one row per month. No rows before `plan`."""
        if self._sizes is None:
            return []
        summary = self.summary
        with self._lock:
            first = [("all", summary), *self._incidents]
            months = [(str(m), line.progress, line.rows, line.note) for m, line in self._lines.items()]
        table: list[dict[str, Any]] = [{"month": what, "status": text, "rows": "", "note": ""} for what, text in first]
        table += [dict(zip(("month", "status", "rows", "note"), month, strict=True)) for month in months]
        return plain_rows(table)

    def _on_terminal(self) -> Table:
        table = Table("month", "status", "rows", "note", title=self.summary, title_justify="left", box=box.SIMPLE)
        with self._lock:
            seen = [(m, line) for m, line in self._lines.items() if line.progress in ("failed", "running")]
        seen.sort(key=lambda each: each[1].progress == "running")
        for trip_month, line in seen[-_SHOWN:]:
            table.add_row(str(trip_month), line.progress, f"{line.rows:,}" if line.rows else "", as_cell(line.note))
        return table

    def __enter__(self) -> Self:
        self._on_a_terminal = self._live.__enter__()
        # A copy of the context has Prefect's settings.
        self._thread = threading.Thread(target=copy_context().run, args=(asyncio.run, self._beat()), name="board")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._live.__exit__(kind, error, trace)
        if kind is None or issubclass(kind, Exception):  # after a cancellation, Prefect refuses other ends of the run
            self.require_not_over()

    async def _beat(self) -> None:
        """Send heartbeats until the block ends, and one more at its end."""
        closing = False
        while not closing:
            with suppress(Exception):  # if the API does not answer, open another client and try again
                async with get_client() as client:
                    while not closing:
                        await self._heartbeat(client)
                        closing = await asyncio.to_thread(self._closing.wait, self._every)
                        if not self._on_a_terminal and time.monotonic() - self._logged >= _LOG_EVERY:
                            self._logged = time.monotonic()
                            self._log.info("%s", self.summary)
                    await self._heartbeat(client)
            closing = closing or await asyncio.to_thread(self._closing.wait, self._every)

    async def _heartbeat(self, client: PrefectClient) -> None:
        """Find out whether the run is over, and write the artifact."""
        await self._check_run(client)
        facts = {"data": json.dumps(self.rows()), "description": self.summary}
        if self._artifact:
            try:
                await client._client.patch(f"/artifacts/{self._artifact}", json=facts)
            except httpx.HTTPStatusError as error:
                if (
                    error.response.status_code == httpx.codes.NOT_FOUND
                ):  # deleted, or another board of this run is newer
                    self._artifact = ""
                raise
        else:
            about = {"key": f"backfill-{self._run}", "type": "table", "flow_run_id": self._run}
            self._artifact = (await client._client.post("/artifacts/", json=about | facts)).json()["id"]


_WORDS: Mapping[Progress, str] = {"done": "done", "running": "running", "failed": "failed", "waits": "waiting"}


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
