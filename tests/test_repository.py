"""Continuous integration, hooks, the development container and the package agree with the code."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def read(path: str) -> Any:
    text = (ROOT / path).read_text("utf-8")
    return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)


def test_ci_runs_make_on_every_python_that_the_package_allows() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["test"]
    commands = [step.get("run") for step in job["steps"]]
    assert commands[-1] == ".ci/run"
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    [first], [before] = re.findall(r">=3\.(\d+)", allowed), re.findall(r"<3\.(\d+)", allowed)
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(first), int(before))]


def test_actions_are_pinned_to_released_versions() -> None:
    used = re.findall(r"uses: (\S+)", (ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", action) for action in used)


def test_hooks_and_the_container_use_the_tools_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    [repository] = read(".pre-commit-config.yaml")["repos"]
    linted = "\n".join(line for line in makefile.splitlines() if line.startswith("\t"))
    for hook in repository["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert tool in linted, f"make lint does not run {tool}"
    container = read(".devcontainer/devcontainer.json")
    for command in (container["postCreateCommand"], container["postStartCommand"]):
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("package", ["flows", "blocks"])
def test_a_package_tells_type_checkers_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_guides_for_contributors_name_commands_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in (".github/CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md", "docs/extending.md"):
        for target in re.findall(r"(?:`|\n)make ([a-z-]+)", (ROOT / path).read_text("utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{path}: make {target}"


def test_the_recipes_for_extending_name_files_that_exist() -> None:
    text = (ROOT / "docs/extending.md").read_text("utf-8")
    named = {path for path in re.findall(r"`([a-z_/]+\.py)`", text) if "/" in path}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
