"""Text from outside has no effect where it is shown: in the UI, on a terminal, in a shell, in a notification."""

import json
import math
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

import pyarrow as pa
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed
from rich.console import Console

from flows.connectors import ask, bucket
from flows.connectors.web import look_up, source_of
from flows.stores.warehouse import _require_same_types
from flows.tasks.ask import show
from flows.tasks.board import Board, Line
from flows.tasks.editions import Listing, print_listing
from flows.tasks.notify import message
from flows.tasks.report import as_markdown, markdown_table, plain_rows
from flows.tasks.stores import load_block
from flows.tasks.verify import _source
from flows.tlc.addresses import escaped
from flows.tlc.errors import MisconfiguredBlock, SchemaMismatch, Unanswerable
from flows.tlc.matching import differences, match
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, Runs, lake_of
from tests.flows.test_new_columns import put
from tests.loopback import Loopback
from tests.stores import Stores
from tests.tlc.published import TRIP, parquet_file, table

IMAGE = "<img src=http://evil.example/x>![x](http://evil.example/y)"
TERMINAL = "\x1b]0;title\x07\x1b[31m[/x] [link=http://evil.example]click[/link]"


def test_html_images_and_links_in_a_table_of_the_ui_are_text() -> None:
    lines = "\n".join(markdown_table(("name",), [(f"{IMAGE}|\n",)]))
    assert not re.search(r"<|\[|\n\n", lines.replace("\n\n| ", ""))
    assert "&#60;img" in lines
    assert lines.strip().splitlines()[-1].count("|") == 2


def test_the_texts_of_every_table_in_the_ui_are_plain_text() -> None:
    rows = plain_rows([{"month": "green 2021-01", "status": f"failed: {IMAGE}", "published": 7, "left out": None}])
    assert rows == [
        {"month": "green 2021-01", "status": as_markdown(f"failed: {IMAGE}"), "published": 7, "left out": None}
    ]
    assert not re.search(r"[<\[]", rows[0]["status"])


def test_the_names_of_columns_of_every_table_in_the_ui_are_one_line_of_printable_text() -> None:
    [row] = plain_rows([{"\x1b[31m\n\u202e": 7, "a < b": 1}])
    assert row == {r"\x1b[31m\n\u202e": 7, "a < b": 1}  # the UI shows names without markdown, so they need no entities


