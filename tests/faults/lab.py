"""Prepare a month in two editions and separate stores, and compute the stores' contents after a run without a failure."""

import datetime as dt
import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from uuid import uuid4

import psycopg2
import pyarrow.parquet as pq
import requests
from google.api_core.exceptions import GoogleAPIError, NotFound
from google.cloud import bigquery, storage

from flows.connectors.web import look_up, source_of
from flows.stores import Target
from flows.tasks.stores import open_store
from flows.tlc.sources import ENDINGS
from flows.tlc.trips import TEMPORARY_KEYS, Rows, Terms, TripMonth, temporary_names
from local.trip_files.writing import BadRows, write_month
from tests.faults import digest
from tests.faults.programs import Programs, Run
from tests.stores import Stores

LAKE, CREDENTIALS, POSTGRES = "fault-lake", "fault-credentials", "fault-postgres"
FlowName = Literal[
    "etl_web_gcs", "etl_gcs_bq", "etl_gcs_bq_dataframe", "ingest_data", "bring_up_to_date", "backfill", "withdraw",
    "prune_editions", "load_edition", "load_edition_database", "replay_quarantine", "verify", "load_zones",
]  # fmt: skip
AFTERWARDS: tuple[FlowName, ...] = (
    "withdraw", "prune_editions", "load_edition", "load_edition_database", "replay_quarantine", "verify",
)  # fmt: skip  # they need a published month
FLOWS: tuple[FlowName, ...] = (
    "etl_web_gcs", "etl_gcs_bq", "etl_gcs_bq_dataframe", "ingest_data", "bring_up_to_date", "backfill",
)  # fmt: skip
STORES_OF: Mapping[FlowName, tuple[str, ...]] = {
    "etl_web_gcs": ("lake",),
    "etl_gcs_bq": ("lake", "warehouse"),
    "etl_gcs_bq_dataframe": ("lake", "warehouse"),
    "ingest_data": ("database",),
    "bring_up_to_date": ("lake", "warehouse", "database"),
    "backfill": ("lake", "warehouse", "database"),
    "withdraw": ("lake", "warehouse", "database"),
    "prune_editions": ("lake",),
    "load_edition": ("lake",),
    "load_edition_database": ("database",),
    "replay_quarantine": ("lake",),
    "verify": ("lake", "warehouse", "database"),
    "load_zones": ("lake", "warehouse", "database"),
}
PROGRAMS: Mapping[FlowName, str] = {  # the others have the flow's name
    "etl_gcs_bq_dataframe": "etl_gcs_bq",
    "load_edition": "etl_web_gcs",
    "load_edition_database": "ingest_data",
}
# Use small chunks, so that even a small month needs many transfers and a fault can occur between any two of them.
SMALL = {
    "flows.connectors.bucket:CHUNK": 256 << 10,
    "flows.connectors.web:PIECE": 64 << 10,
    "flows.tlc.reading_csv:BLOCK": 64 << 10,
    "flows.stores.lake:_ROW_GROUP": 1000,
}
ROWS = 4000
_PUBLISHED = 1_600_000_000  # seconds since 1970
MONTH = TripMonth("green", 2019, 6)


