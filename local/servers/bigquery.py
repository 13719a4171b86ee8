"""Run bqemulator 1.4.0, patched to start offline and to behave like BigQuery: `python -m local.servers.bigquery start …`.

The docstring of each patch says what BigQuery does, and `tests/local/servers/test_bigquery.py` tests it. bqemulator looks up
these functions in its modules at each call, so replacing the names in the modules is enough. `poetry.lock` pins the version.
"""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pyarrow as pa
from bqemulator.api.dependencies import AppContext
from bqemulator.api.routes import jobs as job_routes
from bqemulator.api.routes import tables as table_routes
from bqemulator.api.routes import upload as upload_routes
from bqemulator.catalog.duckdb_repository import DuckDBCatalogRepository
from bqemulator.catalog.etag import generate_etag
from bqemulator.catalog.models import JobMeta, TableMeta
from bqemulator.cli import main
from bqemulator.domain.errors import AlreadyExistsError, DomainError, InvalidQueryError, NotFoundError
from bqemulator.domain.events import TableDataChanged
from bqemulator.jobs import executor
from bqemulator.jobs.error_mapper import translate_runtime_error
from bqemulator.scripting.parser import parse_script
from bqemulator.sql.inner_query import rewrite_and_translate_statement
from bqemulator.sql.parameters import bind_parameters
from bqemulator.sql.table_rewriter import rewrite_table_refs
from bqemulator.storage.engine import DuckDBEngine
from bqemulator.storage.sql_identifiers import quoted_table_ref
from bqemulator.storage.type_map import bq_schema_to_duckdb_columns, duckdb_type_to_bq_field
from bqemulator.versioning.snapshots import SnapshotManager

Config = dict[str, Any]
Translate = Callable[..., Awaitable[str]]
ColumnTypes = dict[str, str]  # lower-case name -> DuckDB type

# When BigQuery loads Parquet, it does not convert between these kinds: a file's INT64 does not fit a FLOAT64 column.
_FAMILIES = {
    **dict.fromkeys(
        ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"], "INTEGER"
    ),
    **dict.fromkeys(["FLOAT", "DOUBLE"], "FLOAT"),
    **dict.fromkeys(["TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"], "DATETIME"),
}
_PARTITION_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H"}  # by the length of the text after the $


def _scalar(context: AppContext, sql: str, *parameters: str) -> int:
    row = context.engine.execute(sql, list(parameters)).fetchone()
    return int(row[0]) if row else 0


def _family(duckdb_type: str) -> str:
    return _FAMILIES.get(duckdb_type, duckdb_type.partition("(")[0])


def _column_types(context: AppContext, relation: str, *parameters: str) -> ColumnTypes:
    rows = context.engine.execute(f"DESCRIBE SELECT * FROM {relation}", list(parameters)).fetchall()  # noqa: S608
    return {name.lower(): duckdb_type for name, duckdb_type, *_ in rows}


def _load_parquet_by_name(path: str, target: str, context: AppContext) -> None:
    """Match columns by name. Fail the job for a column that the table lacks or has with another type."""
    table = _column_types(context, target)
    for name, found in _column_types(context, "read_parquet(?)", path).items():
        if name not in table:
            raise InvalidQueryError(f"Provided Schema does not match Table. Cannot add fields (field: {name})")
        if _family(found) != _family(table[name]):
            raise InvalidQueryError(
                f"Provided Schema does not match Table. Field {name} has changed type from {table[name]} to {found}"
            )
    context.engine.execute(f"INSERT INTO {target} BY NAME SELECT * FROM read_parquet(?)", [path])  # noqa: S608


def _with_schema(load: Config, path: str, context: AppContext) -> Config:
    """Return the load config. A Parquet load without a schema gets the file's schema."""
    if load.get("sourceFormat") != "PARQUET" or (load.get("schema") or {}).get("fields"):
        return load
    rows = context.engine.execute("DESCRIBE SELECT * FROM read_parquet(?)", [path]).fetchall()
    return load | {"schema": {"fields": [duckdb_type_to_bq_field(row[0], row[1]) for row in rows]}}


