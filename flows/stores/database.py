"""The database: PostgreSQL tables, one per color, partitioned by `file_month`; a month is published in one transaction.

A new month is staged by COPY into a table of its own, which is attached as a partition. If the partition exists already, the
trips are compared with it, batch by batch, while the next ones are read. Only what differs is staged, and written to it.
"""

import datetime as dt
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from queue import SimpleQueue
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
from flows.tlc.pipeline import Add, ahead, closing_if_open, mapped
from flows.tlc.schema import KEY, QUARANTINE_COLUMNS, arrow_schema, columns
from flows.tlc.sources import PublishedFile
from flows.tlc.stream import Content, MonthStream
from flows.tlc.trips import Store, Terms, TripMonth

if TYPE_CHECKING:
    from prefect_sqlalchemy import SqlAlchemyConnector
    from psycopg2.extensions import connection as Connection  # noqa: N812 - a class in lower case
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

    from flows.stores.lake import Lake

_IN_MEMORY = 8 << 20  # bytes of rejects in memory; more go to disk
_ROOM = "SET LOCAL maintenance_work_mem = '256MB'"  # so that making a key does not spill to disk
_BATCH = 32_768  # most trips that are compared at once: about 10 MB. Up to six batches are in memory.
_COMPARERS = 2  # number of connections that compare batches
_COMPARING = "SET LOCAL work_mem = '64MB'"  # so that the hash table of a batch does not spill to disk
_LEAST, _GREATEST = -(2**63), 2**63 - 1  # of bigint; the ranges of the batches cover all row numbers
_NONE_YET = (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn)  # or a table of an older version
_IS_ATTACHED = "EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = to_regclass(%s))"
_OF_MONTH = "SELECT * FROM {table} WHERE color = %s AND file_month = %s"

# Each color's number in this project's advisory locks. Never change one: different versions must exclude each other. The
# first four colors share four numbers per month; the numbers of further colors are 1 << 20, (1 << 20) + 1 and so on.
_LOCKS = {"yellow": 0, "green": 1, "fhv": 2, "fhvhv": 3}
_LOCKS_PER_MONTH = 4

