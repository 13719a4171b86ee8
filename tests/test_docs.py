"""What the pages tell to type can be typed: programs take these options, modules, targets, deployments and files exist."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow

from flows.etl_gcs_bq import etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow
from flows.ingest_data import ingest_data
from flows.tasks.command import run_as_program

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every command of every shell block, continued lines joined, comments apart."""
    blocks = [b for page in PAGES for b in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    return sorted({shlex.join(shlex.split(line, comments=True)) for line in lines if not line.startswith("(")})


def beginning(*start: str) -> list[str]:
    found = [command for command in commands() if command.startswith(start)]
    assert found
    return found


class Captured:
    """A flow that only notes its parameters."""

    def __init__(self, flow: Flow[..., Any]) -> None:
        self.fn, self.parameters = flow.fn, {}

    def __call__(self, **parameters: Any) -> None:
        self.parameters = parameters


@pytest.mark.parametrize("command", beginning("python flows/"))
def test_a_program_takes_what_a_page_gives_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, *arguments = shlex.split(command.partition(" > ")[0])[1:]
    [name] = re.findall(r"run_as_program\((\w+)", (ROOT / path).read_text("utf-8"))
    flow = getattr(importlib.import_module(f"flows.{Path(path).stem}"), name)
    captured = Captured(flow)
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(SystemExit) as ended:
        run_as_program(captured)  # type: ignore[arg-type]
    assert not ended.value.code
    flow.validate_parameters(captured.parameters)


def test_every_module_and_target_that_a_page_names_exists() -> None:
    modules = {command.split()[2] for command in beginning("python -m")}
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {command.split()[1] for command in beginning("make")} <= targets


def test_every_deployment_that_a_page_names_exists() -> None:
    manifests = [yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "deployments").rglob("*.yaml")]
    known = {f"{manifest['flow_name']}/{manifest['name']}" for manifest in manifests}
    named = {shlex.split(command)[3] for command in beginning("prefect deployment run")}
    assert named <= known


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
