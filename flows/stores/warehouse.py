"""The warehouse: BigQuery tables, one per color, partitioned by `file_month`.

A month is loaded from the lake, and replaced atomically.
"""

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from flows.connectors.bigquery import NO_SUCH, BigQuery, Values
from flows.stores.lake import Lake
from flows.tlc.addresses import escaped
from flows.tlc.attention import warnings_of
from flows.tlc.catalog import Also, ListedMonth
from flows.tlc.errors import Gone, NotReconciled, SchemaMismatch, TripDataError
from flows.tlc.manifest import LOADS_COLUMNS, Changes, Manifest, Outcome, Present, StagedCopy, Status, timeline
from flows.tlc.pipeline import Add
from flows.tlc.schema import KEY, KINDS, arrow_schema, columns
from flows.tlc.trips import Store, Terms, TripMonth, Via, dataset_named

if TYPE_CHECKING:
    from prefect_gcp import GcpCredentials

_LOADS, _HISTORY = "loads", "loads_history"
_LONGEST = 2000  # characters of names and types in an error
_OF_MONTH = "WHERE color = @color AND file_month = @file_month"
_OWN = ("color", "file_month", "sha256")  # columns that every version of `loads` has
_IN_PARTITION = (
    "file_month BETWEEN @file_month AND LAST_DAY(@file_month)"  # also rows that were moved to another day by hand
)


