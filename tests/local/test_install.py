"""`make install` finds a suitable Python, reports what is missing, and installs the packages into `.venv`."""

import ast
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from local import install

PROGRAM = Path(install.__file__)
# Stand-in for Python: it prints its version, makes environments with a copy of itself, and its pip logs the arguments.
STUB = """#!/bin/sh
case "$*" in
  *version_info*) printf '%s' '{answer}' ;;
  "-m venv "*) PATH=/usr/bin:/bin; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *requirements.py*) printf '%s\\n' poetry-core==2 aaa==1 bbb==2 ccc==3 ;;
  "-m pip "*)
    echo "$PENDULUM_EXTENSIONS $*" >>"{log}"
    case "$*" in
      *first*) folder=../first/lib/site/google name=a ;;
      *second*) folder=../second/lib/site/google name=b ;;
      *) exit 0 ;;
    esac
    PATH=/usr/bin:/bin; mkdir -p "${{0%/*}}/$folder"; echo x >"${{0%/*}}/$folder/$name"
    {pip} ;;
esac
"""


def python(at: Path, version: str, venv: bool = True, pip: str = "exit 0") -> Path:
    """Write a stand-in for Python with a version, such as `3 11`."""
    at.parent.mkdir(parents=True, exist_ok=True)
    answer = f"{version}\n" + ("yes\n" if venv else "")
    at.write_text(STUB.format(answer=answer, log=at.parent / "pip.log", pip=pip))
    at.chmod(0o755)
    return at


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty folder as the only one on the PATH, and an empty home."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    return folder


def found() -> str:
    return install.suitable_python(install.candidates())


def test_a_suitable_python_on_the_path_is_used(programs: Path) -> None:
    python(programs / "python3", "3 13")
    assert python(programs / "python3.12", "3 12") == Path(found())
    assert python(programs / "python3.11", "3 11") == Path(found())


def test_a_python_of_uv_is_used_if_none_is_on_the_path(programs: Path, tmp_path: Path) -> None:
    python(programs / "python3", "3 13")
    of_uv = python(tmp_path / "uv's" / "python3.12", "3 12")
    uv = programs / "uv"
    uv.write_text(f"""#!/bin/sh\n[ "$*" = "python find >=3.11,<3.13" ] && echo "{of_uv}"\n""")
    uv.chmod(0o755)
    assert Path(found()) == of_uv


@pytest.mark.parametrize("root_from", ["the home", "PYENV_ROOT", "pyenv"])
def test_a_python_of_pyenv_is_used_if_none_is_on_the_path(
    root_from: str, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python(programs / "python3", "3 10")
    root = tmp_path / "home" / ".pyenv" if root_from == "the home" else tmp_path / "elsewhere"
    if root_from == "PYENV_ROOT":
        monkeypatch.setenv("PYENV_ROOT", str(root))
    if root_from == "pyenv":
        (programs / "pyenv").write_text(f'#!/bin/sh\necho "{root}"\n')
        (programs / "pyenv").chmod(0o755)
    python(root / "versions" / "3.10.13" / "bin" / "python", "3 10")
    of_pyenv = python(root / "versions" / "3.12.1" / "bin" / "python", "3 12")
    assert Path(found()) == of_pyenv


def test_a_python_that_cannot_make_environments_is_not_used(programs: Path) -> None:
    python(programs / "python3.11", "3 11", venv=False)
    complete = python(programs / "python3.12", "3 12")
    assert Path(found()) == complete


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # `make test` sets variables that would change the behaviour of this `make`.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run([*arguments], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_the_error_without_a_suitable_python_lists_those_found_and_gives_advice(programs: Path) -> None:
    python(programs / "python3", "3 13")
    python(programs / "python3.11", "3 11", venv=False)
    done = run(PROGRAM.parent, sys.executable, str(PROGRAM))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Python 3.11 or 3.12 is needed, with the module venv:\n")
    assert f"{programs}/python3 is Python 3.13\n" in done.stderr
    assert "apt-get install python3.11-venv)" in done.stderr
    assert "uv python install 3.11" in done.stderr
    assert "make install PYTHON=/path/to/python3.11" in done.stderr


def test_only_a_named_python_is_considered(programs: Path, tmp_path: Path) -> None:
    python(programs / "python3.11", "3 11")
    other = python(tmp_path / "python3.13", "3 13")
    done = run(PROGRAM.parent, sys.executable, str(PROGRAM), "--python", str(other))
    assert done.returncode == 1
    assert f"{other} is Python 3.13" in done.stderr


@pytest.mark.parametrize("known", ["no Python", "a wrong Python", "one by name"])
def test_make_install_works_or_prints_the_error(known: str, programs: Path, tmp_path: Path) -> None:
    make = shutil.which("make", path=os.defpath)
    assert make
    project = tmp_path / "project"
    for name in ("Makefile", "poetry.lock", "pyproject.toml", "local/install.py", "local/requirements.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(install.ROOT / name, project / name)
    words = [make, "install"]
    if known != "no Python":
        (programs / "python3").symlink_to(sys.executable)  # a suitable Python, in an environment
        words.append(f"PYTHON={python(tmp_path / 'mine', '3 10' if known == 'a wrong Python' else '3 11')}")
    done = run(project, *words)
    if known == "one by name":
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "installed"), done.stderr
        assert run(project, *words).stdout == f"{Path(make).name}: Nothing to be done for 'install'.\n"
    else:
        assert done.returncode == 2
        assert {"no Python": "Error: no Python found: ", "a wrong Python": "mine is Python 3.10"}[known] in done.stderr
        assert not (project / ".venv").exists()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(install, "ROOT", folder)
    return folder


def test_a_full_disk_is_reported_before_anything_is_created(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1_500_000_000))
    with pytest.raises(install.InstallError, match=r"1\.5 GB free on the disk of this folder, 4 GB needed"):
        install.install("python3.11")
    assert list(project.iterdir()) == []


