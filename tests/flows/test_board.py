"""The progress board says how far a back-fill is, and shows what runs now."""

import threading
import time
from collections.abc import Mapping

import pytest
from rich.console import Console

from flows.tasks import board as module
from flows.tasks.board import Board, Line
from flows.tlc.trips import TripMonth

MONTHS = [TripMonth("green", 2015 + n // 12, n % 12 + 1) for n in range(20)]


def board_of(lines: Mapping[TripMonth, Line], sizes: Mapping[TripMonth, int], begun: float = 0) -> Board:
    """Return a board without a run."""
    board = Board.__new__(Board)
    board._lock, board._lines, board._sizes, board._begun = threading.Lock(), dict(lines), sizes, begun
    return board


def test_the_time_left_follows_from_the_bytes_and_a_file_of_unknown_size_counts_as_the_mean() -> None:
    done, failed, running, waits = MONTHS[:4]
    lines = {done: Line("done", 4000), failed: Line("failed"), running: Line("running", 2000), waits: Line()}
    board = board_of(lines, {done: 300, failed: 100, running: 200, waits: 0}, time.monotonic() - 60)
    # 400 of 800 bytes in 60 seconds.
    expected = "1 done, 1 running, 1 failed, 1 waiting, 6,000 rows, 100 rows/s, about 1 min 0 s left"
    assert board.summary == expected
    assert board_of(dict.fromkeys(lines, Line()), dict.fromkeys(lines, 0)).summary == "4 waiting"
    assert board_of({}, {}).summary == "nothing to do"


def test_failures_do_not_hide_the_months_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {month: Line("failed") for month in MONTHS} | {MONTHS[0]: Line("running")}
    Console(width=200).print(board_of(lines, dict.fromkeys(lines, 0))._on_terminal())
    shown = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if "green" in line]
    assert len(shown) == module._SHOWN
    assert shown[-1] == ["green", "2015-01", "running"]
    assert shown[-2] == ["green", "2016-08", "failed"]
