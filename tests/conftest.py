"""The real servers that tests run against, started once, and an environment in which nothing reaches the user's own.

Flows called in a test use Prefect's in-process API on a database of the session; a Prefect server and an agent run only for
tests that ask for `server` or `orchestrator`. Everything, pytest's own `tmp_path` included, lies in one folder that goes with
the session.
"""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from local.servers.stack import Stack, without_foreign_settings
from tests.fast import SERVER_FIXTURES

# On import, which comes before that of any other conftest or test: Prefect reads its settings when it is imported, and Python
# picks its temporary folder once.
_session_folder = Path(tempfile.mkdtemp(prefix="nyc-taxi-tests-"))
for _name in os.environ.keys() - without_foreign_settings(dict(os.environ)).keys():
    del os.environ[_name]
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs that tests start use bytecode caches
os.environ["TMPDIR"] = str(_session_folder)
os.environ["HOME"] = str(_session_folder / "home")  # no ~/.prefect, no gcloud, no ~/.pgpass
(_session_folder / "home").mkdir()
tempfile.tempdir = None
os.environ["PREFECT_HOME"] = str(_session_folder / "prefect")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["TRIPS_ALLOW_SOURCES"] = "file,private"  # sites and files of the tests' own
os.environ["TRIPS_SCRATCH"] = str(_session_folder / "scratch")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_session_folder, ignore_errors=True)


_running: list[pytest.Item] = []


def pytest_itemcollected(item: pytest.Item) -> None:
    if SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
        item.add_marker("fast")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


def _forbid_servers_in_fast_tests(event: str, arguments: tuple[object, ...]) -> None:
    """Raise `RuntimeError` when a fast test binds a port: it would be a server that no fixture announces."""
    if event == "socket.bind" and _running and _running[-1].get_closest_marker("fast"):
        raise RuntimeError(f"{_running[-1].nodeid} starts a server: request a server fixture, or `own_servers`")


sys.addaudithook(_forbid_servers_in_fast_tests)


@pytest.fixture
def own_servers() -> None:
    """Announce that the test starts a server itself."""


_SLOW = ("orchestrator", "server", "start", "ours", "stack")  # fixtures, the slowest first


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first, so that two workers, to which files are dealt, end at about the same time."""
    ranks: dict[Path, int] = {}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        rank = next((n for n, name in enumerate(_SLOW) if name in fixtures), len(_SLOW))
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Web site, lake, warehouse and Postgres; their addresses are in `os.environ` for as long as the session."""
    with socket.socket() as probe:  # 4200 is for people, whose server may be starting there just now
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    services = ("web", "lake", "warehouse", "postgres")
    with Stack(_session_folder / "stack", services, prefect_port=port) as running:
        home = os.environ["PREFECT_HOME"]  # stays the session's own: the server of `orchestrator` has another database
        os.environ.update(running.env | {"PREFECT_HOME": home})
        yield running


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Prefect's in-process API, quick to start: it may take 30 seconds and no more, and a busy machine makes the most of them.

    What it gives are the same settings as environment variables, for programs.
    """
    from prefect.server.database.dependencies import provide_database_interface
    from prefect.settings import PREFECT_API_DATABASE_MIGRATE_ON_START, PREFECT_API_SSL_CERT_FILE, temporary_settings

    asyncio.run(provide_database_interface().create_db())
    # Half of a small run: 140 certificates read, and migrations looked for, whenever something talks to the API.
    end = "-----END CERTIFICATE-----\n"
    certificate = tmp_path_factory.mktemp("certificates") / "one.pem"
    certificate.write_text(Path(certifi.where()).read_text("utf-8").partition(end)[0] + end, "utf-8")
    quick = {PREFECT_API_SSL_CERT_FILE: str(certificate), PREFECT_API_DATABASE_MIGRATE_ON_START: False}
    with temporary_settings(quick):
        yield {setting.name: str(value) for setting, value in quick.items()}


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Stack]:
    """The same, with a Prefect server; run programs against it with `env=server.environment()`.

    Not for longer than a module wants it: at rest it, and the agent, take a tenth of a core.
    """
    stack.start("prefect")
    yield stack
    stack.stop("prefect")


@pytest.fixture(scope="module")
def orchestrator(server: Stack) -> Iterator[Stack]:
    """The same, with an agent as well, whose runs read what an operator allows by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRIPS_ALLOW_SOURCES")
        server.start("agent")
    yield server
    server.stop("agent")
