"""Start the real servers for the tests once, and isolate the tests from the user's own settings and accounts.

Flows that a test calls use Prefect's in-process API with a database of this session. A Prefect server runs only for tests that
request `server`, and an agent only for tests that request `orchestrator`. All files, even those in pytest's `tmp_path`, are in
one folder, which is deleted at the end of the session.
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

# Set the environment when pytest imports this file, before any other conftest or test. Prefect reads its settings at import, and
# Python chooses its temporary folder only once.
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
os.environ["TRIPS_ALLOW_SOURCES"] = "file,private"  # the tests' own sites and files
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
    """Run the long files first, so that two parallel workers finish at about the same time."""
    ranks: dict[Path, int] = {}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        rank = next((n for n, name in enumerate(_SLOW) if name in fixtures), len(_SLOW))
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Run the web site, lake, warehouse and Postgres. Set their addresses in `os.environ` until the session ends."""
    with socket.socket() as probe:  # not port 4200, which the user's own Prefect server may need
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    services = ("web", "lake", "warehouse", "postgres")
    with Stack(_session_folder / "stack", services, prefect_port=port) as running:
        home = os.environ["PREFECT_HOME"]  # keep the session's: the Prefect server has its own database
        os.environ.update(running.env | {"PREFECT_HOME": home})
        yield running


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Make Prefect's in-process API start fast, because Prefect waits at most 30 seconds for it.

    Yield the same settings as environment variables for programs.
    """
    from prefect.server.database.dependencies import provide_database_interface
    from prefect.settings import PREFECT_API_DATABASE_MIGRATE_ON_START, PREFECT_API_SSL_CERT_FILE, temporary_settings

    asyncio.run(provide_database_interface().create_db())
    # Each client of the API reads 140 certificates, and each start looks for migrations. Together they take half of a small run.
    end = "-----END CERTIFICATE-----\n"
    certificate = tmp_path_factory.mktemp("certificates") / "one.pem"
    certificate.write_text(Path(certifi.where()).read_text("utf-8").partition(end)[0] + end, "utf-8")
    quick = {PREFECT_API_SSL_CERT_FILE: str(certificate), PREFECT_API_DATABASE_MIGRATE_ON_START: False}
    with temporary_settings(quick):
        yield {setting.name: str(value) for setting, value in quick.items()}


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Stack]:
    """Add a Prefect server to `stack`. Run programs against it with `env=server.environment()`.

    The server stops after each module, because an idle server and agent use a tenth of a core.
    """
    stack.start("prefect")
    yield stack
    stack.stop("prefect")


@pytest.fixture(scope="module")
def orchestrator(server: Stack) -> Iterator[Stack]:
    """Add an agent to `server`. Its runs may read only the sources that the product allows by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRIPS_ALLOW_SOURCES")
        server.start("agent")
    yield server
    server.stop("agent")
