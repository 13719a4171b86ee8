"""Full disks, a read-only lake, a deleted bucket, revoked credentials and locked tables. Run by `make faults`."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg2
import pytest
from google.cloud import bigquery, storage
from psycopg2 import sql
from sqlalchemy import make_url

from flows.stores.database import Database
from flows.tlc.errors import DiskFull, MisconfiguredBlock, TripDataError
from local.servers.postgres import PostgresExecutor
from local.servers.stack import Stack
from tests.faults import digest
from tests.faults.by_hand import StoreName, bring
from tests.faults.lab import Lab
from tests.faults.proxy import Gate, Rule
from tests.faults.record import tried
from tests.faults.test_network import FLOW, OPERATIONS, survived
from tests.stores import connected
from tests.strict_lake import StrictLake

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
_FROM_NOW_ON = 10**6


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """Mount a disk of `size` bytes, which needs Linux and root."""
    options = f"size={size},mode=700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "faults", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"run this as root on Linux, or leave it out: a disk cannot be mounted ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 65 MB. A run must leave 64 MB of it free."""
    with mounted(tmp_path, 65 << 20):
        yield tmp_path


@pytest.mark.parametrize("into", ["lake", "database"])
@pytest.mark.parametrize("free", [0, 200_000, 64_000_000, 64_700_000])
def test_a_full_scratch_disk_is_reported(free: int, into: StoreName, lab: Lab, small_disk: Path) -> None:
    with survived(lab, into, over=True, part="storage", fault=f"{into}: the scratch disk is full") as run:
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            file.write(b"\0" * max(0, room - free))
        error = run(env={"TRIPS_SCRATCH": str(small_disk)})
        assert isinstance(error, DiskFull), error
        assert {path.name for path in small_disk.iterdir()} == {"ballast"}, "an incomplete file is left"


@pytest.mark.parametrize("into", ["lake", "database"])
def test_a_scratch_disk_that_fills_up_during_a_download_is_reported(
    into: StoreName, lab: Lab, small_disk: Path
) -> None:
    lab.ours.site.fault("/legacy/green_tripdata_2019-06.csv", times=None, missing=["length"])
    try:
        with survived(lab, into, over=True, part="storage", fault=f"{into}: the scratch disk fills up half-way") as run:
            (small_disk / "ballast").write_bytes(b"\0" * 900_000)
            assert isinstance(run(env={"TRIPS_SCRATCH": str(small_disk)}), DiskFull)
            assert {path.name for path in small_disk.iterdir()} == {"ballast"}
            lab.ours.site.heal()
    finally:
        lab.ours.site.heal()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("skip", range(0, 30, 3))
def test_revoked_credentials_for_the_lake_are_reported(skip: int, status: int, lab: Lab) -> None:
    with (
        StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict,
        Gate(strict.url) as gate,
        survived(lab, "lake", over=True, part="storage", fault=f"lake: HTTP {status} from a certain request on") as run,
    ):
        gate.rules = [Rule("status", status=status, skip=skip, times=_FROM_NOW_ON)]
        error = run(env={"STORAGE_EMULATOR_HOST": gate.url})
        assert isinstance(error, MisconfiguredBlock), error
        assert "credentials" in str(error)


@pytest.mark.parametrize("operation", [name for name, (method, _) in OPERATIONS.items() if method != "GET"])
def test_a_read_only_lake_is_reported(operation: str, lab: Lab) -> None:
    method, path = OPERATIONS[operation]
    with (
        StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict,
        Gate(strict.url) as gate,
        survived(lab, "lake", over=True, part="storage", fault="lake: writes are refused (403)") as run,
    ):
        gate.rules = [Rule("status", method, path, status=403, times=_FROM_NOW_ON)]
        error = run(env={"STORAGE_EMULATOR_HOST": gate.url})
        assert isinstance(error, MisconfiguredBlock), error
        assert gate.happened


def keys_of(lake: str, bucket: str) -> list[str]:
    """Return the names of all objects of a bucket."""
    return [
        item["name"] for item in httpx.get(f"{lake}/storage/v1/b/{bucket}/o").raise_for_status().json().get("items", [])
    ]