@dataclass
class Lab:
    """The month, the stores and the programs."""

    ours: Stores
    programs: Programs
    folder: Path
    month: TripMonth = MONTH
    _prepared: int = 0
    _expected: dict[tuple[str, bool], dict[str, Any]] = field(default_factory=dict, repr=False)
    _new: dict[tuple[str, bool], dict[str, str]] = field(default_factory=dict, repr=False)
    _opened: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Return the source of the month: plain CSV, so that a small month has many bytes."""
        return self.ours.site.url + "/legacy/{color}_tripdata_{year}-{month:02d}.csv"

    def publish(self, edition: int, month: TripMonth | None = None) -> None:
        """Publish an edition of a month on the site. The first has bad rows, the second has none."""
        at = month or self.month
        name = f"{at.stem}.csv"
        path = self.folder / f"{edition}-{name}"
        if not path.exists():
            faults = BadRows(unconvertible=3, too_few_fields=2) if edition == 1 else BadRows()
            write_month(path, at.color, at.year, at.month, rows=ROWS, edition=edition, bad_rows=faults)
        self.ours.site.put(name, path)
        put = self.ours.site.find(name)
        assert put
        os.utime(put, (_PUBLISHED + edition, _PUBLISHED + edition))  # the manifest contains Last-Modified

    def start(
        self, flow: FlowName, hooks: Mapping[str, Any] | None = None, month: TripMonth | None = None, **variables: str
    ) -> Run:
        """Start a flow's program for one month, in small pieces."""
        given = dict(hooks or {})
        given["set"] = {**SMALL, **given.get("set", {})}
        variables = {"TRIPS_SCRATCH": str(self.folder / f"scratch-{self._prepared}")} | variables
        return self.programs.start(
            PROGRAMS.get(flow, flow), *self.arguments(flow, month or self.month), hooks=given, **variables
        )

    def arguments(self, flow: FlowName, month: TripMonth) -> list[object]:
        """Return the words of a flow's command line."""
        bounds = f"{month.year}-{month.month:02d}"
        only = ["--colors", month.color, "--since", bounds, "--until", bounds]
        words: list[object] = [month.color, month.year, month.month]
        lake, database, source = ["--block-name", LAKE], ["--block-name", POSTGRES], ["--source", self.source]
        elsewhere = ["--credentials-block", CREDENTIALS, "--dataset", self.ours.dataset]
        everywhere = [*lake, *elsewhere, "--postgres-block", POSTGRES]
        zones = f"{self.ours.site.url}/misc/taxi_zone_lookup.csv"
        stores = STORES_OF[flow]
        edition = ["--edition", self._first(month)] if flow.startswith("load_edition") else []
        every: Mapping[FlowName, list[object]] = {
            "etl_web_gcs": [*words, *lake, *source],
            "etl_gcs_bq": [*words, *lake, *elsewhere],
            "etl_gcs_bq_dataframe": [*words, *lake, *elsewhere, "--via", "dataframe"],
            "ingest_data": [*words, *database, *source],
            "bring_up_to_date": [*only, *everywhere, *source, "--into", *stores, "--expect-within", 0],
            "backfill": [*only, *everywhere, *source, "--into", *stores],
            "withdraw": [*words, *everywhere, *(word for name in stores for word in ("--stores", name))],
            "prune_editions": ["--colors", month.color, "--keep", 0, "--action", "delete", *lake],
            "load_edition": [*words, *lake, *edition],
            "load_edition_database": [*words, *database, "--lake-block", LAKE, *edition],
            "replay_quarantine": [*words, *lake],
            "verify": [*only, *everywhere, "--stores", *stores, "--depth", "raw"],
            "load_zones": [*stores, *everywhere, "--source", zones],
        }
        return every[flow]

    def _first(self, month: TripMonth) -> str:
        """Return the name of the month's first edition."""
        return hashlib.sha256((self.folder / f"1-{month.stem}.csv").read_bytes()).hexdigest()[:12]

    def store(self, name: Literal["lake", "warehouse", "database"]) -> Any:
        """Return a store, opened in this process."""
        if name not in self._opened:
            target = Target(name, LAKE, CREDENTIALS, self.ours.dataset, POSTGRES)
            self._opened[name] = open_store(target)
        return self._opened[name]

    def wipe(self) -> None:
        """Empty the three stores."""
        client = storage.Client()
        for blob in client.list_blobs(self.ours.bucket):
            with suppress(NotFound):
                blob.delete()
        self.ours.query("DROP SCHEMA public CASCADE")
        self.ours.query("CREATE SCHEMA public")
        bigquery.Client().delete_dataset(self.ours.dataset, delete_contents=True, not_found_ok=True)

    def load(
        self, name: Literal["lake", "warehouse", "database"], month: TripMonth | None = None, rows: Rows = "all"
    ) -> None:
        """Load the month that is published now into one store, in this process and without Prefect."""
        store, at = self.store(name), month or self.month
        present = store.present(at)
        raw = (
            self.store("lake").required(at)
            if name == "warehouse"
            else store.extract(look_up(source_of(self.source), at), _nothing)
        )
        store.publish(store.stage(raw, Terms(rows), uuid4().hex, _nothing), present, uuid4().hex)

    def prepare(self, flow: FlowName, *, over: bool) -> None:
        """Bring the stores into the state in which the flow starts: empty, or with the first edition, the second published.

        For pruning and for loading an edition again, the stores have the second edition, too. A month is withdrawn or verified
        in the first.
        """
        self._prepared += 1  # a new scratch folder without the files of earlier runs
        self.wipe()
        self.publish(1)
        into = STORES_OF[flow]
        if over:
            if "lake" in into or flow == "load_edition_database":
                self.load("lake")
            if "warehouse" in into:
                self.load("warehouse")
            if "database" in into:
                self.load("database", rows="with_passengers")
            if flow not in ("withdraw", "verify"):
                self.publish(2)
        if flow in ("etl_gcs_bq", "etl_gcs_bq_dataframe", "prune_editions", "load_edition", "load_edition_database"):
            self.load("lake")
        if flow == "load_edition_database":
            self.load("database", rows="with_passengers")

    def sweep(self) -> None:
        """Delete staging as a run a day later does, and the tables that BigQuery deletes a day later."""
        tomorrow = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
        self.store("lake").bucket.delete_older(TEMPORARY_KEYS, temporary_names(ENDINGS), tomorrow)
        client = bigquery.Client()
        with suppress(NotFound):
            for item in client.list_tables(self.ours.dataset):
                if digest.is_temporary(item.table_id):
                    client.delete_table(item.reference)

    def expected(self, flow: FlowName, *, over: bool) -> dict[str, Any]:
        """Return the digest of the stores after a run of the flow without a failure."""
        if (flow, over) not in self._expected:
            self.prepare(flow, over=over)
            self.start(flow).succeeded()
            assert digest.staging(self.ours) == []
            self._expected[flow, over] = digest.whole(self.ours)
            self._new[flow, over] = see(self)
        return self._expected[flow, over]

    def states(self, flow: FlowName, *, over: bool) -> dict[str, set[str]]:
        """Prepare the stores. Return, for each store of the flow, what a reader may see: the old month and the new one."""
        self.expected(flow, over=over)
        self.prepare(flow, over=over)
        old = see(self)
        return {store: {old[store], self._new[flow, over][store]} for store in STORES_OF[flow]}


