"""Define the works, their files and their contenders. Empty the store before each run, and compare its rows after it."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx
import psycopg2

from bench import SMALL_MONTH, files
from bench.files import DIGEST, Digest
from bench.process import Run, measure
from local.servers.stack import BUCKET, PROJECT, Stack, without_foreign_settings

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
NAME = "yellow_tripdata_{year}-{month:02d}"
KEY = "data/yellow/yellow_tripdata_2021-01.parquet"
TWELVE_YEAR, SMALL_YEAR = 2020, 2019


T = TypeVar("T")


class WrongRows(Exception):
    """A contender stored wrong rows, so its time is not comparable."""


@dataclass(frozen=True)
class Size:
    """The size of the files, and how often each contender runs."""

    rows: int
    months: int
    """The number of months in the works `twelve_months` and `small_months`."""
    rows_a_month: int
    """The rows of each month in the work `twelve_months`."""
    repeats: int
    programs: tuple[str, ...]
    """The programs whose start-up is measured."""
    empties: Literal["one for each structure", "one for all"]
    """Which empty flows run. One for all is fast, and makes `net_s` rough."""


PROGRAMS = tuple(sorted(path.stem for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__"))
FULL = Size(1_370_000, 12, 150_000, repeats=5, programs=PROGRAMS, empties="one for each structure")
QUICK = Size(50_000, 2, 20_000, repeats=1, programs=("etl_web_gcs",), empties="one for all")


@dataclass(frozen=True)
class Record:
    """The medians of one contender at one work over `runs` runs."""

    work: str
    contender: str
    wall_s: float
    net_s: float
    cpu_s: float
    peak_rss_mb: float
    rows: int
    runs: int
    cores_busy: float
    """The mean number of the machine's cores at work in the net time, in this program or in a server."""


@dataclass(frozen=True)
class Entry:
    """One contender at one work. `command` gets the number of the repeat; `stored` returns the digest of the store after it."""

    work: str
    contender: str
    command: Callable[[int], Sequence[str]]
    expected: Digest = (0,)
    stored: Callable[[int], Digest] | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    empty: str = ""
    """The empty flow whose time is subtracted, a key of `EMPTY`."""


@dataclass(frozen=True)
class Empty:
    """The structure of an empty flow: that of the flow from which its time is subtracted."""

    imports: tuple[str, ...]
    """Modules to import, so that it has imported what the flow has imported at its end."""
    tasks: int
    """Tasks of each month."""
    tasks_of_parent: int = 0
    months: int | Literal["all"] = 1
    """0: one flow without a parent. all: as many as `twelve_months` has."""
    at_once: int = 1


_LAKE = ("flows.etl_web_gcs", "prefect_gcp.cloud_storage", "flows.stores.lake")
_DATABASE = ("flows.ingest_data", "prefect_sqlalchemy", "flows.stores.database", "pandas")
_WAREHOUSE = ("flows.etl_gcs_bq", "prefect_gcp.cloud_storage", "flows.stores.warehouse", "flows.stores.lake")
# The seed's has the most modules and tasks that one of its flows has, which favours the others.
EMPTY = {
    "ours_lake": Empty(_LAKE, tasks=4, tasks_of_parent=1),
    "ours_postgres": Empty(_DATABASE, tasks=6, months=0),
    "ours_postgres_same": Empty(_DATABASE[:3], tasks=3, months=0),
    "ours_warehouse": Empty(_WAREHOUSE, tasks=3, tasks_of_parent=1),
    "twelve_two_at_once": Empty(_LAKE, tasks=4, tasks_of_parent=1, months="all", at_once=2),
    "twelve_one_at_a_time": Empty(_LAKE, tasks=4, tasks_of_parent=1, months="all"),
    "seed": Empty(("pandas", "pandas_gbq", "prefect_gcp.cloud_storage"), tasks=4, months=0),
}


def _contender(module: str, name: str, *arguments: str | int | Path) -> list[str]:
    python = PEERS if module == "peers" else sys.executable
    return [str(python), "-m", "bench.process", f"bench.{module}", name, *map(str, arguments)]


def _flow(name: str, *arguments: str | int) -> list[str]:
    return [sys.executable, str(ROOT / "flows" / f"{name}.py"), "yellow", *map(str, arguments)]


def _empty_flow(empty: Empty, months: int) -> list[str]:
    months = months if empty.months == "all" else empty.months
    return _contender(
        "seed", "empty_flow", ",".join(empty.imports), empty.at_once, months, empty.tasks, empty.tasks_of_parent
    )


