"""Verify months of Postgres: compare the partition with `loads`, and its rows with the lake's trips."""

import datetime as dt
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa
from psycopg2 import sql

from flows.connectors.copy_format import encode, table_of
from flows.connectors.postgres import composed, run, value
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.stores.verify.findings import Findings, reference, vanished
from flows.tlc.clean import FILTERS
from flows.tlc.compare import differences
from flows.tlc.errors import UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import KEY, arrow_schema, columns
from flows.tlc.trips import COLORS, TripMonth
from flows.tlc.verify import Depth, RowFaults, Verified, counts_of, keys_of, number_of

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812 - a class in lower case

_WINDOW = 16_384  # rows that are compared at once: about 4 MB
_LAST = 2**63 - 1  # the largest row number that Postgres can have
_PARTITIONS = (
    "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
    " WHERE inhparent = to_regclass(%s) ORDER BY relname"
)
_HAS_LOADS = "SELECT to_regclass('loads') IS NOT NULL"
_EXACT = "SET LOCAL extra_float_digits = 1; SET LOCAL datestyle = 'ISO'"  # numbers and times as text
# Arrow cannot read datetimes such as 'infinity'. The query replaces them with a datetime that no trip has.
_IN_RANGE = (
    "CASE WHEN {name} < '0001-01-01' OR {name} >= '10000-01-01' THEN '0001-01-01 00:00:00.000001' ELSE {name} END"
)


