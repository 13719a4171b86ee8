"""The programs run after `poetry install --no-root`, which installs the dependencies but not the project."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.operations
ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
# Run every program in one process, which imports Prefect once. Each program starts with the modules and path of a new process.
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
    """Create a Python environment with the project's dependencies but without the project. Return the path of its Python."""
    folder = tmp_path_factory.mktemp("no-root")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    # Python searches a folder that a .pth file names, but ignores the .pth files in it, such as this project's.
    (packages / "all-but-this-project.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return str(folder / "bin" / "python")


def run(*words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_program_runs_as_a_file(without_project: str) -> None:
    output = run(without_project, "-c", ALL, *PROGRAMS)
    assert [line for line in output.splitlines() if "ended with" in line] == [
        f"{name} ended with 0" for name in PROGRAMS
    ]


def test_a_program_runs_as_a_file_from_another_folder_and_as_a_module(without_project: str, tmp_path: Path) -> None:
    assert "Usage: etl_web_gcs.py" in run(
        without_project, str(ROOT / "flows" / "etl_web_gcs.py"), "--help", folder=tmp_path
    )
    assert "Usage: " in run(without_project, "-m", "flows.etl_web_gcs", "--help")