def _create_destination(job: Any, load: Config, path: str, context: AppContext) -> bool:
    """Create the table and its layout as the load config describes it, if it is missing and the load may create it.

    Return whether it was created.
    """
    where = {"dest_project": job.project_id, "dest_dataset": job.dataset_id, "dest_table_id": job.table_id}
    if job.create_disposition != "CREATE_IF_NEEDED" or context.catalog.get_table(*where.values()) is not None:
        return False
    executor._maybe_create_load_destination(
        **where, load_config=_with_schema(load, path, context), now=context.clock.now(), ctx=context
    )
    table = context.catalog.get_table(*where.values())
    if table is None:
        return False
    layout = {
        "time_partitioning": table_routes._rest_to_time_partitioning(load.get("timePartitioning"), None),
        "clustering": table_routes._rest_to_clustering(load.get("clustering"), None),
    }
    context.catalog.update_table(table.model_copy(update=layout))
    return True


def _partition_condition(table: TableMeta, decorator: str) -> str:
    """Return the SQL condition for the rows of partition `table$decorator`; TRUE without a decorator."""
    if not decorator:
        return "TRUE"
    layout = table.time_partitioning
    if layout is None or not layout.field or not decorator.isdigit() or len(decorator) not in _PARTITION_FORMATS:
        raise InvalidQueryError(f"Invalid partition decorator ${decorator} for table {table.table_id}")
    return f"strftime(\"{layout.field}\", '{_PARTITION_FORMATS[len(decorator)]}') IS NOT DISTINCT FROM '{decorator}'"


async def _load_files(project: str, job_id: str, config: Config, context: AppContext) -> JobMeta:
    """Load files into a table or a partition of it atomically. Check the files before any row is deleted."""
    load = dict(config["load"])
    destination = dict(load.get("destinationTable") or {})
    destination["tableId"], _, decorator = destination.get("tableId", "").partition("$")
    load["destinationTable"] = destination
    started = context.clock.now()
    job = executor._parse_load_job_config(project, {"load": load})
    engine, catalog = context.engine, context.catalog

    paths = [executor._resolve_uri(uri, context) for uri in job.source_uris]
    for uri, path in zip(job.source_uris, paths, strict=True):
        executor._validate_local_path(path)
        if not _scalar(context, "SELECT count(*) FROM glob(?)", path):
            raise NotFoundError(f"Not found: URI {uri}")

    async with engine.write_lock():
        # No await from here on, so that no other request can see or join the transaction.
        created = _create_destination(job, load, paths[0], context)
        table = catalog.get_table(job.project_id, job.dataset_id, job.table_id)
        if table is None:
            raise NotFoundError(f"Not found: Table {job.project_id}:{job.dataset_id}.{job.table_id}")

        def count(condition: str = "TRUE") -> int:
            return _scalar(context, f"SELECT count(*) FROM {job.target_ref} WHERE {condition}")  # noqa: S608

        engine.execute("BEGIN TRANSACTION")
        try:
            partition = _partition_condition(table, decorator)
            if job.write_disposition == "WRITE_TRUNCATE":
                engine.execute(f"DELETE FROM {job.target_ref} WHERE {partition}")  # noqa: S608
            elif job.write_disposition == "WRITE_EMPTY" and count(partition):
                raise AlreadyExistsError(f"Already Exists: Table {job.project_id}:{job.dataset_id}.{job.table_id}")
            before, outside = count(), count(f"NOT ({partition})")
            for path in paths:
                executor._load_path_into_target(path, job, context)
            if count(f"NOT ({partition})") != outside:
                raise InvalidQueryError(
                    f"Some rows belong to different partitions rather than destination partition {job.table_id}${decorator}"
                )
            rows = count() - before
            engine.execute("COMMIT")
        except BaseException:
            engine.execute("ROLLBACK")
            if created:
                engine.execute(f"DROP TABLE IF EXISTS {job.target_ref}")
                catalog.delete_table(job.project_id, job.dataset_id, job.table_id)
            raise
        ended = context.clock.now()
        context.snapshots.record_change(job.project_id, job.dataset_id, job.table_id)
    return JobMeta(
        project_id=project,
        job_id=job_id,
        job_type="LOAD",
        state="DONE",
        configuration=config,
        statistics={"load": {"outputRows": str(rows), "inputFiles": str(len(paths))}},
        creation_time=started,
        start_time=started,
        end_time=ended,
        etag=generate_etag(project, job_id, str(started)),
    )