_Names = dict[str, str | sql.Composable]
_Batch = tuple[list[bytes], int, int]
"""Encoded trips, and the range of row numbers that they cover: after the first number, up to the second."""


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
            # No pool: a month needs up to three connections, so a pool's limit would fail months at once.
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

            def trips() -> Iterator[pa.Table]:
                for chunk in stream:
                    if chunk.rejects.num_rows:
                        write_rejects(chunk.rejects, rejects)
                    filled = stream.shape.filled
                    yield chunk.trips.select([name for name in chunk.trips.column_names if name in filled])

            def made_from() -> str:
                return _made_from(growing.sha256 if growing else raw.sha256, terms.rows)

            staging = self._copy(trip_month, trips(), rejects, made_from)
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
        self, trip_month: TripMonth, trips: Iterator[pa.Table], rejects: IO[bytes], made_from: Callable[[], str]
    ) -> str:
        """Write trips into a new staging table, and then the rejects into another. Return its name.

        All tables of `trips` have the same columns, those of the key among them. Columns of the color that they lack become null.
        The staging table of a new month receives all trips. That of a published month receives only the differences: trips that
        are new or changed, and trips of the partition that are no longer published. Its comment begins with `made_from()`,
        called after the last trip. The tables are created first: the lock of LIKE on the color's table must not last as long as
        the COPY.
        """
        names = _names_in(trip_month)
        staging = _staging_table(trip_month)
        whole = (
            "CREATE TABLE {staging} (LIKE {table} INCLUDING DEFAULTS, CHECK (file_month IS NOT NULL AND file_month = {month}))",
            "ALTER TABLE {staging} {no_defaults}, ALTER file_month SET DEFAULT {month}",
        )
        differences = (  # not logged: if the server crashes, the table is empty, and the run stages the month again
            "CREATE UNLOGGED TABLE {staging} (LIKE {table} INCLUDING DEFAULTS)",
            "ALTER TABLE {staging} {no_defaults}, ALTER file_month SET DEFAULT {month},"
            " ADD trip_was_removed boolean NOT NULL DEFAULT false",
        )
        with self.postgres.transaction() as cursor:
            for table in (staging, _rejects_table(staging)):
                self.postgres.require_own(cursor, table, names_of(KEY))
            for table in _batch_tables(staging):  # each exists within a transaction only
                self.postgres.require_no_table(cursor, table)
            base = self._base(cursor, trip_month)
            for statement in (
                "DROP TABLE IF EXISTS {staging}, {staged_rejects}",
                *(differences if base else whole),
                "CREATE TABLE {staged_rejects} (LIKE quarantine)",
                "ALTER TABLE {staged_rejects} ALTER color SET DEFAULT {color}, ALTER file_month SET DEFAULT {month}",
            ):
                run(cursor, statement, **names)
            cursor.execute("SELECT to_regclass(%s)::oid", (staging,))
            oid = int(value(cursor))
        try:
            with closing_if_open(trips):
                fed, tables = _fed(trip_month, trips)
                # Counted now, not in the table afterwards: a crash of the server may have emptied it.
                count = self._copy_differences(trip_month, fed, tables, oid) if base else 0
                with self.postgres.transaction() as cursor:
                    self._lock_staging(cursor, trip_month, oid)
                    if not base:
                        self._copy_all(cursor, trip_month, fed, tables)
                    text = sql.Literal(_comment(made_from(), base, count))
                    run(cursor, "COMMENT ON TABLE {staging} IS {text}", **names, text=text)
                    rejects.seek(0)
                    copy = composed("COPY {staged_rejects} ({fed_rejects}) FROM STDIN (FORMAT csv)", **names)
                    cursor.copy_expert(copy, rejects)
        except BaseException:  # the next run of the month drops the tables if this cannot
            expected = (psycopg2.Error, SQLAlchemyError, MisconfiguredBlock, Unreachable, Vanished)
            with suppress(*expected), self.postgres.transaction() as cursor:
                self._lock_staging(cursor, trip_month, oid)
                self._drop(cursor, staging)
            raise
        return staging

    def _base(self, cursor: "Cursor", trip_month: TripMonth) -> str:
        """Return an identifier of the partition's current load; "" if there is no partition. It ignores changes by hand."""
        if not self._is_attached(cursor, trip_month):
            return ""
        cursor.execute(
            "SELECT concat_ws(' of ', to_regclass(%s)::oid, (SELECT extract(epoch FROM published_at) FROM loads"
            " WHERE color = %s AND file_month = %s))",
            (trip_month.postgres_partition, *_key_of(trip_month)),
        )
        return str(value(cursor))

    def _lock_staging(self, cursor: "Cursor", trip_month: TripMonth, oid: int) -> None:
        """Lock the month's staging table until the transaction ends. Raise `Vanished` if it is no longer the one with `oid`."""
        self._lock(cursor, trip_month, "ROW EXCLUSIVE")
        cursor.execute("SELECT to_regclass(%s)::oid", (_staging_table(trip_month),))
        if value(cursor) != oid:
            raise _changed(trip_month)

    def _lock(self, cursor: "Cursor", trip_month: TripMonth, mode: str) -> None:
        """Lock the month's staging table in this mode. Raise `Vanished` if there is none."""
        try:
            run(cursor, "LOCK TABLE {staging} IN {mode} MODE", staging=_staging_table(trip_month), mode=sql.SQL(mode))
        except psycopg2.errors.UndefinedTable:
            raise _changed(trip_month) from None

    def _count(self, cursor: "Cursor", table: str) -> int:
        """Return how many rows a table has."""
        run(cursor, "SELECT count(*) FROM {table}", table=table)
        return int(value(cursor))

    def _copy_all(self, cursor: "Cursor", trip_month: TripMonth, fed: pa.Schema, trips: Iterator[pa.Table]) -> None:
        """COPY all trips into the staging table. Parsing, encoding and copying overlap.

        The table has no key yet: building the index once at the end is faster than updating it for each row.
        """
        names = _names_in(trip_month)
        # FREEZE is safe: nobody reads the table before this transaction ends. Vacuum then need not rewrite the rows.
        run(cursor, "TRUNCATE {staging}", **names)
        copy = "COPY {staging} ({fed}) FROM STDIN (FORMAT binary, FREEZE)"
        with closing(ahead(encode(trips, fed))) as pieces:
            self.postgres.copy(cursor, composed(copy, **names, fed=_listed_in(trip_month, fed)), pieces)

    def _copy_differences(self, trip_month: TripMonth, fed: pa.Schema, trips: Iterator[pa.Table], oid: int) -> int:
        """Compare all trips with the partition, and write what differs to the staging table. Return how many rows differ.

        Parsing and comparing overlap. Each batch is a transaction: a lock on the partition must not last as long as the download.
        """
        names = _names_in(trip_month) | {"fed": _listed_in(trip_month, fed)}
        free: SimpleQueue[tuple[Connection, str]] = SimpleQueue()

        def compare(batch: _Batch) -> int:
            connection, table = free.get()
            try:
                with connection, connection.cursor() as cursor:
                    self._lock_staging(cursor, trip_month, oid)
                    return self._compare(cursor, names | {"batch": table}, batch)
            finally:
                free.put((connection, table))

        with ExitStack() as connections:
            for table in _batch_tables(_staging_table(trip_month)):
                free.put((connections.enter_context(self.postgres.connection()), table))
            with (
                closing(ahead(_batches(trips, fed), depth=1)) as batches,
                closing(mapped(compare, batches, _COMPARERS)) as compared,
            ):
                return sum(compared)

    def _compare(self, cursor: "Cursor", names: _Names, batch: _Batch) -> int:
        """Compare a batch with its range of the partition. The table of the batch exists in this transaction only."""
        pieces, after, last = batch
        cursor.execute(_COMPARING)
        run(cursor, "CREATE UNLOGGED TABLE {batch} (LIKE {staging} INCLUDING DEFAULTS)", **names)
        self.postgres.copy(cursor, composed("COPY {batch} ({fed}) FROM STDIN (FORMAT binary)", **names), pieces)
        run(
            cursor,
            "INSERT INTO {staging} (file_month, row_number, {values}, trip_was_removed)"
            # Of a removed trip, the old values are staged: a user may have forbidden nulls.
            " SELECT file_month, row_number, {new_or_old_values}, new.trip_was_removed IS NULL"
            " FROM {batch} new FULL JOIN (SELECT * FROM {partition} WHERE file_month = {month}"
            " AND row_number > %s AND row_number <= %s) old USING (file_month, row_number)"
            " WHERE new.trip_was_removed IS NULL OR old.row_number IS NULL OR ({old_values}) IS DISTINCT FROM ({new_values})",
            (after, last),
            **names,
        )
        count = cursor.rowcount
        run(cursor, "DROP TABLE {batch}", **names)
        return count

    def _drop(self, cursor: "Cursor", staging: str) -> None:
        """Drop both staging tables of a month."""
        run(cursor, "DROP TABLE IF EXISTS {tables}", tables=listed([staging, _rejects_table(staging)]))

    def discard(self, staged: StagedMonth) -> None:
        """Drop the staging tables of a month that will not be published."""
        with self.postgres.transaction() as cursor:
            self._drop(cursor, staged.key)

    def publish(self, staged: StagedMonth, present: Present, run_id: str, by: str = "") -> Outcome:
        """Publish a staged month and its row in `loads` in one transaction. Readers see the old month or the new one."""
        before = current = self.remembered(staged.trip_month)
        if manifest := _of_earlier_attempt(current, staged, run_id):
            before = present.manifest
        else:
            rows = last_known_rows(staged.raw, current)
            manifest = staged.manifest(run_id, started_by=by, known_rows=rows)
            try:
                manifest = manifest.model_copy(update=dict(self._publish(staged.key, manifest)))
            except Vanished:
                if not (manifest := _of_earlier_attempt(self.remembered(staged.trip_month), staged, run_id)):
                    raise
        status: Status = "replaced" if before else "loaded"
        return Outcome(store="database", status=status, manifest=manifest, warnings=warnings_of(manifest, before))

    def _publish(self, staging: str, manifest: Manifest) -> Changes:
        trip_month = manifest.trip_month
        partition = trip_month.postgres_partition
        with self.postgres.transaction() as cursor:
            cursor.execute(_ROOM)
            # Nobody can change the table between the check and the publication.
            self._lock(cursor, trip_month, "ACCESS EXCLUSIVE")
            base, count = self._base(cursor, trip_month), self._count(cursor, staging)
            cursor.execute("SELECT obj_description(to_regclass(%s), 'pg_class')", (staging,))
            if value(cursor) != _comment(_made_from(manifest.sha256, manifest.rule), base, count):
                raise _changed(trip_month)
            if base:
                published = self._merge(cursor, trip_month)
                if self._count(cursor, partition) != manifest.loaded:  # somebody has added or deleted rows by hand
                    raise _changed(trip_month)
            else:
                if count != manifest.loaded:
                    raise NotReconciled(
                        f"{trip_month}: {manifest.loaded} rows were staged, {staging} has {count}. Nothing was published; run"
                        " again."
                    )
                self._attach(cursor, trip_month)
                published = Changes(inserted=manifest.loaded)
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

    def _attach(self, cursor: "Cursor", trip_month: TripMonth) -> None:
        """Attach the staging table of a new month as its partition. No row is written twice."""
        partition = trip_month.postgres_partition
        for statement in (
            "ALTER TABLE {staging} RENAME TO {partition}",
            "ALTER TABLE {partition} ADD PRIMARY KEY (file_month, row_number)",
            "ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({month})",
            "COMMENT ON TABLE {partition} IS NULL",
        ):
            try:
                run(cursor, statement, **_names_in(trip_month))
            except psycopg2.errors.DuplicateTable:
                raise MisconfiguredBlock(
                    f"the database has a table {partition!r} that is not a partition of"
                    f" {trip_month.color!r}; rename it, or point the block at another database. Nothing was published."
                ) from None

    def _merge(self, cursor: "Cursor", trip_month: TripMonth) -> Changes:
        """Write the staged differences to the month's partition."""
        names = _names_in(trip_month)
        run(
            cursor,
            "DELETE FROM {partition} old USING {staging} new"
            " WHERE new.trip_was_removed AND (new.file_month, new.row_number) = (old.file_month, old.row_number)",
            **names,
        )
        removed = cursor.rowcount
        run(
            cursor,
            "WITH written AS ("
            " INSERT INTO {partition} ({names}) SELECT {names} FROM {staging} WHERE NOT trip_was_removed"
            " ON CONFLICT (file_month, row_number) DO UPDATE SET {updates}"
            " RETURNING (xmax = 0) AS is_new)"
            " SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM written",
            **names,
        )
        inserted, updated = cursor.fetchone() or (0, 0)
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


