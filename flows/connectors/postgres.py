"""PostgreSQL: connections, transactions, tables, COPY and advisory locks. Column names are in lower case."""

import io
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extras import execute_values
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from flows.tlc.errors import MisconfiguredBlock, Unreachable
from flows.tlc.schema import KINDS, Column

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class in lower case
    from psycopg2.extensions import cursor as Cursor  # noqa: N812
    from sqlalchemy import Engine

_COPY_BUFFER = 1 << 20
_ASK_AGAIN = 1.0  # seconds between two attempts to take a lock, or to reach a server that does not answer
_PATIENCE = 5.0  # seconds to wait for a server that restarts
# psycopg2 gives no SQLSTATE for a failed connection, only a text. These errors are permanent. All others, and those in other
# languages, are treated as temporary.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|permission denied|not permitted to log in"
    r'|(database|role|file) ".*" does not exist|certificate|private key file|definition of service ".*" not found'
)
_FULL = re.compile(r"too many (connections|clients)|connection slots")
_MEND = "correct the SqlAlchemyConnector block (python -m blocks.register takes POSTGRES_URL)"
# The server ends the session of a machine that disappeared, and so releases its locks, after a minute. Its default is two hours.
_KEEPALIVE = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
# The same for the client. It would wait two hours for the answer of a server that disappeared, a quarter of an hour if it was
# sending data, and for ever for a connection to a server that sends nothing. Seconds, but tcp_user_timeout has milliseconds.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_TIMEOUTS = {
    "connect_timeout": 30, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 120_000,
}  # fmt: skip
_LOCK_SPACE = 0x7A21  # separates this project's advisory locks from all others in the database


class _Stream(io.RawIOBase):
    """Pieces of bytes as a file for COPY to read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self.failure: Exception | None = None  # psycopg2 keeps only the text of an error raised in `read`

    def read(self, size: int = _COPY_BUFFER) -> bytes:
        """Return at most `size` bytes; none at the end."""
        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except Exception as error:
                self.failure = error
                raise
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


def run(cursor: "Cursor", statement: str, values: Sequence[object] = (), /, **names: str | sql.Composable) -> None:
    """Run a statement. Each `{name}` in it becomes the identifier, or the piece of SQL, that is given as `name`."""
    cursor.execute(composed(statement, **names), values or None)


def composed(statement: str, **names: str | sql.Composable) -> sql.Composed:
    """Return a statement with its names filled in, as `run` does."""
    pieces = {name: sql.Identifier(given) if isinstance(given, str) else given for name, given in names.items()}
    return sql.SQL(statement).format(**pieces)


def names_of(wanted: Iterable[Column]) -> list[str]:
    """Return the names of columns."""
    return [column.postgres_name for column in wanted]


def listed(names: Iterable[str], each: str = "{name}") -> sql.Composed:
    """Return a comma-separated SQL list, with one item `each` per name."""
    return sql.SQL(", ").join(composed(each, name=name) for name in names)


UPDATED = "{name} = EXCLUDED.{name}"
"""An item of the list that follows ON CONFLICT … DO UPDATE SET."""


def _defined(column: Column) -> sql.Composed:
    """Return a column's definition for CREATE TABLE and ADD COLUMN."""
    return composed("{name} " + KINDS[column.kind].postgres, name=column.postgres_name)


def _reason_of(error: Exception) -> tuple[Exception, str]:
    """Return the driver's error and its text. Errors made of it are not chained: the original text could contain the password."""
    cause: Exception = getattr(error, "orig", error)
    reason = " ".join(str(cause).split())
    if '"~' in reason:
        reason += "; PostgreSQL's library does not expand ~: write the whole path"
    return cause, reason


def _foreign(table: str, why: str) -> MisconfiguredBlock:
    return MisconfiguredBlock(
        f"the database has a table {table!r} that this project did not make ({why}); rename it, or point the block at another"
        " database."
    )


