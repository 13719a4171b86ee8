"""BigQuery: a dataset, its tables and its jobs. A table's rows are replaced atomically."""

import datetime as dt
import io
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd
import pandas_gbq
import pyarrow as pa
import pyarrow.parquet as pq
import requests
from google.api_core.exceptions import (
    BadRequest,
    Conflict,
    Forbidden,
    GoogleAPICallError,
    GoogleAPIError,
    NotFound,
    Unauthorized,
    from_http_status,
)
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import bigquery
from requests.adapters import BaseAdapter

from flows.connectors.bucket import NO_ANSWER, TIMEOUT, keep_connections, root_of, silent
from flows.tlc.errors import MisconfiguredBlock, SchemaMismatch, Unreachable
from flows.tlc.schema import KINDS, Column

if TYPE_CHECKING:
    from prefect_gcp import GcpCredentials

_FRAME = 500_000  # rows per data frame, which is one load job; BigQuery allows 1,500 load jobs per table and day
# If two transactions write to the same table at once, BigQuery aborts one of them, even if they write different months.
_UNTIL_ALONE = Retry(predicate=lambda error: "due to concurrent update" in str(error), initial=2, timeout=900)
_RECENT = dt.timedelta(hours=1)
_UPLOAD = re.compile(r"https?://\S*upload_id=\S*")
_PASSING = {"quotaExceeded", "rateLimitExceeded", "jobRateLimitExceeded", "backendError"}

NO_SUCH = (NotFound, BadRequest)
"""Errors of a query for a missing table, or for a table of an older version that lacks a column."""

Values = dict[str, tuple[str, Any]]
"""Query parameters: name to (BigQuery type, value)."""


def _fields(columns: Iterable[Column]) -> list[bigquery.SchemaField]:
    return [bigquery.SchemaField(c.name, KINDS[c.kind].bigquery, description=c.described) for c in columns]


def _replacing(wanted: Iterable[Column]) -> bigquery.LoadJobConfig:
    """Return the configuration of a load job that replaces an existing table with a Parquet file."""
    return bigquery.LoadJobConfig(
        source_format=bigquery.SourceFormat.PARQUET,
        schema=_fields(wanted),
        create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
        write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
    )


def _foreign(table: bigquery.Table, why: str) -> MisconfiguredBlock:
    return MisconfiguredBlock(
        f"BigQuery has a table {table.full_table_id} that this project did not make ({why}); rename it, or choose another"
        " dataset."
    )


def _is_recent(ended: dt.datetime | None) -> bool:
    return ended is not None and dt.datetime.now(dt.UTC) - ended < _RECENT


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Remove the address of an upload from an error's text. With the address, anyone can write the upload."""
    try:
        yield
    except GoogleAPICallError as error:
        if not _UPLOAD.search(text := str(error.message)):
            raise
        text = _UPLOAD.sub("an upload:", text)
        raise from_http_status(error.code, text, errors=error.errors) from None  # type: ignore[no-untyped-call]


