"""Install everything that `poetry.lock` pins into `.venv`: `python3 local/install.py [--python PYTHON]`, as `make install` does.

Any Python from 3.8 on can run this; it needs only the standard library. The project itself needs Python 3.11 or 3.12. This
program looks for one on the PATH, with uv and with pyenv.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = ((3, 11), (3, 12))  # `requires-python` of pyproject.toml, the preferred one first
NEEDED_GB = 4
HOW_TO_GET_ONE = """\
Install one of them, then run `make install`:
  uv python install 3.11            with uv
  pyenv install 3.11                with pyenv
  apt-get install python3.11-venv   on Debian 12; other systems: their package of Python 3.11 or 3.12
If this machine has one elsewhere, name it: make install PYTHON=/path/to/python3.11"""


class InstallError(Exception):
    """The installation failed. The message says why, and what to do."""


def candidates() -> Iterator[str]:
    """Yield names and paths of Pythons that this machine may have, the preferred ones first."""
    for version in WANTED:
        yield "python{}.{}".format(*version)
    yield "python3"
    yield from _output("uv", "python", "find", ">={}.{},<{}.{}".format(*WANTED[0], WANTED[-1][0], WANTED[-1][1] + 1))
    roots = [os.environ.get("PYENV_ROOT"), *_output("pyenv", "root"), os.path.expanduser("~/.pyenv")]  # noqa: PTH111 - no error without a home
    for root in filter(None, roots):
        for version in WANTED:
            yield from sorted(map(str, Path(root).glob("versions/{}.{}*/bin/python".format(*version))))


def suitable_python(names: Iterable[str]) -> str:
    """Return the path of the first Python that is 3.11 or 3.12 and can make environments.

    Raises:
        InstallError: There is none. The message lists the Pythons that were found.
    """
    found: dict[str, str] = {}
    for name in names:
        path = shutil.which(name)
        version, complete = _inquire(path) if path else (None, False)
        if path is None or version is None:
            continue
        if version in WANTED and complete:
            return path
        missing = (
            "" if complete else f" without venv (Debian, Ubuntu: apt-get install python{version[0]}.{version[1]}-venv)"
        )
        found[path] = "Python {}.{}{}".format(*version, missing)
    others = "".join(f"  {path} is {what}\n" for path, what in found.items()) or "  none was found\n"
    raise InstallError(f"Python 3.11 or 3.12 is needed, with the module venv:\n{others}{HOW_TO_GET_ONE}")


def install(python: str) -> None:
    """Create `.venv` with `python` if it does not exist, and install the locked packages and this project into it.

    Raises:
        InstallError: The disk is too full, or venv or pip fails.
    """
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise InstallError(f"{free:.1f} GB free on the disk of this folder, {NEEDED_GB} GB needed: make room first")
    print("installing the locked packages into .venv, hashes checked: one to two minutes, 1 GB", flush=True)
    environment = ROOT / ".venv"
    fresh = not environment.exists()
    made = subprocess.run([python, "-m", "venv", str(environment)], capture_output=True, text=True, check=False)
    if made.returncode:
        last = "\n".join((made.stdout + made.stderr).strip().splitlines()[-3:])
        raise InstallError(
            f"{python} -m venv .venv failed: fix the cause below, remove .venv, and run `make install`\n{last}"
        )
    inside = str(environment / "bin" / "python")
    export = [inside, str(ROOT / "local" / "requirements.py"), "main", "local", "dev"]
    locked = subprocess.run(export, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    # Pendulum 2, which Prefect needs on Python 3.11, has no wheel for it, so this locked backend builds it. By default pip would
    # download the newest backend without checking its hash.
    backend = [line for line in locked if re.match(r"(poetry-core|setuptools)==", line)]
    _finish(_install_locked(inside, backend, "requirements.txt"))
    halves = [environment / "first", environment / "second"]
    for half in halves:
        shutil.rmtree(half, ignore_errors=True)  # an interrupted run leaves them
    if fresh:
        # pip unpacks on one core, which takes longer than the download, so two pips run at the same time, each in a folder of
        # its own. In one folder they would warn of each other's partly unpacked packages ("invalid metadata entry").
        _finish(
            *(
                _install_locked(inside, locked[n::2], f"{half.name}.txt", "--ignore-installed", "--prefix", str(half))
                for n, half in enumerate(halves)
            )
        )
        for half in halves:
            _move(half, environment)
    else:
        _finish(_install_locked(inside, locked, "requirements.txt"))
    _finish(_pip(inside, "--editable", str(ROOT)))


def _install_locked(python: str, lines: list[str], name: str, *options: str) -> subprocess.Popen[str]:
    """Start pip for these lines of the lock, which it reads from a file `name` in the environment."""
    file = Path(python).parent.parent / name
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return _pip(python, "--require-hashes", *options, "-r", str(file))


def _pip(python: str, *arguments: str) -> subprocess.Popen[str]:
    """Start one `pip install`. Its errors go to this program's stderr."""
    always = ["--disable-pip-version-check", "--no-input", "-q", "install", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "PENDULUM_EXTENSIONS": "0"}  # without the C parts, which need a compiler
    return subprocess.Popen([python, "-m", "pip", *always, *arguments], env=environment, text=True)


def _finish(*processes: subprocess.Popen[str]) -> None:
    """Wait until all have ended. Raise `InstallError` if one has failed."""
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise InstallError(
            "the packages could not be installed: fix the cause that pip names above, then run `make install` again."
            " pip has already tried each download several times; what it downloaded is kept."
        )


def _move(folder: Path, target: Path) -> None:
    """Move every file below `folder` to the same place below `target`."""
    for path, _, files in os.walk(str(folder)):
        destination = target / Path(path).relative_to(folder)
        destination.mkdir(parents=True, exist_ok=True)
        for file in files:
            (Path(path) / file).replace(destination / file)
    shutil.rmtree(folder)


def _inquire(path: str) -> tuple[tuple[int, int] | None, bool]:
    """Return a Python's version (None if it does not run), and whether it can make environments."""
    words = _output(
        path, "-c", "import sys; print(*sys.version_info[:2], flush=True); import ensurepip, venv; print('yes')"
    )
    if not words or not re.match(r"\d+ \d+$", words[0]):
        return None, False
    major, minor = map(int, words[0].split())
    return (major, minor), words[1:] == ["yes"]


def _output(*command: str) -> list[str]:
    """Return the lines that a program prints, or none if it does not exist."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except OSError:
        return []
    return done.stdout.splitlines()


def main(arguments: list[str] | None = None) -> int:
    """Install. Return 0, or 1 with an explanation on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", help="the Python with which to make .venv; by default the first suitable one")
    named = parser.parse_args(arguments).python
    try:
        install(suitable_python([os.path.expanduser(named)] if named else candidates()))  # noqa: PTH111
    except (InstallError, OSError, subprocess.CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; `make install` continues", file=sys.stderr)
        return 1
    (ROOT / ".venv" / "installed").touch()
    print("installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
