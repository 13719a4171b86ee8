"""Verify months of BigQuery: compare the partition with `loads`, and its rows with the lake's object, inside BigQuery."""

import datetime as dt
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from flows.connectors.bigquery import Values
from flows.stores.verify.findings import Findings, reference, vanished
from flows.stores.warehouse import Warehouse
from flows.tlc.compare import FOREIGN, MISSING
from flows.tlc.errors import UnknownMonth
from flows.tlc.manifest import Manifest
from flows.tlc.schema import KEY, columns
from flows.tlc.trips import TripMonth
from flows.tlc.verify import Depth, RowFaults, Verified, counts_of, keys_of, number_of


@dataclass(frozen=True)
class WarehouseCheck:
    """Verifies months of BigQuery. It compares the partition with `loads`, and its rows with the lake's object."""

    store: Warehouse

    def months(self, colors: Iterable[str]) -> set[TripMonth]:
        """Return every month that has rows or a row in `loads`, and those that should have rows, by their history.

        BigQuery reads one column of each table.
        """
        found: set[TripMonth] = set()
        for color in dict.fromkeys(colors):
            there = {month for month in map(partial(_month_of, color), self._rows(color)) if month}
            listed, noted = self._listed("loads", color), self._listed("loads_history", color)
            found |= there | listed | vanished(self.store, noted - there - listed)
        return found

    def _rows(self, color: str) -> dict[dt.date | None, int]:
        """Return how many rows of a color each `file_month` has."""
        query = f"SELECT file_month AS m, COUNT(*) AS n FROM {self._name(color)} GROUP BY file_month"  # noqa: S608
        return {row["m"]: row["n"] for row in self.store.bigquery.query_if_there(query)}

    def _listed(self, table: str, color: str) -> set[TripMonth]:
        query = f"SELECT DISTINCT file_month AS m FROM {self._name(table)} WHERE color = '{color}'"  # noqa: S608
        months = (_month_of(color, row["m"]) for row in self.store.bigquery.query_if_there(query))
        return {month for month in months if month}

    def strays(self, colors: Iterable[str]) -> list[Verified]:
        """Return the rows whose `file_month` is null, in the future, or no month of TLC's files."""
        found = []
        for color in dict.fromkeys(colors):
            now = dt.datetime.now(dt.UTC).date()
            rows = {
                day: n for day, n in self._rows(color).items() if day is None or day > now or not _month_of(color, day)
            }
            if rows:
                where = " OR ".join(f"file_month = '{day}'" if day else "file_month IS NULL" for day in rows)
                delete = f"run in BigQuery: DELETE FROM {self._name(color)} WHERE {where}"  # noqa: S608 - for a person
                text = f"{sum(rows.values()):,} rows of {color} belong to no month: {where}"
                found.append(Verified("warehouse", color, (text,), mend=delete))
        return found

    def verify(self, trip_month: TripMonth, depth: Depth, run: str) -> Findings:
        """Check the counts. At greater depth, compare each row with the lake's object inside BigQuery."""
        values: Values = {"color": ("STRING", trip_month.color), "file_month": ("DATE", trip_month.file_month)}
        table, where = self._name(trip_month.color), "WHERE color = @color AND file_month = @file_month"
        manifests = [
            Manifest.from_row(row)
            for row in self.store.bigquery.query_if_there(f"SELECT * FROM {self._name('loads')} {where}", values)  # noqa: S608
        ]
        found = Findings(manifests[0] if manifests else None)
        if len(manifests) != 1:
            found.differences.append(f"loads has {len(manifests)} rows of the month instead of 1")
        counts = self.store.bigquery.query_if_there(
            f"SELECT COUNT(*) AS n, COUNT(DISTINCT row_number) AS keys, COUNTIF(file_month <> @file_month) AS strays FROM {table}"  # noqa: S608
            " WHERE file_month BETWEEN @file_month AND @last",
            values | {"last": ("DATE", _last_day(trip_month))},
        )
        if found.manifest is None:
            return found
        manifest = found.manifest
        if manifest.withdrawn_at:
            left = counts[0]["n"] if counts else 0
            found.differences += number_of(f"rows in {trip_month.color}, from which the month was withdrawn", left, 0)
            found.not_compared = "withdrawn"
            return found
        found.differences += counts_of(manifest)
        if not counts:
            found.differences.append(f"the table {trip_month.color} is missing")
            return found
        rows, keys, strays = counts[0]["n"], counts[0]["keys"], counts[0]["strays"]
        found.differences += number_of(f"rows in {trip_month.color}", rows, manifest.loaded)
        found.differences += keys_of(trip_month.color, keys, rows)
        if strays:
            found.differences.append(
                f"{strays:,} rows of the partition have a file_month that is not the first of the month"
            )
        ours, found.not_compared, difference = reference(self.store.lake, manifest)
        if ours and (ours.rule, ours.schema_version) != (manifest.rule, manifest.schema_version):
            ours, difference = None, "loaded from an earlier version of the lake's month"
        found.differences += [difference] if difference else []
        if ours and depth != "counts":
            found.differences += self._against(ours, run)
        return found

    def _against(self, ours: Manifest, run: str) -> list[str]:
        """Join the month with a copy of the lake's object, which a load job makes. No trip passes through this machine."""
        month, bigquery = ours.trip_month, self.store.bigquery
        bigquery.ensure_table(month.color, columns(month.color), KEY[0].name)  # it may lack the newest columns
        copy = self.store.copy_of(ours, f"{month.stem.replace('-', '_')}_verify_{run.replace('-', '')[:12]}")
        checked = [column.name for column in columns(month.color) if column not in KEY]
        distinct = {name: f"t.`{name}` IS DISTINCT FROM s.`{name}`" for name in checked}
        names = ", ".join(f"IF({differs}, '{name}, ', '')" for name, differs in distinct.items())
        query = (
            "SELECT COALESCE(t.row_number, s.row_number) AS row_number, t.file_month IS NULL AS missing,"  # noqa: S608
            f" s.file_month IS NULL AS foreign_row, CONCAT({names}) AS names, COUNT(*) OVER () AS n"
            f" FROM (SELECT * FROM {self._name(month.color)} WHERE file_month = @file_month) t"
            f" FULL OUTER JOIN {self._name(copy)} s ON t.row_number = s.row_number"
            f" WHERE t.file_month IS NULL OR s.file_month IS NULL OR {' OR '.join(distinct.values())}"
            " ORDER BY row_number LIMIT 10"
        )
        rows = bigquery.query(query, {"file_month": ("DATE", month.file_month)})
        bigquery.drop(copy)
        faults = RowFaults("the lake")
        faults.add(
            (
                row["row_number"] or 0,
                MISSING if row["missing"] else FOREIGN if row["foreign_row"] else row["names"][:-2],
            )
            for row in rows
        )
        faults.count = int(rows[0]["n"]) if rows else 0
        return faults.in_words()

    def _name(self, table: str) -> str:
        return self.store.bigquery.sql_name(table)

    def mark(self, manifest: Manifest, fault: str) -> None:
        """Write the fault into the month's row of `loads`."""
        self.store.mark(manifest.trip_month, fault, manifest.published_at)


def _month_of(color: str, file_month: dt.date | None) -> TripMonth | None:
    with suppress(UnknownMonth):
        return TripMonth(color, file_month.year, file_month.month) if file_month else None
    return None


def _last_day(trip_month: TripMonth) -> dt.date:
    year, month = divmod(trip_month.year * 12 + trip_month.month, 12)
    return dt.date(year, month + 1, 1) - dt.timedelta(days=1)