def _fed(trip_month: TripMonth, trips: Iterator[pa.Table]) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """Return the schema of the trips that COPY receives, and the trips.

    A column costs time in every row, so COPY does not receive `file_month`, which is a default of the staging table, nor the
    columns that the file does not have.
    """
    first = next(trips, arrow_schema(trip_month.color).empty_table())
    fed = [name for name in first.column_names if name != KEY[0].name]
    waiting = [first.select(fed)]

    def tables() -> Iterator[pa.Table]:
        yield waiting.pop()  # nothing here keeps the first table in memory until the last
        for table in trips:
            yield table.select(fed)

    return waiting[0].schema, tables()


def _listed_in(trip_month: TripMonth, fed: pa.Schema) -> sql.Composed:
    """Return the columns that COPY receives, in the order of `fed`."""
    by_name = {column.name: column for column in columns(trip_month.color)}
    return listed(names_of(by_name[name] for name in fed.names))


def _batches(trips: Iterable[pa.Table], fed: pa.Schema) -> Iterator[_Batch]:
    """Yield the trips in batches. Their ranges of row numbers have no gaps, so that the comparison also finds removed trips."""
    after = _LEAST
    for table in trips:
        parts = math.ceil(table.num_rows / _BATCH)
        for part in range(parts):
            batch = table[table.num_rows * part // parts : table.num_rows * (part + 1) // parts]
            last = batch.column(KEY[1].name)[-1].as_py()
            yield [*encode([batch], fed)], after, last
            after = last
    yield [*encode([], fed)], after, _GREATEST


def _names_in(trip_month: TripMonth) -> _Names:
    """Return the names that the statements about a month use."""
    values = names_of(c for c in columns(trip_month.color) if c not in KEY)
    staging = _staging_table(trip_month)
    return {
        "table": trip_month.color,
        "partition": trip_month.postgres_partition,
        "staging": staging,
        "staged_rejects": _rejects_table(staging),
        "names": listed(names_of(columns(trip_month.color))),
        "fed_rejects": listed(names_of(QUARANTINE_COLUMNS)),
        "values": listed(values),
        "no_defaults": listed(values, "ALTER {name} DROP DEFAULT"),  # a column that COPY does not receive is null
        "old_values": listed(values, "old.{name}"),
        "new_values": listed(values, "new.{name}"),
        "new_or_old_values": listed(
            values, "CASE WHEN new.trip_was_removed IS NULL THEN old.{name} ELSE new.{name} END"
        ),
        "updates": listed(values, UPDATED),
        "color": sql.Literal(trip_month.color),
        "month": sql.Literal(trip_month.file_month),
    }


def _of_earlier_attempt(current: Manifest | None, staged: StagedMonth, run_id: str) -> Manifest | None:
    """Return the current manifest if an earlier attempt of this run committed it, but did not receive the server's answer."""
    ours = current and run_id and current.flow_run_id == run_id and current.has_bytes(staged.raw, staged.rule)
    return current if ours else None


def _changed(trip_month: TripMonth) -> Vanished:
    return Vanished(
        f"{trip_month}: {_staging_table(trip_month)} or {trip_month.postgres_partition} was changed during this run, by another"
        " run, by hand or by a crash of the server. Nothing was published; run again."
    )


def _made_from(sha256: str, rows: str) -> str:
    return f"{rows} rows of {sha256}"


def _comment(made_from: str, base: str, differences: int) -> str:
    """Return the comment of a staging table: what it was made from, and what it was compared with."""
    return f"{made_from}: {differences} differences from {base}" if base else made_from


def _staging_table(trip_month: TripMonth) -> str:
    return f"{trip_month.postgres_partition}_staging"


def _rejects_table(staging: str) -> str:
    """Return the name of the staging table for quarantined rows."""
    return f"{staging}_quarantine"


def _batch_tables(staging: str) -> list[str]:
    """Return the names of the tables that batches are compared in. They exist within one transaction only."""
    return [f"{staging}_batch_{number}" for number in range(_COMPARERS)]


def lock_number(trip_month: TripMonth) -> int:
    """Return the month's number in this project's advisory locks. Number 0 is the lock on the tables themselves."""
    return 1 + _LOCKS[trip_month.color] + _LOCKS_PER_MONTH * (12 * trip_month.year + trip_month.month)
