"""The bench stops with a clear error instead of comparing what is not comparable."""

import sys
from pathlib import Path

import pytest

from bench import __main__ as program
from bench.contest import Entry, _record, _repeats, _rotated
from bench.process import MEASURED, Run, RunFailed, measure


def test_without_the_peers_environment_nothing_starts_and_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "PEERS", tmp_path / "python")
    assert program.main(["--quick"]) == 1
    assert capsys.readouterr().err == "Error: .venv-bench is missing; start the contest with: make bench\n"


def test_the_time_that_a_contender_measures_itself_counts_instead_of_its_process(tmp_path: Path) -> None:
    print_it = f"""print('{MEASURED}{{"wall_s": 1.5, "cpu_s": 0.5, "busy_s": 0.7, "rows": 7}}')"""
    run = measure([sys.executable, "-c", print_it], {}, tmp_path)
    assert (run.wall_s, run.cpu_s, run.busy_s, run.measured["rows"]) == (1.5, 0.5, 0.7, 7)


def test_a_contender_that_fails_stops_the_bench_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)ended with 1:.*no such table"):
        measure([sys.executable, "-c", "import sys; sys.exit('no such table')"], {}, tmp_path)


def test_the_net_time_and_the_busy_cores_leave_out_the_empty_flow_of_the_same_round() -> None:
    def runs(*costs: tuple[float, float]) -> list[Run]:
        return [Run(wall, 1.0, 100.0, {}, busy) for wall, busy in costs]

    entry = Entry("twelve_months", "ours", lambda repeat: [], (7,))
    # The second round was slow: the medians of each, 8 and 3, differ by 5.
    record = _record(entry, runs((7, 10), (20, 24), (8, 11)), runs((3, 4), (14, 17), (2, 3)))
    assert (record.wall_s, record.net_s, record.cores_busy) == (8, 6, 1.17)
    # The pandas script runs in the first round only, its empty flow in each.
    record = _record(entry, runs((8, 12)), runs((5, 6), (2, 3), (3, 4)))
    assert (record.net_s, record.cores_busy) == (5, 1.6)
    record = _record(entry, runs((8, 12)), [])
    assert (record.net_s, record.cores_busy) == (8, 1.5)


def test_each_round_begins_a_work_with_another_of_its_neighbours_and_the_works_keep_their_order() -> None:
    works = [("first", "ours"), ("same", "ours"), ("first", "adbc"), ("first", "dlt"), ("twelve", "ours")]
    entries = [(Entry(work, contender, lambda repeat: []), (work, contender)) for work, contender in works]
    orders = [[name for _, name in _rotated(entries, by)] for by in range(3)]
    assert orders[0] == orders[2] == works
    assert orders[1] == [*works[:2], ("first", "dlt"), ("first", "adbc"), ("twelve", "ours")]


def test_only_the_pandas_script_runs_once_and_its_empty_flow_runs_in_every_round() -> None:
    entries = [
        ("web_to_lake_csv", "ours"),
        ("web_to_lake_csv", "seed"),
        ("empty_flow", "seed"),
        ("start_up", "empty flow"),
    ]
    assert [_repeats(Entry(*names, lambda repeat: [])) for names in entries] == [True, False, True, True]