def _with_timeouts(_dialect: object, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
    """Add the timeouts to the parameters of a new connection, except those that the block or its URL sets."""
    for name, seconds in _TIMEOUTS.items():
        parameters.setdefault(name, seconds)


class Postgres:
    """One database."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        event.listen(engine, "do_connect", _with_timeouts)

    @property
    def _where(self) -> str:
        url = self._engine.url
        return f"database {url.database!r} on {url.host or 'this machine'}:{url.port or 5432}"

    def _unreachable(self, error: Exception) -> Unreachable:
        if isinstance(error, Unreachable):
            return error
        return Unreachable(f"{self._where} cannot be reached ({_reason_of(error)[1]}); start it, or {_MEND}.")

    @contextmanager
    def connection(self) -> Iterator["Connection"]:
        """Open a connection for one or several transactions, and close it when the block ends."""
        try:
            pooled = self._engine.raw_connection()
        except (psycopg2.OperationalError, SQLAlchemyError) as error:
            cause, reason = _reason_of(error)
            if not isinstance(cause, psycopg2.OperationalError) or _REFUSED.search(reason):
                raise MisconfiguredBlock(f"{self._where} cannot be used ({reason}); {_MEND}.") from None
            if _FULL.search(reason):
                raise Unreachable(
                    f"{self._where} has no connection left ({reason}); wait until others end, use a smaller at_once, or raise the"
                    " limit."
                ) from None
            raise self._unreachable(error) from None
        connection: Any = pooled.driver_connection
        try:
            connection.set_client_encoding("UTF8")  # for all data sent, even if the database has another encoding
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(_KEEPALIVE)
            connection.autocommit = False
            yield connection
        finally:
            # Never return the connection to the pool: its session may still have locks, or it may be broken.
            pooled.invalidate()

    @contextmanager
    def transaction(self) -> Iterator["Cursor"]:
        """Yield a cursor. Commit when the block ends; roll back on an error."""
        with self.connection() as connection, connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def locked(self, number: int, on_wait: Callable[[], None]) -> Iterator[None]:
        """Take the project's advisory lock `number` during the block. If another run has it, call `on_wait` once and wait."""
        with self.connection() as connection, connection.cursor() as cursor:
            connection.autocommit = True
            for attempt in itertools.count():
                # Polled: a wait inside the server would end if the connection breaks.
                cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LOCK_SPACE, number))
                if value(cursor):
                    break
                if attempt == 0:
                    on_wait()
                time.sleep(_ASK_AGAIN)
            yield

    def lock_tables(self, cursor: "Cursor") -> None:
        """Take the project's advisory lock for creating and altering tables, until the transaction ends.

        IF NOT EXISTS alone is a race: if two first runs create the same table at once, one fails with a unique violation.
        """
        cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK_SPACE,))

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the user can connect and create tables; `Unreachable` if the server is down."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                with self.transaction() as cursor:
                    cursor.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')")
                    may_create = value(cursor)
                break
            except (Unreachable, psycopg2.OperationalError) as error:  # the second: the server ended the session
                if time.monotonic() > until:
                    raise self._unreachable(error) from None
            time.sleep(_ASK_AGAIN)
        if not may_create:
            raise MisconfiguredBlock(
                f"{self._where}: user {self._engine.url.username!r} may not make tables in its schema; GRANT CREATE ON SCHEMA,"
                f" or {_MEND}."
            )

    def ensure_table(
        self, cursor: "Cursor", table: str, wanted: Sequence[Column], key: Sequence[str], partitioned: str = ""
    ) -> None:
        """Create a table if it does not exist, and add the columns that it lacks. Its primary key must be `key`."""
        run(
            cursor, "CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY ({key}))" + partitioned,
            table=table, columns=sql.SQL(", ").join(map(_defined, wanted)), key=listed(key),
        )  # fmt: skip
        cursor.execute(
            "SELECT array_agg(attname::text ORDER BY attname) = %s FROM pg_index JOIN pg_attribute"
            " ON attrelid = indrelid AND attnum = ANY (indkey) WHERE indisprimary AND indrelid = to_regclass(%s)",
            (sorted(key), table),
        )
        if not value(cursor):
            raise _foreign(table, f"its primary key is not {', '.join(key)}")
        cursor.execute("SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0", (table,))
        present = {name for (name,) in cursor.fetchall()}
        for column in wanted:
            if column.postgres_name not in present:
                run(cursor, "ALTER TABLE {table} ADD COLUMN {column}", table=table, column=_defined(column))

    def require_no_table(self, cursor: "Cursor", table: str) -> None:
        """Raise `MisconfiguredBlock` if there is a table of this name."""
        cursor.execute("SELECT to_regclass(%s) IS NULL", (table,))
        if not value(cursor):
            raise _foreign(table, "its name is reserved")

    def require_own(self, cursor: "Cursor", table: str, own: Sequence[str]) -> None:
        """Raise `MisconfiguredBlock` if there is a table of this name that lacks one of the columns `own`."""
        cursor.execute(
            "SELECT to_regclass(%s) IS NULL OR ARRAY(SELECT attname::text FROM pg_attribute"
            " WHERE attrelid = to_regclass(%s) AND attnum > 0) @> %s",
            (table, table, [*own]),
        )
        if not value(cursor):
            raise _foreign(table, f"it lacks {' or '.join(own)}")

    def rows(
        self, cursor: "Cursor", statement: str | sql.Composed, values: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        """Run a query and return each row as a dict by column name."""
        cursor.execute(statement, values)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def copy(self, cursor: "Cursor", statement: sql.Composable, pieces: Iterable[bytes]) -> None:
        """Run COPY … FROM STDIN. Errors that `pieces` raises pass through unchanged."""
        stream = _Stream(pieces)
        try:
            cursor.copy_expert(statement, stream, size=_COPY_BUFFER)
        except psycopg2.Error:
            if stream.failure:
                raise stream.failure from None
            raise

    def replace_table(
        self,
        name: str,
        wanted: Sequence[Column],
        rows: list[tuple[object, ...]],
        comment: Callable[[int, int, int], str],
        is_own: Callable[[str | None], bool],
    ) -> tuple[int, int, int]:
        """Replace the rows of a small table in one transaction. Create the table if it does not exist.

        Only rows that differ are written. If a row differs, set the table's comment; its text depends on the counts.

        Returns:
            The counts of inserted, updated and removed rows.

        Raises:
            MisconfiguredBlock: The table has another primary key, or it has rows and `is_own` refuses its comment.
        """
        key, *others = names_of(wanted)
        upsert = composed(
            "INSERT INTO {table} AS old ({names}) VALUES %s ON CONFLICT ({key}) DO UPDATE SET {updates}"
            " WHERE ({old}) IS DISTINCT FROM ({new}) RETURNING xmax = 0",
            table=name, names=listed([key, *others]), key=key, updates=listed(others, UPDATED),
            old=listed(others, "old.{name}"), new=listed(others, "EXCLUDED.{name}"),
        )  # fmt: skip
        with self.transaction() as cursor:
            self.lock_tables(cursor)  # two runs at once also write one after the other
            self.ensure_table(cursor, name, wanted, [key])
            run(
                cursor, "SELECT obj_description(to_regclass(%s), 'pg_class') FROM {table} LIMIT 1", [name], table=name
            )  # fmt: skip
            if cursor.rowcount and not is_own(value(cursor)):
                raise _foreign(name, "its comment is not this project's")
            written = execute_values(cursor, upsert, rows, page_size=len(rows), fetch=True)
            kept = [row[0] for row in rows]
            run(cursor, "DELETE FROM {table} WHERE NOT {key} = ANY (%s)", [kept], table=name, key=key)
            inserted = sum(is_new for (is_new,) in written)
            changes = inserted, len(written) - inserted, cursor.rowcount
            if any(changes):
                run(cursor, "COMMENT ON TABLE {table} IS {text}", table=name, text=sql.Literal(comment(*changes)))
        return changes


def value(cursor: "Cursor") -> Any:
    """Return the first value of the next row, or None if there is no row."""
    row = cursor.fetchone()
    return row[0] if row else None