class Warehouse:
    """Store of months in a BigQuery dataset, loaded from the lake."""

    name: Store = "warehouse"

    def __init__(self, block: "GcpCredentials", dataset: str, lake: Lake, via: Via = "load_job") -> None:
        self.bigquery = BigQuery(block, dataset_named(dataset))
        self.lake, self._via = lake, via

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the lake's bucket exists and can be read."""
        self.lake.check()

    # List and describe months.

    def present(self, trip_month: TripMonth) -> Present:
        """Return the state of a month in the warehouse: empty if its row count differs from the one in `loads`."""
        with suppress(*NO_SUCH):
            for manifest in self._of_month(_LOADS, trip_month):
                if not manifest.withdrawn_at and self._count(trip_month) == manifest.loaded:
                    return Present(manifest=manifest)
        return Present()

    def history(self, trip_month: TripMonth) -> list[Manifest]:
        """Return the manifest of each publication and withdrawal of a month, oldest first."""
        found: list[Manifest] = []
        for table in (_HISTORY, _LOADS):
            with suppress(*NO_SUCH):  # an older version wrote no history
                found += self._of_month(table, trip_month)
        return timeline(*found)

    def remembered(self, trip_month: TripMonth) -> Manifest | None:
        """Return the lake's manifest of a month."""
        return self.lake.remembered(trip_month)

    def months(self, colors: Iterable[str], also: Also = "") -> dict[TripMonth, ListedMonth]:
        """Return every month of the colors, from `loads`. One query; no trips are read."""
        with suppress(*NO_SUCH):
            listed = [m for m in self._manifests(_LOADS) if m.color in colors and (also or not m.withdrawn_at)]
            return {m.trip_month: ListedMonth(m, m.size, True) for m in listed}
        return {}

    def _table(self, name: str) -> str:
        return self.bigquery.sql_name(name)

    def _manifests(self, table: str, where: str = "", values: Values | None = None) -> list[Manifest]:
        rows = self.bigquery.query(f"SELECT * FROM {self._table(table)} {where}", values)  # noqa: S608
        return [Manifest.from_row(row) for row in rows]

    def _of_month(self, table: str, trip_month: TripMonth) -> list[Manifest]:
        values: Values = {"color": ("STRING", trip_month.color), "file_month": ("DATE", trip_month.file_month)}
        return self._manifests(table, _OF_MONTH, values)

    def _count(self, trip_month: TripMonth, where: str = "file_month = @file_month") -> int:
        query = f"SELECT COUNT(*) AS n FROM {self._table(trip_month.color)} WHERE {where}"  # noqa: S608
        rows = self.bigquery.query_if_there(query, {"file_month": ("DATE", trip_month.file_month)})
        return int(rows[0]["n"]) if rows else 0

    def page(self, manifest: Manifest) -> str:
        """Return the URL of the object that the month was loaded from, in Google's console."""
        return self.lake.page(manifest)

    # Stage and publish a month.

    def stage(self, manifest: Manifest, terms: Terms, run: str, add: Add) -> StagedCopy:
        """Check the column types of the lake's month, and create the tables. If `via` is "dataframe", also stage the rows."""
        trip_month = manifest.trip_month
        _require_same_types(trip_month, self.lake.footer(manifest).schema.to_arrow_schema())
        self.bigquery.ensure_dataset(self.lake.bucket.location)
        self._ensure_loads()
        self.bigquery.ensure_table(trip_month.color, columns(trip_month.color), KEY[0].name)
        if self._via == "load_job":
            return StagedCopy(manifest=manifest)
        staged = 0

        def tables() -> Iterator[pa.Table]:
            nonlocal staged
            for trips in self.lake.trips(trip_month.key, manifest.generation):
                staged += trips.num_rows
                add(trips.num_rows, staged / max(manifest.loaded, 1))
                yield trips

        table = f"{trip_month.stem.replace('-', '_')}_staging_{run.replace('-', '')[:12]}"
        self.bigquery.write_frames(table, columns(trip_month.color), tables())
        return StagedCopy(manifest=manifest, table=table)

    def publish(self, staged: StagedCopy, present: Present, run_id: str, by: str = "") -> Outcome:
        """Publish a month of the lake: from its staging table if there is one, else directly from the bucket."""
        started_at, lake_month, before = dt.datetime.now(dt.UTC), staged.manifest, present.manifest
        if before is None:
            changes = Changes(inserted=lake_month.loaded)
        elif before.generation == lake_month.replaces:  # the lake counted the changes from the same previous edition
            changes = lake_month.changes
        else:
            changes = Changes(inserted=lake_month.loaded, removed=before.loaded)

        def published() -> Manifest:
            # If an earlier attempt of this run committed before it was cut off, return the manifest of that publication.
            for done in self._of_month(_LOADS, lake_month.trip_month) if run_id else []:
                if done.same_publication(run_id, lake_month.generation):
                    return done
            now = dt.datetime.now(dt.UTC)
            facts = {"started_at": started_at, "published_at": now, "flow_run_id": run_id, "started_by": by}
            return lake_month.model_copy(update=dict(changes) | facts)

        if staged.table:
            manifest = published()
            self._replace_from(staged.table, manifest)
            self._require_reconciled(manifest)
            self.bigquery.drop(staged.table)
        else:
            # BigQuery load jobs cannot join a transaction. So make all checks before the job, and write `loads` after it.
            self.lake.require_reconciled(lake_month)
            self._load_from_lake(lake_month, before)
            # A load job cannot name a generation: it reads the newest object. Check that it is still the expected one.
            try:
                self.lake.bucket.require(lake_month.trip_month.key, lake_month.generation)
            except Gone:
                # This job may have ended after the job of a run that loaded the newer object.
                self.mark(lake_month.trip_month, "the lake's month was replaced while it was being loaded")
                raise
            self._require_reconciled(lake_month)
            manifest = published()
            self._remember(manifest)
        status: Status = "replaced" if before else "loaded"
        return Outcome(store="warehouse", status=status, manifest=manifest, warnings=warnings_of(manifest, before))

    def _load_from_lake(self, manifest: Manifest, before: Manifest | None) -> None:
        """Replace the month `before` with a load job that reads the lake's object. No trip passes through this machine.

        BigQuery never runs a succeeded job id again. So the job's id depends on the replaced month and its fault, too.
        """
        trip_month, facts = manifest.trip_month, f"{before.published_at} {before.fault}" if before else ""
        replaced = f"-{hashlib.sha256(facts.encode()).hexdigest()[:12]}" if facts else ""
        self.bigquery.load(
            self.lake.bucket.uri(manifest.key),
            f"{trip_month.color}${trip_month.partition}",
            columns(trip_month.color),
            f"{trip_month.stem}-{manifest.generation}-{manifest.sha256[:12]}{replaced}",
            lambda: self._count(trip_month) == manifest.loaded,
        )

    def copy_of(self, manifest: Manifest, table: str) -> str:
        """Copy the lake's month into a new table that expires after one day, and return the table's name."""
        wanted, trips = columns(manifest.color), self.lake.trips(manifest.key, manifest.generation)
        if self._via == "dataframe":
            self.bigquery.write_frames(table, wanted, trips)
            return table
        self.bigquery.create_staging(table, wanted)

        def is_loaded() -> bool:
            [row] = self.bigquery.query(f"SELECT COUNT(*) AS n FROM {self._table(table)}")  # noqa: S608
            return bool(row["n"] == manifest.loaded)

        self.bigquery.load(self.lake.bucket.uri(manifest.key), table, wanted, table, is_loaded)
        self.lake.bucket.require(manifest.key, manifest.generation)  # a load job reads the newest object
        return table

    def _replace_from(self, staging: str, manifest: Manifest) -> None:
        """Replace the month's rows with those of a staging table, and its row in `loads`, in one transaction."""
        trip_month = manifest.trip_month
        staged = int(self.bigquery.query(f"SELECT COUNT(*) AS n FROM {self._table(staging)}")[0]["n"])  # noqa: S608
        if staged != manifest.loaded:
            raise NotReconciled(
                f"{trip_month}: the lake has {manifest.loaded} rows, {staged} were staged for BigQuery. Nothing was published."
            )
        names = ", ".join(f"`{column.name}`" for column in columns(trip_month.color))
        replace = (
            f"MERGE {self._table(trip_month.color)} t USING {self._table(staging)} s ON FALSE"  # noqa: S608
            f" WHEN NOT MATCHED BY TARGET THEN INSERT ({names}) VALUES ({names})"
            f" WHEN NOT MATCHED BY SOURCE AND t.{_IN_PARTITION} THEN DELETE"
        )
        self._remember(manifest, replace)

    def _require_reconciled(self, manifest: Manifest) -> None:
        """Raise `NotReconciled` unless the month has as many rows here as in the lake."""
        if (count := self._count(manifest.trip_month)) != manifest.loaded:
            raise NotReconciled(
                f"{manifest.trip_month}: the lake has {manifest.loaded} rows, BigQuery {count}."
                " The month does not count as loaded; run again. If the table or dataset has a partition expiration, as in"
                " BigQuery's sandbox, BigQuery deletes old months at once: remove the expiration."
            )

    def mark(self, trip_month: TripMonth, fault: str, published_at: dt.datetime | None = None) -> None:
        """Write a fault into the month's row of `loads`: the next run then loads it again.

        With `published_at`, do so only if the row is of that publication.
        """
        only = " AND published_at = @published_at" if published_at else ""
        facts = {
            "fault": ("STRING", fault),
            "color": ("STRING", trip_month.color),
            "file_month": ("DATE", trip_month.file_month),
        }
        self._ensure_loads()
        self.bigquery.query(
            f"UPDATE {self._table(_LOADS)} SET fault = @fault {_OF_MONTH}{only}",  # noqa: S608
            facts | {"published_at": ("TIMESTAMP", published_at)},
        )

    def withdraw(self, trip_month: TripMonth, run_id: str, by: str = "") -> Outcome:
        """Delete a month's rows and mark its row in `loads`, in one transaction.

        A second call deletes rows that a load job wrote afterwards, because its run was killed, or was not cancelled.
        """
        manifest = None
        with suppress(*NO_SUCH):
            manifest = next(iter(self._of_month(_LOADS, trip_month)), None)
        if manifest is None:
            raise TripDataError(f"{trip_month} is not in BigQuery; there is nothing to withdraw. Nothing was changed.")
        again = bool(manifest.withdrawn_at) and not self._count(trip_month, _IN_PARTITION)
        if not again:
            self._ensure_loads()
            manifest = manifest.withdrawn(run_id, by)
            delete = f"DELETE FROM {self._table(trip_month.color)} WHERE {_IN_PARTITION}"  # noqa: S608
            self._remember(manifest, delete)
        done = not again or (run_id and manifest.flow_run_id == run_id)
        return Outcome(store="warehouse", status="withdrawn" if done else "unchanged", manifest=manifest)

    def _ensure_loads(self) -> None:
        for table in (_LOADS, _HISTORY):
            self.bigquery.ensure_table(table, LOADS_COLUMNS, own=_OWN)

    def _remember(self, manifest: Manifest, *statements: str) -> None:
        """Run statements, write the month's row in `loads` and append it to `loads_history`, in one transaction."""
        remember, values = self._remembering(manifest)
        self.bigquery.transact([*statements, *remember], values)

    def _remembering(self, manifest: Manifest) -> tuple[Sequence[str], Values]:
        """Return the statements that write the month's row in `loads` and in `loads_history`, and their parameters.

        If the history lacks the replaced row, the first statement appends it.
        """
        row = manifest.row()
        values = ", ".join(f"@{name} AS `{name}`" for name in row)
        names = ", ".join(f"`{name}`" for name in row)
        append = (
            f"INSERT INTO {self._table(_HISTORY)} ({names}) SELECT {names} FROM {self._table(_LOADS)} {_OF_MONTH}"  # noqa: S608
            f" AND published_at NOT IN (SELECT published_at FROM {self._table(_HISTORY)} {_OF_MONTH})"
        )
        remember = (  # one row, even if there were two
            f"MERGE {self._table(_LOADS)} t USING (SELECT {values}) s ON FALSE"  # noqa: S608
            f" WHEN NOT MATCHED BY TARGET THEN INSERT ({names}) VALUES ({names})"
            " WHEN NOT MATCHED BY SOURCE AND t.color = @color AND t.file_month = @file_month THEN DELETE"
        )
        kinds = {column.name: KINDS[column.kind].bigquery for column in LOADS_COLUMNS}
        return (append, remember, append), {name: (kinds[name], value) for name, value in row.items()}


def _require_same_types(trip_month: TripMonth, published: pa.Schema) -> None:
    """Raise `SchemaMismatch` unless a Parquet file's columns are exactly the table's, by name and type.

    BigQuery would convert other types without an error.
    """
    wanted = arrow_schema(trip_month.color)
    types = dict(zip(published.names, published.types, strict=True))
    wrong = [
        f"{field.name}: {types.get(field.name, 'absent')}, canonical {field.type}"
        for field in wanted
        if types.get(field.name) != field.type
    ]
    wrong += [f"{name}: unknown to the canonical schema" for name in published.names if name not in wanted.names]
    if wrong:
        raise SchemaMismatch(
            f"{trip_month}: the lake's file is not canonical ({escaped('; '.join(wrong), _LONGEST)})."
            " Load the month into the lake again with this version."
        )