@pytest.mark.parametrize("skip", [1, 4, 8, 12, 16])
def test_a_deleted_bucket_is_reported(skip: int, lab: Lab) -> None:
    lake = os.environ["STORAGE_EMULATOR_HOST"]  # during the run, the variable has the address of the gate

    def deleted() -> None:
        for key in keys_of(lake, lab.ours.bucket):
            httpx.delete(f"{lake}/storage/v1/b/{lab.ours.bucket}/o/{quote(key, safe='')}").raise_for_status()
        httpx.delete(f"{lake}/storage/v1/b/{lab.ours.bucket}").raise_for_status()

    expected = lab.expected("etl_web_gcs", over=False)
    lab.prepare("etl_web_gcs", over=False)
    with (
        Gate(os.environ["STORAGE_EMULATOR_HOST"]) as gate,
        tried("storage", "lake: the bucket is deleted half-way") as trial,
    ):
        gate.rules = [Rule("status", status=503, skip=skip, then=deleted)]
        error = ""
        try:
            bring(lab, "lake", env={"STORAGE_EMULATOR_HOST": gate.url})
        except Exception as failure:
            error = str(failure)
        finally:
            if not storage.Client().bucket(lab.ours.bucket).exists():
                storage.Client().create_bucket(lab.ours.bucket)
        assert gate.happened
        if error:
            assert re.search("bucket|not in the lake|vanished|404|deleted", error), error
        else:  # the stand-in makes the bucket again for an upload that began before
            assert digest.different(expected, digest.whole(lab.ours)) == []
        with trial.recovering():
            bring(lab, "lake")
        assert digest.different(expected, digest.whole(lab.ours)) == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("skip", range(0, 12, 2))
def test_revoked_credentials_for_bigquery_are_reported(skip: int, status: int, lab: Lab) -> None:
    with (
        Gate(os.environ["BIGQUERY_EMULATOR_HOST"]) as gate,
        survived(
            lab,
            "warehouse",
            over=True,
            part="storage",
            fault=f"BigQuery: HTTP {status} from a certain request on",
            by=gate,
        ) as run,
    ):
        gate.rules = [Rule("status", status=status, skip=skip, times=_FROM_NOW_ON)]
        error = run(env={"BIGQUERY_EMULATOR_HOST": gate.url})
        assert isinstance(error, MisconfiguredBlock) if gate.happened else skip, error


def test_postgres_without_free_connections_is_reported(lab: Lab) -> None:
    url = make_url(lab.ours.postgres_url)
    admin = lab.ours.postgres_url.rpartition("/")[0] + "/postgres"
    with survived(lab, "database", over=True, part="storage", fault="Postgres: no connection is left") as run:
        _limit(admin, str(url.database), 1)
        with connected(lab.ours.postgres_url):
            error = run()
            assert error is not None
            assert "connection" in str(error)
            assert str(url.password) not in str(error)
        _limit(admin, str(url.database), -1)


