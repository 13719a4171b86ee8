"""After `poetry install --no-root` the packages are there and the project is not: its programs run all the same."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.operations
ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
# Every program in one process, which imports Prefect once; each finds the modules and the path as a new process would.
ALL = """
import runpy, sys
path, before = sys.path[1:], set()
for name in sys.argv[1:]:
    sys.path[:] = ["flows", *path]  # as `python flows/x.py` has it
    for module in [m for m in sys.modules if m.partition(".")[0] in ("flows", "blocks")]:
        del sys.modules[module]
    sys.argv = [f"flows/{name}.py", "--help"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        print(name, "ended with", end.code or 0)
"""


@pytest.fixture(scope="module")
def without_project(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has everything this project needs and not the project."""
    folder = tmp_path_factory.mktemp("no-root")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files, the one of this project among them, are not read.
    (packages / "all-but-this-project.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return str(folder / "bin" / "python")


def run(*words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_program_runs_as_a_file(without_project: str) -> None:
    said = run(without_project, "-c", ALL, *PROGRAMS)
    assert [line for line in said.splitlines() if "ended with" in line] == [f"{name} ended with 0" for name in PROGRAMS]


def test_a_program_runs_as_a_file_from_another_folder_and_as_a_module(without_project: str, tmp_path: Path) -> None:
    assert "Usage: etl_web_gcs.py" in run(
        without_project, str(ROOT / "flows" / "etl_web_gcs.py"), "--help", folder=tmp_path
    )
    assert "Usage: " in run(without_project, "-m", "flows.etl_web_gcs", "--help")