def test_a_note_on_the_board_is_plain_text_on_the_terminal_and_in_the_ui(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board.__new__(Board)  # without a run
    board._lock, board._sizes, board._begun, board._incidents = threading.Lock(), {}, 0.0, []
    board._lines = {TripMonth("green", 2021, 1): Line("failed", 0, TERMINAL + IMAGE)}
    Console(width=300).print(board._on_terminal())
    printed = capsys.readouterr().out
    assert "[/x] [link=http://evil.example]click[/link]" in printed
    assert "\x1b]" not in printed
    note = board.rows()[-1]["note"]
    assert note == as_markdown(TERMINAL + IMAGE)


def test_a_type_of_a_parquet_file_is_escaped_in_the_error() -> None:
    types = [pa.timestamp("us", "\x1b[31m\nforged")] * len(TRIP)
    with pytest.raises(SchemaMismatch) as refused:
        match(TripMonth("green", 2021, 1), ".parquet", list(TRIP), types)
    assert r"\x1b[31m\nforged" in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_column_of_the_lakes_file_is_escaped_in_the_error_of_the_warehouse() -> None:
    columns = pa.schema([(TERMINAL, pa.int8()), ("total_amount", pa.struct([("\x1b", pa.int8())]))])
    with pytest.raises(SchemaMismatch) as refused:
        _require_same_types(TripMonth("green", 2021, 1), columns)
    assert r"\x1b]0;title\x07" in str(refused.value)
    assert "struct<\\x1b: int8>" in str(refused.value)
    assert str(refused.value).isprintable()


def test_a_column_name_cannot_end_the_code_that_it_is_shown_as() -> None:
    [_, more] = differences("green", [f"x`{IMAGE}"])
    assert more == f"in the file, without trip data: `x'{IMAGE}`"


def test_markup_and_control_characters_of_a_listing_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(Listing("months", ("month", "source"), [("green 2021-01", TERMINAL)]))
    printed = capsys.readouterr().out
    assert "[/x] [link=http://evil.example]click[/link]" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_an_answer_is_printed_on_a_terminal_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    shown: list[Any] = []
    monkeypatch.setattr("flows.tasks.ask.create_table_artifact", lambda rows, **about: shown.append(rows))
    show(ask.Answer(["[/x]"], [(TERMINAL,), ("y" * 100_000,)], more=False), "select …")
    printed = capsys.readouterr().out
    assert "[/x]" in printed
    assert r"\x1b]0;title\x07" in printed
    assert "\x1b]" not in printed
    assert len(str(shown)) < 10_000


class _Headers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Last-Modified", IMAGE)
        self.send_header("ETag", '"\x1b[31m"')
        self.send_header("Content-Length", "5")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_the_table_of_an_answer_has_every_column_and_is_valid_json(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []
    monkeypatch.setattr("flows.tasks.ask.create_table_artifact", lambda rows, **about: tables.append(rows))
    answer = ask.Answer(["n", "fare", "n"], [(1, math.inf, 2), (3, math.nan, None), (5, 2.5, 6)], more=False)
    show(answer, "select …")
    assert json.loads(json.dumps(tables[0], allow_nan=False)) == [
        {"n (1)": 1, "fare": "inf", "n (3)": 2},
        {"n (1)": 3, "fare": "nan", "n (3)": None},
        {"n (1)": 5, "fare": 2.5, "n (3)": 6},
    ]


def test_columns_whose_names_look_the_same_in_the_ui_are_all_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []
    monkeypatch.setattr("flows.tasks.ask.create_table_artifact", lambda rows, **about: tables.append(rows))
    flags = pa.table({"flag": ["\x07", r"\x07", "y" * 5000, "y" * 6000], "n": [1, 2, 3, 4]})
    show(ask.answer("PIVOT flags ON flag USING sum(n)", {"flags": flags}, 10), "PIVOT …")
    [row] = tables[0]
    assert set(row.values()) == {1, 2, 3, 4}
    assert all(name.isprintable() and len(name) < 320 for name in row)


def test_a_version_that_could_be_none_is_not_taken_from_a_server(own_servers: None) -> None:
    with Loopback(_Headers) as server:
        found = look_up(source_of(f"{server.url}/{{year}}-{{month:02d}}.csv"), TripMonth("green", 2021, 1))
    assert (found.etag, found.last_modified, found.size) == (None, None, 5)


@pytest.mark.parametrize(
    "name", ["../../secret/block_documents/name/x", "a/b", "A", "a b", "%2e%2e", "", "x\n", "ä", "x" * 201]
)
def test_a_block_name_that_could_reach_anything_else_is_refused(name: str) -> None:
    with pytest.raises(MisconfiguredBlock, match="is not the name of a block"):
        load_block("gcs-bucket", name)


def test_the_command_that_mends_a_month_is_safe_to_paste_whatever_its_source_was(
    runs: Runs, month: TripMonth, ours: Stores
) -> None:
    manifest = runs.lake(month).manifest
    evil = f"https://h.example/x';touch ${{HOME}}/owned;'/{month.stem}.csv"
    words = _source(manifest.model_copy(update={"url": evil}))
    assert shlex.split(" ".join(words)) == [
        "--source",
        evil.replace("{", "{{").replace("}", "}}").replace(month.stem, "{color}_tripdata_{year}-{month:02d}"),
    ]


@pytest.mark.parametrize(
    "source",
    ["https://user:p@ss@h.example/{year}.csv", "https://user:p/ss@h.example/x", "https://h.example/x.csv?sig=canary&se=1",
     "https://us er:canary@h.example"],
)  # fmt: skip
def test_a_notification_has_no_password_and_no_signature(source: str) -> None:
    run = FlowRun(flow_id="00000000-0000-0000-0000-000000000000", parameters={"source": source, "year": 2021})
    text = message("etl-web-gcs", run, Failed(message=f"cannot read {source}"), None)
    assert not any(secret in text for secret in ("user", "p@ss", "ss@", "canary"))
    assert "h.example" in text


def test_a_query_that_takes_too_long_or_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "LONGEST", 0.5)
    with pytest.raises(Unanswerable, match=r"took more than 0 s; ask for fewer months"):
        ask.answer("select sum(a.range * b.range) from range(1000000) a, range(1000000) b", {}, 10)
    monkeypatch.undo()
    monkeypatch.setitem(ask._CLOSED, "memory_limit", "64MB")
    with pytest.raises(Unanswerable, match="Out of Memory"):
        ask.answer("select list(range) from range(100000000)", {}, 10)


def test_a_manifest_that_another_program_made_huge_is_not_read_into_memory(
    runs: Runs, month: TripMonth, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake(month)
    monkeypatch.setattr(bucket, "_LARGEST_TEXT", 1 << 20)
    ours.blob(month.manifest_key).upload_from_string(b" " * (2 << 20))
    lake = lake_of(LAKE)
    with pytest.raises(ValueError, match="more than 1,048,576 bytes"):
        lake.bucket.read_text(month.manifest_key)
    assert lake.written_of(month) is None
    assert runs.lake(month).manifest.loaded > 0  # the copy in the object's metadata counts


def accepted(ours: Stores, runs: Runs, month: TripMonth) -> str:
    """Load a month twice whose file has a column with control characters in its name. Return the log lines about it."""
    source = put(ours, month, parquet_file(table(20, month, **{TERMINAL: [1] * 20})))
    assert runs.lake(month, source=source, schema="accept_new_columns").manifest.new_columns == (TERMINAL,)
    assert runs.lake(month, source=source).status == "unchanged"
    return "\n".join(line for line in runs.logs().splitlines() if str(month) in line)


def test_the_log_names_new_columns_without_control_characters(ours: Stores, runs: Runs) -> None:
    log = accepted(ours, runs, TripMonth("green", 2022, 11))
    assert f"TLC has NEW COLUMNS: {escaped(TERMINAL)}. Only" in log
    assert TERMINAL not in log


def test_the_reason_for_not_loading_a_month_names_its_new_columns_without_control_characters(
    ours: Stores, runs: Runs
) -> None:
    log = accepted(ours, runs, TripMonth("green", 2022, 12))
    assert f"its new columns ({escaped(TERMINAL)}) were accepted" in log
    assert TERMINAL not in log