def _nothing(count: int, share: float) -> None:
    """Show no progress."""


def see_lake(lab: Lab) -> str:
    """Return the month as a reader of the lake sees it."""
    blob = storage.Client().bucket(lab.ours.bucket).get_blob(f"data/{lab.month.key}")
    if blob is None:
        return "absent"
    return digest.rows_digest(pq.read_table(io.BytesIO(blob.download_as_bytes())))


def see_warehouse(lab: Lab) -> str:
    """Return the month as a reader of BigQuery sees it."""
    table, month = f"{lab.ours.dataset}.{lab.month.color}", lab.month.file_month
    query = f"SELECT COUNT(*) AS n, SUM(total_amount) AS s FROM {table} WHERE file_month = '{month}'"
    try:
        rows = [dict(row) for row in bigquery.Client().query_and_wait(query)]
    except GoogleAPIError as error:
        if getattr(error, "code", 0) in (400, 404):
            return "absent"
        raise
    return f"{rows[0]['n']} rows {rows[0]['s']:.2f}" if rows and rows[0]["n"] else "absent"


def see_database(lab: Lab) -> str:
    """Return the month, and its row of `loads`, as a reader of Postgres sees them in one statement."""
    query = (
        f"SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY row_number)),"
        f" (SELECT loaded FROM loads l WHERE l.color = '{lab.month.color}' AND l.file_month = '{lab.month.file_month}')"
        f" FROM {lab.month.color} t WHERE file_month = '{lab.month.file_month}'"
    )
    try:
        [(count, md5, loaded)] = lab.ours.query(query)
    except psycopg2.errors.UndefinedTable:
        return "absent"
    return f"{count} rows {md5}, loads says {loaded}" if count or loaded else "absent"


_SEE = {"lake": see_lake, "warehouse": see_warehouse, "database": see_database}


def see(lab: Lab) -> dict[str, str]:
    """Return the month as a reader of each store sees it."""
    return {store: read(lab) for store, read in _SEE.items()}


class Reader(threading.Thread):
    """Polls the month in some stores until the block ends, and records every state that it saw.

    If `through_outages`, a store that does not answer is asked again.
    """

    _OUTAGES = (psycopg2.OperationalError, GoogleAPIError, requests.RequestException, OSError)

    def __init__(self, lab: Lab, stores: tuple[str, ...], *, through_outages: bool = False) -> None:
        super().__init__(name="reader", daemon=True)
        self.seen: dict[str, set[str]] = {store: set() for store in stores}
        self.reads = 0
        self.failure: Exception | None = None
        self._lab, self._done, self._through_outages = lab, threading.Event(), through_outages

    def run(self) -> None:
        while not self._done.wait(0.05):
            for store, states in self.seen.items():
                try:
                    states.add(_SEE[store](self._lab))
                    self.reads += 1
                except Exception as error:  # shown by the test
                    if not (self._through_outages and isinstance(error, self._OUTAGES)):
                        self.failure = error
                        return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()
        if self.failure:
            raise self.failure

    def require_only(self, allowed: Mapping[str, set[str]]) -> None:
        """Raise `AssertionError` if it saw another state than those allowed for its store."""
        for store, states in self.seen.items():
            other = states - allowed[store]
            if store == "database" and "absent" in allowed[store]:
                # PostgreSQL chooses the partitions of a statement before it takes the snapshot. A statement that meets the
                # commit of a first load may see the month's row of `loads`, and no trip yet.
                other = {state for state in other if not state.startswith("0 rows None, loads says ")}
            assert not other, f"a reader of {store} saw {other}, allowed {allowed[store]}"


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `happened()` is true. Raise `AssertionError` if it is not in time."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"the condition was still false after {seconds} s"
        time.sleep(0.05)


def chance(seed: str) -> random.Random:
    """Return a random generator for one case. `SEED` gives other cases."""
    return random.Random(  # noqa: S311 - a seed, not a secret
        f"{os.environ.get('SEED', '0')} {seed}"
    )
