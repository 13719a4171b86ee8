"""Postgres: stage a month with COPY where nobody reads it, then publish it in one transaction.

Names are folded to lower case; a table is `{color}`, partitioned by `file_month`, a partition `{color}_{year}_{month}`.
"""

import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class in lower case
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extras import execute_values
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from flows.tlc.compare import Changes
from flows.tlc.errors import MisconfiguredBlock, NotReconciled
from flows.tlc.manifest import LOADS_COLUMNS, Manifest
from flows.tlc.schema import KEY, KINDS, QUARANTINE_COLUMNS, Column, columns
from flows.tlc.trips import COLORS, TripMonth

_COPY_BUFFER = 1 << 20
_ASK_AGAIN = 1.0  # seconds between two tries for a month that another run holds, or for a server that does not answer
_PATIENCE = 5.0  # seconds that a server gets to start again
# A failed connection has no SQLSTATE in psycopg2, only a text. These stay true; anything else, in another language too, may pass.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|permission denied|not permitted to log in"
    r'|(database|role|file) ".*" does not exist|certificate|private key file|definition of service ".*" not found'
)
# For one transaction: with the server's modest defaults a month's join and index would go by way of the disk.
_ROOM = "SET LOCAL work_mem = '128MB'; SET LOCAL maintenance_work_mem = '256MB'"
_LOCK_SPACE = 0x7A21  # advisory locks of this project, among all others in a database


# Beside the tables of trips, one for all colors each: what was loaded, and what was not.
_LOADS = ("loads", LOADS_COLUMNS, ("color", "file_month"))
_QUARANTINE = ("quarantine", LOADS_COLUMNS[:2] + QUARANTINE_COLUMNS, ("color", "file_month", "row_number"))


class Unreachable(ConnectionError):
    """The database does not answer; it may a little later."""


