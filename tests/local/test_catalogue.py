"""`make catalogue` loads every era's files through the back-fill, kills it, and finds every row once in each store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.tlc.trips import TripMonth
from local import catalogue
from local.catalogue import fixed_cost, main, page, published_months, real_rows, rows_of
from local.trip_files.layouts import COLORS

ROOT = Path(__file__).resolve().parents[2]
# Files of different eras. Two have a row that cannot be converted: those of the second month of 2009 and the fifth of 2020.
MONTHS = [
    *("yellow 2009-02", "yellow 2010-02", "yellow 2014-08", "yellow 2023-02"),
    *("green 2020-05", "fhv 2017-02", "fhvhv 2019-02", "fhvhv 2025-01"),
]


@pytest.mark.slow
def test_a_killed_back_fill_of_every_era_ends_with_every_row_in_each_store_once(
    tmp_path: Path, own_servers: None
) -> None:
    state = tmp_path / "drill"
    command = [
        sys.executable,
        "-m",
        "local.catalogue",
        "--state",
        state,
        "--scale",
        "100000",
        "--kills",
        "1",
        "--months",
    ]
    done = subprocess.run([*command, *MONTHS], cwd=ROOT, capture_output=True, text=True, check=False)
    log = state / "backfill.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text("utf-8")[-5000:] if log.exists() else "")
    report = json.loads((tmp_path / "drill.json").read_text("utf-8"))
    assert (report["months"], report["findings"]) == (len(MONTHS), [])
    assert 1 <= report["killed_after_months"][0] < len(MONTHS)
    assert not (state / "services").exists()
    assert "differences between files and stores" in done.stdout


def test_the_whole_catalogue_has_every_known_file() -> None:
    months = {
        (m.color, f"{m.file_month:%Y-%m}") for color in COLORS for m in published_months(color, "parquet", "", "")
    }
    assert real_rows().keys() <= months
    assert len(published_months("green", "csv", "2013", "2014-01")) == 6


def test_a_month_has_its_real_rows_or_its_neighbours_at_the_scale() -> None:
    known = {("green", "2014-01"): 800_000, ("green", "2024-05"): 60_000, ("fhv", "2024-05"): 1}
    assert rows_of(TripMonth("green", 2014, 1), 100, known) == 8_000
    assert rows_of(TripMonth("green", 2025, 12), 100, known) == 600
    assert rows_of(TripMonth("fhv", 2024, 5), 100, known) == 300


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--scale", "0"], "--scale must be at least 1"),
        (["--since", "2019-13"], "'2019-13' is not a month"),
        (["--since", "2030"], "TLC has published none of these months as parquet"),
        (["--months", "green 2013-08"], "TLC has not published green 2013-08 as parquet"),
        (["--months", "green"], "--months takes months such as"),
        (["--months", "green 2020-01", "--since", "2019"], "not both"),
        (["--since", "2020-01", "--until", "2020-01", "--colors", "green"], "1 months are too few"),
        (["--page"], "run `make catalogue` first"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    reason: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["catalogue", *words, "--state", str(tmp_path / "drill")])
    assert main() == 1
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_fixed_cost_is_apart_from_the_cost_of_rows_and_of_a_restart() -> None:
    time, completions, starts = 0.0, [], [0.0]
    for number in range(80):
        rows = number * 997 % 5000
        if number == 40:
            starts.append(time)
            time += 60  # the process starts again
        time += 2 + rows / 10_000
        completions.append((time, rows))
    found = fixed_cost(completions, starts)
    assert found
    assert found == pytest.approx((2, 1 / 10_000))
    assert fixed_cost(completions[:2], [0.0]) is None


def test_rows_never_cost_less_than_nothing() -> None:
    """On a machine that became slow while the months became small, all time is fixed."""
    completions = [(float(number * number), 5000 - 100 * number) for number in range(1, 32)]
    assert fixed_cost(completions, [0.0]) == pytest.approx((32, 0))


def test_the_table_of_the_page_replaces_the_one_before() -> None:
    report = {
        "machine": "2 cores", "revision": "abc1234", "load_before": 0.1,
        "format": "parquet", "scale": 500, "months": 599, "megabytes": 90.5, "rows": 8_847_507,
        "killed_after_months": [70, 200, 400], "generate_s": 60.0, "load_s": 1800.0, "rows_per_s": 4915, "peak_mb": 400,
        "fixed_s_per_month": 2.5, "s_per_million_rows": 30.0, "nothing_to_do_s": 20.0, "reconcile_s": 100.0, "findings": [],
    }  # fmt: skip
    text = f"before\n{catalogue._BEGIN}| an | older |\n{catalogue._END}after\n"
    new = page(text, report)
    assert "| machine | 2 cores; its load before was 0.1 |\n| revision | abc1234 |" in new
    assert "| killed | after 70, 200, 400 months |" in new
    assert "older" not in new
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert page(new, report) == new