@contextmanager
def _original_errors() -> Iterator[None]:
    """Raise the error of Google's client in place of the one that pandas-gbq made of it."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, GoogleAPIError):
            raise error.__cause__ from None
        raise


class _Limited(BaseAdapter):
    """An adapter that gives each request `TIMEOUT`.

    Google's client waits for ever by default. Not all of its calls take a timeout, and that of `result` is for the whole job.
    """

    def __init__(self, adapter: BaseAdapter) -> None:
        super().__init__()
        self._adapter = adapter

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, *others: Any, **named: Any
    ) -> requests.Response:
        return self._adapter.send(request, stream, TIMEOUT if timeout is None else timeout, *others, **named)

    def close(self) -> None:
        self._adapter.close()


def _limit_waits(session: requests.Session) -> None:
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Limited(session.get_adapter(scheme)))


class BigQuery:
    """One dataset of a project."""

    def __init__(self, block: "GcpCredentials", dataset: str) -> None:
        self._client: bigquery.Client = block.get_bigquery_client()
        self.dataset = bigquery.DatasetReference(self._client.project, dataset)
        with self._explained():
            keep_connections(self._client)
            _limit_waits(self._client._http)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Convert the client's errors. No access becomes `MisconfiguredBlock`, no answer `Unreachable`."""
        try:
            with _without_addresses():
                yield
        except (*NO_ANSWER, TimeoutError) as error:
            if isinstance(root_of(error), (GoogleAPICallError, TransportError)):  # an answer, or no token
                raise
            raise Unreachable(
                f"BigQuery dataset {self.dataset} could not be used: {silent(error, 'BigQuery')}. Run again."
            ) from None
        except TransportError:  # the token server cannot be reached; the credentials may be right
            raise
        except (Forbidden, Unauthorized, GoogleAuthError) as error:
            if isinstance(error, Forbidden) and any(r.get("reason") in _PASSING for r in error.errors):
                raise
            reason = error.message if isinstance(error, GoogleAPICallError) else type(error).__name__
            raise MisconfiguredBlock(
                f"BigQuery dataset {self.dataset} cannot be used with the block's credentials ({reason});"
                " give the service account BigQuery Data Editor and Job User, or correct the credentials;"
                " where BigQuery may not read the bucket, use via=dataframe."
            ) from error

    def sql_name(self, name: str) -> str:
        """Return a table's full name, quoted for a query."""
        return f"`{self.dataset.project}.{self.dataset.dataset_id}.{name}`"

    @property
    def location(self) -> str:
        """The dataset's location. A job needs it if its first statement names no table."""
        with self._explained():
            return str(self._client.get_dataset(self.dataset).location)

    def ensure_dataset(self, location_of_bucket: Callable[[], str | None]) -> None:
        """Create the dataset if it does not exist. Load jobs need it in the bucket's location; None if it is unknown."""
        with self._explained():
            try:
                self._client.get_dataset(self.dataset)
            except NotFound:
                if (location := location_of_bucket()) is None:
                    raise MisconfiguredBlock(
                        f"BigQuery dataset {self.dataset} does not exist, and the credentials may not read the bucket's location:"
                        " create the dataset in that location, or give the service account Storage Legacy Bucket Reader on the"
                        " bucket."
                    ) from None
                dataset = bigquery.Dataset(self.dataset)
                dataset.location = location
                self._client.create_dataset(dataset, exists_ok=True)

    def ensure_table(
        self, name: str, wanted: Iterable[Column], partitioned_by: str = "", own: Collection[str] = ()
    ) -> None:
        """Create a table if it does not exist, and add the columns that it lacks. Partition it by month if a column is given.

        Raises:
            MisconfiguredBlock: The table exists and is not partitioned by that column, or lacks one of the columns `own`, which
                this project's table has always had.
            SchemaMismatch: A column of the table has another type.
        """
        new = bigquery.Table(self.dataset.table(name), schema=_fields(wanted))
        if partitioned_by:
            new.time_partitioning = bigquery.TimePartitioning(type_="MONTH", field=partitioned_by)
        with self._explained():
            table = self._client.get_table(self._client.create_table(new, exists_ok=True).reference)
            partitioning = table.time_partitioning
            if partitioned_by and getattr(partitioning, "field", None) != partitioned_by:
                raise _foreign(table, f"it is not partitioned by {partitioned_by}")
            present = {field.name.lower(): field for field in table.schema}
            if absent := ", ".join(column for column in own if column not in present):
                raise _foreign(table, f"it has no {absent}")
            for field in new.schema:
                old = present.get(field.name.lower())
                if old is not None and _TYPE_NAMES.get(old.field_type, old.field_type) != field.field_type:
                    raise SchemaMismatch(
                        f"BigQuery column {table.full_table_id}.{old.name} is {old.field_type}, the canonical schema has"
                        f" {field.field_type}; move the table away and load its months again."
                    )
            gained = [field for field in new.schema if field.name.lower() not in present]
            if gained:
                table.schema = [*table.schema, *gained]
                self._client.update_table(table, ["schema"])

    def query(self, query: str, values: Values | None = None, location: str | None = None) -> list[dict[str, Any]]:
        """Run a query with the parameters `values` and return its rows. Parameters that the query does not name are left out."""
        parameters = [
            bigquery.ScalarQueryParameter(name, kind, value)
            for name, (kind, value) in (values or {}).items()
            if f"@{name}" in query
        ]
        config = bigquery.QueryJobConfig(query_parameters=parameters)
        with self._explained():
            return [dict(row) for row in self._client.query(query, job_config=config, location=location).result()]

    def query_if_there(self, query: str, values: Values | None = None) -> list[dict[str, Any]]:
        """Run a query and return its rows: none if a table does not exist."""
        try:
            return self.query(query, values)
        except NotFound:
            return []

    def transact(self, statements: Sequence[str], values: Values) -> None:
        """Run statements in one transaction. Retry if another transaction writes to the same table at the same time."""
        script = "; ".join(("BEGIN TRANSACTION", *statements, "COMMIT TRANSACTION"))
        # BigQuery infers the location from the first statement, and BEGIN TRANSACTION names no table.
        _UNTIL_ALONE(self.query)(script, values, self.location)

    def load(self, uri: str, table: str, wanted: Iterable[Column], job_name: str, loaded: Any) -> None:
        """Replace a table, or a partition `table$id`, with a load job that reads `uri` itself.

        The job's id contains `job_name`. A retry, or another run of the same load, therefore finds the first job and does not
        load twice. A failed job's id cannot be used again. The load gets the next id if the first job failed or is old, or if
        `loaded()` does not find its rows: somebody may have changed or restored the table since.
        """
        config, location = _replacing(wanted), self.location
        for attempt in itertools.count():
            job_id = f"load-{self.dataset.dataset_id}-{job_name}-{attempt}"
            with self._explained():
                try:
                    job: Any = self._client.load_table_from_uri(
                        uri, self.dataset.table(table), job_id=job_id, location=location, job_config=config
                    )
                except Conflict:
                    job = self._client.get_job(job_id, location=location)
                    if self._succeeded(job) and _is_recent(job.ended) and loaded():
                        return
                    continue
                job.result()
                return

    def _succeeded(self, job: Any) -> bool:
        """Wait for another run's job, and return whether it succeeded."""
        try:
            job.result()
        except GoogleAPICallError:
            if not job.error_result:  # the request for the job's state failed, not the job
                raise
            return False
        return True

    def create_staging(self, table: str, wanted: Sequence[Column]) -> None:
        """Create an empty table that expires after one day. Replace it if it exists."""
        reference = self.dataset.table(table)
        with self._explained():
            self._client.delete_table(reference, not_found_ok=True)
            new = bigquery.Table(reference, schema=_fields(wanted))
            new.expires = pd.Timestamp.now("UTC").to_pydatetime() + pd.Timedelta(days=1)
            self._client.create_table(new)

    def write_frames(self, table: str, wanted: Sequence[Column], tables: Iterable[pa.Table]) -> None:
        """Write rows through pandas into a new table, which expires after one day."""
        self.create_staging(table, wanted)
        with self._explained():
            location = self.location
            for rows in _together(tables):
                frame = rows.to_pandas(types_mapper=_PANDAS.get, date_as_object=True)
                # DataFrame.to_gbq is deprecated: it calls this function and warns.
                with _original_errors():
                    pandas_gbq.to_gbq(
                        frame,
                        f"{self.dataset.dataset_id}.{table}",
                        bigquery_client=self._client,  # its requests have a timeout
                        project_id=self.dataset.project,
                        if_exists="append",
                        table_schema=[{"name": c.name, "type": KINDS[c.kind].bigquery} for c in wanted],
                        location=location,
                        progress_bar=False,
                    )

    def drop(self, table: str) -> None:
        """Drop a table if it exists."""
        with self._explained():
            self._client.delete_table(self.dataset.table(table), not_found_ok=True)

    def read_table(self, name: str, wanted: Sequence[Column], is_own: Callable[[str | None], bool]) -> pa.Table | None:
        """Return all rows of a small table, or None if it does not exist.

        Raises:
            MisconfiguredBlock: Its columns differ, or it has rows and `is_own` refuses its description.
        """
        names = [column.name for column in wanted]
        with self._explained():
            try:
                found = self._client.get_table(self.dataset.table(name))
            except NotFound:
                return None
        if [field.name for field in found.schema] != names:
            raise _foreign(found, f"its columns are not {', '.join(names)}")
        rows = self.query(f"SELECT * FROM {self.sql_name(name)}")  # noqa: S608
        if rows and not is_own(found.description):
            raise _foreign(found, "its description is not this project's")
        return pa.Table.from_pylist(rows, schema=pa.schema([(c.name, KINDS[c.kind].arrow) for c in wanted]))

    def replace_table(self, name: str, wanted: Sequence[Column], rows: pa.Table, description: str) -> None:
        """Replace a small table atomically, then set its description. A new table has the description from the start."""
        with self._explained(), io.BytesIO() as file:
            pq.write_table(rows, file)
            reference = self.dataset.table(name)
            new = bigquery.Table(reference, schema=_fields(wanted))
            new.description = description
            self._client.create_table(new, exists_ok=True)
            self._client.load_table_from_file(
                file, reference, rewind=True, size=file.tell(), location=self.location, job_config=_replacing(wanted)
            ).result()
            table = self._client.get_table(reference)
            table.description = description
            self._client.update_table(table, ["description"])


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield all rows, joined into tables of about `_FRAME` rows."""
    batch: list[pa.Table] = []
    for table in tables:
        batch.append(table)
        if sum(t.num_rows for t in batch) >= _FRAME:
            yield pa.concat_tables(batch)
            batch = []
    if batch:
        yield pa.concat_tables(batch)


# The API returns older names for some types.
_TYPE_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64"}
_PANDAS = {pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype()}