async def _execute_load_job(project: str, job_id: str, config: Config, context: AppContext) -> JobMeta:
    """Run a load job. A failed load is a DONE job with an error, which the client raises from `result()`."""
    try:
        return await _load_files(project, job_id, config, context)
    except DomainError as error:
        reason = "invalid" if error.bq_reason == "invalidQuery" else error.bq_reason
        message = error.message
    except Exception as error:  # any error of DuckDB about the file
        reason, message = "invalid", f"Error while reading data, error message: {error}"
    return job_routes._failed_job_meta(
        project_id=project,
        job_id=job_id,
        job_type="LOAD",
        config=config,
        error_result={"reason": reason, "message": message},
        now=context.clock.now(),
    )


def _merge_on_false(translate: Translate) -> Translate:
    """Make `MERGE … ON FALSE`, BigQuery's idiom for replacing rows atomically, fast in DuckDB.

    For a constant condition DuckDB compares every pair of rows. An equation that no pair fulfils makes it use a hash join.
    """

    async def translated(sql: str, **named: Any) -> str:
        duckdb_sql = await translate(sql, **named)
        merge = executor._parse_for_classification(sql)
        if merge is None or merge.key != "merge" or merge.args["on"].sql().upper() != "FALSE":
            return duckdb_sql
        target, source = merge.this.alias_or_name, merge.args["using"].alias_or_name
        never = f'"{target}".rowid = -1 - (hash("{source}") >> 1)::BIGINT'
        return duckdb_sql.replace(" ON FALSE ", f" ON {never} ", 1)

    return translated


def _transaction(run: Callable[..., Awaitable[Any]], translate: Translate) -> Callable[..., Awaitable[Any]]:
    """Run `BEGIN TRANSACTION; …; COMMIT TRANSACTION` as one transaction, with the job's parameters in its statements.

    bqemulator instead changes one table after the other visibly, restores copies if a statement fails, and binds no parameters
    in transactions.
    """

    async def body(**job: Any) -> Any:
        statements = [getattr(statement, "sql", "") for statement in parse_script(job["bq_sql"]).statements]
        if [statements[0].upper(), statements[-1].upper()] != ["BEGIN TRANSACTION", "COMMIT TRANSACTION"]:
            return await run(**job)
        statements = statements[1:-1]
        project, context, caller = job["project_id"], job["ctx"], job["effective_caller"]
        prepared = []
        for statement in statements:
            duckdb_sql = await translate(
                statement, project_id=project, ctx=context, caller=caller, translator=executor._translator
            )
            duckdb_sql = rewrite_table_refs(duckdb_sql, project)
            prepared.append(bind_parameters(duckdb_sql, job["query_params"]))
        async with context.engine.write_lock():
            # As in `_load_files`: no await from here on.
            context.engine.execute("BEGIN TRANSACTION")
            try:
                for duckdb_sql, values in prepared:
                    context.engine.execute(duckdb_sql, values)
                context.engine.execute("COMMIT")
            except Exception as error:
                context.engine.execute("ROLLBACK")
                raise translate_runtime_error(error, duckdb_sql=duckdb_sql) from error
        for statement in statements:
            await executor._capture_dml_snapshots(project, statement, context)
        return pa.table({})

    return body


