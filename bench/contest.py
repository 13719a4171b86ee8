"""Define the works, their files and their contenders. Empty the store before each run, and count its rows after it."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import psycopg2

from bench import files
from bench.process import Run, measure
from local.servers.stack import BUCKET, PROJECT, Stack, without_foreign_settings

ROOT = Path(__file__).resolve().parent.parent
NAME = "yellow_tripdata_{year}-{month:02d}"
KEY = "data/yellow/yellow_tripdata_2021-01.parquet"
PLAIN_KEY = "data/pyarrow.parquet"
TWELVE_YEAR = 2020


class WrongRows(Exception):
    """A contender stored a wrong number of rows, so its time is not comparable."""


@dataclass(frozen=True)
class Size:
    """The size of the files, and how often each contender runs."""

    rows: int
    months: int
    """The number of months in the work `twelve_months`; each has `rows_a_month` rows."""
    rows_a_month: int
    repeats: int


FULL = Size(rows=1_370_000, months=12, rows_a_month=150_000, repeats=3)
QUICK = Size(rows=100_000, months=4, rows_a_month=20_000, repeats=1)


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


@dataclass(frozen=True)
class Entry:
    """One contender at one work. `command` gets the number of the repeat; `stored` counts the rows in the store after it."""

    work: str
    contender: str
    command: Callable[[int], Sequence[str]]
    rows: int
    stored: Callable[[int], int] | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    empty: str = ""
    """The empty flow whose time is subtracted, a key of `EMPTY`."""
    runs: Literal["each repeat", "once"] = "each repeat"


# Each empty flow has the structure of the flow from which its time is subtracted: modules, months at once, months (0: one flow
# without a parent; TWELVE: the number of months of twelve_months), tasks per month.
TWELVE = -1
EMPTY = {
    "ours_lake": ("flows.etl_web_gcs", 1, 1, 3),
    "seed_lake": ("pandas,pyarrow,prefect_gcp.cloud_storage", 1, 0, 4),
    "ours_postgres": ("flows.ingest_data", 1, 0, 3),
    "seed_postgres": ("pandas,prefect_sqlalchemy", 1, 0, 2),
    "ours_warehouse": ("flows.etl_gcs_bq", 1, 1, 3),
    "seed_warehouse": ("pandas,pandas_gbq,prefect_gcp.cloud_storage", 1, 0, 3),
    "twelve_two_at_once": ("flows.etl_web_gcs", 2, TWELVE, 3),
    "twelve_one_at_a_time": ("flows.etl_web_gcs", 1, TWELVE, 3),
}


def _contender(name: str, *arguments: str | int | Path) -> list[str]:
    return [sys.executable, "-m", "bench.contenders", name, *map(str, arguments)]


def _flow(name: str, *arguments: str | int) -> list[str]:
    return [sys.executable, str(ROOT / "flows" / f"{name}.py"), "yellow", *map(str, arguments)]


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
        self._trips: dict[str, tuple[int, int]] = {}
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
        """Run every work whose name begins with `works`. Contenders take turns, so that other load affects all of them."""
        entries = [entry for entry in self._entries() if entry.work.startswith(works)]
        runs: dict[str, list[Run]] = {entry.empty: [] for entry in entries if entry.empty}
        results: list[list[Run]] = [[] for _ in entries]
        for repeat in range(self._size.repeats):
            for name, of_name in runs.items():
                imports, at_once, months, tasks = EMPTY[name]
                count = self._size.months if months == TWELVE else months
                command = _contender("empty_flow", imports, at_once, count, tasks)
                of_name.append(self._measure("empty_flow", name, command))
            for entry, of_entry in zip(entries, results, strict=True):
                if entry.runs == "each repeat" or repeat == 0:
                    of_entry.append(self._enter(entry, repeat))
        empty_s = {name: statistics.median(run.wall_s for run in of_name) for name, of_name in runs.items()}
        records = [_record("empty_flow", name, of_name, 0, 0) for name, of_name in runs.items()]
        records += [
            _record(entry.work, entry.contender, of_entry, entry.rows, empty_s.get(entry.empty, 0))
            for entry, of_entry in zip(entries, results, strict=True)
        ]
        return records

    def _measure(self, work: str, contender: str, command: Sequence[str]) -> Run:
        run = measure(command, self.environment, self._stack.state)
        self._say(f"{work:24} {contender:20} {run.wall_s:7.2f} s {run.peak_rss_mb:6.0f} MB")
        return run

    def _enter(self, entry: Entry, repeat: int) -> Run:
        entry.before()
        run = self._measure(entry.work, entry.contender, entry.command(repeat))
        rows = run.measured.get("rows") if entry.stored is None else entry.stored(repeat)
        if rows != entry.rows:
            raise WrongRows(f"{entry.work}, {entry.contender}: {rows} rows instead of {entry.rows}")
        entry.after()
        return run

    def _entries(self) -> Iterator[Entry]:
        for ending, work in ((".csv.gz", "web_to_lake_csv"), (".parquet", "web_to_lake_parquet")):
            yield from self._to_lake(work, ending)
        yield from self._to_postgres()
        yield from self._to_warehouse()
        yield from self._twelve_months()

    def _url(self, ending: str, repeat: int) -> str:
        """Return a template whose address is new in each repeat, so that no cache of an earlier repeat helps."""
        area = "trip-data" if ending == ".parquet" else "legacy"
        return f"{self._stack.address('web')}/{area}/{repeat}/{NAME}{ending}"

    def _to_lake(self, work: str, ending: str) -> Iterator[Entry]:
        rows = self._trips["csv" if ending == ".csv.gz" else "parquet"][0]

        def url(repeat: int) -> str:
            return self._url(ending, repeat).format(year=2021, month=1)

        def ours(month: int) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _flow("etl_web_gcs", 2021, month, "--source", self._url(ending, repeat))

        def stored(repeat: int) -> int:
            return self._in_lake("data/seed.parquet", PLAIN_KEY, KEY, KEY.replace("-01.", "-02."))

        yield Entry(work, "ours", ours(1), rows, stored, self._empty_lake, empty="ours_lake")
        yield Entry(
            work, "seed", lambda repeat: _contender("seed_web_to_lake", url(repeat), "seed.parquet"),
            rows, stored, self._empty_lake, empty="seed_lake",
        )  # fmt: skip
        yield Entry(
            work,
            "pyarrow",
            lambda repeat: _contender("pyarrow", url(repeat), PLAIN_KEY),
            rows,
            stored,
            self._empty_lake,
        )
        if ending == ".csv.gz":
            yield Entry(work, "gunzip", lambda repeat: _contender("gunzip", url(repeat)), rows)
            yield Entry(
                f"{work}_4x", "ours", ours(2), self._trips["4x"][0], stored, self._empty_lake, empty="ours_lake",
                runs="once",
            )  # fmt: skip

    def _to_postgres(self) -> Iterator[Entry]:
        rows, changed = self._trips["csv"][1], self._trips["changed"][1]
        first, same = "web_to_postgres_first", "web_to_postgres_same"
        text = self._spare / "encoded.csv"
        published = self._site / f"{NAME.format(year=2021, month=1)}.csv.gz"
        kept = self._spare / "first-edition.csv.gz"

        def ours(repeat: int) -> Sequence[str]:
            return _flow("ingest_data", 2021, 1, "--source", self._url(".csv.gz", repeat))

        def stored(table: str) -> Callable[[int], int]:
            return lambda repeat: self._in_postgres(table)

        def encode() -> None:
            if not text.exists():
                measure(_contender("preencode", "yellow", text), self.environment, self._stack.state)

        def republish() -> None:
            kept.hardlink_to(published)
            shutil.copy2(self._spare / published.name, published.with_suffix(".new"))
            published.with_suffix(".new").replace(published)

        def publish_the_first_again() -> None:
            kept.replace(published)

        yield Entry(first, "ours", ours, rows, stored("yellow"), self._empty_postgres, encode, empty="ours_postgres")
        yield Entry(same, "ours", ours, rows, stored("yellow"), empty="ours_postgres")
        yield Entry(
            "web_to_postgres_changed", "ours", ours, changed, stored("yellow"), republish, publish_the_first_again,
            empty="ours_postgres",
        )  # fmt: skip
        yield Entry(
            first, "copy_keyed", lambda repeat: _contender("copy_keyed", text, "copied"),
            rows, stored("copied"), self._empty_postgres,
        )  # fmt: skip
        yield Entry(
            first, "seed",
            lambda repeat: _contender(
                "seed_web_to_postgres", self._url(".csv.gz", repeat).format(year=2021, month=1), "seed"
            ),
            rows, stored("seed"), self._empty_postgres, empty="seed_postgres", runs="once",
        )  # fmt: skip

    def _to_warehouse(self) -> Iterator[Entry]:
        rows = self._trips["csv"][0]
        work = "lake_to_warehouse"

        def fill_lake() -> None:
            if not self._object(KEY).exists():
                self._empty_lake()
                source = self._url(".csv.gz", -1)
                measure(_flow("etl_web_gcs", 2021, 1, "--source", source), self.environment, self._stack.state)

        # One dataset per repeat, because a load job's id cannot be used twice.
        yield Entry(
            work, "ours", lambda repeat: _flow("etl_gcs_bq", 2021, 1, "--dataset", f"ours_{repeat}"),
            rows, lambda repeat: self._in_warehouse(f"ours_{repeat}.yellow"), fill_lake, empty="ours_warehouse",
        )  # fmt: skip
        yield Entry(
            work, "seed",
            lambda repeat: _contender("seed_lake_to_warehouse", KEY.removeprefix("data/"), f"seed_{repeat}.yellow"),
            rows, lambda repeat: self._in_warehouse(f"seed_{repeat}.yellow"), fill_lake, empty="seed_warehouse",
        )  # fmt: skip

    def _twelve_months(self) -> Iterator[Entry]:
        rows = sum(self._trips[f"twelve {month}"][0] for month in self._months)
        keys = [f"data/yellow/{NAME.format(year=TWELVE_YEAR, month=month)}.parquet" for month in self._months]

        def ours(at_once: int) -> Callable[[int], Sequence[str]]:
            return lambda repeat: _flow(
                "etl_web_gcs", TWELVE_YEAR, *self._months,
                "--at-once", at_once, "--source", self._url(".csv.gz", 10 * repeat + at_once),
            )  # fmt: skip

        for contender, at_once, empty in (
            ("ours", 2, "twelve_two_at_once"),
            ("ours_one_at_a_time", 1, "twelve_one_at_a_time"),
        ):
            yield Entry(
                "twelve_months", contender, ours(at_once), rows, lambda repeat: self._in_lake(*keys),
                self._empty_lake, empty=empty,
            )  # fmt: skip

    def _object(self, key: str) -> Path:
        return self._stack.state / "lake" / BUCKET / key

    def _in_lake(self, *keys: str) -> int:
        present = [path for path in map(self._object, keys) if path.exists()]
        return self._helper.submit(files.rows_in_parquet, present).result()

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

    def _in_postgres(self, table: str) -> int:
        return int(self._sql(f"SELECT count(*) FROM {table}")[0][0])

    def _empty_postgres(self) -> None:
        self._sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        for path in (self._stack.state / "scratch").glob("*"):
            path.unlink()

    def _in_warehouse(self, table: str) -> int:
        url = f"{self._stack.env['BIGQUERY_EMULATOR_HOST']}/bigquery/v2/projects/{PROJECT}/queries"
        query = {"query": f"SELECT COUNT(*) FROM `{PROJECT}.{table}`", "useLegacySql": False}
        answer = httpx.post(url, json=query, trust_env=False, timeout=60).raise_for_status().json()
        return int(answer["rows"][0]["f"][0]["v"])


def _record(work: str, contender: str, runs: Sequence[Run], rows: int, empty_s: float) -> Record:
    wall, cpu, rss = (
        statistics.median(values)
        for values in zip(*((run.wall_s, run.cpu_s, run.peak_rss_mb) for run in runs), strict=True)
    )
    return Record(
        work, contender, round(wall, 3), round(max(wall - empty_s, 0), 3), round(cpu, 3), round(rss, 1), rows, len(runs)
    )
