"""The structure of the code: imports go down only, module names are specific, and `flows/` contains only flows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import flows
from flows.stores import STORES
from flows.stores.verify import CHECKS
from flows.stores.zones import PUBLISH_ZONES
from flows.tlc.trips import Store

ROOT = Path(__file__).resolve().parent.parent


def test_imports_go_down_only():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_flows_are_directly_in_the_folder_flows():
    assert sorted(p.name for p in (ROOT / "flows").glob("*.py")) == [
        "__init__.py",
        "backfill.py",
        "bring_up_to_date.py",
        "catalog.py",
        "etl_gcs_bq.py",
        "etl_web_gcs.py",
        "ingest_data.py",
        "load_zones.py",
        "prune_editions.py",
        "query_lake.py",
        "replay_quarantine.py",
        "verify.py",
        "withdraw.py",
    ]


def test_the_map_in_flows_names_every_module():
    named = set()
    for path in re.findall(r"`([\w/{},]+\.py)`", flows.__doc__ or ""):
        before, words, after = re.fullmatch(r"(.*?)(?:\{(.*)\})?([^{}]*)", path).groups()
        named |= {f"{before}{word}{after}" for word in (words or "").split(",")}
    modules = {str(path.relative_to(ROOT / "flows")) for path in (ROOT / "flows").rglob("*.py")}
    empty = {
        path
        for path in modules
        if path.endswith("__init__.py") and "class" not in (ROOT / "flows" / path).read_text("utf-8")
    }
    assert named == modules - empty - {"__init__.py"}


def test_every_store_can_publish_the_zones():
    assert set(PUBLISH_ZONES) == set(STORES) == set(get_args(Store))


def test_every_store_has_a_verification():
    assert set(CHECKS) == set(STORES)


def test_every_task_is_submitted_by_the_function_that_notices_a_crash_of_prefect():
    others = {
        "policy.py",
        "months.py",
        "pipeline.py",
        "machines.py",
    }  # that function, two pools of threads, and Dask's client
    found = [p.name for p in (ROOT / "flows").rglob("*.py") if ".submit(" in p.read_text(encoding="utf-8")]
    assert set(found) == others


def test_no_module_has_a_generic_name():
    names = {path.stem for package in ("flows", "blocks", "local", "bench") for path in (ROOT / package).rglob("*.py")}
    assert not names & {"utils", "helpers", "common", "misc"}


def test_every_dependency_is_imported():
    text = "\n".join(
        p.read_text(encoding="utf-8") for package in ("flows", "blocks") for p in (ROOT / package).rglob("*.py")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for dependency in project["dependencies"]:
        name = re.match(r"[\w-]+", dependency)[0].removesuffix("-binary")
        module = name.replace("google-", "google.", 1).replace("cloud-", "cloud.").replace("-", "_")
        package, _, last = module.rpartition(".")
        as_member = rf"|from {re.escape(package)} import {last}" if package else ""
        plain = name.replace("-", "_")
        assert re.search(rf"^\s*((import|from) ({re.escape(module)}|{plain})\b{as_member})", text, re.MULTILINE), name


def test_no_file_contains_a_path_of_a_developers_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    machine_path = re.compile(r"(^|[^A-Za-z0-9_.])/(" + "|".join(("work", "farm", "root")) + r")/[A-Za-z]")
    for name in filter(None, tracked.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".example", ""} and path.is_file():
            assert not machine_path.search(path.read_text(encoding="utf-8", errors="ignore")), name
