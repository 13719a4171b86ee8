"""Faults inside a flow's process, installed from outside: the product has no code for them.

An *event* is one call to the outside: bytes sent to or received from a server, an SQL statement, a piece of a COPY, a file that
gets its name. Events are counted, so a process can be killed at any of them. A *step* is a call of a named function.
"""

import datetime as dt
import functools
import importlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def owner_of(path: str) -> tuple[Any, str]:
    """Return the object that has the function `module:Class.name`, and the function's name in it."""
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


def _replace(path: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function by `wrapped(function)`. For a Prefect task, replace the function that it runs."""
    owner, name = owner_of(path)
    real = getattr(owner, name)
    if hasattr(real, "task_key"):
        owner, name, real = real, "fn", real.fn
    static = isinstance(vars(owner).get(name) if isinstance(owner, type) else None, classmethod)
    new = functools.wraps(real)(wrapped(real))
    setattr(owner, name, staticmethod(new) if static else new)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # do nothing more until the signal arrives


class Events:
    """Counts events, notes each in a file, and kills the process at one of them."""

    def __init__(self, file: str, kill_at: int = 0) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kill_at, self._count, self._lock = kill_at, 0, threading.Lock()

    def reach(self, name: str) -> None:
        with self._lock:
            self._count += 1
            os.write(self._file, f"{name}\n".encode())
            if self._count == self._kill_at:
                _die()

    def around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with an event before and one after each call."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.reach(f"before {name}")
            answer = real(*arguments, **named)
            self.reach(f"after {name}")
            return answer

        return call

    def install(self) -> None:
        """Count what this process sends, receives, runs in SQL and renames."""
        import psycopg2.extensions

        for name in ("send", "sendall", "recv", "recv_into"):
            setattr(socket.socket, name, self._on_network(name, getattr(socket.socket, name)))
        cursor = psycopg2.extensions.cursor
        counted = type(
            "Cursor",
            (cursor,),
            {name: self.around(f"SQL {name}", getattr(cursor, name)) for name in ("execute", "copy_expert")},
        )
        connect = psycopg2.connect
        psycopg2.connect = lambda *a, **named: connect(*a, **{"cursor_factory": counted} | named)
        _replace("flows.connectors.postgres:_Stream.read", lambda real: self.around("COPY piece", real))
        os.replace = self.around("rename", os.replace)

    def _on_network(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        counted = self.around(name, real)

        def call(this: socket.socket, *arguments: Any) -> Any:
            # Prefect's event loop wakes itself through a socket of another family.
            return (counted if this.family == socket.AF_INET else real)(this, *arguments)

        return call


def _at_step(step: Mapping[str, Any], act: Callable[[], None]) -> None:
    """Call `act` before or after the step's function is called for the `nth` time."""
    calls: list[int] = []

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            is_it = len(calls) == step.get("nth", 1)
            if is_it and step["when"] == "before":
                act()
            answer = real(*arguments, **named)
            if is_it and step["when"] == "after":
                act()
            return answer

        return call

    _replace(step["name"], wrapped)


def _fail() -> None:
    raise ConnectionError("a failure that a test asked for")


def _wait_for(file: Path) -> None:
    """Show that the step is reached, and wait until the file exists."""
    file.with_suffix(".reached").touch()
    while not file.exists():
        time.sleep(0.02)


def _tomorrow(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Bucket.delete_older` as a run calls it two days later."""

    def call(bucket: Any, prefixes: Any, names: Any, before: dt.datetime) -> None:
        real(bucket, prefixes, names, before + dt.timedelta(days=2))

    return call


def retry_soon(seconds: float) -> None:
    """Make every task retry after this many seconds."""
    from prefect import Task

    for name in ("bring", "stores", "survey", "zones"):
        for task in vars(importlib.import_module(f"flows.tasks.{name}")).values():
            if isinstance(task, Task):
                task.retry_delay_seconds, task.retry_jitter_factor = seconds, None


def install(hooks: Mapping[str, Any]) -> None:
    """Install the hooks that an order names.

    Args:
        hooks: `set`: values of module variables, by `module:name`. `retry_after`: seconds. `events`: file for the names of
            events. `kill_at_event`: number of an event. `kill_at`, `fail_at` and `pause_at`: a step `{"name", "when", "nth"}`;
            `pause_at` also names the `file` to wait for. `tomorrow`: the run sweeps as if it were two days later.
    """
    retry_soon(hooks.get("retry_after", 0.1))
    for path, value in hooks.get("set", {}).items():
        setattr(*owner_of(path), value)
    if hooks.get("tomorrow"):
        _replace("flows.connectors.bucket:Bucket.delete_older", _tomorrow)
    if step := hooks.get("kill_at"):
        _at_step(step, _die)
    if step := hooks.get("fail_at"):
        _at_step(step, _fail)
    if step := hooks.get("pause_at"):
        _at_step(step, functools.partial(_wait_for, Path(step["file"])))
    if file := hooks.get("events"):
        Events(file, hooks.get("kill_at_event", 0)).install()
