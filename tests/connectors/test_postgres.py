"""Errors of an unusable database: a wrong block fails at once, a transient error is retried, and no message has a secret."""

import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import Any, NoReturn
from unittest.mock import MagicMock

import psycopg2
import pyarrow as pa
import pytest
from sqlalchemy import URL, create_engine, make_url

from flows.connectors import postgres
from flows.connectors.postgres import Postgres
from flows.stores.database import Database
from flows.tlc.errors import MisconfiguredBlock, Unreachable, UnreadableFile
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import TripMonth
from local.servers.stack import Stack
from tests.stores import own_database

CANARY = "canary-81150774"


@pytest.fixture(scope="module")
def url(stack: Stack) -> Iterator[URL]:
    """Create users with few rights and a database. Yield the URL of one of them."""
    superuser = stack.executors["postgres"].url("postgres", "postgres_tests")
    with own_database("postgres_tests") as made, closing(psycopg2.connect(superuser)) as admin:
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute(f"CREATE ROLE humble LOGIN PASSWORD '{CANARY}'")
        cursor.execute("REVOKE CONNECT ON DATABASE postgres_tests FROM PUBLIC")
        cursor.execute("GRANT CONNECT ON DATABASE postgres_tests TO humble")
        cursor.execute("CREATE ROLE unwelcome LOGIN PASSWORD 'x'; CREATE ROLE idle NOLOGIN PASSWORD 'x'")
        cursor.execute("CREATE ROLE crowded LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
        cursor.execute("GRANT CONNECT ON DATABASE postgres_tests TO crowded")
        cursor.execute("GRANT CREATE ON SCHEMA public TO humble")
        yield make_url(made).set(drivername="postgresql+psycopg2", username="humble", password=CANARY)
        cursor.execute("REVOKE ALL ON SCHEMA public FROM humble")
        cursor.execute("REVOKE ALL ON DATABASE postgres_tests FROM humble, crowded")
        cursor.execute("DROP ROLE humble, unwelcome, idle, crowded")


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_PATIENCE", 0)


def test_a_usable_database_passes_the_check(url: URL) -> None:
    Postgres(create_engine(url)).check()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"password": f"{CANARY}-not"}, "password authentication failed"),
        ({"password": ""}, "no password supplied"),
        ({"username": "nobody"}, "password authentication failed|does not exist"),
        ({"database": "nowhere"}, "does not exist"),
        ({"username": "unwelcome", "password": "x"}, "permission denied for database"),
        ({"username": "idle", "password": "x"}, "not permitted to log in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_permanent_error_recommends_to_correct_the_block(wrong: dict[str, Any], reason: str, url: URL) -> None:
    engine = create_engine(url.set(**wrong))
    with pytest.raises(MisconfiguredBlock, match=reason) as raised:
        Postgres(engine).check()
    assert "correct the SqlAlchemyConnector block" in str(raised.value)
    assert CANARY not in str(raised.value)


@pytest.mark.parametrize(
    ("passing", "reason", "advice"),
    [
        ({"port": 1}, "Connection refused", "start it, or correct the SqlAlchemyConnector block"),
        (
            {"host": "no-such-host.invalid"},
            "could not translate host name",
            "start it, or correct the SqlAlchemyConnector",
        ),
        (
            {"username": "crowded", "password": "x"},
            "too many connections",
            "wait until others end, use a smaller at_once",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize(
    "use", [Postgres.check, lambda there: there.transaction().__enter__()], ids=["check", "in mid-run"]
)
def test_a_transient_error_can_be_retried_and_has_one_line(
    use: Callable[[Postgres], object], passing: dict[str, Any], reason: str, advice: str, url: URL
) -> None:
    engine = create_engine(url.set(**passing))
    with pytest.raises(Unreachable, match=reason) as raised:
        use(Postgres(engine))
    text = str(raised.value)
    assert advice in text
    assert "\n" not in text
    assert CANARY not in text


class Secure:
    """A server that accepts TLS and then sends nothing. That makes the client look for its certificates."""

    def __enter__(self) -> int:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._agree, daemon=True)
        self._thread.start()
        return int(self._server.getsockname()[1])

    def _agree(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    connection.recv(8)
                    connection.sendall(b"S")

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sslmode": "verify-full", "sslrootcert": "/nowhere/root.crt"}, 'file "/nowhere/root.crt" does not exist'),
        (
            {"sslmode": "verify-ca", "sslrootcert": "~/root.crt"},
            '"~/root.crt" does not exist.* does not expand ~: write the',
        ),
        ({"service": "no-such-service"}, 'definition of service "no-such-service" not found'),
    ],
)
def test_the_error_for_a_missing_file_names_the_block(options: dict[str, str], reason: str, url: URL) -> None:
    with Secure() as port, pytest.raises(MisconfiguredBlock, match=reason) as raised:
        Postgres(create_engine(url.set(host="127.0.0.1", port=port, query=options))).check()
    assert CANARY not in str(raised.value)


def test_a_server_that_does_not_answer_is_retried_for_some_seconds(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(postgres, "_PATIENCE", 3)
    now = iter(range(10))
    monkeypatch.setattr(postgres.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(postgres.time, "sleep", pauses.append)
    with pytest.raises(Unreachable):
        Postgres(create_engine(url.set(port=1))).check()
    assert pauses == [1.0] * 3


def test_the_server_soon_ends_the_session_of_a_machine_that_disappeared(url: URL) -> None:
    with Postgres(create_engine(url)).transaction() as cursor:
        shown = []
        for name in ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"):
            cursor.execute(f"SHOW {name}")
            shown.append(cursor.fetchone())
    assert shown == [("30",), ("10",), ("3",)]


def test_the_client_soon_gives_up_a_server_that_disappeared_unless_the_url_says_otherwise(url: URL) -> None:
    wanted = {name: str(value) for name, value in postgres._TIMEOUTS.items()}
    for options, changed in (({}, {}), ({"keepalives_idle": "7", "connect_timeout": "8"},) * 2):
        with Postgres(create_engine(url.set(query=options))).transaction() as cursor:
            used = cursor.connection.get_dsn_parameters()
        assert {name: used[name] for name in wanted} == wanted | changed


def test_a_server_that_accepts_connections_and_sends_nothing_does_not_hang_a_run(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres._TIMEOUTS, "connect_timeout", 2)  # libpq's smallest
    with socket.create_server(("127.0.0.1", 0)) as silent:
        engine = create_engine(url.set(host="127.0.0.1", port=silent.getsockname()[1]))
        with pytest.raises(Unreachable, match="timeout expired"):
            Postgres(engine).check()


def test_a_session_that_the_server_ends_during_the_check_is_an_outage(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_KEEPALIVE", "SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(Unreachable, match="cannot be reached"):
        Postgres(create_engine(url)).check()


def test_a_cleanup_that_fails_does_not_replace_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: Iterator[Exception | None] = iter((None, UnreadableFile("torn"), Unreachable("the server is down")))

    @contextmanager
    def transaction() -> Iterator[MagicMock]:
        if error := next(outcomes):
            raise error
        yield MagicMock()

    monkeypatch.setattr(Database, "_base", lambda *_: "")
    database = Database.__new__(Database)  # without a server
    database.postgres = MagicMock(transaction=transaction)
    with pytest.raises(UnreadableFile):
        database._copy(TripMonth("green", 2021, 1), iter([]), io.BytesIO(), str)
    assert next(outcomes, None) is None


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace all that `Database._copy` asks of the server. Return the names of the transactions that are open."""
    opened: list[str] = []

    @contextmanager
    def transaction(_self: object) -> Iterator[MagicMock]:
        opened.append("transaction")
        yield MagicMock()
        opened.pop()

    monkeypatch.setattr(Postgres, "transaction", transaction)
    monkeypatch.setattr(Postgres, "require_own", lambda *_: None)
    monkeypatch.setattr(Postgres, "require_no_table", lambda *_: None)
    monkeypatch.setattr(Postgres, "copy", lambda *_: None)
    monkeypatch.setattr(Database, "_lock_staging", lambda *_: None)
    return opened


@pytest.mark.parametrize("base", ["", "a load of the partition"], ids=["new", "re-published"])
def test_no_transaction_is_open_while_the_first_trips_are_awaited_and_the_reader_is_closed(
    base: str, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def trips() -> Iterator[pa.Table]:
        seen.extend(["the first trips", *opened])
        try:
            yield arrow_schema("green").empty_table()
        finally:
            seen.append("closed")

    def no_connection(_self: object) -> NoReturn:
        raise Unreachable("no connection is free")

    monkeypatch.setattr(Database, "_base", lambda *_: base)
    monkeypatch.setattr(Postgres, "connection", no_connection)
    database = Database.__new__(Database)
    database.postgres = Postgres.__new__(Postgres)
    kept = trips()
    with pytest.raises(Unreachable) if base else nullcontext():
        database._copy(TripMonth("green", 2021, 1), kept, io.BytesIO(), str)
    assert seen == ["the first trips", "closed"]
