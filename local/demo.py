"""`make demo`: load sample months with deployments and an agent or a worker into all three stores, then reconcile every row.

The demo works as production does: it registers blocks, applies deployments, and starts runs on the command line. It counts the
rows at the end itself, in the stores and in the published files.
"""

import argparse
import asyncio
import gc
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

import blocks
from flows.tlc.errors import UnknownMonth
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import TripMonth, trip_months
from local.servers.background import DEPLOY, ROOT, client_environment, up
from local.servers.stack import SERVICES, WITH_WORKER, WORK_POOL, StackError

STATE = ROOT / ".local"
PREFECT = str(Path(sys.executable).with_name("prefect"))
LAKE, WAREHOUSE, DATABASE = (
    "etl-parent-flow/parametrized ny-taxi ETL",
    "etl-gcs-bq-parent-flow/parametrized ny-taxi warehouse",
    "ingest-data/parametrized ny-taxi ingest",
)

_FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")  # types of states

NEXT = f"""What to try next:
  source .local/env                      # addresses of the local services, and this project's programs
  # official and mirror mean the local site here; for TLC itself: make demo SOURCE=official COLOR=green YEAR=2020 MONTHS=1
  prefect deployment run "{LAKE}" -p year=2021 -p months="[4]" --watch
  python flows/ingest_data.py green 2021 4
  psql "$POSTGRES_URL" -xc "TABLE loads" # where every month came from
  make demo                              # run it again: nothing is loaded twice
  make down                              # stop all services"""


class DemoError(Exception):
    """A step of the demo failed. The message says which step, and where to look."""


@dataclass(frozen=True)
class Sample:
    """Some months of one color, from one source."""

    color: str
    year: int
    months: tuple[int, ...]
    source: str

    @property
    def trip_months(self) -> list[TripMonth]:
        """The months. Raise `UnknownMonth` if one of them cannot exist."""
        return trip_months(self.color, self.year, self.months)


# Both formats: TLC's Parquet, and the CSV that it published earlier.
SAMPLES = (Sample("yellow", 2021, (1, 2, 3), "mirror"), Sample("green", 2021, (1, 2, 3), "official"))


@dataclass(frozen=True)
class Counts:
    """Row counts of one month by stage, each counted in its own store."""

    trip_month: TripMonth
    published: int
    quarantined: int
    lake: int
    warehouse: int
    with_passengers: int
    database: int

    @property
    def reconciled(self) -> bool:
        """Whether the counts of all stages agree."""
        return (
            self.published - self.quarantined == self.lake == self.warehouse and self.with_passengers == self.database
        )


def prepare(env: Mapping[str, str], say: Console, runs: Literal["agent", "worker"] = "agent") -> None:
    """Register the blocks and make the deployments for the agent or the worker, unless both are up to date."""
    manifests = sorted((ROOT / "deployments").glob("*.yaml"))
    digest = hashlib.sha256(json.dumps([env[k] for k in ("LAKE_BUCKET", "POSTGRES_URL", "PREFECT_API_URL")]).encode())
    for path in [*manifests, Path(env["GOOGLE_APPLICATION_CREDENTIALS"]), *sorted((ROOT / "blocks").glob("*.py"))]:
        digest.update(path.read_bytes())
    stamp = Path(env["PREFECT_HOME"]) / "prepared"
    unchanged = stamp.exists() and stamp.read_text(encoding="ascii") == digest.hexdigest()
    # A deployment belongs either to an agent or to a worker, whichever was applied or deployed last.
    in_place = (_pool_of(LAKE, env) == WORK_POOL) == (runs == "worker")
    apply = ["deployment", "apply", *(str(path.relative_to(ROOT)) for path in manifests)]
    commands = [] if unchanged else [[sys.executable, "-m", "blocks.register"]]
    if not (unchanged and in_place):
        commands.append([PREFECT, *(DEPLOY if runs == "worker" else apply)])
    for command in commands:
        say.print(
            "$ " + shlex.join(["prefect" if a == PREFECT else "python" if a == sys.executable else a for a in command]),
            soft_wrap=True,
        )
        done = subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"the command failed:\n{done.stdout}{done.stderr}")
    stamp.write_text(digest.hexdigest(), encoding="ascii")


