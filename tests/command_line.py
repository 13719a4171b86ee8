"""Run programs in this process, or several in one other process: each import of Prefect takes eight seconds of CPU time."""

import contextlib
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_ONE_AFTER_ANOTHER = """
import runpy, sys
ends = []
for words in " ".join(sys.argv[1:]).split(" + "):
    sys.argv = words.split()
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    try:
        run(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        ends.append(end.code or 0)
print("ended with", ends)
"""


def prefect(*words: str, code: int = 0) -> str:
    """Return the output of `prefect …` in the project's folder. Raise `AssertionError` unless it exits with `code`."""
    from prefect._internal.compatibility.deprecated import PrefectDeprecationWarning
    from prefect.testing.cli import invoke_and_assert  # imports Prefect's server, which the fast tests do not need

    with contextlib.chdir(ROOT), warnings.catch_warnings():
        # Prefect 2.20 warns that agents and some `deployment` commands are deprecated.
        warnings.simplefilter("ignore", PrefectDeprecationWarning)
        output: str = invoke_and_assert(list(words), expected_code=code, echo=False).output
    return output


def start_programs(env: Mapping[str, str], *commands: str) -> "subprocess.Popen[str]":
    """Run commands one after another in one process. A command is a file or a module's name, with its arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", _ONE_AFTER_ANOTHER, " + ".join(commands)],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def ended(programs: "subprocess.Popen[str]") -> tuple[str, list[int]]:
    """Wait for the programs. Return what they printed, and the exit status of each."""
    out, _ = programs.communicate()
    assert programs.returncode == 0, out
    output, _, ends = out.rpartition("ended with ")
    return output, json.loads(ends)