def test_two_pips_fill_a_new_environment_and_one_updates_an_existing_one(project: Path, tmp_path: Path) -> None:
    stub = python(tmp_path / "python3.11", "3 11")
    environment = project / ".venv"
    install.install(str(stub))
    assert sorted(p.name for p in (environment / "lib" / "site" / "google").iterdir()) == ["a", "b"]
    assert not (environment / "first").exists()
    assert not (environment / "second").exists()
    calls = (tmp_path / "pip.log").read_text().splitlines()
    assert len(calls) == 4  # the backend, two halves, this project
    assert all(call.startswith("0 -m pip ") and "--no-deps" in call for call in calls)
    assert [("--require-hashes" in call) for call in calls] == [True, True, True, False]
    # A pip that finds another pip's partly unpacked packages prints warnings, so no two may share a folder.
    assert [call.partition("--prefix ")[2].split(" ")[0] for call in sorted(calls[1:3])] == [
        str(environment / name) for name in ("first", "second")
    ]
    halves = [set((environment / name).read_text().split()) for name in ("first.txt", "second.txt")]
    assert halves[0] | halves[1] == {"poetry-core==2", "aaa==1", "bbb==2", "ccc==3"}
    assert not halves[0] & halves[1]

    (tmp_path / "pip.log").unlink()
    install.install(str(stub))
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 3


def test_a_failure_of_pip_is_reported(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = python(tmp_path / "python3.11", "3 11", pip="echo 'no route to the index' >&2; exit 1")
    assert install.main(["--python", str(stub)]) == 1
    error = capfd.readouterr().err
    assert "no route to the index" in error
    assert error.splitlines()[-1].startswith("Error: the packages could not be installed: fix the cause")
    assert not (project / ".venv" / "installed").exists()


def test_a_failure_of_venv_is_reported(project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stub = python(tmp_path / "python3.11", "3 11")
    stub.write_text(stub.read_text().replace('PATH=/usr/bin:/bin; mkdir -p "$3/bin"', "echo 'read-only disk'; exit 1"))
    assert install.main(["--python", str(stub)]) == 1
    error = capfd.readouterr().err
    assert f"Error: {stub} -m venv .venv failed" in error
    assert "read-only disk" in error


def test_python_3_8_can_parse_the_installer() -> None:
    ast.parse(PROGRAM.read_text("utf-8"), feature_version=(3, 8))