def _pool_of(deployment: str, env: Mapping[str, str]) -> str | None:
    """Return the name of a deployment's work pool, or None."""
    answer = httpx.get(f"{env['PREFECT_API_URL']}/deployments/name/{quote(deployment)}", trust_env=False)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    pool: str | None = answer.raise_for_status().json()["work_pool_name"]
    return pool


def _work_in(env: Mapping[str, str]) -> None:
    """Prepare a process of the pool. Prefect reads its settings at import: the environment must be complete first."""
    os.environ.clear()
    os.environ.update(env, PREFECT_LOGGING_LEVEL="WARNING")
    gc.disable()  # collections take a quarter of the time of the imports


def _start(words: Sequence[str]) -> str:
    """Run `prefect deployment run` in this process, and return the id of the new run. Raise `DemoError` if it fails."""
    from prefect.cli.root import app

    with redirect_stdout(io.StringIO()) as output:
        app(words, standalone_mode=False)
    if found := re.search(r"UUID: (\S+)", output.getvalue()):
        return found[1]
    raise DemoError(f"the command failed:\n{output.getvalue()}")


async def run(
    env: Mapping[str, str], programs: Executor, say: Console, deployment: str, sample: Sample, **more: str
) -> None:
    """Start one run of a deployment and wait until it ends. Raise `DemoError` if it fails."""
    parameters: dict[str, object] = {
        "color": sample.color, "year": sample.year, "months": json.dumps(list(sample.months)), **more,
    }  # fmt: skip
    words = ["deployment", "run", deployment]
    for name, value in parameters.items():
        words += ["-p", f"{name}={value}"]
    say.print("$ " + shlex.join(["prefect", *words]), highlight=False, soft_wrap=True)
    run_id = await asyncio.get_running_loop().run_in_executor(programs, _start, words)
    state = None
    async with httpx.AsyncClient(trust_env=False) as client:
        while state not in _FINAL:
            await asyncio.sleep(0.5)
            answer = await client.get(f"{env['PREFECT_API_URL']}/flow_runs/{run_id}")
            state = answer.raise_for_status().json()["state_type"]
    if state != "COMPLETED":
        raise DemoError(
            f"{deployment} ({sample.color} {sample.year} {list(sample.months)}) did not complete."
            f" See {env['PREFECT_UI_URL']}/flow-runs/flow-run/{run_id}, and {STATE.name}/log/{{agent,worker}}.log."
        )


async def run_all(env: Mapping[str, str], programs: Executor, say: Console, samples: Sequence[Sample]) -> None:
    """Load every sample web → lake, then lake → warehouse and web → Postgres, as many at once as the machine has cores."""
    cores = asyncio.Semaphore(os.cpu_count() or 1)

    async def start(deployment: str, sample: Sample, **more: str) -> None:
        async with cores:
            await run(env, programs, say, deployment, sample, **more)

    await asyncio.gather(*(start(LAKE, s, source=s.source) for s in samples))
    warehouse = (start(WAREHOUSE, s) for s in samples)
    database = (start(DATABASE, s, source=s.source) for s in samples)
    await asyncio.gather(*warehouse, *database)


def programs_in(env: Mapping[str, str]) -> ProcessPoolExecutor:
    """Return a process for everything that imports Prefect: each import takes seconds."""
    return ProcessPoolExecutor(1, get_context("spawn"), _work_in, (dict(env),))


def count(samples: Sequence[Sample]) -> list[Counts]:
    """Count every month in its published file and in the three stores of this process's environment."""
    from prefect_gcp import GcpCredentials
    from prefect_gcp.cloud_storage import GcsBucket
    from prefect_sqlalchemy import SqlAlchemyConnector

    bucket = GcsBucket.load(blocks.GCS_BUCKET)
    project = GcpCredentials.load(blocks.GCP_CREDENTIALS).get_bigquery_client()
    engine = SqlAlchemyConnector.load(blocks.POSTGRES).get_engine()
    client = bucket.gcp_credentials.get_cloud_storage_client().bucket(bucket.bucket)
    counts = []
    for sample in samples:
        for trip_month in sample.trip_months:
            path = bucket.bucket_folder + "{}"
            manifest = json.loads(client.blob(path.format(trip_month.manifest_key)).download_as_bytes())
            with client.blob(path.format(trip_month.key)).open("rb") as file:
                trips = pq.ParquetFile(file)
                lake = trips.metadata.num_rows
                zero = (
                    pc.sum(pc.equal(trips.read(["passenger_count"]).column(0), 0)).as_py() or 0
                    if "passenger_count" in trips.schema_arrow.names
                    else 0
                )
            [row] = project.query_and_wait(
                f"SELECT COUNT(*) AS n FROM {blocks.DATASET}.{trip_month.color}"  # noqa: S608
                f" WHERE file_month = '{trip_month.file_month}'"
            )
            with engine.connect() as connection:
                query = text(f"SELECT count(*) FROM {trip_month.color} WHERE file_month = :month")  # noqa: S608
                database = connection.execute(query, {"month": trip_month.file_month}).scalar_one()
            counts.append(
                Counts(
                    trip_month,
                    published=_rows_published(client, path, trip_month, manifest["url"]),
                    quarantined=sum(manifest["quarantined"].values()),
                    lake=lake,
                    warehouse=row["n"],
                    with_passengers=lake - zero,
                    database=database,
                )
            )
    return counts