@pytest.mark.parametrize("step", ["_copy", "_merge", "_write_manifest"])
def test_postgres_credentials_that_are_revoked_half_way_are_reported(
    step: str, lab: Lab, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The role may not log in any more, and its connections are closed, before a step."""
    url = make_url(lab.ours.postgres_url)
    server = stack.executors["postgres"]
    assert isinstance(server, PostgresExecutor)
    with (
        closing(psycopg2.connect(server.url("postgres", "postgres"))) as admin,
        survived(lab, "database", over=True, part="storage", fault="Postgres: the role is revoked half-way") as run,
    ):
        admin.autocommit = True
        role, original = sql.Identifier(str(url.username)), getattr(Database, step)

        def revoked(*arguments: Any) -> Any:
            admin.cursor().execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(role))
            admin.cursor().execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (url.username,)
            )
            return original(*arguments)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(Database, step, revoked)
                error = run()
        finally:
            admin.cursor().execute(sql.SQL("ALTER ROLE {} LOGIN").format(role))
        assert isinstance(error, MisconfiguredBlock), error
        assert "not permitted to log in" in str(error)


def _limit(admin: str, database: str, connections: int) -> None:
    connection = psycopg2.connect(admin)
    connection.autocommit = True
    statement = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT {}").format(
        sql.Identifier(database), sql.Literal(connections)
    )
    connection.cursor().execute(statement)
    connection.close()


@pytest.mark.parametrize("mode", ["ACCESS SHARE", "SHARE", "ACCESS EXCLUSIVE"])
@pytest.mark.parametrize("table", ["green", "loads"])
def test_a_run_waits_for_a_locked_table(table: str, mode: str, lab: Lab) -> None:
    with survived(
        lab, "database", over=True, part="storage", fault=f"Postgres: somebody has a lock on `{table}`"
    ) as run:
        locked = psycopg2.connect(lab.ours.postgres_url)
        locked.cursor().execute(f"LOCK TABLE {table} IN {mode} MODE")
        running = threading.Thread(target=run)
        running.start()
        time.sleep(2)
        locked.rollback()
        locked.close()
        running.join(300)
        assert not running.is_alive()


@pytest.mark.parametrize("into", ["lake", "warehouse", "database"])
def test_a_foreign_object_or_table_is_not_changed(into: StoreName, lab: Lab) -> None:
    lab.prepare(FLOW[into], over=False)
    month = lab.month
    match into:
        case "lake":
            lab.ours.blob(month.key).upload_from_string(b"made by df.to_parquet")
        case "warehouse":
            bigquery.Client().create_dataset(lab.ours.dataset, exists_ok=True)
            bigquery.Client().query_and_wait(f"CREATE TABLE {lab.ours.dataset}.green AS SELECT 1 AS theirs")
        case "database":
            lab.ours.query("CREATE TABLE green (theirs int)")
            lab.ours.query("INSERT INTO green VALUES (1)")

    def stored() -> object:
        match into:
            case "lake":
                return lab.ours.blob(month.key).download_as_bytes()
            case "warehouse":
                return [
                    dict(row) for row in bigquery.Client().query_and_wait(f"SELECT * FROM {lab.ours.dataset}.green")
                ]
            case _:
                return lab.ours.query("SELECT * FROM green")

    before = stored()
    with tried("storage", f"{into}: an object or table of that name is not ours"):
        with pytest.raises(TripDataError, match=r"did not (make|write)|not partitioned"):
            bring(lab, into)
        assert stored() == before


@pytest.fixture
def use_small_disk(
    request: pytest.FixtureRequest, stack: Stack, lab: Lab, tmp_path: Path
) -> Iterator[Callable[[bool], None]]:
    """Return a function that makes the database create its tables on a disk of `request.param` bytes, or no longer."""
    server = stack.executors["postgres"]
    assert isinstance(server, PostgresExecutor)
    lab.expected("ingest_data", over=True)
    admin = psycopg2.connect(server.url("postgres", "postgres"))
    admin.autocommit = True
    database = sql.Identifier(str(make_url(lab.ours.postgres_url).database))

    def use(small: bool) -> None:
        statement = "ALTER DATABASE {} SET default_tablespace = small" if small else "ALTER DATABASE {} RESET ALL"
        admin.cursor().execute(sql.SQL(statement).format(database))

    with mounted(tmp_path, request.param):
        owner = (server.folder / "data").stat()
        os.chown(tmp_path, owner.st_uid, owner.st_gid)
        admin.cursor().execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(tmp_path))))
        admin.cursor().execute("GRANT CREATE ON TABLESPACE small TO PUBLIC")
        try:
            yield use
        finally:
            use(False)
            lab.wipe()
            admin.cursor().execute("DROP TABLESPACE small")
            admin.close()


# Room for no table, for the staging table and few of its rows, for most of its rows.
@pytest.mark.parametrize("use_small_disk", [32 << 10, 256 << 10, 640 << 10], indirect=True)
def test_the_disk_of_postgres_is_full(lab: Lab, use_small_disk: Callable[[bool], None]) -> None:
    with survived(lab, "database", over=True, part="storage", fault="Postgres: its disk is full") as run:
        use_small_disk(True)
        error = run()
        assert "No space left on device" in str(error)
        use_small_disk(False)


def test_the_disk_of_postgres_is_full_at_the_last_statement(lab: Lab) -> None:
    """A full disk makes a statement fail with an error of class 53. Here a trigger on `loads` raises it in the last statement."""
    with survived(
        lab, "database", over=True, part="storage", fault="Postgres: its disk is full at the last statement"
    ) as run:
        lab.ours.query(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END $$"
        )
        lab.ours.query(
            "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON loads FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
        error = run()
        assert "No space left on device" in str(error)
        lab.ours.query("DROP FUNCTION full_disk CASCADE")