class _Stream(io.RawIOBase):
    """Pieces of bytes as the file that COPY reads."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = memoryview(b"")
        self.failure: Exception | None = None  # psycopg2 keeps only the text of an error raised in `read`

    def read(self, size: int = _COPY_BUFFER) -> bytes:
        """At most `size` bytes; none at the end."""
        while not self._held:
            try:
                piece = next(self._pieces, None)
            except Exception as error:
                self.failure = error
                raise
            if piece is None:
                return b""
            self._held = memoryview(piece)
        taken, self._held = self._held[:size], self._held[size:]
        return bytes(taken)


def _names(wanted: Iterable[Column]) -> list[sql.Identifier]:
    return [sql.Identifier(column.postgres_name) for column in wanted]


def _defined(wanted: Iterable[Column]) -> sql.Composed:
    """Columns as CREATE TABLE and ADD COLUMN have them."""
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(c.postgres_name), sql.SQL(KINDS[c.kind].postgres)) for c in wanted
    )


def _listed(names: Iterable[sql.Composable], prefix: str = "") -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL(prefix) + name for name in names)


class Postgres:
    """The trips of a database, month by month."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        try:
            connection.set_client_encoding("UTF8")  # what we send is, whatever the database keeps
            yield connection
        finally:
            # Never back to a pool: a session may hold locks, and a broken one must not serve again.
            pooled.invalidate()

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        with self._connection() as connection, connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def claim(self, trip_month: TripMonth, on_wait: Any) -> Iterator[None]:
        """Hold a month for one run: another run of the same month waits here, and `on_wait()` is called if this one must."""
        with self._connection() as connection, connection.cursor() as cursor:
            connection.autocommit = True
            waited = False
            cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", key := (_LOCK_SPACE, _lock_number(trip_month)))
            while not _value(cursor):  # asked again and again: a wait inside the server would end with its connection
                if not waited:
                    on_wait()
                waited = True
                time.sleep(_ASK_AGAIN)
                cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", key)
            yield

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the block's user gets in and may make tables, `Unreachable` if nobody does now."""
        url = self._engine.url
        where = f"database {url.database!r} on {url.host or 'this machine'}:{url.port or 5432}"
        mend = "correct the SqlAlchemyConnector block (python -m blocks.register takes POSTGRES_URL)"
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                with self._transaction() as cursor:
                    cursor.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')")
                    may_create = _value(cursor)
                break
            except (psycopg2.OperationalError, SQLAlchemyError) as error:
                cause = getattr(error, "orig", error)
                reason = " ".join(str(cause).split())
                if '"~' in reason:
                    reason += "; PostgreSQL's library does not expand ~: write the whole path"
                # The chained text could hold the password.
                if not isinstance(cause, psycopg2.OperationalError) or _REFUSED.search(reason):
                    raise MisconfiguredBlock(f"{where} cannot be used ({reason}); {mend}.") from None
                if time.monotonic() > until:
                    raise Unreachable(f"{where} cannot be reached ({reason}); start it, or {mend}.") from None
            time.sleep(_ASK_AGAIN)
        if not may_create:
            raise MisconfiguredBlock(
                f"{where}: user {url.username!r} may not make tables in its schema; GRANT CREATE ON SCHEMA, or {mend}."
            )

    def ensure_tables(self, color: str) -> None:
        """Create the color's table, `loads` and `quarantine` where they are missing, and add columns the schema has gained."""
        trips = (color, columns(color), tuple(column.name for column in KEY))
        with self._transaction() as cursor:
            # IF NOT EXISTS alone is a race: two first runs at once would meet in the catalog's unique index.
            cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK_SPACE,))
            for (table, wanted, key), partitioned in (
                (trips, " PARTITION BY LIST (file_month)"),
                (_LOADS, ""),
                (_QUARANTINE, ""),
            ):
                self._ensure_table(cursor, table, wanted, key, partitioned)
                cursor.execute(
                    "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0", (table,)
                )
                present = {name for (name,) in cursor.fetchall()}
                for column in wanted:
                    if column.postgres_name not in present:
                        cursor.execute(
                            sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(sql.Identifier(table), _defined([column]))
                        )

    def _ensure_table(
        self, cursor: Cursor, table: str, wanted: Iterable[Column], key: Sequence[str], partitioned: str = ""
    ) -> None:
        """Create a table where it is missing; raise unless it has the primary key that this project gives it."""
        cursor.execute(
            sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, PRIMARY KEY ({}))").format(
                sql.Identifier(table), _defined(wanted), _listed(map(sql.Identifier, key))
            )
            + sql.SQL(partitioned)
        )
        cursor.execute(
            "SELECT array_agg(attname::text ORDER BY attname) = %s FROM pg_index JOIN pg_attribute"
            " ON attrelid = indrelid AND attnum = ANY (indkey) WHERE indisprimary AND indrelid = to_regclass(%s)",
            (sorted(key), table),
        )
        if not _value(cursor):
            raise MisconfiguredBlock(
                f"the database has a table {table!r} that this project did not make (its primary key is not"
                f" {', '.join(key)}); rename it, or point the block at another database."
            )

    def manifest(self, trip_month: TripMonth) -> Manifest | None:
        """What the database holds of a month, by one SELECT; None if it never did or the partition is gone."""
        names = [column.name for column in LOADS_COLUMNS]
        with self._transaction() as cursor:
            try:
                cursor.execute(
                    sql.SQL(
                        "SELECT {} FROM loads WHERE color = %s AND file_month = %s AND to_regclass(%s) IS NOT NULL"
                    ).format(_listed(map(sql.Identifier, names))),
                    (trip_month.color, trip_month.file_month, trip_month.postgres_partition),
                )
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn):  # or of an older version
                return None
            row = cursor.fetchone()
        return Manifest.from_row(dict(zip(names, row, strict=True))) if row else None

    def manifests(self) -> dict[TripMonth, Manifest]:
        """What the database holds of every month, by two SELECTs that read no trips."""
        names = [column.name for column in LOADS_COLUMNS]
        with self._transaction() as cursor:
            cursor.execute("SELECT inhrelid::regclass::text FROM pg_inherits")
            partitions = {name for (name,) in cursor.fetchall()}
            try:
                cursor.execute(sql.SQL("SELECT {} FROM loads").format(_listed(map(sql.Identifier, names))))
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn):  # as for `manifest`
                return {}
            manifests = [Manifest.from_row(dict(zip(names, row, strict=True))) for row in cursor.fetchall()]
        return {m.trip_month: m for m in manifests if m.trip_month.postgres_partition in partitions}

    def stage(self, trip_month: TripMonth, pieces: Iterable[bytes], rejects: IO[bytes]) -> str:
        """COPY encoded trips (all columns but `file_month`) into a table of their own, replacing an abandoned one; tell its name.

        The table has no key yet: one index built at the end costs less than one grown row by row. `rejects`, which is read
        when the trips are through, is CSV of `QUARANTINE_SCHEMA`; it goes into a table beside the other.
        """
        staging = f"{trip_month.postgres_partition}_staging"
        fed = _names(c for c in columns(trip_month.color) if c is not KEY[0])
        with self._transaction() as cursor:
            cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(staging)))
            cursor.execute(
                sql.SQL(
                    "CREATE TABLE {staging} (LIKE {table}, CHECK (file_month IS NOT NULL AND file_month = {month}))"
                ).format(
                    staging=sql.Identifier(staging),
                    table=sql.Identifier(trip_month.color),
                    month=sql.Literal(trip_month.file_month),
                )
            )
            cursor.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN file_month SET DEFAULT {}").format(
                    sql.Identifier(staging), sql.Literal(trip_month.file_month)
                )
            )
            # FREEZE: nobody sees the table before this transaction ends, so rows need no second visit by vacuum.
            copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary, FREEZE)").format(
                sql.Identifier(staging), _listed(fed)
            )
            stream = _Stream(pieces)
            try:
                cursor.copy_expert(copy, stream, size=_COPY_BUFFER)
            except psycopg2.Error:
                if stream.failure:
                    raise stream.failure from None
                raise
            self._stage_rejects(cursor, trip_month, _aside(staging), rejects)
        return staging

    def _stage_rejects(self, cursor: Cursor, trip_month: TripMonth, table: str, rejects: IO[bytes]) -> None:
        names = {
            "table": sql.Identifier(table),
            "color": sql.Literal(trip_month.color),
            "month": sql.Literal(trip_month.file_month),
            "fed": _listed(_names(QUARANTINE_COLUMNS)),
        }
        for statement in (
            "DROP TABLE IF EXISTS {table}",
            "CREATE TABLE {table} (LIKE quarantine)",
            "ALTER TABLE {table} ALTER color SET DEFAULT {color}, ALTER file_month SET DEFAULT {month}",
        ):
            cursor.execute(sql.SQL(statement).format(**names))
        rejects.seek(0)
        cursor.copy_expert(sql.SQL("COPY {table} ({fed}) FROM STDIN (FORMAT csv)").format(**names), rejects)

    def publish(self, staging: str, manifest: Manifest) -> Changes:
        """Make a staged month the month, and say so in `loads`, in one transaction; readers see the old one or the new one."""
        trip_month = manifest.trip_month
        partition = trip_month.postgres_partition
        with self._transaction() as cursor:
            cursor.execute(_ROOM)
            cursor.execute(
                "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = to_regclass(%s))",
                (partition, trip_month.color),
            )
            if _value(cursor):
                published = self._merge(cursor, trip_month, staging)
            else:
                self._attach(cursor, trip_month, staging)
                published = Changes(inserted=manifest.loaded)
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(partition)))
            if (count := _value(cursor)) != manifest.loaded:
                raise NotReconciled(
                    f"{trip_month}: {manifest.loaded} rows were staged for Postgres, {count} would be published. Nothing was."
                )
            self._publish_rejects(cursor, manifest, _aside(staging))
            self._write_manifest(cursor, manifest.model_copy(update=asdict(published)))
        return published

    def _publish_rejects(self, cursor: Cursor, manifest: Manifest, staging: str) -> None:
        names = {"staging": sql.Identifier(staging)}
        cursor.execute(
            "DELETE FROM quarantine WHERE color = %s AND file_month = %s", (manifest.color, manifest.file_month)
        )
        cursor.execute(sql.SQL("INSERT INTO quarantine SELECT * FROM {staging}").format(**names))
        if (count := cursor.rowcount) != sum(manifest.quarantined.values()):
            raise NotReconciled(
                f"{manifest.trip_month}: {sum(manifest.quarantined.values())} rows were quarantined, {count} would be kept."
                " Nothing was published; please report this."
            )
        cursor.execute(sql.SQL("DROP TABLE {staging}").format(**names))

    def _attach(self, cursor: Cursor, trip_month: TripMonth, staging: str) -> None:
        """A new month: the staged table becomes its partition; no row is written twice."""
        names = {
            "table": sql.Identifier(trip_month.color),
            "staging": sql.Identifier(staging),
            "partition": sql.Identifier(trip_month.postgres_partition),
            "month": sql.Literal(trip_month.file_month),
        }
        for statement in (
            "ALTER TABLE {staging} RENAME TO {partition}",
            "ALTER TABLE {partition} ADD PRIMARY KEY (file_month, row_number)",
            "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({month})",
        ):
            try:
                cursor.execute(sql.SQL(statement).format(**names))
            except psycopg2.errors.DuplicateTable:
                raise MisconfiguredBlock(
                    f"the database has a table {trip_month.postgres_partition!r} that is no partition of"
                    f" {trip_month.color!r}; rename it, or point the block at another database. Nothing was published."
                ) from None

    def _merge(self, cursor: Cursor, trip_month: TripMonth, staging: str) -> Changes:
        """A month already there: only rows that differ are written, rows that vanished are removed."""
        fed = _names(columns(trip_month.color))
        values = _names(c for c in columns(trip_month.color) if c not in KEY)
        names = {
            "partition": sql.Identifier(trip_month.postgres_partition),
            "staging": sql.Identifier(staging),
            "names": _listed(fed),
            "new_names": _listed(fed, "new."),
            "old_values": _listed(values, "old."),
            "new_values": _listed(values, "new."),
            "updates": sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in values),
        }
        cursor.execute(sql.SQL("ANALYZE {staging}").format(**names))
        cursor.execute(
            sql.SQL(
                "WITH written AS ("
                " INSERT INTO {partition} ({names})"
                " SELECT {new_names} FROM {staging} new LEFT JOIN {partition} old USING (row_number)"
                # Without this test every row would be locked and rewritten; with it, only what changed.
                " WHERE old.row_number IS NULL OR ({old_values}) IS DISTINCT FROM ({new_values})"
                " ON CONFLICT (file_month, row_number) DO UPDATE SET {updates}"
                " RETURNING (xmax = 0) AS is_new)"
                " SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM written"
            ).format(**names)
        )
        inserted, updated = cursor.fetchone() or (0, 0)
        cursor.execute(
            sql.SQL(
                "DELETE FROM {partition} old WHERE NOT EXISTS"
                " (SELECT FROM {staging} new WHERE new.row_number = old.row_number)"
            ).format(**names)
        )
        removed = cursor.rowcount
        cursor.execute(sql.SQL("DROP TABLE {staging}").format(**names))
        return Changes(inserted, updated, removed)

    def write_manifest(self, manifest: Manifest) -> None:
        """Say in `loads` what the database holds of a month whose rows are as they were."""
        with self._transaction() as cursor:
            self._write_manifest(cursor, manifest)

    def _write_manifest(self, cursor: Cursor, manifest: Manifest) -> None:
        row = manifest.row()
        names = list(map(sql.Identifier, row))
        cursor.execute(
            sql.SQL("INSERT INTO loads ({}) VALUES ({}) ON CONFLICT (color, file_month) DO UPDATE SET {}").format(
                _listed(names),
                sql.SQL(", ").join(sql.Placeholder() * len(row)),
                sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in names),
            ),
            list(row.values()),
        )

    def replace_table(
        self, name: str, wanted: Sequence[Column], rows: Iterable[Sequence[object]], comment: Callable[[Changes], str]
    ) -> Changes:
        """Make a small table hold these rows (values of `wanted`, whose first is the key), in one transaction.

        Only what differs is written; then `comment` of it too. The table is made where it is missing.
        """
        held = list(rows)
        table, names = sql.Identifier(name), _names(wanted)
        key = names[0]
        with self._transaction() as cursor:
            # The lock also lets two runs at once write one after the other.
            cursor.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_LOCK_SPACE,))
            self._ensure_table(cursor, name, wanted, [wanted[0].postgres_name])
            written = execute_values(
                cursor,
                sql.SQL(
                    "INSERT INTO {} AS old ({}) VALUES %s ON CONFLICT ({}) DO UPDATE SET {}"
                    " WHERE ({}) IS DISTINCT FROM ({}) RETURNING xmax = 0"
                ).format(
                    table,
                    _listed(names),
                    key,
                    sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(n) for n in names[1:]),
                    _listed(names[1:], "old."),
                    _listed(names[1:], "EXCLUDED."),
                ),
                held,
                page_size=len(held),
                fetch=True,
            )
            cursor.execute(
                sql.SQL("DELETE FROM {} WHERE NOT {} = ANY (%s)").format(table, key), ([row[0] for row in held],)
            )
            inserted = sum(is_new for (is_new,) in written)
            changes = Changes(inserted, len(written) - inserted, cursor.rowcount)
            if changes != Changes():
                cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(comment(changes))))
        return changes


def _aside(staging: str) -> str:
    """The table beside a staging table, for the rows that did not fit."""
    return f"{staging}_quarantine"


def _lock_number(trip_month: TripMonth) -> int:
    """The month's number among this project's advisory locks; 0 is the lock on the tables themselves."""
    colors: tuple[str, ...] = COLORS
    return 1 + colors.index(trip_month.color) + len(colors) * (12 * trip_month.year + trip_month.month)


def _value(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    return row[0] if row else None
