"""`Color` in `flows/tlc/trips.py` is the list of colors. Lists that cannot be derived from it are compared with it here."""

import ast
import re
import subprocess
from pathlib import Path

import flows.query_lake
from flows.stores.database import _LOCKS
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import COLORS
from local.trip_files import layouts

ROOT = Path(__file__).resolve().parent.parent
HAND_WRITTEN = {
    "flows/tlc/trips.py",  # the list itself
    "flows/query_lake.py",  # a docstring, which is a text of the form
    "local/screenshots.py",  # runs in an environment without the product
    "tests/test_docs.py",  # a command of a page
    "local/trip_files/layouts.py",  # does not import the product, because tests compare the two
}


def test_no_other_file_lists_the_colors() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = re.compile(r"\byellow\W+green\W+fhv\W+fhvhv\b")
    assert {name for name in tracked.split() if listed.search((ROOT / name).read_text("utf-8"))} == HAND_WRITTEN


def test_the_generator_of_trip_files_knows_every_color() -> None:
    assert layouts.COLORS == COLORS
    assert {color for color, _ in layouts.FIRST_FILE} == set(COLORS)


def test_every_color_has_a_number_for_its_locks() -> None:
    assert _LOCKS.keys() == set(COLORS)
    assert len(set(_LOCKS.values())) == len(COLORS)


def test_the_form_of_query_lake_names_every_color() -> None:
    assert f"the tables {', '.join(COLORS)} (" in (flows.query_lake.query_lake.__doc__ or "")


def test_the_program_that_takes_screenshots_expects_every_choice_of_the_form() -> None:
    program = ast.parse((ROOT / "local" / "screenshots.py").read_text("utf-8"))
    [choices] = [
        ast.literal_eval(line.value)
        for line in program.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "CHOICES"
    ]
    assert choices == {"yellow": list(COLORS), "official": list(TEMPLATES)}
