"""Show the progress of a month, in rows or bytes: a bar on a terminal, a log line every few seconds elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from prefect import get_run_logger
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY = 10.0  # seconds between two log lines


Unit = Literal["rows", "bytes"]


class Meter:
    """Counts rows or bytes of one month, and shows the count at intervals."""

    def __init__(self, what: str, unit: Unit) -> None:
        self._what, self._unit = what, unit
        self._done = 0
        self._begun = self._last_line = time.monotonic()
        self._log = get_run_logger()
        self._bar, self.bar_id = _join(what)

    def add(self, count: int, share: float) -> None:
        """Count more rows or bytes. `share` is the share of the month done so far (0: unknown)."""
        self._done += count
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        so_far = f"{self._amount(self._done)}, {self._amount(self._done / seconds)}/s"
        if self._bar:
            self._bar.update(self.bar_id, completed=share, detail=so_far)
        elif now - self._last_line >= _EVERY:
            self._last_line = now
            left = f", about {seconds * (1 - share) / share:,.0f} s to go" if 0 < share < 1 else ""
            self._log.info("%s: %s%s", self._what, so_far, left)

    def log_total(self) -> None:
        """Log the total, at the end."""
        self._log.info("%s: %s in %.1f s", self._what, self._amount(self._done), time.monotonic() - self._begun)

    def _amount(self, count: float) -> str:
        return f"{count:,.0f} rows" if self._unit == "rows" else f"{count / 1e6:,.1f} MB"


_lock = threading.Lock()
_shared: Progress | None = None
_below_table = False  # the bars are part of the display of `live_table`


def _bars() -> Progress:
    description, detail = TextColumn("{task.description}"), TextColumn("{task.fields[detail]}")
    times = (TimeElapsedColumn(), TextColumn("/"), TimeRemainingColumn())
    return Progress(description, BarColumn(), detail, *times, console=Console(stderr=True), transient=True)


@contextmanager
def live_table(table: Callable[[], RenderableType]) -> Iterator[bool]:
    """Show a table on a terminal until the block ends, above the bars of the months. Yield whether there is a terminal."""
    global _shared, _below_table
    with _lock:
        shown = _shared is None and sys.stderr.isatty()
        if shown:
            _shared, _below_table = _bars(), True
    if not shown:
        yield False
        return
    bars = _shared
    assert bars is not None  # noqa: S101 - set above; the type checker needs it here
    try:
        with Live(
            get_renderable=lambda: Group(table(), bars), console=bars.console, refresh_per_second=2, transient=True
        ):
            yield True
    finally:
        with _lock:
            _shared, _below_table = None, False


def _join(what: str) -> tuple[Progress | None, TaskID]:
    """Add a bar to the one live display of the process. Two displays would overwrite each other."""
    global _shared  # noqa: PLW0603
    with _lock:
        if _shared is None:
            # Check before the display starts: a running display makes isatty() return False.
            if not sys.stderr.isatty():
                return None, TaskID(-1)
            _shared = _bars()
            _shared.start()
        return _shared, _shared.add_task(what, total=1.0, detail="")


def _leave(task_id: TaskID) -> None:
    """Remove a bar, and the display with its last bar."""
    global _shared  # noqa: PLW0603
    with _lock:
        if _shared is None or task_id not in _shared.task_ids:
            return
        _shared.remove_task(task_id)
        if not _shared.task_ids and not _below_table:
            _shared.stop()
            _shared = None


@contextmanager
def meter(what: str, unit: Unit = "rows") -> Iterator[Meter]:
    """Yield a meter. At the end of the block, log its total and remove its bar."""
    counting = Meter(what, unit)
    try:
        yield counting
        counting.log_total()
    finally:
        _leave(counting.bar_id)
