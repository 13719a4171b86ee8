"""The commands in the documentation work: programs accept the options; modules, targets, deployments and files exist."""

import importlib.util
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow

from blocks.register import BLOCKS, register
from flows.connectors.known_months import known_file
from flows.etl_gcs_bq import etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow
from flows.ingest_data import ingest_data
from flows.load_zones import load_zones
from flows.tasks.command import run_as_program
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import TripMonth
from local.deployments import PREFECT_FILE
from local.servers.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_ORDER = {"editions.md", "operations.md", "verify.md"}  # tests/test_operations.py runs their commands, page by page


def commands(pages: list[Path] = PAGES) -> list[str]:
    """Return every command of every shell block, with continued lines joined and comments removed."""
    blocks = [b for page in pages for b in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    return sorted({shlex.join(shlex.split(line, comments=True)) for line in lines if not line.startswith("(")})


def beginning(*start: str, pages: list[Path] = PAGES) -> list[str]:
    found = [command for command in commands(pages) if command.startswith(start)]
    assert found
    return found


class Captured:
    """A flow that only records its parameters."""

    def __init__(self, flow: Flow[..., Any]) -> None:
        self.fn, self.parameters = flow.fn, {}

    def __call__(self, **parameters: Any) -> None:
        self.parameters = parameters


def program(command: str) -> tuple[Flow[..., Any], list[str]]:
    """Return the flow that a command runs, and the `sys.argv` of that program."""
    path, *arguments = shlex.split(command.partition(" > ")[0])[1:]
    [name] = re.findall(r"run_as_program\((\w+)", (ROOT / path).read_text("utf-8"))
    return getattr(importlib.import_module(f"flows.{Path(path).stem}"), name), [path, *arguments]


@pytest.mark.parametrize("command", beginning("python flows/"))
def test_a_program_accepts_the_arguments_on_a_page(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, words = program(command)
    captured = Captured(flow)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        run_as_program(captured)  # type: ignore[arg-type]
    assert not ended.value.code
    flow.validate_parameters(captured.parameters)


# Commands that do not run here, each with the reason.
ELSEWHERE = {
    "python flows/etl_web_gcs.py green 2027 1 --schema accept_new_columns": "the month is not published yet",
    "python flows/bring_up_to_date.py": "it loads about fifty months; the command with --at-most 2 runs here",
    "python flows/bring_up_to_date.py --into lake --into warehouse --into database": "the same",
    "python flows/bring_up_to_date.py --into database": "the same",
    "python flows/backfill.py --since 2009-01 --until 2024-05 --colors yellow green fhv fhvhv --into lake warehouse database": (
        "487 months"
    ),
    "python flows/backfill.py --since 2009 --until 2023 --spread queue --machines 4": "the same: test_machines.py has few",
    "python flows/backfill.py --since 2009 --until 2023 --spread dask --dask tcp://10.0.0.5:8786 --machines 16 --at-once 1": (
        "the same"
    ),
    "python flows/backfill.py --since 2009 --until 2023 --spread dask --machines 2 --at-once 1": "the same",
}


@pytest.fixture(scope="module")
def loaded_months(stack: Stack, prefect_api: dict[str, str]) -> None:
    """Prepare what the commands need: blocks, some months in every store, and the zones."""
    register(dict(stack.env), list(BLOCKS))
    etl_parent_flow("green", 2021, [1, 2, 3])
    etl_parent_flow("yellow", 2021, [4, 5])
    ingest_data("green", 2021, [1, 2, 3])
    load_zones(["lake"])


@pytest.mark.operations
@pytest.mark.parametrize(
    "command",
    sorted(
        {*beginning("python flows/", pages=[page for page in PAGES if page.name not in IN_ORDER])} - ELSEWHERE.keys()
    ),
)
def test_a_command_on_a_page_succeeds(command: str, loaded_months: None, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, words = program(command)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        run_as_program(flow)
    assert not ended.value.code


def test_the_commands_that_do_not_run_here_are_on_a_page() -> None:
    assert set(ELSEWHERE) <= set(commands())


def test_every_module_and_target_that_a_page_names_exists() -> None:
    modules = {command.split()[2] for command in beginning("python -m")}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {command.split()[1] for command in beginning("make")} <= targets


def test_every_deployment_on_a_page_exists_and_accepts_its_parameters() -> None:
    paths = [path for path in (ROOT / "deployments").rglob("*.yaml") if path != PREFECT_FILE]
    manifests = [yaml.safe_load(path.read_text("utf-8")) for path in paths]
    known = {f"{manifest['flow_name']}/{manifest['name']}": manifest for manifest in manifests}
    for command in beginning("prefect deployment run"):
        _, _, _, name, *options = shlex.split(command)
        given = [after for word, after in pairwise(options) if word == "-p"]
        parameters = {key: value for key, _, value in (text.partition("=") for text in given)}
        assert parameters.keys() <= known[name]["parameter_openapi_schema"]["properties"].keys(), command
        module, _, flow = known[name]["entrypoint"].rpartition(":" if ":" in known[name]["entrypoint"] else ".")
        takes = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), flow)
        takes.validate_parameters(known[name]["parameters"] | {key: yaml.safe_load(v) for key, v in parameters.items()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\((?!http|mailto)([^)#\s]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_options_that_the_readme_explains_exist() -> None:
    flows = (etl_parent_flow, etl_gcs_bq_parent_flow, ingest_data)
    known = {f"--{name.replace('_', '-')}" for flow in flows for name in flow.parameters.properties}
    explained = re.findall(r"^- `(--[a-z-]+)`", PAGES[0].read_text("utf-8"), re.MULTILINE)
    assert explained
    assert set(explained) <= known


def test_the_row_counts_in_the_readme_match_the_official_files_and_add_up() -> None:
    rows = re.findall(
        r"^\| (\w+) (\d{4}-\d\d)( and \S+)? \| ([\d,]+) \| ([\d,]+) \|$", PAGES[0].read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 5
    counts = {
        (color, month, more): [int(n.replace(",", "")) for n in (mirror, official)]
        for color, month, more, mirror, official in rows
    }
    for (color, month, more), (_, official) in counts.items():
        known = known_file(TripMonth(color, *map(int, month.split("-"))).url(TEMPLATES["official"]))
        assert more or (known and known.rows == official)
    february, march, both = (
        counts["yellow", *rest] for rest in (("2019-02", ""), ("2019-03", ""), ("2019-02", " and 2019-03"))
    )
    assert [a + b for a, b in zip(february, march, strict=True)] == both == [14_851_920, 14_915_990]
