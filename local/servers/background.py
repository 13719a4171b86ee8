"""Run the stand-ins in the background: `make up`, `make down` and `make status`.

A supervisor process owns the services (`local.servers.stack.Stack`). It locks `supervisor.pid` for its whole life, and the kernel
releases the lock when the process ends. A pid is trusted only while its file is locked, so a crash or a reused pid does no harm.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

from local.servers.stack import (
    CLIENTS,
    SERVICES,
    STATE_MARK,
    WITH_WORKER,
    Stack,
    StackError,
    port_is_free,
    write_env_file,
)

ROOT = Path(__file__).resolve().parents[2]
# The arguments of `prefect`, run in the project's folder. The work pool must exist.
DEPLOY = ("deploy", "--all", "--prefect-file", "deployments/workers/prefect.yaml")
_NEEDED_GB = 2
_STOP_SECONDS = 60


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return 0, or 1 with a line on stderr if it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m local.servers.background", description="The local stand-in services."
    )
    parser.add_argument("--state", type=Path, default=ROOT / ".local", help="folder for all files of the services")
    parser.add_argument(
        "--services", type=lambda words: words.split(","), help="services to start, separated by commas"
    )
    parser.add_argument(
        "--worker", action="store_true", help="start a worker of the pool taxi-pool instead of the agent"
    )
    parser.add_argument("command", choices=["up", "down", "status", "supervise"])
    options = parser.parse_args(arguments)
    state: Path = options.state.resolve()
    services: Sequence[str] = options.services or (WITH_WORKER if options.worker else SERVICES)
    commands: dict[str, Callable[[], int]] = {
        "up": lambda: up(state, services) or (deploy(state) if "worker" in services else 0),
        "down": lambda: down(state),
        "status": lambda: status(state),
        "supervise": lambda: supervise(state, services),
    }
    try:
        return commands[options.command]()
    except (StackError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 1


def up(state: Path, services: Sequence[str] = SERVICES) -> int:
    """Start the services in the background and write their addresses to `env`. Do nothing if they already run."""
    if pid := _supervisor(state):
        if missing := sorted(set(services) - set(_services_of(pid))):
            raise StackError(
                f"the services run without {', '.join(missing)}: stop them with `make down`, then start them again"
            )
        _wait(
            lambda: (state / "env").exists() or not _supervisor(state),
            "the services that another `up` is starting",
            seconds=240,
        )
        if dead := sorted(set(services) - set(_running(state, services))):
            raise StackError(
                f"{', '.join(dead)} ended by itself, see {_relative(state / 'log')}; `make down up` starts all again"
            )
        print(f"already up: `source {_relative(state / 'env')}` to use it, `make down` to stop it")
        return 0
    _prefect_port()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (free := shutil.disk_usage(state).free / 1e9) < _NEEDED_GB:
        raise StackError(f"{free:.1f} GB free on the disk of {state}, {_NEEDED_GB} GB needed: make room there first")
    _clear_leftovers(state)
    started = time.monotonic()
    print(f"starting the local services, 10 to 60 seconds; their logs are in {_relative(state / 'log')}", flush=True)
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "local.servers.background",
            "--state",
            str(state),
            "--services",
            ",".join(services),
            "supervise",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # its messages until all services are ready; after that it writes to its log
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        for line in supervisor.stdout or ():
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise
    if not (state / "env").exists():
        return supervisor.wait() or 1
    print(
        f"ready after {time.monotonic() - started:.0f} s: `source {_relative(state / 'env')}` to use it, `make down` to stop it"
    )
    return 0


def deploy(state: Path) -> int:
    """Deploy all deployments to the work pool, so that the worker gets their runs."""
    print(f"$ {shlex.join(['prefect', *DEPLOY])}", flush=True)
    program = Path(sys.executable).with_name("prefect")
    done = subprocess.run(
        [str(program), *DEPLOY], cwd=ROOT, env=client_environment(state), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise StackError(f"`prefect deploy` failed:\n{done.stdout}{done.stderr}")
    return 0


def client_environment(state: Path) -> dict[str, str]:
    """Return this process's environment plus the addresses in `env` of a state folder whose services run."""
    shell = subprocess.run(
        ["bash", "-c", f"set -a; . {shlex.quote(str(state / 'env'))}; env -0"], check=True, capture_output=True, text=True
    )  # fmt: skip
    return dict(line.split("=", 1) for line in shell.stdout.split("\0") if "=" in line)


def down(state: Path) -> int:
    """Stop all processes of this state folder, and no others."""
    pid = _supervisor(state)
    if pid:
        print("stopping the local services", flush=True)
        os.kill(pid, signal.SIGTERM)
        try:
            _wait(lambda: not _supervisor(state), "the services to stop")
        except StackError:
            os.kill(pid, signal.SIGKILL)
    found = _clear_leftovers(state)
    print("stopped" if pid or found else "nothing to stop")
    return 0