def _rows_published(bucket: object, path: str, trip_month: TripMonth, url: str) -> int:
    """Return the row count of the published file, counted by other code than the code that loaded it."""
    ending = next(e for e in (".parquet", ".csv.gz", ".csv") if url.endswith(e))
    blob = bucket.blob(path.format(trip_month.raw_key(ending)))  # type: ignore[attr-defined]
    with blob.open("rb") as file:
        if ending == ".parquet":
            return int(pq.ParquetFile(file).metadata.num_rows)
        options = pa_csv.ReadOptions(block_size=8 << 20)
        return sum(batch.num_rows for batch in pa_csv.open_csv(_inflated(file, ending), options))


def _inflated(file: object, ending: str) -> object:
    return pa.CompressedInputStream(file, "gzip") if ending == ".csv.gz" else file


def counts_table(counts: Sequence[Counts]) -> Table:
    """Return the counts as a table to print."""
    shown = Table(title="Every row, stage by stage", title_justify="left")
    shown.add_column("month")
    for heading in ("published", "quarantined", "lake", "BigQuery", "zero passengers", "Postgres"):
        shown.add_column(heading, justify="right")
    shown.add_column("reconciled")
    for c in counts:
        shown.add_row(
            str(c.trip_month), f"{c.published:,}", f"{c.quarantined:,}", f"{c.lake:,}", f"{c.warehouse:,}",
            f"{c.lake - c.with_passengers:,}", f"{c.database:,}", "yes" if c.reconciled else "[red]NO[/red]",
        )  # fmt: skip
    return shown


def main() -> int:
    """Run the demo. Return 0 if all runs complete and all counts agree, otherwise 1."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--source", help="official (TLC itself), mirror (DataTalksClub itself), or a URL template")
    parser.add_argument("--color")
    parser.add_argument("--year", type=int)
    parser.add_argument("--months", help="such as 1,2,3")
    parser.add_argument("--worker", action="store_true", help="use a work pool and a worker instead of the agent")
    options = parser.parse_args()
    say = Console(width=max(Console().width, 110))
    try:
        samples = chosen(options)
        if status := up(STATE, WITH_WORKER if options.worker else SERVICES):
            return status
        env = client_environment(STATE)
        prepare(env, say, "worker" if options.worker else "agent")
        with programs_in(env) as programs:
            asyncio.run(run_all(env, programs, say, samples))
            counts = programs.submit(count, samples).result()
    except (DemoError, UnknownMonth, StackError, OSError, httpx.HTTPError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    say.print(counts_table(counts))
    if not all(c.reconciled for c in counts):
        print("Error: rows do not add up, see the table; please report this.", file=sys.stderr)
        return 1
    say.print(f"All rows accounted for. The UI: {env['PREFECT_UI_URL']}\n\n{NEXT}", highlight=False, soft_wrap=True)
    return 0


def chosen(options: argparse.Namespace) -> tuple[Sample, ...]:
    """Return the samples that the options choose. `official` and `mirror` mean the real sources here, not the local site."""
    if not any((options.source, options.color, options.year, options.months)):
        return SAMPLES
    default = next((s for s in SAMPLES if s.color == options.color), SAMPLES[0])
    source = TEMPLATES.get(options.source, options.source) or default.source
    months = (
        tuple(int(m) for m in re.split(r"[,\s]+", options.months.strip("[] "))) if options.months else default.months
    )
    sample = Sample(options.color or default.color, options.year or default.year, months, source)
    _ = sample.trip_months
    return (sample,)


if __name__ == "__main__":
    sys.exit(main())