def _job_id_once(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Accept a job id only once. Answer 409 the second time, even while the first job still runs."""
    running: set[tuple[str, str]] = set()

    async def once(project: str, job_id: str, *arguments: Any, **named: Any) -> Any:
        context: AppContext = named.get("ctx") or arguments[1]
        job = (project, job_id)
        if job in running or context.catalog.get_job(*job) is not None:
            raise AlreadyExistsError(f"Already Exists: Job {project}:US.{job_id}")
        running.add(job)
        try:
            return await handler(project, job_id, *arguments, **named)
        finally:
            running.discard(job)

    return once


def _follow_schema(update: Callable[..., TableMeta]) -> Callable[..., TableMeta]:
    """Apply a schema update to the stored table. It may add nullable columns, but not remove or change any."""

    def update_table(catalog: DuckDBCatalogRepository, table: TableMeta) -> TableMeta:
        stored = catalog.get_table(table.project_id, table.dataset_id, table.table_id)
        if stored is not None and table.table_type == "TABLE" and stored.schema_ != table.schema_:
            old = {field.name.lower(): field for field in stored.schema_.fields}
            new = {field.name.lower(): field for field in table.schema_.fields}
            for name, field in old.items():
                if name not in new:
                    raise InvalidQueryError(
                        f"Provided Schema does not match Table. Field {field.name} is missing in new schema"
                    )
                if new[name].type != field.type:
                    raise InvalidQueryError(
                        f"Provided Schema does not match Table. Field {field.name} has changed type"
                        f" from {field.type} to {new[name].type}"
                    )
            target = quoted_table_ref(table.project_id, table.dataset_id, table.table_id)
            for name in new.keys() - old.keys():
                if new[name].mode == "REQUIRED":
                    raise InvalidQueryError(f"Cannot add required fields to an existing schema. (field: {name})")
            added = [table_routes._field_to_rest(field) for name, field in new.items() if name not in old]
            for column, duckdb_type in bq_schema_to_duckdb_columns(added):
                catalog._engine.execute(f'ALTER TABLE {target} ADD COLUMN IF NOT EXISTS "{column}" {duckdb_type}')
        return update(catalog, table)

    return update_table


def _note_change(self: SnapshotManager, project: str, dataset: str, table: str) -> None:
    """Update a table's `num_rows` after each write. (bqemulator instead copies the whole table, for time travel.)"""
    stored = self._catalog.get_table(project, dataset, table)
    if stored is not None:
        target = quoted_table_ref(project, dataset, table)
        row = self._engine.execute(f"SELECT count(*) FROM {target}").fetchone()  # noqa: S608
        self._catalog.update_table(
            stored.model_copy(update={"num_rows": row[0] if row else 0, "last_modified_time": self._clock.now()})
        )
    self._events.publish(TableDataChanged(project, dataset, table))


def _execute(self: DuckDBEngine, sql: str, parameters: list[Any] | None = None) -> Any:
    """Run SQL. Requests in other threads get their own cursor, and see only committed data.

    On the shared connection they would take each other's results, and see the rows of an uncommitted load.
    """
    shared = threading.current_thread() is threading.main_thread()
    connection = self.connection if shared else self.connection.cursor()
    return connection.execute(sql) if parameters is None else connection.execute(sql, parameters)


def patch() -> None:
    """Patch bqemulator in this process."""
    translate = _merge_on_false(rewrite_and_translate_statement)
    replacements: list[tuple[object, str, object]] = [
        (
            DuckDBEngine,
            "_load_spatial",
            lambda self: None,
        ),  # it would download an extension; without it, GEOGRAPHY is missing
        (DuckDBEngine, "execute", _execute),
        (DuckDBCatalogRepository, "update_table", _follow_schema(DuckDBCatalogRepository.update_table)),
        (SnapshotManager, "record_change", _note_change),
        # google-cloud-bigquery sends small uploads with the type */*
        (upload_routes, "_PERMITTED_MEDIA_CONTENT_TYPES", (*upload_routes._PERMITTED_MEDIA_CONTENT_TYPES, "*/*")),
        (upload_routes, "execute_load_job", _execute_load_job),
        (executor, "rewrite_and_translate_statement", translate),
        (executor, "_run_query_body", _transaction(executor._run_query_body, translate)),
        (job_routes, "_handle_load_job_with_async_envelope", _job_id_once(_execute_load_job)),
        (job_routes, "_handle_query_job", _job_id_once(job_routes._handle_query_job)),
    ]
    for owner, name, replacement in replacements:
        getattr(owner, name)  # an AttributeError here means that bqemulator has changed
        setattr(owner, name, replacement)
    executor._LOAD_FORMAT_HANDLERS["PARQUET"] = _load_parquet_by_name


if __name__ == "__main__":
    patch()
    main()