@dataclass(frozen=True)
class DatabaseCheck:
    """Verifies months of Postgres. It compares the partition with `loads`, and its trips with the lake's."""

    store: Database
    lake: Lake | None

    def months(self, colors: Iterable[str]) -> set[TripMonth]:
        """Return every month that has a partition or a row in `loads`, and those that should have one, by their history."""
        wanted = set(colors)
        with self.store.postgres.transaction() as cursor:
            cursor.execute(
                "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
            )
            found = {month for (name,) in cursor.fetchall() if (month := _month_of(name))}
            found |= self._listed(cursor, "loads")
            noted = self._listed(cursor, "loads_history")
        return {month for month in found | vanished(self.store, noted - found) if month.color in wanted}

    def _listed(self, cursor: "Cursor", table: str) -> set[TripMonth]:
        """Return the months of a table of manifests; none if there is no such table."""
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
        if not value(cursor):
            return set()
        run(cursor, "SELECT DISTINCT color, file_month FROM {table}", table=table)
        return {TripMonth(color, month.year, month.month) for color, month in cursor.fetchall()}

    def strays(self, colors: Iterable[str]) -> list[Verified]:
        """Return the rows in partitions that this project did not make: of future months, or the default partition."""
        found, now = [], dt.datetime.now(dt.UTC).date()
        with self.store.postgres.transaction() as cursor:
            for color in dict.fromkeys(colors):
                cursor.execute(_PARTITIONS, (color,))
                for (name,) in cursor.fetchall():
                    if (month := _month_of(name)) and month.color == color and month.file_month <= now:
                        continue
                    run(cursor, "SELECT count(*) FROM {name}", name=name)
                    if rows := value(cursor):
                        text = f"{rows:,} rows of {color} belong to no month: they are in the partition {name}"
                        quoted = name.replace('"', '""')
                        detach = f'run in Postgres: ALTER TABLE {color} DETACH PARTITION "{quoted}"'
                        found.append(Verified("database", color, (text,), mend=detach))
        return found

    def verify(self, trip_month: TripMonth, depth: Depth, run_id: str) -> Findings:
        """Check the partition and its counts. At greater depth, compare each row with the lake's. Read one snapshot."""
        partition = trip_month.postgres_partition
        if depth != "counts":
            self.store.ensure_tables(trip_month.color)  # they may lack the newest columns
        with self.store.postgres.transaction() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            cursor.execute(_EXACT)
            manifest = self._manifest(cursor, trip_month)
            found = Findings(manifest)
            cursor.execute(
                "SELECT to_regclass(%s) IS NOT NULL, EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(%s)"
                " AND inhparent = to_regclass(%s))",
                (partition, partition, trip_month.color),
            )
            is_there, attached = cursor.fetchone() or (False, False)
            if manifest and manifest.withdrawn_at:
                there = [f"the table {partition} exists, but the month was withdrawn"] if is_there else []
                return Findings(manifest, there, "withdrawn", f"table {partition}" if is_there and not attached else "")
            if manifest is None and not is_there:
                found.differences.append(f"the table {partition} and its row in loads are missing")
            elif manifest is None:
                found.differences.append(f"the table {partition} has no row in loads")
            elif not is_there:
                found.differences.append(f"the table {partition} is missing")
            if is_there and not attached:
                found.differences.append(f"the table {partition} is not a partition of {trip_month.color}")
                found.remove = f"table {partition}"
            if manifest is None or not attached:
                return found
            found.differences += counts_of(manifest)
            run(cursor, "SELECT count(*), count(DISTINCT row_number) FROM {partition}", partition=partition)
            rows, keys = cursor.fetchone() or (0, 0)
            found.differences += number_of(f"rows in {partition}", rows, manifest.loaded)
            found.differences += keys_of(partition, keys, rows)
            cursor.execute(
                "SELECT count(*) FROM quarantine WHERE color = %s AND file_month = %s",
                (trip_month.color, trip_month.file_month),
            )
            found.differences += number_of("rows in quarantine", value(cursor), sum(manifest.quarantined.values()))
            if self.lake:
                self._against(self.lake, manifest, found, depth, cursor)
        return found

    def _manifest(self, cursor: "Cursor", trip_month: TripMonth) -> Manifest | None:
        cursor.execute(_HAS_LOADS)
        if not value(cursor):
            return None
        query = "SELECT * FROM loads WHERE color = %s AND file_month = %s"
        rows = self.store.postgres.rows(cursor, query, (trip_month.color, trip_month.file_month))
        return Manifest.from_row(rows[0]) if rows else None

    def _against(self, lake: Lake, manifest: Manifest, found: Findings, depth: Depth, cursor: "Cursor") -> None:
        ours, found.not_compared, difference = reference(lake, manifest)
        found.differences += [difference] if difference else []
        if ours is None or depth == "counts":
            return
        # Apply the rule of the database's month to the lake's trips.
        keep = FILTERS[manifest.rule].values()
        faults = RowFaults("the lake")
        after = -_LAST
        nothing = arrow_schema(manifest.color).empty_table()
        for trips in chain(_sliced(lake.trips(ours.key, ours.generation)), [nothing]):
            upto = trips.column(KEY[1].name)[-1].as_py() if trips.num_rows else _LAST
            wanted = _canonical(trips, manifest.color)
            for filtered in keep:
                wanted = filtered(wanted)
            faults.add(self._window(cursor, manifest.trip_month, after, upto, wanted))
            after = upto
        found.differences += faults.in_words()

    def _window(
        self, cursor: "Cursor", trip_month: TripMonth, after: int, upto: int, wanted: pa.Table
    ) -> Iterator[tuple[int, str]]:
        """Compare the rows of a range of row numbers. Postgres sends them in the binary format of COPY, which is exact.

        Equal bytes mean equal rows. Only a range that differs is sent again as CSV, and compared row by row.
        """
        fed = [column for column in columns(trip_month.color) if column is not KEY[0]]

        def sent(form: str, datetime: str) -> bytes:
            copy = composed(
                "COPY (SELECT {values} FROM {partition} WHERE file_month = {month} AND row_number > {after}"
                " AND row_number <= {upto} ORDER BY row_number) TO STDOUT (FORMAT {form})",
                values=sql.SQL(", ").join(
                    composed(datetime if column.kind == "datetime" else "{name}", name=column.postgres_name)
                    for column in fed
                ),
                partition=trip_month.postgres_partition,
                month=sql.Literal(trip_month.file_month),
                after=sql.Literal(after),
                upto=sql.Literal(upto),
                form=sql.SQL(form),
            )
            rows = io.BytesIO()
            cursor.copy_expert(copy, rows)
            return rows.getvalue()

        wanted = wanted.drop_columns([KEY[0].name])
        if sent("binary", "{name}") != b"".join(encode([wanted], wanted.schema)):
            yield from differences([table_of(sent("csv", _IN_RANGE), wanted.schema)], [wanted])

    def mark(self, manifest: Manifest, fault: str) -> None:
        """Write the fault into the month's row of `loads`."""
        self.store.ensure_tables(manifest.color)
        with self.store.postgres.transaction() as cursor:
            cursor.execute(
                "UPDATE loads SET fault = %s WHERE color = %s AND file_month = %s AND published_at = %s",
                (fault, manifest.color, manifest.file_month, manifest.published_at),
            )


def _month_of(table: str) -> TripMonth | None:
    match = re.fullmatch(rf"({'|'.join(COLORS)})_(\d{{4}})_(\d\d)", table)
    with suppress(UnknownMonth):
        return TripMonth(match[1], int(match[2]), int(match[3])) if match else None
    return None


def _sliced(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    for table in tables:
        for start in range(0, table.num_rows, _WINDOW):
            yield table.slice(start, _WINDOW)


def _canonical(trips: pa.Table, color: str) -> pa.Table:
    """Return trips with today's columns. Columns that an older schema lacks are null."""
    schema = arrow_schema(color)
    names = set(trips.column_names)
    return pa.table(
        [trips.column(f.name) if f.name in names else pa.nulls(trips.num_rows, f.type) for f in schema], schema=schema
    )
