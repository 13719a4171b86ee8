"""The flows work as the role that docs/permissions.md makes for them. Neither that role nor the reader can do anything else."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url

from flows.ingest_data import ingest_data
from flows.load_zones import load_zones
from flows.tlc.errors import MisconfiguredBlock
from flows.tlc.trips import TripMonth
from flows.verify import verify
from flows.withdraw import withdraw
from local.servers.stack import Stack
from tests.flows.conftest import Runs, database_of, postgres_block
from tests.stores import Stores, connected, own_database

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "permissions.md").read_text("utf-8")
[ROLES_SQL] = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
LOADER, READER = "trips_loader", "trips_reader"
BLOCK = "least-privilege"


@pytest.fixture(scope="module")
def urls(ours: Stores, stack: Stack) -> Iterator[dict[str, str]]:
    """The URL of a new database for each role: the page's statements made them, run by a superuser."""
    password = (stack.state / "postgres" / "postgres.password").read_text("utf-8").strip()
    admin = make_url(os.environ["POSTGRES_URL"]).set(username="postgres", password=password)
    with own_database("least_privilege"):
        url = admin.set(database="least_privilege").render_as_string(False)
        statements = ROLES_SQL.replace("ny_taxi", "least_privilege")
        with connected(url) as connection:
            connection.cursor().execute(statements)
        passwords = dict(re.findall(r"CREATE ROLE (\w+) LOGIN PASSWORD '([^']+)'", statements))
        yield {
            role: make_url(url).set(username=role, password=passwords[role]).render_as_string(False)
            for role in passwords
        } | {"": url}
        with connected(url) as connection:
            connection.cursor().execute(f"DROP OWNED BY {LOADER}; DROP OWNED BY {READER}")
    with connected(admin.render_as_string(False)) as connection:
        connection.cursor().execute(f"DROP ROLE {LOADER}, {READER}")


@pytest.fixture
def loaded(urls: dict[str, str], runs: Runs, month: TripMonth) -> TripMonth:
    """A month that the loading role brought in."""
    postgres_block(urls[LOADER]).save(BLOCK, overwrite=True)
    assert runs.postgres(month, block_name=BLOCK).status == "loaded"
    return month


def run_as(url: str, statement: str) -> Any:
    """What a statement answers, or raises, and nothing of it stays."""
    connection = psycopg2.connect(url)
    connection.autocommit = not statement.startswith(("INSERT", "UPDATE", "DELETE", "TRUNCATE", "DROP TABLE", "LOCK"))
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None
    finally:
        connection.close()


def test_every_flow_works_as_the_loading_role(
    loaded: TripMonth, urls: dict[str, str], ours: Stores, runs: Runs
) -> None:
    assert runs.postgres(loaded, block_name=BLOCK).status == "unchanged"
    ours.site.republish(f"{loaded.stem}.parquet", edition=2)
    assert runs.postgres(loaded, block_name=BLOCK).status == "replaced"
    zones = {"source": f"{ours.site.url}/misc/taxi_zone_lookup.csv", "postgres_block": BLOCK}
    load_zones(["database"], **zones)
    bound = f"{loaded.file_month:%Y-%m}"
    about = {"colors": [loaded.color], "since": bound, "until": bound}
    assert [found.status for found in verify(stores=["database"], postgres_block=BLOCK, **about)] == ["verified"]
    withdraw(loaded.color, loaded.year, [loaded.month], stores=["database"], postgres_block=BLOCK)
    [(restored)] = ingest_data(loaded.color, loaded.year, [loaded.month], block_name=BLOCK, source=ours.official)
    assert restored.status == "loaded"
    rows = run_as(urls[READER], f"SELECT count(*) FROM {loaded.color} WHERE file_month = '{loaded.file_month}'")
    assert rows == [(restored.manifest.loaded,)]


@pytest.mark.parametrize(
    "statement",
    ["CREATE ROLE other", "CREATE DATABASE other", "CREATE SCHEMA other", "ALTER ROLE trips_loader SUPERUSER",
     "ALTER ROLE postgres PASSWORD 'mine'", "ALTER SYSTEM SET log_statement = 'all'", "CREATE EXTENSION file_fdw",
     "COPY (SELECT 1) TO PROGRAM 'id'", "COPY (SELECT 1) TO '/tmp/owned'", "SELECT pg_read_file('/etc/passwd')",
     "SELECT rolpassword FROM pg_authid", "SET ROLE postgres", "SELECT lo_import('/etc/passwd')", "CREATE TEMP TABLE x (y int)",
     "CREATE EVENT TRIGGER x ON ddl_command_end EXECUTE FUNCTION y()"],
)  # fmt: skip
@pytest.mark.parametrize("role", [LOADER, READER])
def test_neither_role_can_do_what_no_flow_needs(role: str, statement: str, urls: dict[str, str]) -> None:
    with pytest.raises(
        (psycopg2.errors.InsufficientPrivilege, psycopg2.errors.UndefinedFile, psycopg2.errors.FeatureNotSupported)
    ):
        run_as(urls[role], statement)


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO {t} (file_month, row_number) VALUES ('{m}', 0)", "UPDATE {t} SET row_number = 1", "DELETE FROM {t}",
     "TRUNCATE {t}", "DROP TABLE {t}", "ALTER TABLE {t} ADD x int", "CREATE TABLE x (y int)", "DELETE FROM loads",
     "UPDATE loads_history SET loaded = 0", "COPY {t} FROM STDIN", "LOCK {t} IN ACCESS EXCLUSIVE MODE", "CREATE INDEX ON {t} (x)",
     "COMMENT ON TABLE {t} IS 'mine'"],
)  # fmt: skip
def test_the_reader_cannot_change_anything(statement: str, loaded: TripMonth, urls: dict[str, str]) -> None:
    statement = statement.format(t=loaded.color, m=loaded.file_month)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        run_as(urls[READER], statement)


def test_the_loader_is_no_superuser_and_a_flow_as_the_reader_is_told_so(
    loaded: TripMonth, urls: dict[str, str], runs: Runs
) -> None:
    about = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
    assert run_as(urls[""], f"SELECT DISTINCT {about} FROM pg_roles WHERE rolname LIKE 'trips_%'") == [(False,) * 5]
    postgres_block(urls[READER]).save("reader", overwrite=True)
    with pytest.raises(MisconfiguredBlock, match="may not make tables"):
        database_of("reader").check()


def test_anybody_else_cannot_even_connect(urls: dict[str, str]) -> None:
    run_as(urls[""], "CREATE ROLE trips_nobody LOGIN PASSWORD 'x'")
    try:
        nobody = make_url(urls[""]).set(username="trips_nobody", password="x").render_as_string(False)
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            run_as(nobody, "SELECT 1")
    finally:
        run_as(urls[""], "DROP ROLE trips_nobody")
