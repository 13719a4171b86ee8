"""Flow programs as processes that a test starts, kills and waits for."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

ROOT = Path(__file__).resolve().parents[2]
_SLOW = 300.0  # seconds after which a program counts as hung


class Run:
    """One program, in its own process."""

    def __init__(self, output: Path, events: Path) -> None:
        self.output, self.events_file = output, events
        self.pid = 0
        self.status: int | None = None
        self.began = time.monotonic()
        self.seconds = 0.0
        self._started, self._ended = threading.Event(), threading.Event()

    def has_started(self, pid: int) -> None:
        self.pid = pid
        self._started.set()

    def has_ended(self, status: int) -> None:
        self.status, self.seconds = status, time.monotonic() - self.began
        self._started.set()
        self._ended.set()

    @property
    def text(self) -> str:
        """Return what it printed so far."""
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""

    @property
    def events(self) -> list[str]:
        """Return the names of its events so far: see hooks.py."""
        return self.events_file.read_text().splitlines() if self.events_file.exists() else []

    def signal(self, number: int) -> None:
        """Send a signal. Do nothing if the program has ended."""
        self._started.wait(_SLOW)
        if not self._ended.is_set():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> Self:
        """End it with SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float = _SLOW) -> Self:
        """Wait for its end. Raise `AssertionError` if it does not end in time."""
        if not self._ended.wait(seconds):
            text = self.text
            self.signal(signal.SIGKILL)
            self._ended.wait(_SLOW)
            raise AssertionError(f"the program still ran after {seconds:.0f} s:\n{text}")
        return self

    @property
    def was_killed(self) -> bool:
        """Return whether it ended by SIGKILL."""
        self.wait()
        return self.status == -signal.SIGKILL

    def succeeded(self, seconds: float = _SLOW) -> Self:
        """Wait for its end. Raise `AssertionError` with its output unless it succeeded."""
        self.wait(seconds)
        assert self.status == 0, f"exit status {self.status}:\n{self.text}"
        return self


class Programs:
    """Starts programs in an environment, from a process that has imported them: see zygote.py."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, dict(env)
        folder.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, Run] = {}
        self._ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with (self.folder / "zygote.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote"], cwd=ROOT, env=self.env, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.wait(_SLOW), (self.folder / "zygote.log").read_text()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(_SLOW)
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            if "started" in answer:
                self._runs[answer["started"]].has_started(answer["pid"])
            elif "ended" in answer:
                self._runs[answer["ended"]].has_ended(answer["status"])
            self._ready.set()
        self._ready.set()

    @property
    def running(self) -> list[Run]:
        """Return the runs that have not ended."""
        return [run for run in self._runs.values() if run.status is None]

    def start(self, name: str, *arguments: object, hooks: Mapping[str, Any] | None = None, **variables: str) -> Run:
        """Start `flows/{name}.py` with arguments, hooks (see hooks.py) and more environment variables."""
        assert self._process
        assert self._process.stdin
        id_ = uuid4().hex
        run = Run(self.folder / f"{id_}.log", self.folder / f"{id_}.events")
        self._runs[id_] = run
        given = dict(hooks or {})
        if "kill_at_event" in given or given.get("events"):
            given["events"] = str(run.events_file)
        order = {
            "id": id_,
            "argv": [f"flows/{name}.py", *map(str, arguments)],
            "env": self.env | variables,
            "output": str(run.output),
            "hooks": given,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        return run
