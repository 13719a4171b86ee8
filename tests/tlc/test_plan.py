"""The plan of a back-fill: its counts are those of the known files, and its limits are named."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flows.stores import database
from flows.tasks.plan import main, plan_of
from flows.tlc import plan
from flows.tlc.plan import Figures
from flows.tlc.trips import COLORS

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*words])


def test_every_known_file_is_counted_and_the_months_that_are_not_known_are_named() -> None:
    done = run("--until", "2024-05")
    assert done.exit_code == 0
    assert "487 files, 65.5 GB, 3,693,957,005 rows; 131.1 GB to download" in done.stdout
    assert "5 more months are not in known_months.csv" in done.stdout
    for machines in (1, 4, 16):
        assert f"\n  {machines} " in done.stdout


def test_more_machines_are_faster_until_something_else_is_full() -> None:
    plan, _ = plan_of("2009-01", "2024-05", list(COLORS), ["lake", "warehouse", "database"], Figures())
    one, four, many = plan.on(1), plan.on(4), plan.on(64)
    assert one.limit == "the machines' cores"
    assert four.seconds == pytest.approx(one.seconds / 4)
    assert many.limit == "Postgres' cores"
    assert many.seconds == plan.on(128).seconds
    slow = plan_of("2009-01", "2024-05", list(COLORS), ["lake"], Figures(download_bytes=1e6))[0]
    assert slow.on(4).limit == "each machine's download (TLC's CDN)"
    assert slow.size * 2 == plan.size


def test_a_plan_for_the_warehouse_has_the_lake_that_it_is_loaded_from() -> None:
    months = ("--since", "2024-01", "--until", "2024-01")
    alone = run(*months, "--into", "warehouse")
    assert alone.stdout == run(*months, "--into", "warehouse", "--into", "lake").stdout
    assert "lake" in plan_of("2024-01", "2024-01", ["green"], ["warehouse"], Figures())[0].work
    assert "lake" not in plan_of("2024-01", "2024-01", ["green"], ["database"], Figures())[0].work


def test_a_machines_own_figures_replace_the_defaults(tmp_path: Path) -> None:
    records = [
        {"work": "web_to_lake_parquet", "contender": "ours", "rows": 1_000_000, "net_s": 10.0},
        {"work": "web_to_lake_parquet", "contender": "pyarrow", "rows": 1_000_000, "net_s": 1.0},
    ]
    assert Figures.measured(records).lake_rows == 100_000
    assert Figures.measured(records).database_rows == Figures().database_rows
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"records": records}))
    assert (
        run("--since", "2024", "--into", "lake", "--figures", str(results)).stdout
        != run("--since", "2024", "--into", "lake").stdout
    )


def test_the_page_names_the_defaults() -> None:
    page = " ".join((ROOT / "docs" / "speed.md").read_text("utf-8").split())
    assert f"{Figures.lake_rows:,} rows per second from the web into the lake (Parquet)" in page
    assert f"{Figures.database_rows:,} from the web into Postgres, and {Figures.warehouse_seconds} s per month" in page


def test_a_month_in_progress_may_have_three_connections_to_postgres() -> None:
    assert plan._CONNECTIONS == 1 + database._COMPARERS
    done = run("--since", "2024", "--into", "database")
    assert "Postgres: 6 connections per machine; its default of 100 is enough for 15 machines." in done.stdout


def test_a_file_without_records_is_no_machines_figures(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text('{"records": []}')
    done = run("--figures", str(results))
    assert done.exit_code == 1
    assert "cannot be read as the results of `make bench`" in done.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--into", "cellar"), "store cellar is unknown; use lake, warehouse, database."),
        (("--colors", "blue"), "color 'blue' is unknown"),
        (("--since", "2024-05", "--until", "2024-01"), "is before since"),
        (("--figures", "no-such-file"), "no-such-file cannot be read as the results of `make bench`"),
        (("--download", "0"), "give more than 0"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(words: tuple[str, ...], reason: str) -> None:
    done = run(*words)
    assert done.exit_code == 1
    assert reason in done.output
