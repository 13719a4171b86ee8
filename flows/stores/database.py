"""The database: PostgreSQL tables, one per color, partitioned by `file_month`; a month is published in one transaction.

A month is staged by COPY into its own staging table. If the month is new, that table is attached as a partition. If the
partition exists already, only rows that differ are written to it.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

import psycopg2
import pyarrow as pa
from psycopg2 import sql
from sqlalchemy import Engine, NullPool
from sqlalchemy.exc import SQLAlchemyError

from flows.connectors import scratch
from flows.connectors.copy_format import encode, write_rejects
from flows.connectors.growing_file import GrowingFile
from flows.connectors.known_months import last_known_rows
from flows.connectors.postgres import UPDATED, Postgres, composed, listed, names_of, run, value
from flows.connectors.web import Download
from flows.stores.kept_file import KeptFile
from flows.tlc.attention import warnings_of
from flows.tlc.catalog import Also, ListedMonth
from flows.tlc.errors import MisconfiguredBlock, NotReconciled, TripDataError, Unreachable, Vanished
from flows.tlc.manifest import (
    LOADS_COLUMNS,
    Changes,
    Manifest,
    Outcome,
    Present,
    RawFile,
    StagedMonth,
    Status,
    timeline,
)
from flows.tlc.pipeline import Add, ahead
from flows.tlc.schema import KEY, QUARANTINE_COLUMNS, arrow_schema, columns
from flows.tlc.sources import PublishedFile
from flows.tlc.stream import Content, MonthStream
from flows.tlc.trips import Store, Terms, TripMonth

if TYPE_CHECKING:
    from prefect_sqlalchemy import SqlAlchemyConnector
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class in lower case

    from flows.stores.lake import Lake

_IN_MEMORY = 8 << 20  # bytes of rejects in memory; more go to disk
_ROOM = "SET LOCAL maintenance_work_mem = '256MB'"  # so that making a key does not spill to disk
# A join in the order of both keys needs no memory. A hash table of a month would spill to disk.
_IN_KEY_ORDER = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_nestloop = off; SET LOCAL enable_sort = off"
_NONE_YET = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn)  # or a table of an older version
_IS_ATTACHED = "EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = to_regclass(%s))"
_OF_MONTH = "SELECT * FROM {table} WHERE color = %s AND file_month = %s"

# Each color's number in this project's advisory locks. Never change one: different versions must exclude each other. The
# first four colors share four numbers per month; the numbers of further colors are 1 << 20, (1 << 20) + 1 and so on.
_LOCKS = {"yellow": 0, "green": 1, "fhv": 2, "fhvhv": 3}
_LOCKS_PER_MONTH = 4


class Database:
    """Store of months in a PostgreSQL database."""

    name: Store = "database"

    def __init__(self, engine: Engine, open_lake: "Callable[[], Lake]") -> None:
        self.postgres = Postgres(engine)
        self._open_lake = open_lake

    @classmethod
    def from_block(cls, block: "SqlAlchemyConnector", block_name: str, open_lake: "Callable[[], Lake]") -> "Database":
        """Return the database that a block points to. `open_lake` opens the lake that has the earlier editions."""
        try:
            # No pool: a connection is used once, and a month needs two, so a pool's limit would fail months at once.
            engine = block.get_engine(poolclass=NullPool)
        except (ImportError, SQLAlchemyError):  # for another driver, which is not installed
            engine = None
        if not isinstance(engine, Engine) or (engine.dialect.name, engine.driver) != ("postgresql", "psycopg2"):
            raise MisconfiguredBlock(
                f"block sqlalchemy-connector/{block_name} is not for PostgreSQL with the driver postgresql+psycopg2;"
                " edit it in the UI, or make another with `python -m blocks.register`."
            )
        return cls(engine, open_lake)

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the block's user can log in and create tables."""
        self.postgres.check()

    def claim(self, trip_month: TripMonth, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Lock a month for one run. Another run of the same month calls `on_wait` once and waits here."""
        return self.postgres.locked(lock_number(trip_month), on_wait)

    # List and describe months.

    def present(self, trip_month: TripMonth) -> Present:
        """Return the state of a month in the database: empty if its partition is gone."""
        return Present(manifest=self.remembered(trip_month))

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the month's row of `loads`; None if there is none, or if the month's partition is gone or detached."""
        with self.postgres.transaction() as cursor:
            try:
                rows = self.postgres.rows(
                    cursor,
                    composed(f"{_OF_MONTH} AND {_IS_ATTACHED}", table="loads"),
                    (*_key_of(trip_month), trip_month.postgres_partition, trip_month.color),
                )
            except _NONE_YET:
                return None
        return Manifest.from_row(rows[0]) if rows and not rows[0].get("withdrawn_at") else None

    def history(self, trip_month: TripMonth) -> list[Manifest]:
        """Return the manifest of each publication and withdrawal of a month, oldest first."""
        rows = [row for table in ("loads_history", "loads") for row in self._rows_of(table, trip_month)]
        return timeline(*map(Manifest.from_row, rows))

    def _rows_of(self, table: str, trip_month: TripMonth) -> list[dict[str, Any]]:
        """Return a month's rows of a table of manifests; none if the table does not exist yet."""
        with suppress(*_NONE_YET), self.postgres.transaction() as cursor:
            return self.postgres.rows(cursor, composed(_OF_MONTH, table=table), _key_of(trip_month))
        return []

    def months(self, colors: Iterable[str], also: Also = "") -> dict[TripMonth, ListedMonth]:
        """Return every month of the colors. Two queries; no trips are read."""
        with self.postgres.transaction() as cursor:
            cursor.execute("SELECT inhrelid::regclass::text FROM pg_inherits")
            partitions = {name for (name,) in cursor.fetchall()}
            try:
                rows = self.postgres.rows(cursor, "SELECT * FROM loads")
            except _NONE_YET:
                return {}
        manifests = [Manifest.from_row(row) for row in rows]
        there = [m for m in manifests if (also if m.withdrawn_at else m.trip_month.postgres_partition in partitions)]
        return {m.trip_month: ListedMonth(m, m.size, True) for m in there if m.color in colors}

    def page(self, manifest: Manifest) -> str:
        """Return "": the database has no web page about a month."""
        return ""

    # The published file, in this machine's scratch folder.

    def extract(self, published: PublishedFile, add: Add, growing: GrowingFile | None = None) -> RawFile:
        """Fetch the published file into this machine's scratch folder. Another thread can read it as `growing` meanwhile."""
        download = Download(published, add)
        raw = scratch.keep(published, lambda _: download, growing)
        return raw.model_copy(update={"verified": download.verified})

    def has(self, raw: RawFile) -> bool:
        """Return whether this machine's scratch folder still has the file."""
        return scratch.has(raw)

    def raw_of(self, manifest: Manifest) -> RawFile | None:
        """Return the published file that a month was made from; None if this machine does not have it."""
        raw = scratch.raw_of(manifest)
        return raw if scratch.has(raw) else None

    def edition(self, trip_month: TripMonth, name: str) -> RawFile:
        """Return an edition of a month's file in the lake, by the first digits of its sha256."""
        return self._open_lake().edition(trip_month, name)

    def _content(self, raw: RawFile) -> Content:
        """Return the bytes of a raw file, from the lake if its key is there, else from this machine's scratch folder."""
        return self._open_lake().content(raw) if raw.key.startswith("raw/") else KeptFile(raw)

    # Stage and publish a month.

    def stage(self, raw: RawFile, terms: Terms, run: str, add: Add, growing: GrowingFile | None = None) -> StagedMonth:
        """COPY a raw file's trips into the month's staging table. Parsing and copying overlap."""
        trip_month = raw.trip_month
        self.ensure_tables(trip_month.color)
        stream = MonthStream(raw, growing or self._content(raw), terms.rows, terms.schema, add)
        with (
            scratch.disk_full_explained(str(trip_month)),
            SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch.folder())) as rejects,
        ):

            def tables() -> Iterator[pa.Table]:
                for chunk in stream:
                    if chunk.rejects.num_rows:
                        write_rejects(chunk.rejects, rejects)
                    yield chunk.trips.drop_columns([KEY[0].name])  # the default of the staging table's column sets it

            fed = arrow_schema(trip_month.color)
            fed = fed.remove(fed.get_field_index(KEY[0].name))
            with closing(ahead(encode(tables(), fed))) as pieces:

                def made_from() -> str:
                    return _made_from(growing.sha256 if growing else raw.sha256, terms.rows)

                staging = self._copy(trip_month, pieces, rejects, made_from)
        return stream.staged(key=staging, pinned=terms.pinned)

    def ensure_tables(self, color: str) -> None:
        """Create the tables that a month of the color needs, and add the columns that they lack."""
        with self.postgres.transaction() as cursor:
            self.postgres.lock_tables(cursor)
            for table, wanted, key, partitioned in (
                (color, columns(color), [column.name for column in KEY], " PARTITION BY LIST (file_month)"),
                # All colors share two tables: the manifests of loaded months, and the quarantined rows.
                ("loads", LOADS_COLUMNS, ["color", "file_month"], ""),
                ("loads_history", LOADS_COLUMNS, ["color", "file_month", "published_at"], ""),
                ("quarantine", LOADS_COLUMNS[:2] + QUARANTINE_COLUMNS, ["color", "file_month", "row_number"], ""),
            ):
                self.postgres.ensure_table(cursor, table, wanted, key, partitioned)

    def _copy(
        self, trip_month: TripMonth, pieces: Iterable[bytes], rejects: IO[bytes], made_from: Callable[[], str]
    ) -> str:
        """COPY encoded trips, without `file_month`, into a new staging table, and then the rejects into another. Return its name.

        The table has no key yet: building the index once at the end is faster than updating it for each row. Its comment is
        `made_from()`, called after the last piece. The tables are created first: the lock of LIKE on the color's table must not
        last as long as the COPY.
        """
        staging = f"{trip_month.postgres_partition}_staging"
        names: dict[str, str | sql.Composable] = {
            "table": trip_month.color,
            "staging": staging,
            "fed": listed(names_of(c for c in columns(trip_month.color) if c is not KEY[0])),
            "staged_rejects": _rejects_table(staging),
            "fed_rejects": listed(names_of(QUARANTINE_COLUMNS)),
            "color": sql.Literal(trip_month.color),
            "month": sql.Literal(trip_month.file_month),
        }
        with self.postgres.transaction() as cursor:
            for table in (staging, _rejects_table(staging)):
                self.postgres.require_own(cursor, table, names_of(KEY))
            for statement in (
                "DROP TABLE IF EXISTS {staging}, {staged_rejects}",
                "CREATE TABLE {staging} (LIKE {table}, CHECK (file_month IS NOT NULL AND file_month = {month}))",
                "ALTER TABLE {staging} ALTER file_month SET DEFAULT {month}",
                "CREATE TABLE {staged_rejects} (LIKE quarantine)",
                "ALTER TABLE {staged_rejects} ALTER color SET DEFAULT {color}, ALTER file_month SET DEFAULT {month}",
            ):
                run(cursor, statement, **names)
        try:
            with self.postgres.transaction() as cursor:
                # FREEZE is safe: nobody reads the table before this transaction ends. Vacuum then need not rewrite the rows.
                run(cursor, "TRUNCATE {staging}", **names)
                copy = composed("COPY {staging} ({fed}) FROM STDIN (FORMAT binary, FREEZE)", **names)
                self.postgres.copy(cursor, copy, pieces)
                run(cursor, "COMMENT ON TABLE {staging} IS {text}", staging=staging, text=sql.Literal(made_from()))
                rejects.seek(0)
                copy = composed("COPY {staged_rejects} ({fed_rejects}) FROM STDIN (FORMAT csv)", **names)
                cursor.copy_expert(copy, rejects)
        except BaseException:  # the next run of the month drops the tables if this cannot
            with suppress(psycopg2.Error, SQLAlchemyError, MisconfiguredBlock, Unreachable):
                self._drop(staging)
            raise
        return staging

    def _drop(self, staging: str) -> None:
        with self.postgres.transaction() as cursor:
            tables = listed([staging, _rejects_table(staging)])
            run(cursor, "DROP TABLE IF EXISTS {tables}", tables=tables)

    def discard(self, staged: StagedMonth) -> None:
        """Drop the staging tables of a month that will not be published."""
        self._drop(staged.key)

    def publish(self, staged: StagedMonth, present: Present, run_id: str, by: str = "") -> Outcome:
        """Publish a staged month and its row in `loads` in one transaction. Readers see the old month or the new one."""
        current = self.remembered(staged.trip_month)
        before = current
        if current and run_id and current.flow_run_id == run_id and current.has_bytes(staged.raw, staged.rule):
            # An earlier attempt of this run committed, but was cut off before it received the answer.
            manifest, before = current, present.manifest
        else:
            rows = last_known_rows(staged.raw, current)
            manifest = staged.manifest(run_id, started_by=by, known_rows=rows)
            manifest = manifest.model_copy(update=dict(self._publish(staged.key, manifest)))
        status: Status = "replaced" if before else "loaded"
        return Outcome(store="database", status=status, manifest=manifest, warnings=warnings_of(manifest, before))

    def _publish(self, staging: str, manifest: Manifest) -> Changes:
        trip_month = manifest.trip_month
        partition = trip_month.postgres_partition
        with self.postgres.transaction() as cursor:
            cursor.execute(_ROOM)
            cursor.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", (staging,))
            if value(cursor) != _made_from(manifest.sha256, manifest.rule):  # this run lost its claim
                raise Vanished(
                    f"{trip_month}: another run changed {staging} during this run. Nothing was published; run again."
                )
            run(cursor, "SELECT count(*) FROM {staging}", staging=staging)
            if (count := value(cursor)) != manifest.loaded:
                raise NotReconciled(
                    f"{trip_month}: {manifest.loaded} rows were staged, {staging} has {count}. Nothing was published; run again."
                )
            if self._is_attached(cursor, trip_month):
                published = self._merge(cursor, trip_month, staging, manifest.loaded)
            else:
                self._attach(cursor, trip_month, staging)
                published = Changes(inserted=manifest.loaded)
            run(cursor, "SELECT count(*) FROM {partition}", partition=partition)
            if (count := value(cursor)) != manifest.loaded:
                raise NotReconciled(
                    f"{trip_month}: {manifest.loaded} rows were staged, Postgres would have {count}. Nothing was published."
                )
            self._publish_rejects(cursor, manifest, _rejects_table(staging))
            self._write_manifest(cursor, manifest.model_copy(update=dict(published)))
        return published

    def _is_attached(self, cursor: "Cursor", trip_month: TripMonth) -> bool:
        """Return whether the month has a partition in its color's table."""
        cursor.execute(f"SELECT {_IS_ATTACHED}", (trip_month.postgres_partition, trip_month.color))
        return bool(value(cursor))

    def _publish_rejects(self, cursor: "Cursor", manifest: Manifest, staging: str) -> None:
        month, quarantined = (manifest.color, manifest.file_month), sum(manifest.quarantined.values())
        cursor.execute("DELETE FROM quarantine WHERE color = %s AND file_month = %s", month)
        run(cursor, "INSERT INTO quarantine SELECT * FROM {staging}", staging=staging)
        if (count := cursor.rowcount) != quarantined:
            raise NotReconciled(
                f"{manifest.trip_month}: {quarantined} rows were quarantined, {count} would be stored."
                " Nothing was published; please report this."
            )
        run(cursor, "DROP TABLE {staging}", staging=staging)

    def _attach(self, cursor: "Cursor", trip_month: TripMonth, staging: str) -> None:
        """Attach the staging table of a new month as its partition. No row is written twice."""
        partition, month = trip_month.postgres_partition, sql.Literal(trip_month.file_month)
        for statement in (
            "ALTER TABLE {staging} RENAME TO {partition}",
            "ALTER TABLE {partition} ADD PRIMARY KEY (file_month, row_number)",
            "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({month})",
            "COMMENT ON TABLE {partition} IS NULL",
        ):
            try:
                run(cursor, statement, table=trip_month.color, staging=staging, partition=partition, month=month)
            except psycopg2.errors.DuplicateTable:
                raise MisconfiguredBlock(
                    f"the database has a table {partition!r} that is not a partition of"
                    f" {trip_month.color!r}; rename it, or point the block at another database. Nothing was published."
                ) from None

    def _merge(self, cursor: "Cursor", trip_month: TripMonth, staging: str, loaded: int) -> Changes:
        """Update an existing partition: write only rows that differ, and delete rows that are no longer published."""
        fed = names_of(columns(trip_month.color))
        values = names_of(c for c in columns(trip_month.color) if c not in KEY)
        names: dict[str, str | sql.Composable] = {
            "partition": trip_month.postgres_partition,
            "staging": staging,
            "names": listed(fed),
            "new_names": listed(fed, "new.{name}"),
            "old_values": listed(values, "old.{name}"),
            "new_values": listed(values, "new.{name}"),
            "updates": listed(values, UPDATED),
        }
        run(cursor, "CREATE UNIQUE INDEX ON {staging} (file_month, row_number)", **names)
        cursor.execute(_IN_KEY_ORDER)
        run(
            cursor,
            "WITH written AS ("
            " INSERT INTO {partition} ({names})"
            " SELECT {new_names} FROM {staging} new LEFT JOIN {partition} old USING (file_month, row_number)"
            # Without this condition, Postgres would lock and rewrite every row.
            " WHERE old.row_number IS NULL OR ({old_values}) IS DISTINCT FROM ({new_values})"
            " ON CONFLICT (file_month, row_number) DO UPDATE SET {updates}"
            " RETURNING (xmax = 0) AS is_new)"
            " SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM written",
            **names,
        )
        inserted, updated = cursor.fetchone() or (0, 0)
        # The partition has every staged row now, so equal counts mean that no row is left over.
        run(cursor, "SELECT count(*) FROM {partition}", **names)
        removed = 0
        if value(cursor) != loaded:
            run(
                cursor,
                "DELETE FROM {partition} old WHERE NOT EXISTS (SELECT FROM {staging} new"
                " WHERE (new.file_month, new.row_number) = (old.file_month, old.row_number))",
                **names,
            )
            removed = cursor.rowcount
        run(cursor, "DROP TABLE {staging}", **names)
        return Changes(inserted=inserted, updated=updated, removed=removed)

    def remember(self, manifest: Manifest) -> None:
        """Write the month's row of `loads` without changing its trips."""
        self.ensure_tables(manifest.color)
        with self.postgres.transaction() as cursor:
            self._write_manifest(cursor, manifest)

    def withdraw(self, trip_month: TripMonth, run_id: str, by: str = "") -> Outcome:
        """Drop a month's partition, delete its quarantined rows and mark its row in `loads`, in one transaction."""
        self.ensure_tables(trip_month.color)
        with self.postgres.transaction() as cursor:
            rows = self.postgres.rows(cursor, composed(_OF_MONTH, table="loads"), _key_of(trip_month))
            manifest = Manifest.from_row(rows[0]) if rows else None
            if manifest is None or not (manifest.withdrawn_at or self._is_attached(cursor, trip_month)):
                raise TripDataError(
                    f"{trip_month} is not in Postgres; there is nothing to withdraw. Nothing was changed."
                )
            again = bool(manifest.withdrawn_at) and not self._is_attached(cursor, trip_month)
            if not again:
                manifest = manifest.withdrawn(run_id, by)
                run(cursor, "DROP TABLE {partition}", partition=trip_month.postgres_partition)
                cursor.execute("DELETE FROM quarantine WHERE color = %s AND file_month = %s", _key_of(trip_month))
                self._write_manifest(cursor, manifest)
        done = not again or (run_id and manifest.flow_run_id == run_id)
        return Outcome(store="database", status="withdrawn" if done else "unchanged", manifest=manifest)

    def _write_manifest(self, cursor: "Cursor", manifest: Manifest) -> None:
        """Write the month's row of `loads`, and append it to `loads_history`: first the replaced row, if it is missing there."""
        self._append_to_history(cursor, manifest)
        row = manifest.row()
        run(
            cursor,
            "INSERT INTO loads ({names}) VALUES ({values}) ON CONFLICT (color, file_month) DO UPDATE SET {updates}",
            list(row.values()),
            names=listed(row),
            values=sql.SQL(", ").join(sql.Placeholder() * len(row)),
            updates=listed(row, UPDATED),
        )
        self._append_to_history(cursor, manifest)

    def _append_to_history(self, cursor: "Cursor", manifest: Manifest) -> None:
        run(
            cursor,
            "INSERT INTO loads_history ({names}) SELECT {names} FROM loads WHERE color = %s AND file_month = %s"
            " ON CONFLICT DO NOTHING",
            (manifest.color, manifest.file_month),
            names=listed(names_of(LOADS_COLUMNS)),
        )


def _key_of(trip_month: TripMonth) -> tuple[str, dt.date]:
    return trip_month.color, trip_month.file_month


def _made_from(sha256: str, rows: str) -> str:
    return f"{rows} rows of {sha256}"


def _rejects_table(staging: str) -> str:
    """Return the name of the staging table for quarantined rows."""
    return f"{staging}_quarantine"


def lock_number(trip_month: TripMonth) -> int:
    """Return the month's number in this project's advisory locks. Number 0 is the lock on the tables themselves."""
    return 1 + _LOCKS[trip_month.color] + _LOCKS_PER_MONTH * (12 * trip_month.year + trip_month.month)