class Contest:
    """All works on one set of running services. `say` is called with a line for each run."""

    def __init__(self, stack: Stack, helper: Executor, size: Size, say: Callable[[str], None]) -> None:
        self._stack, self._helper, self._size, self._say = stack, helper, size, say
        self._scratch = stack.state / "tmp"
        self._spare = stack.state / "spare"
        self._site = stack.state / "web" / "put"
        self.environment = without_foreign_settings(dict(os.environ)) | stack.env
        self.environment |= {
            "PYTHONPATH": str(ROOT),  # this tree is measured, whatever is installed
            "TMPDIR": str(self._scratch),
            "TRIPS_SCRATCH": str(stack.state / "scratch"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        self._trips: dict[str, Digest] = {}
        self._months = range(1, size.months + 1)

    def prepare(self) -> None:
        """Register the blocks, make the files and publish them on the site."""
        self._spare.mkdir()
        subprocess.run(
            [sys.executable, "-m", "blocks.register"], env=self.environment, check=True, stdout=subprocess.DEVNULL
        )
        rows = self._size.rows
        wanted = {
            "4x": (self._site, ".csv.gz", 2021, 2, 4 * rows, 1),
            "csv": (self._site, ".csv.gz", 2021, 1, rows, 1),
            "changed": (self._spare, ".csv.gz", 2021, 1, rows, 2),
            "parquet": (self._site, ".parquet", 2021, 1, rows, 1),
        }
        for month in self._months:
            wanted[f"twelve {month}"] = (self._site, ".csv.gz", TWELVE_YEAR, month, self._size.rows_a_month, 1)
            wanted[f"small {month}"] = (self._site, ".csv.gz", SMALL_YEAR, month, SMALL_MONTH, 1)
        made = {
            what: self._helper.submit(
                files.make, folder / (NAME.format(year=year, month=month) + ending), year, month, count, edition
            )
            for what, (folder, ending, year, month, count, edition) in wanted.items()
        }
        for what, future in made.items():
            self._trips[what] = future.result()
            self._say(f"made the file {what}: {self._trips[what][0]:,} trips")

    def run(self, works: str) -> list[Record]:
        """Run every work whose name begins with `works`. Contenders take turns, so that other load affects all of them.

        Each round of a work in the lake begins with another contender: the first one meets servers that have been idle.
        """
        entries = [entry for entry in self._entries() if entry.work.startswith(works)]
        if self._size.empties == "one for all":
            entries = [replace(entry, empty=entry.empty and "ours_lake") for entry in entries]
        entries = list(self._with_empty_flows(entries))
        results: list[list[Run]] = [[] for _ in entries]
        for repeat in range(self._size.repeats):
            for entry, of_entry in _rotated(list(zip(entries, results, strict=True)), repeat):
                if repeat == 0 or _repeats(entry):
                    of_entry.append(self._enter(entry, repeat))
        empty_runs: dict[str, list[Run]] = {}
        records = []
        for entry, of_entry in zip(entries, results, strict=True):
            records.append(_record(entry, of_entry, empty_runs.get(entry.empty, [])))
            if entry.work == "empty_flow":
                empty_runs[entry.contender] = of_entry
        return records

    def _with_empty_flows(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield the entries, and each empty flow before the first entry that needs it."""
        done = {""}
        for entry in entries:
            if entry.empty not in done:
                done.add(entry.empty)
                yield Entry("empty_flow", entry.empty, partial(self._empty_flow, entry.empty))
            yield entry

    def _empty_flow(self, name: str, _repeat: int) -> Sequence[str]:
        return _empty_flow(EMPTY[name], self._size.months)

    def _enter(self, entry: Entry, repeat: int) -> Run:
        entry.before()
        run = measure(entry.command(repeat), self.environment, self._stack.state)
        self._say(f"{entry.work:24} {entry.contender:20} {run.wall_s:7.2f} s {run.peak_rss_mb:6.0f} MB")
        if entry.stored:
            found, expected = entry.stored(repeat), entry.expected
        else:
            found, expected = (run.measured.get("rows", 0),), entry.expected[:1]
        if found != expected:
            raise WrongRows(f"{entry.work}, {entry.contender}: rows and sums are {found} instead of {expected}")
        entry.after()
        return run

    def _entries(self) -> Iterator[Entry]:
        yield from self._start_up()
        for ending, work in ((".csv.gz", "web_to_lake_csv"), (".parquet", "web_to_lake_parquet")):
            yield from self._to_lake(work, ending)
        yield from self._to_postgres()
        yield from self._to_warehouse()
        yield from self._twelve_months()

    def _start_up(self) -> Iterator[Entry]:
        def start(name: str, *command: str) -> Entry:
            return Entry("start_up", name, lambda repeat: [sys.executable, *command])

        yield start("import prefect", "-c", "import prefect")
        yield Entry("start_up", "empty flow", lambda repeat: _empty_flow(Empty(("prefect",), tasks=0, months=0), 0))
        for program in self._size.programs:
            yield start(f"import flows.{program}", "-c", f"import flows.{program}")
            yield start(f"flows/{program}.py --help", str(ROOT / "flows" / f"{program}.py"), "--help")

    def _source(self, ending: str, repeat: int) -> str:
        """Return a template whose address is new in each repeat, so that no cache of an earlier repeat helps."""
        area = "trip-data" if ending == ".parquet" else "legacy"
        return f"{self._stack.address('web')}/{area}/{repeat}/{NAME}{ending}"

    def _to_lake(self, work: str, ending: str) -> Iterator[Entry]:
        def ours(month: int) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _flow("etl_web_gcs", 2021, month, "--source", self._source(ending, repeat))

        def other(module: str, name: str, month: int, *key: str) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _contender(
                module, name, self._source(ending, repeat).format(year=2021, month=month), *key
            )

        sizes: tuple[tuple[str, int, str], ...] = ((work, 1, "csv" if ending == ".csv.gz" else "parquet"),)
        if ending == ".csv.gz" and self._size.repeats > 1:
            sizes += ((f"{work}_4x", 2, "4x"),)
        for name, month, file in sizes:
            table = (
                ("ours", ours(month), "data/yellow/*", "ours_lake"),
                ("pyarrow", other("plain", "pyarrow", month, "pyarrow/trips.parquet"), "pyarrow/*", ""),
                ("duckdb", other("peers", "duckdb", month, "duckdb/trips.parquet"), "duckdb/*", ""),
                ("dlt", other("peers", "dlt", month), "dlt/yellow/*", ""),
                ("seed", other("seed", "web_to_lake", month, "seed.parquet"), "data/seed*", "seed"),
            )
            for contender, command, objects, empty in table[: None if month == 1 else 2]:
                yield Entry(
                    name, contender, command, self._trips[file],
                    partial(self._in_lake, objects), self._empty_lake, empty=empty,
                )  # fmt: skip
        if ending == ".csv.gz":
            yield Entry(work, "gunzip", other("plain", "gunzip", 1), self._trips["csv"])

    def _to_postgres(self) -> Iterator[Entry]:
        first = "web_to_postgres_first"
        text = self._spare / "encoded.csv"
        published = self._site / f"{NAME.format(year=2021, month=1)}.csv.gz"
        kept = self._spare / "first-edition.csv.gz"

        def ours(repeat: int) -> Sequence[str]:
            return _flow("ingest_data", 2021, 1, "--rows", "all", "--source", self._source(".csv.gz", repeat))

        def other(module: str, name: str, *table: str) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _contender(
                module, name, self._source(".csv.gz", repeat).format(year=2021, month=1), *table
            )

        def encode() -> None:
            if not text.exists():
                measure(_contender("plain", "preencode", "yellow", text), self.environment, self._stack.state)

        def republish() -> None:
            kept.hardlink_to(published)
            shutil.copy2(self._spare / published.name, published.with_suffix(".new"))
            published.with_suffix(".new").replace(published)

        def publish_the_first_again() -> None:
            kept.replace(published)

        trips, stored = self._trips["csv"], partial(self._in_postgres, "yellow")
        yield Entry(first, "ours", ours, trips, stored, self._empty_postgres, encode, "ours_postgres")
        yield Entry("web_to_postgres_same", "ours", ours, trips, stored, empty="ours_postgres_same")
        yield Entry(
            "web_to_postgres_changed", "ours", ours, self._trips["changed"], stored, republish, publish_the_first_again,
            "ours_postgres",
        )  # fmt: skip
        for contender, command, table in (
            ("copy_keyed", lambda repeat: _contender("plain", "copy_keyed", text, "copied"), "copied"),
            ("adbc", other("peers", "adbc"), "adbc"),
            ("pg_bulk_ingest", other("peers", "pg_bulk_ingest"), "pg_bulk_ingest"),
            ("dlt_append", other("peers", "dlt_append"), "dlt.yellow"),
            ("dlt_merge", other("peers", "dlt_merge"), "dlt.yellow"),
        ):
            yield Entry(first, contender, command, trips, partial(self._in_postgres, table), self._empty_postgres)
        yield Entry(
            first, "seed", other("seed", "web_to_postgres", "seed"), trips, partial(self._in_postgres, "seed"),
            self._empty_postgres, empty="seed",
        )  # fmt: skip

    def _to_warehouse(self) -> Iterator[Entry]:
        def fill_lake() -> None:
            self._empty_lake()
            source = self._source(".csv.gz", -1)
            measure(_flow("etl_web_gcs", 2021, 1, "--source", source), self.environment, self._stack.state)

        def seed(repeat: int) -> Sequence[str]:
            return _contender("seed", "lake_to_warehouse", KEY.removeprefix("data/"), f"seed_{repeat}.yellow")

        # One dataset per repeat, because a load job's id cannot be used twice.
        for contender, command, empty in (
            ("ours", lambda repeat: _flow("etl_gcs_bq", 2021, 1, "--dataset", f"ours_{repeat}"), "ours_warehouse"),
            ("seed", seed, "seed"),
        ):
            yield Entry(
                "lake_to_warehouse", contender, command, self._trips["csv"],
                partial(self._in_warehouse, contender), fill_lake, empty=empty,
            )  # fmt: skip

    def _twelve_months(self) -> Iterator[Entry]:
        def ours(year: int, at_once: int) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _flow(
                "etl_web_gcs", year, *self._months,
                "--at-once", at_once, "--source", self._source(".csv.gz", 10 * repeat + at_once),
            )  # fmt: skip

        for work, contender, files_of, year, at_once, empty in (
            ("twelve_months", "ours", "twelve", TWELVE_YEAR, 2, "twelve_two_at_once"),
            ("twelve_months", "ours_one_at_a_time", "twelve", TWELVE_YEAR, 1, "twelve_one_at_a_time"),
            ("small_months", "ours", "small", SMALL_YEAR, 1, "twelve_one_at_a_time"),
        ):
            trips = tuple(map(sum, zip(*(self._trips[f"{files_of} {month}"] for month in self._months), strict=True)))
            yield Entry(
                work, contender, ours(year, at_once), trips, partial(self._in_lake, "data/yellow/*"),
                self._empty_lake, empty=empty,
            )  # fmt: skip

    def _objects(self, pattern: str) -> list[Path]:
        return [path for path in (self._stack.state / "lake" / BUCKET).glob(pattern) if path.suffix == ".parquet"]

    def _in_lake(self, pattern: str, _repeat: int) -> Digest:
        return self._helper.submit(files.digest, self._objects(pattern)).result()

    def _empty_lake(self) -> None:
        objects = f"{self._stack.env['STORAGE_EMULATOR_HOST']}/storage/v1/b/{BUCKET}/o"
        for item in httpx.get(objects, trust_env=False).raise_for_status().json().get("items", []):
            httpx.delete(f"{objects}/{quote(item['name'], safe='')}", trust_env=False).raise_for_status()

    def _sql(self, statement: str) -> list[tuple[Any, ...]]:
        connection = psycopg2.connect(self._stack.env["POSTGRES_URL"])
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def _in_postgres(self, table: str, _repeat: int) -> Digest:
        return tuple(map(int, self._sql(f"SELECT {DIGEST} FROM {table}")[0]))

    def _empty_postgres(self) -> None:
        self._sql("DROP SCHEMA IF EXISTS dlt, dlt_staging CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for path in (self._stack.state / "scratch").glob("*"):
            path.unlink()

    def _in_warehouse(self, contender: str, repeat: int) -> Digest:
        url = f"{self._stack.env['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/projects/{PROJECT}/queries"
        statement = f"SELECT {DIGEST} FROM `{PROJECT}.{contender}_{repeat}.yellow`"
        query = {"query": statement, "useLegacySql": False}
        answer = httpx.post(url, json=query, trust_env=False, timeout=60).raise_for_status().json()
        return tuple(int(field["v"]) for field in answer["rows"][0]["f"])


def _rotated(entries: Sequence[tuple[Entry, T]], by: int) -> Iterator[tuple[Entry, T]]:
    """Yield the entries in their order, but begin each group of neighbours of one work `by` entries later."""
    for _, group in groupby(entries, lambda entry: entry[0].work):
        neighbours = list(group)
        first = by % len(neighbours)
        yield from neighbours[first:] + neighbours[:first]


def _repeats(entry: Entry) -> bool:
    """Return whether an entry runs in every round. The pandas script is slow, so it runs once."""
    return entry.contender != "seed" or entry.work == "empty_flow"


def _record(entry: Entry, runs: Sequence[Run], empty: Sequence[Run]) -> Record:
    """Return the medians of `runs`. From each run, subtract the empty flow of the same round: the machine's speed changes.

    From a single run, subtract the median empty flow: one empty flow may be an outlier.
    """
    wall, cpu, rss, busy = (
        statistics.median(values)
        for values in zip(*((run.wall_s, run.cpu_s, run.peak_rss_mb, run.busy_s) for run in runs), strict=True)
    )
    net = wall
    if empty:
        middle = sorted(empty, key=lambda run: run.wall_s)[(len(empty) - 1) // 2]
        pairs = list(zip(runs, [middle] if len(runs) == 1 else empty, strict=True))
        net = max(statistics.median(run.wall_s - other.wall_s for run, other in pairs), 0)
        busy = max(statistics.median(run.busy_s - other.busy_s for run, other in pairs), 0)
    return Record(
        entry.work, entry.contender, round(wall, 3), round(net, 3), round(cpu, 3), round(rss, 1), entry.expected[0], len(runs),
        round(busy / net, 2) if net else 0.0,
    )  # fmt: skip