def status(state: Path) -> int:
    """Print each service, its state and its address. Return 0 if all run, otherwise 1."""
    print(f"{'service':<10} {'state':<5} address")
    ports = _ports(state)
    pid = _supervisor(state)
    services = _services_of(pid) if pid else SERVICES
    running = _running(state, services)
    for service in services:
        scheme = "postgresql" if service == "postgres" else "http"
        address = CLIENTS.get(service) or f"{scheme}://127.0.0.1:{ports.get(service)}"
        is_up = service in running
        print(f"{service:<10} {'up' if is_up else 'down':<5} {address if is_up else ''}".rstrip())
    return 0 if len(running) == len(services) else 1


def _ports(state: Path) -> dict[str, int]:
    file = state / "ports.json"
    ports: dict[str, int] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return ports


def _running(state: Path, services: Sequence[str]) -> list[str]:
    """Return those of the services that run under this folder's supervisor."""
    if _supervisor(state) is None:
        return []
    ports = _ports(state)
    words = {
        word for process in _processes(state) for word in process.cmdline()
    }  # such as those of `prefect agent start`
    return [s for s in services if (s in words if s in CLIENTS else s in ports and not port_is_free(ports[s]))]


def supervise(state: Path, services: Sequence[str]) -> int:
    """Run the services until SIGTERM. `up` starts this process; users do not."""
    with (state / "supervisor.pid").open("a+", encoding="ascii") as pid_file:
        try:
            _wait(lambda: _try_lock(pid_file.fileno()), "another `up`", seconds=2)
        except StackError:
            raise StackError("another `up` is starting the services: wait for it, or run `make down`") from None
        pid_file.truncate(0)
        pid_file.write(str(os.getpid()))
        pid_file.flush()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit_once)
        with Stack(
            state,
            services,
            say=lambda service, where: print(f"  {service:<10} {where}", flush=True),
            prefect_port=_prefect_port(),
        ) as stack:
            try:
                write_env_file(stack, state / "env")
                log = os.open(state / "log" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                _watch(stack)
            finally:
                (state / "env").unlink(missing_ok=True)
    return 0


def _exit_once(number: int, frame: object) -> NoReturn:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)  # a second signal must not interrupt the stop
    raise SystemExit(0)


def _watch(stack: Stack) -> NoReturn:
    """Log each service that ends by itself, once."""
    lost: set[str] = set()
    while True:
        time.sleep(1)
        for service, executor in stack.executors.items():
            if service not in lost and not executor.running():
                lost.add(service)
                code = executor.process.returncode if executor.process else None
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                print(
                    f"{now} {service} ended by itself (exit status {code}): see {service}.log; `make down up` restarts",
                    flush=True,
                )


def _prefect_port() -> int | None:
    text = os.environ.get("PREFECT_PORT")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"PREFECT_PORT={text} is not a port: give a number from 1 to 65535")
    if not port_is_free(int(text)):
        raise StackError(f"port {text} (PREFECT_PORT) is in use: stop what listens there, or give another port")
    return int(text)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _supervisor(state: Path) -> int | None:
    """Return the pid of this folder's supervisor, or None if none runs."""
    try:
        with (state / "supervisor.pid").open(encoding="ascii") as file:
            if _try_lock(file.fileno()):
                return None
            return int(file.read() or 0) or None
    except FileNotFoundError:
        return None


def _services_of(pid: int) -> tuple[str, ...]:
    """Return the services that a supervisor was started with."""
    words = psutil.Process(pid).cmdline()
    return tuple(words[words.index("--services") + 1].split(","))


def _wait(until: Callable[[], object], what: str, seconds: float = _STOP_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            raise StackError(f"waited {seconds:.0f} s for {what}, without success")
        time.sleep(0.1)


def _processes(state: Path) -> list[psutil.Process]:
    """Return all processes of this folder's services, even if another supervisor started them."""
    found = []
    for process in psutil.process_iter():
        try:
            try:
                ours = process.environ().get(STATE_MARK) == str(state)
            except psutil.AccessDenied:
                ours = False
            # PostgreSQL under another uid may hide its environment; in a container it does so even from root.
            if ours or str(state / "postgres" / "data") in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or this user may not inspect it
    return found


def _clear_leftovers(state: Path) -> bool:
    """Stop processes that a killed supervisor left, and remove its files. Return whether there was a process."""
    leftovers = _processes(state)
    for process in leftovers:
        _signal(process, signal.SIGINT if "./postgres" in process.cmdline() else signal.SIGTERM)
    for process in psutil.wait_procs(leftovers, timeout=15)[1]:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(leftovers, timeout=5)
    for name in ("env", "supervisor.pid"):
        (state / name).unlink(missing_ok=True)
    return bool(leftovers)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
