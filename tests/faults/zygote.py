"""Start flow programs in forked processes, without the seconds that each needs to import Prefect.

Run as a program: it imports the flows once, reads orders from stdin (one JSON object per line) and forks a process for each.
The process runs `flows/x.py` as `__main__`, with its own arguments, environment and output file, as `python flows/x.py` does.
Answers on stdout: `{"started": id, "pid": pid}` and `{"ended": id, "status": status}`.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_IMPORTED = (
    "flows.bring_up_to_date", "flows.etl_gcs_bq", "flows.etl_web_gcs", "flows.ingest_data",
    "flows.stores.database", "flows.stores.lake", "flows.stores.warehouse", "tests.faults.hooks",
    "aiosqlite", "anyio._backends._asyncio", "asgi_lifespan", "rich._emoji_codes",
)  # fmt: skip


def _run(order: dict[str, Any]) -> int:
    """Run one program in this process, and return its exit status."""
    os.environ.clear()
    os.environ.update(order["env"])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = order["argv"]
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    importlib.import_module("tests.faults.hooks").install(order["hooks"])
    try:
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        status = _run(order)
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does: wait for threads, then run exit functions
        atexit._run_exitfuncs()
    finally:
        os._exit(status)


def main() -> None:
    """Serve orders until stdin is closed."""
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    for name in _IMPORTED:
        importlib.import_module(name)
    # Prefect keeps this app for the next client.
    importlib.import_module("prefect.server.api.server").create_app(ephemeral=True)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    print(json.dumps({"ready": True}), file=answers)
    running: dict[int, str] = {}
    buffer, is_open = b"", True
    while is_open or running:
        if is_open and select.select([0], [], [], 0.02)[0]:
            data = os.read(0, 1 << 20)
            is_open = bool(data)
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = _fork(order)
                running[pid] = order["id"]
                print(json.dumps({"started": order["id"], "pid": pid}), file=answers)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            print(json.dumps({"ended": running.pop(pid), "status": os.waitstatus_to_exitcode(status)}), file=answers)
        if not is_open:
            for pid in running:
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
