"""A flow runs as a program: its parameters are the arguments, its result is the exit status, and long work shows progress."""

import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings
from rich.console import Console

import blocks.notify
import blocks.register
from flows.tasks import progress
from flows.tasks.command import run_as_program
from flows.tlc.errors import UnknownMonth
from flows.tlc.trips import COLORS, Bound, Color, Month, OptionalMonths
from tests.receivers import web_page
from tests.stores import Stores


@flow(name="test-command", log_prints=False)
def counting(color: Color, months: list[Month], rows: int = 3) -> int:
    """Count months.

    Args:
        color: Whose months.
        months: Which months.
        rows: How many rows
    """
    if rows < 0:
        raise UnknownMonth(f"{color}: rows is {rows}")
    return 100 // rows * len(months)


@flow(name="test-months")
def naming(year: int | None = None, months: OptionalMonths = None, since: Bound = "", until: Bound = "") -> None:
    """Name months."""
    print(f"<{year} {months} {since} {until}>")


@flow(name="test-texts")
def looking(colors: Annotated[list[str], "of taxis"] = ["green"], history: str = "", store: str = "lake") -> None:  # noqa: B006
    """Look at months.

    Args:
        colors: Colors to look at.
        history: The month to look at.
        store: The store to look in.
    """
    print(f"<{colors} {history} {store}>")


@flow(name="test-json")
def reading() -> None:
    """Parse text that is not JSON."""
    json.loads("<html>")


def exit_status(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: Callable[..., Any] = counting) -> int:
    monkeypatch.setattr(sys, "argv", ["counting.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_as_program(program)  # type: ignore[arg-type]
    return int(ended.value.code or 0)


def test_required_parameters_are_positional_and_the_others_are_options(
    ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_status(monkeypatch, "green", "1", "2", "--rows", "5") == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("green", "1", "--rows", "-1"), "error: green: rows is -1\n"),
        (("green", "1", "--rows", "0"), "error: ZeroDivisionError: integer division or modulo by zero\n"),
    ],
)
def test_an_error_is_printed_in_one_line_and_the_exit_status_is_1(
    arguments: tuple[str, ...],
    reason: str,
    ours: Stores,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_status(monkeypatch, *arguments) == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://{page}", "its answer is not JSON"),
        ("//{page}/api", "UnsupportedProtocol"),
        ("http://{page}:0/api", "InvalidURL"),
    ],
)
def test_the_error_for_a_wrong_server_address_gives_an_example(
    address: str, why: str, ours: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with web_page() as page, temporary_settings({PREFECT_API_URL: address.format(page=page)}):
        assert exit_status(monkeypatch, "green", "1") == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"({why})" in line
    assert "http://127.0.0.1:4200/api" in line


@pytest.mark.parametrize("key", ["canary-key\n", "canary key", "canary\u200bkey"])
def test_a_key_that_cannot_be_sent_is_refused_before_any_request_and_is_not_quoted(
    key: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTGRES_URL", "postgresql://user@host/db")
    nowhere = "http://127.0.0.1:9/api"  # any request would fail with another error
    with temporary_settings({PREFECT_API_URL: nowhere, PREFECT_API_KEY: key}):
        assert exit_status(monkeypatch, "green", "1") == 1
        assert blocks.register.main(["sqlalchemy-connector"]) == 1
        assert blocks.notify.main(["failed"]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 3
    assert all(line.startswith("error: PREFECT_API_KEY has a space, a line end or another") for line in lines)
    assert not any("canary" in line for line in lines)


def test_a_flows_own_json_error_is_not_blamed_on_the_server(
    ours: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, program=reading) == 1
    assert "error: JSONDecodeError: Expecting value" in capsys.readouterr().err


def test_months_are_positional_arguments_or_a_range_in_options(
    ours: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "2021", "1", "2", program=naming) == 0
    assert exit_status(monkeypatch, "--since", "2019", "--until", "2020-02", program=naming) == 0
    out = capsys.readouterr().out
    assert "<2021 [1, 2]  >" in out
    assert "2019 2020-02>" in out


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--history", "green", "2021-01"], "<['green'] green 2021-01 lake>"),
        (["--history=green", "2021-01"], "<['green'] green 2021-01 lake>"),
        (["--history", "green 2021-01", "--store", "database"], "<['green'] green 2021-01 database>"),
        (["--store", "lake", "--history", "fhv", "2021-01", "0123456789ab"], "<['green'] fhv 2021-01 0123456789ab lake>"),
        (["--colors", "green", "fhv", "--history", "fhv", "2021"], "<['green', 'fhv'] fhv 2021 lake>"),
    ],
)  # fmt: skip
def test_an_option_takes_all_words_that_follow_it_if_the_program_has_no_positional_arguments(
    words: list[str], printed: str, ours: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, *words, program=looking) == 0
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize("words", [("2021", "1"), ("2021",)])
def test_months_and_a_range_together_are_refused(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, *words, "--since", "2019-02", "--until", "2019-03", program=naming) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: give a year and months, or --since and --until, not both. Nothing was started.\n"
    assert printed.out == ""


def test_the_error_for_an_unknown_color_lists_the_colors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "red", "1") == 2
    assert ", ".join(map(repr, COLORS)) in capsys.readouterr().err


def test_help_has_the_texts_of_the_docstring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(monkeypatch, "--help") == 0
    helped = capsys.readouterr().out
    assert all(text in helped for text in ("Count months.", "Whose months.", "--rows", "How many rows"))


def test_a_log_line_every_few_seconds_has_rows_speed_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = iter([0.0, 4.0, 10.0, 11.0, 20.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("progress"))
    with caplog.at_level("INFO", "progress"), progress.meter("green 2021-01") as meter:
        meter.add(100, 0.1)
        meter.add(100, 0.25)
        meter.add(100, 0.5)
        meter.add(100, 1.0)
    assert caplog.messages == [
        "green 2021-01: 200 rows, 20 rows/s, about 30 s to go",
        "green 2021-01: 400 rows, 20 rows/s",
        "green 2021-01: 400 rows in 20.0 s",
    ]


def test_on_a_terminal_all_months_share_one_display_with_a_bar_each(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120))
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("progress"))
    with progress.meter("green 2021-01") as first:
        with progress.meter("green 2021-02") as second:
            first.add(1500, 0.5)
            second.add(99, 0.01)
            assert progress._shared is not None
            progress._shared.refresh()
        first.add(1500, 1.0)
    assert progress._shared is None
    assert all(text in shown.getvalue() for text in ("green 2021-01", "1,500 rows", "green 2021-02", "99 rows"))
