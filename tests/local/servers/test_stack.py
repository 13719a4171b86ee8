"""The stand-ins start, publish their addresses, and work with real clients and ordinary settings."""

from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg2
import pytest
from google.cloud import bigquery, storage

from local.servers.stack import STATE_MARK, Stack, StackError, port_is_free, without_foreign_settings

pytestmark = pytest.mark.usefixtures("own_servers")


def processes_of(state: Path) -> list[str]:
    """Return the names of the running processes that were started for a state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STATE_MARK) == str(state):
                found.append(process.name())
        except psutil.Error:
            continue
    return found


def test_every_address_is_on_the_loopback_interface(stack: Stack) -> None:
    hosts = {urlsplit(value).hostname for value in stack.env.values() if "://" in value}
    assert hosts == {"127.0.0.1"}


def test_only_pages_of_the_ui_may_read_the_api(server: Stack) -> None:
    port = urlsplit(server.env["PREFECT_API_URL"]).port

    def allowed_to(origin: str) -> str | None:
        answer = httpx.get(f"{server.env['PREFECT_API_URL']}/health", headers={"Origin": origin}, trust_env=False)
        found: str | None = answer.headers.get("Access-Control-Allow-Origin")
        return found

    for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert allowed_to(origin) == origin
    assert allowed_to("http://evil.example") is None


def test_the_lake_works_with_googles_client_and_has_the_bucket(stack: Stack) -> None:
    bucket = storage.Client().bucket(stack.env["LAKE_BUCKET"])
    bucket.blob("test_stack/hello.txt").upload_from_string("hello")
    assert bucket.blob("test_stack/hello.txt").download_as_bytes() == b"hello"


def test_the_warehouse_works_with_googles_client(stack: Stack) -> None:
    assert [tuple(row) for row in bigquery.Client().query("SELECT 1 AS one").result()] == [(1,)]


def test_postgres_accepts_only_its_password(stack: Stack) -> None:
    url = stack.env["POSTGRES_URL"]
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database(), rolsuper FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchone() == ("ny_taxi", False)
    connection.close()
    password = urlsplit(url).password
    assert password
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(url.replace(password, "guess"))


def test_the_site_publishes_at_the_given_addresses(stack: Stack) -> None:
    url = stack.env["TLC_MIRROR_URL"].format(color="green", year=2021, month=1)
    assert httpx.head(url, follow_redirects=True, trust_env=False, timeout=60).is_success


def test_only_the_owner_can_read_secrets(stack: Stack) -> None:
    for file in (stack.env["GOOGLE_APPLICATION_CREDENTIALS"], stack.state / "postgres" / "taxi.password"):
        assert Path(file).stat().st_mode & 0o077 == 0


def test_a_restarted_stack_keeps_data_ports_and_password_and_a_stopped_one_leaves_no_process(tmp_path: Path) -> None:
    with Stack(tmp_path, ["lake", "postgres"]) as first:
        before = first.env
        connection = psycopg2.connect(before["POSTGRES_URL"])
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 1 AS one")
        connection.close()
    assert processes_of(tmp_path) == []
    with Stack(tmp_path, ["lake", "postgres"]) as second:
        assert second.env == before
        connection = psycopg2.connect(second.env["POSTGRES_URL"])
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT one FROM kept")
            assert cursor.fetchone() == (1,)
        connection.close()
    assert processes_of(tmp_path) == []


def test_postgres_recovers_from_a_kill(tmp_path: Path) -> None:
    with Stack(tmp_path, ["postgres"]) as first:
        connection = psycopg2.connect(first.env["POSTGRES_URL"])
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 1 AS one")
        first.executors["postgres"].kill()
        connection.close()
    with Stack(tmp_path, ["postgres"]) as second:
        connection = psycopg2.connect(second.env["POSTGRES_URL"])
        with connection.cursor() as cursor:
            cursor.execute("SELECT one FROM kept")
        connection.close()


def test_if_a_service_cannot_start_the_error_names_it_and_the_others_stop(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    with pytest.raises(StackError, match=r"postgres did not start: .* \(more in .*postgres\.log\)"):
        Stack(tmp_path, ["web", "postgres"]).__enter__()
    assert processes_of(tmp_path) == []


def test_an_unknown_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no such service: mysql; there are web, lake"):
        Stack(tmp_path, ["mysql"]).__enter__()


def test_a_chosen_prefect_port_that_is_in_use_is_refused(stack: Stack, tmp_path: Path) -> None:
    busy = urlsplit(stack.env["STORAGE_EMULATOR_HOST"]).port
    assert busy
    assert not port_is_free(busy)
    with pytest.raises(StackError, match=rf"port {busy} \(PREFECT_PORT\) is in use"):
        Stack(tmp_path, ["prefect"], prefect_port=busy).__enter__()


def test_another_server_that_took_the_port_is_not_mistaken_for_the_service(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = urlsplit(stack.env["TLC_OFFICIAL_URL"]).port  # the same service of another stack answers there
    (tmp_path / "ports.json").write_text(f'{{"web": {taken}}}')
    monkeypatch.setattr("local.servers.stack.port_is_free", lambda port: True)
    with pytest.raises(StackError, match=r"web did not start: .*Address already in use"):
        Stack(tmp_path, ["web"]).__enter__()


def test_settings_for_the_users_own_servers_are_removed() -> None:
    theirs = {
        "PREFECT_API_KEY": "k",
        "PGHOST": "db",
        "PGPASSWORD": "p",
        "GOOGLE_APPLICATION_CREDENTIALS": "f",
        "BQEMU_X": "1",
    }
    ours = {"PATH": "/bin", "PAGER": "less", "PREFECTURE": "Tokyo"}
    assert without_foreign_settings(theirs | ours) == ours


def test_postgres_runs_in_a_folder_closed_to_others_and_never_as_root(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Stack(closed / "state", ["postgres"]) as stack:
        process = stack.executors["postgres"].process
        assert process
        assert psutil.Process(process.pid).uids().effective != 0
        psycopg2.connect(stack.env["POSTGRES_URL"]).close()
