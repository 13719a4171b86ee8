"""The warehouse: a BigQuery dataset, a table a color, partitioned by `file_month`; a month is replaced at one stroke."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pandas_gbq
import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core.exceptions import BadRequest, Conflict, Forbidden, GoogleAPICallError, NotFound, Unauthorized
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import bigquery
from prefect_gcp import GcpCredentials

from flows.tlc.errors import MisconfiguredBlock, NotReconciled, SchemaMismatch
from flows.tlc.manifest import LOADS_COLUMNS, Manifest
from flows.tlc.schema import KINDS, Column, arrow_schema, columns
from flows.tlc.trips import TripMonth, dataset_named

_LOADS = "loads"
_FRAME = 500_000  # rows held as a data frame, and a load job: a table may have 1,500 of these a day
# Of two transactions that write to the same table at once, be it other months of it, BigQuery ends one, as a whole.
_UNTIL_ALONE = Retry(predicate=lambda error: "due to concurrent update" in str(error), initial=2, timeout=900)
_PASSING = {"quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded", "backendError"}


def _fields(of: Iterable[Column]) -> list[bigquery.SchemaField]:
    return [bigquery.SchemaField(c.name, KINDS[c.kind].bigquery, description=c.meaning) for c in of]


class Warehouse:
    """Months of trips in a dataset, and the `loads` table that says where they came from."""

    def __init__(self, block: GcpCredentials, dataset: str) -> None:
        self._block = block
        self._client: bigquery.Client = block.get_bigquery_client()
        self._dataset = bigquery.DatasetReference(self._client.project, dataset_named(dataset))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except TransportError:  # the way to the token's issuer is broken, the credentials need not be
            raise
        except (Forbidden, Unauthorized, GoogleAuthError) as error:
            if isinstance(error, Forbidden) and any(r.get("reason") in _PASSING for r in error.errors):
                raise
            reason = error.message if isinstance(error, GoogleAPICallError) else type(error).__name__
            raise MisconfiguredBlock(
                f"BigQuery dataset {self._dataset} cannot be used with the block's credentials ({reason});"
                " give the service account BigQuery Data Editor and Job User, or correct the credentials;"
                " where BigQuery may not read the bucket, use via=dataframe."
            ) from error

    def _table(self, name: str) -> bigquery.TableReference:
        return self._dataset.table(name)

    def _sql_name(self, name: str) -> str:
        return f"`{self._dataset.project}.{self._dataset.dataset_id}.{name}`"

    def ensure_tables(self, color: str, location: str | None) -> None:
        """Create the dataset (in the bucket's `location`: loads need that) and tables where missing; add gained columns."""
        with self._explained():
            self._ensure_dataset(location)
            trips = bigquery.Table(self._table(color), schema=_fields(columns(color)))
            trips.time_partitioning = bigquery.TimePartitioning(type_="MONTH", field="file_month")
            self._ensure(trips)
            self._ensure(bigquery.Table(self._table(_LOADS), schema=_fields(LOADS_COLUMNS)))

    def _ensure_dataset(self, location: str | None) -> None:
        try:
            self._client.get_dataset(self._dataset)
        except NotFound:
            if location is None:
                raise MisconfiguredBlock(
                    f"BigQuery dataset {self._dataset} does not exist, and where the bucket is may not be asked: make the"
                    " dataset in the bucket's location, or give the service account Storage Legacy Bucket Reader on it."
                ) from None
            dataset = bigquery.Dataset(self._dataset)
            dataset.location = location
            self._client.create_dataset(dataset, exists_ok=True)

    def _ensure(self, wanted: bigquery.Table) -> None:
        table = self._client.create_table(wanted, exists_ok=True)
        table = self._client.get_table(table.reference)
        partitioning = table.time_partitioning
        if wanted.time_partitioning and (partitioning is None or partitioning.field != wanted.time_partitioning.field):
            raise MisconfiguredBlock(
                f"BigQuery has a table {table.full_table_id} that this project did not make (it is not partitioned by"
                " file_month); rename it, or choose another dataset."
            )
        present = {field.name.lower(): field for field in table.schema}
        for field in wanted.schema:
            old = present.get(field.name.lower())
            if old is not None and _TYPE_NAMES.get(old.field_type, old.field_type) != field.field_type:
                raise SchemaMismatch(
                    f"BigQuery column {table.full_table_id}.{old.name} is {old.field_type}, the canonical schema has"
                    f" {field.field_type}; move the table away and load its months again."
                )
        gained = [field for field in wanted.schema if field.name.lower() not in present]
        if gained:
            table.schema = [*table.schema, *gained]
            self._client.update_table(table, ["schema"])

    def manifest(self, trip_month: TripMonth) -> Manifest | None:
        """What the warehouse holds of a month; None if it never did, or no longer has as many rows as it should."""
        names = ", ".join(f"`{column.name}`" for column in LOADS_COLUMNS)
        query = f"SELECT {names} FROM {self._sql_name(_LOADS)} WHERE color = @color AND file_month = @file_month"  # noqa: S608
        try:
            rows = self._query(query, trip_month)
            manifest = Manifest.from_row(dict(rows[0])) if rows else None
            return manifest if manifest and self.count(trip_month) == manifest.loaded else None
        except (NotFound, BadRequest):  # no such table, or one of an older version that lacks a column
            return None

    def manifests(self) -> dict[TripMonth, Manifest]:
        """What `loads` says of every month, by one query that reads no trips: a month's rows are `manifest`'s to count."""
        names = ", ".join(f"`{column.name}`" for column in LOADS_COLUMNS)
        try:
            with self._explained():
                rows = self._client.query(f"SELECT {names} FROM {self._sql_name(_LOADS)}").result()  # noqa: S608
                manifests = [Manifest.from_row(dict(row)) for row in rows]
        except (NotFound, BadRequest):  # as for `manifest`
            return {}
        return {manifest.trip_month: manifest for manifest in manifests}

    def count(self, trip_month: TripMonth) -> int:
        """Rows of a month."""
        query = f"SELECT COUNT(*) AS n FROM {self._sql_name(trip_month.color)} WHERE file_month = @file_month"  # noqa: S608
        return int(self._query(query, trip_month)[0]["n"])

    def _query(
        self,
        query: str,
        trip_month: TripMonth,
        also: Iterable[bigquery.ScalarQueryParameter] = (),
        location: str | None = None,
    ) -> list[bigquery.Row]:
        parameters = {
            p.name: p
            for p in (
                bigquery.ScalarQueryParameter("color", "STRING", trip_month.color),
                bigquery.ScalarQueryParameter("file_month", "DATE", trip_month.file_month),
                *also,
            )
            if f"@{p.name}" in query
        }
        config = bigquery.QueryJobConfig(query_parameters=list(parameters.values()))
        with self._explained():
            return list(self._client.query(query, job_config=config, location=location).result())

    def require_same_types(self, trip_month: TripMonth, published: pa.Schema) -> None:
        """Raise unless a Parquet file's columns are exactly the table's, by name and type; BigQuery's own check is by guess."""
        wanted = arrow_schema(trip_month.color)
        wrong = [
            f"{field.name}: {published.field(field.name).type if field.name in published.names else 'absent'},"
            f" canonical {field.type}"
            for field in wanted
            if field.name not in published.names or published.field(field.name).type != field.type
        ]
        wrong += [f"{name}: unknown to the canonical schema" for name in published.names if name not in wanted.names]
        if wrong:
            raise SchemaMismatch(
                f"{trip_month}: the lake's file is not canonical ({'; '.join(wrong)})."
                " Load the month into the lake again with this version."
            )

    def load_from_lake(self, manifest: Manifest, uri: str) -> None:
        """Replace the month by a load job that reads `uri` itself; no trip passes through this machine.

        The job's id is made of what it loads: a retry, or another run of the same month, finds the first one's job
        instead of loading twice. Only a failed job, or one whose rows are no longer there, gets a further id.
        """
        trip_month = manifest.trip_month
        config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            schema=_fields(columns(trip_month.color)),
            write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
        )
        target = self._table(f"{trip_month.color}${trip_month.partition}")
        location = self._client.get_dataset(self._dataset).location
        for attempt in itertools.count():
            job_id = "-".join(
                (
                    "load",
                    self._dataset.dataset_id,
                    trip_month.stem,
                    str(manifest.generation),
                    manifest.sha256[:12],
                    str(attempt),
                )
            )
            with self._explained():
                try:
                    job: Any = self._client.load_table_from_uri(
                        uri, target, job_id=job_id, location=location, job_config=config
                    )
                except Conflict:
                    job = self._client.get_job(job_id, location=location)
                    if self._settle(job) and self.count(trip_month) == manifest.loaded:
                        return
                    continue
                job.result()
                return

    def _settle(self, job: Any) -> bool:
        """Wait for somebody's job; whether it went well."""
        try:
            job.result()
        except GoogleAPICallError:
            if not job.error_result:  # the question failed, not the job
                raise
            return False
        return True

    def stage_frames(self, trip_month: TripMonth, run: str, tables: Iterable[pa.Table]) -> str:
        """Upload trips through pandas into a table of this run's own, gone by itself after a day; its name is returned."""
        staging = f"{trip_month.stem.replace('-', '_')}_staging_{run.replace('-', '')[:12]}"
        fields = columns(trip_month.color)
        with self._explained():
            self._client.delete_table(self._table(staging), not_found_ok=True)
            table = bigquery.Table(self._table(staging), schema=_fields(fields))
            table.expires = pd.Timestamp.now("UTC").to_pydatetime() + pd.Timedelta(days=1)
            self._client.create_table(table)
            location = self._client.get_dataset(self._dataset).location
            credentials = self._block.get_credentials_from_service_account()
            for trips in _together(tables):
                frame = trips.to_pandas(types_mapper=_PANDAS.get, date_as_object=True)
                # The successor of DataFrame.to_gbq, which only calls it and warns.
                pandas_gbq.to_gbq(
                    frame,
                    f"{self._dataset.dataset_id}.{staging}",
                    project_id=self._dataset.project,
                    if_exists="append",
                    table_schema=[{"name": c.name, "type": KINDS[c.kind].bigquery} for c in fields],
                    location=location,
                    credentials=credentials,
                    progress_bar=False,
                )
        return staging

    def replace_from_staging(self, manifest: Manifest, staging: str) -> None:
        """Replace the month by a staged table, and say so in `loads`, in one transaction."""
        trip_month = manifest.trip_month
        staged = int(
            self._query(f"SELECT COUNT(*) AS n FROM {self._sql_name(staging)}", trip_month)[0]["n"]  # noqa: S608
        )
        if staged != manifest.loaded:
            raise NotReconciled(
                f"{trip_month}: the lake has {manifest.loaded} rows, {staged} were staged for BigQuery. Nothing was published."
            )
        names = ", ".join(f"`{column.name}`" for column in columns(trip_month.color))
        replace = (
            f"MERGE {self._sql_name(trip_month.color)} t USING {self._sql_name(staging)} s ON FALSE"  # noqa: S608
            f" WHEN NOT MATCHED BY TARGET THEN INSERT ({names}) VALUES ({names})"
            " WHEN NOT MATCHED BY SOURCE AND t.file_month = @file_month THEN DELETE"
        )
        say, values = self._said(manifest)
        transaction = f"BEGIN TRANSACTION; {replace}; {say}; COMMIT TRANSACTION"
        # Told, for its first statement names no table by which BigQuery could find out.
        location = self._client.get_dataset(self._dataset).location
        _UNTIL_ALONE(self._query)(transaction, trip_month, values, location)

    def discard(self, staging: str) -> None:
        """Drop a staged table."""
        with self._explained():
            self._client.delete_table(self._table(staging), not_found_ok=True)

    def require_reconciled(self, manifest: Manifest) -> None:
        """Raise unless the month has as many rows here as in the lake."""
        if (count := self.count(manifest.trip_month)) != manifest.loaded:
            raise NotReconciled(
                f"{manifest.trip_month}: the lake has {manifest.loaded} rows, BigQuery {count}."
                " The month does not count as loaded; run again. If the table or dataset has a partition expiration, as in"
                " BigQuery's sandbox, old months vanish at once: remove it."
            )

    def write_manifest(self, manifest: Manifest) -> None:
        """Say in `loads` what the warehouse holds of a month."""
        statement, values = self._said(manifest)
        self._query(statement, manifest.trip_month, values)

    def _said(self, manifest: Manifest) -> tuple[str, list[bigquery.ScalarQueryParameter]]:
        """The statement that says it, and its parameters."""
        row = manifest.row()
        kinds = {column.name: KINDS[column.kind].bigquery for column in LOADS_COLUMNS}
        values = ", ".join(f"@{name} AS `{name}`" for name in row)
        names = ", ".join(f"`{name}`" for name in row)
        updates = ", ".join(f"`{name}` = s.`{name}`" for name in row)
        statement = (
            f"MERGE {self._sql_name(_LOADS)} t USING (SELECT {values}) s"  # noqa: S608
            " ON t.color = s.color AND t.file_month = s.file_month"
            f" WHEN MATCHED THEN UPDATE SET {updates} WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({names})"
        )
        return statement, [bigquery.ScalarQueryParameter(name, kinds[name], value) for name, value in row.items()]

    def table(self, name: str, wanted: Sequence[Column]) -> pa.Table | None:
        """A small table of this project's, whole; None if it is not there."""
        names = [column.name for column in wanted]
        with self._explained():
            try:
                found = self._client.get_table(self._table(name))
            except NotFound:
                return None
            if [field.name for field in found.schema] != names:
                raise MisconfiguredBlock(
                    f"BigQuery has a table {found.full_table_id} that this project did not make (its columns are not"
                    f" {', '.join(names)}); rename it, or choose another dataset."
                )
            listed = ", ".join(f"`{name}`" for name in names)
            rows = self._client.query(f"SELECT {listed} FROM {self._sql_name(name)}").result()  # noqa: S608
            schema = pa.schema([(column.name, KINDS[column.kind].arrow) for column in wanted])
            return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)

    def replace_table(
        self, name: str, wanted: Sequence[Column], rows: pa.Table, description: str, location: str | None
    ) -> None:
        """Replace a small table at one stroke, and then its description; make it, and the dataset, where missing."""
        with self._explained(), io.BytesIO() as file:
            self._ensure_dataset(location)
            pq.write_table(rows, file)
            config = bigquery.LoadJobConfig(
                source_format=bigquery.SourceFormat.PARQUET,
                schema=_fields(wanted),
                write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
            )
            where = self._client.get_dataset(self._dataset).location
            self._client.load_table_from_file(
                file, self._table(name), rewind=True, location=where, job_config=config
            ).result()
            table = self._client.get_table(self._table(name))
            table.description = description
            self._client.update_table(table, ["description"])


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about `_FRAME`."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= _FRAME:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


# The API answers with the older names of some types.
_TYPE_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64"}
_PANDAS = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype()}
