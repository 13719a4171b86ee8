"""`make catalogue`: load all months of all colors with `flows/backfill.py`, kill it on the way, and reconcile every month.

The drill generates the file of each month that TLC has published, with a share of the rows of the real file. It has its own
services and stores in its own folder, and starts with empty stores.
"""

import argparse
import csv
import fcntl
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import psutil
import psycopg2

from flows.tlc.errors import UnknownMonth
from flows.tlc.trips import TripMonth
from local.reconciliation import PublishedMonth, reconcile
from local.servers.background import ROOT, down
from local.servers.site import LAST_CSV_MONTH, Site, two_months_ago
from local.servers.stack import Stack, StackError
from local.trip_files.layouts import COLORS, FIRST_FILE, Color
from local.trip_files.writing import BadRows, write_month

Format = Literal["parquet", "csv"]
ENDINGS: Mapping[Format, str] = {"parquet": ".parquet", "csv": ".csv.gz"}
_PATHS: Mapping[Format, str] = {"parquet": "/trip-data/{}.parquet", "csv": "/legacy/{}.csv.gz"}
_NAME = "{color}_tripdata_{year}-{month:02d}"
_FEWEST_ROWS = 300  # one bad row of these is within the limit of 1 % at which a month is refused
_EVERY = 5  # every fifth month has a bad row, if a value of its columns can be bad
_BOUND = re.compile(r"(\d{4}(-(0[1-9]|1[0-2]))?)?")
_WINDOW = 10  # months
_LOG_EVERY = 30.0  # seconds
_PAGE = ROOT / "docs" / "scale.md"
_BEGIN, _END = "<!-- drill: written by `python -m local.catalogue --page` -->\n", "<!-- end of the drill -->\n"


class DrillError(Exception):
    """The drill cannot start or go on. The message says why, and what to do."""


@dataclass(frozen=True)
class Attempt:
    """One process of the back-fill."""

    began: float
    seconds: float
    status: int
    peak_mb: float
    months: int
    """The months in the database when the process ended."""


def published_months(color: Color, file_format: Format, since: str, until: str) -> list[TripMonth]:
    """Return the months of a color that TLC has published in a format, from `since` to `until`, both included."""
    first = max(FIRST_FILE[color, file_format], since)
    last = LAST_CSV_MONTH if file_format == "csv" else two_months_ago()
    every = [(year, month) for year in range(2009, int(last[:4]) + 1) for month in range(1, 13)]
    texts = {
        f"{year}-{month:02d}": TripMonth(color, year, month) for year, month in every if f"{year}-{month:02d}" >= first
    }
    return [month for text, month in texts.items() if text <= last and (not until or text[: len(until)] <= until)]


def real_rows() -> dict[tuple[str, str], int]:
    """Return the row count of each published file that is known, by color and month."""
    with (ROOT / "flows" / "tlc" / "known_months.csv").open(encoding="utf-8") as file:
        names = {row["file"]: int(row["rows"]) for row in csv.DictReader(line for line in file if line[0] != "#")}
    parts = {name: re.fullmatch(r"(\w+)_tripdata_(\d{4}-\d\d)\.parquet", name) for name in names}
    return {(part[1], part[2]): names[name] for name, part in parts.items() if part}


def rows_of(trip_month: TripMonth, scale: int, known: Mapping[tuple[str, str], int]) -> int:
    """Return the rows to generate for a month: its real rows, or those of the nearest known month, divided by `scale`."""
    at = trip_month.year * 12 + trip_month.month
    distance = {
        abs(int(month[:4]) * 12 + int(month[5:]) - at): rows
        for (color, month), rows in known.items()
        if color == trip_month.color
    }
    return max(_FEWEST_ROWS, distance[min(distance)] // scale)


def generate(trip_month: TripMonth, path: Path, rows: int) -> PublishedMonth:
    """Write a month's file unless it exists. Every few months have a bad row, if the file's types allow one."""
    about = path.with_name(f"{path.name}.json")
    if not about.exists():
        bad = BadRows(1 if (trip_month.year * 12 + trip_month.month) % _EVERY == 0 else 0)
        color, part = cast(Color, trip_month.color), path.with_name(f"part-{path.name}")
        try:
            written = write_month(part, color, trip_month.year, trip_month.month, rows=rows, bad_rows=bad)
        except ValueError:  # no value of this month's types can be bad
            written = write_month(part, color, trip_month.year, trip_month.month, rows=rows)
        part.replace(path)
        about.write_text(json.dumps(written.bad_row_numbers), "utf-8")
    return PublishedMonth(trip_month, path, tuple(json.loads(about.read_text("utf-8"))))


class Drill:
    """A back-fill of generated files into its own stores, and what it cost.

    Args:
        state: Folder for the files and the services' data.
        months: The months to generate.
        words: The arguments of `flows/backfill.py` that choose these months.
        file_format: The format of the files.
        scale: Real files have this many times more rows.
        kills: How often to kill the back-fill.
        seed: Another seed kills at other moments.
    """

    def __init__(
        self, state: Path, months: Sequence[TripMonth], words: Sequence[str], file_format: Format, scale: int, kills: int,
        seed: int,
    ) -> None:  # fmt: skip
        self.state, self.months, self.words = state, months, words
        self.file_format, self.scale, self.kills, self.seed = file_format, scale, kills, seed
        self.log = state / "backfill.log"
        self._began, self._load_before, self._revision = time.monotonic(), os.getloadavg()[0], revision()

    def say(self, text: str) -> None:
        """Print a line with the time since the start of the drill."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)

    def run(self) -> dict[str, Any]:
        """Run the drill and return its report. `findings` is empty if every month is in every store, exactly once."""
        shutil.rmtree(self.state / "services", ignore_errors=True)
        self.log.unlink(missing_ok=True)
        files = self.state / f"{self.file_format}-{self.scale}"
        files.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            began = time.monotonic()
            published = self._generate(files, processes)
            generate_s = time.monotonic() - began
            last = two_months_ago()
            services = ("web", "lake", "warehouse", "postgres", "prefect")
            with socket.socket() as probe:  # not port 4200, which `make up` may need
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            with (
                Site(self.state / "site", files=files, last_month=last) as site,
                Stack(self.state / "services", services, self._say_ready, prefect_port=port) as stack,
            ):
                env = stack.environment() | {
                    "TLC_OFFICIAL_URL": site.url + _PATHS[self.file_format].format(_NAME),
                    "TRIPS_SCRATCH": str(self.state / "services" / "scratch"),
                }
                self._register_blocks(env)
                attempts = self._load(env)
                completions = self._completions(env)
                before = len(self.log.read_bytes())
                again = self._back_fill(env)
                began = time.monotonic()
                self.say("comparing the files with the stores")
                findings = reconcile(published, stack.env, processes)
                reconcile_s = time.monotonic() - began
        if attempts[-1].status:
            findings.insert(0, f"the back-fill ended with status {attempts[-1].status}: see {self.log}")
        if len(attempts) <= self.kills:
            findings.insert(0, f"the back-fill ended after {len(attempts) - 1} of {self.kills} kills")
        if again.status or ", 0 to load" not in self.log.read_bytes()[before:].decode("utf-8", "replace"):
            findings.insert(0, f"a back-fill of the loaded months does not find them all loaded: see {self.log}")
        rows, load_s = sum(count for _, count in completions), sum(attempt.seconds for attempt in attempts)
        fit = fixed_cost(completions, [attempt.began for attempt in attempts])
        return {
            "machine": machine(),
            "revision": self._revision,
            "load_before": round(self._load_before, 1),
            "format": self.file_format,
            "scale": self.scale,
            "months": len(published),
            "megabytes": round(sum(month.path.stat().st_size for month in published) / 1e6, 1),
            "rows": rows,
            "killed_after_months": [attempt.months for attempt in attempts[:-1]],
            "generate_s": round(generate_s, 1),
            "load_s": round(load_s, 1),
            "rows_per_s": round(rows / load_s),
            "peak_mb": round(max(attempt.peak_mb for attempt in attempts)),
            "fixed_s_per_month": fit and round(fit[0], 2),
            "s_per_million_rows": fit and round(fit[1] * 1e6, 1),
            "nothing_to_do_s": round(again.seconds, 1),
            "reconcile_s": round(reconcile_s, 1),
            "findings": findings,
        }

    def _say_ready(self, service: str, address: str) -> None:
        self.say(f"{service} {address}")

    def _generate(self, files: Path, processes: ProcessPoolExecutor) -> list[PublishedMonth]:
        known = real_rows()
        rows = [rows_of(month, self.scale, known) for month in self.months]
        paths = [files / f"{month.stem}{ENDINGS[self.file_format]}" for month in self.months]
        self.say(f"generating {len(self.months)} files with {sum(rows):,} rows")
        return list(processes.map(generate, self.months, paths, rows))

    def _register_blocks(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "blocks.register"]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DrillError(f"the blocks could not be registered:\n{done.stdout}{done.stderr}")

    def _load(self, env: Mapping[str, str]) -> list[Attempt]:
        """Run the back-fill, kill it at seeded points, and start it again until it ends by itself."""
        chance = random.Random(self.seed)  # noqa: S311 - a seed, not a secret
        attempts = []
        for kill in range(1, self.kills + 1):
            at = round(len(self.months) * (kill - 0.5 + chance.random() / 2) / (self.kills + 1))
            attempts.append(self._back_fill(env, max(1, at), chance.uniform(0, 2)))
            if attempts[-1].status != -signal.SIGKILL:
                return attempts
        return [*attempts, self._back_fill(env)]

    def _back_fill(self, env: Mapping[str, str], kill_at: int | None = None, pause: float = 0) -> Attempt:
        """Run the back-fill. Kill it `pause` seconds after `kill_at` months are in the database, the last of the stores."""
        words = ["flows/backfill.py", *self.words]
        self.say(f"$ {shlex.join(['python', *words])}")
        began, start, said = time.time(), time.monotonic(), time.monotonic()
        with self.log.open("ab") as log:
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stdout=log, stderr=log)
            try:
                # Popen's wait would not return the process's peak memory.
                while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                    time.sleep(1)
                    if kill_at is not None and len(self._completions(env)) >= kill_at:
                        time.sleep(pause)
                        os.kill(process.pid, signal.SIGKILL)  # Popen's own method might reap the process
                        kill_at = None
                    elif time.monotonic() - said > _LOG_EVERY:
                        said = time.monotonic()
                        memory = psutil.Process(process.pid).memory_info().rss / 1e6
                        self.say(f"{len(self._completions(env))} of {len(self.months)} months, {memory:,.0f} MB")
            except BaseException:
                process.kill()
                process.wait()
                raise
        seconds, done = time.monotonic() - start, len(self._completions(env))
        process.returncode = status = os.waitstatus_to_exitcode(ended[1])
        self.say(f"{'killed' if status < 0 else f'ended with status {status}'} after {done} months")
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS reports bytes, other systems KB
        return Attempt(began, seconds, status, ended[2].ru_maxrss / unit, done)

    @staticmethod
    def _completions(env: Mapping[str, str]) -> list[tuple[float, int]]:
        """Return the time at which each month was in the database, and the rows of its file. The database is loaded last."""
        with closing(psycopg2.connect(env["POSTGRES_URL"])) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('loads')")
            if cursor.fetchall() == [(None,)]:
                return []
            cursor.execute("SELECT published_at, source_rows FROM loads ORDER BY published_at")
            return [(time.timestamp(), rows) for time, rows in cursor.fetchall()]


def fixed_cost(completions: Sequence[tuple[float, int]], starts: Sequence[float]) -> tuple[float, float] | None:
    """Return the seconds that a month takes whatever its size, and the seconds per row; None for too few months.

    They fit the time from the first completed month of each process to its last, in windows of some months, best by least
    squares: seconds = months × fixed + rows × per row. Each window has the throughput of all months that run at once. If other
    programs slow down the machine for a while, the fit may find that rows cost less than nothing: then all time is fixed.

    Args:
        completions: The time at which each month was loaded, and its rows, in order.
        starts: The time at which each process began.
    """
    windows = []
    for begin, end in pairwise([*starts, float("inf")]):
        run = [(time, rows) for time, rows in completions if begin < time <= end]
        size = min(_WINDOW, len(run) - 1)
        for first in range(0, len(run) - size, size) if size > 0 else ():
            rows = sum(rows for _, rows in run[first + 1 : first + size + 1])
            windows.append((size, rows, run[first + size][0] - run[first][0]))
    if len(windows) < 2:
        return None
    months, trips, seconds = np.array(windows).T
    fixed, per_row = np.linalg.lstsq(np.stack([months, trips], axis=1), seconds, rcond=None)[0]
    return (float(fixed), float(per_row)) if per_row > 0 else (float(seconds.sum() / months.sum()), 0.0)


def machine() -> str:
    """Return the machine in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.1f} GB, {system}"


def revision() -> str:
    """Return the revision of the code; it ends in "-dirty" if a file was changed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def rows_of_table(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the report as rows of a table: what, and how much."""
    kills = ", ".join(f"{months:,}" for months in report["killed_after_months"]) or "no"
    fixed, per_row = report["fixed_s_per_month"], report["s_per_million_rows"]
    return [
        ("machine", f"{report['machine']}; its load before was {report['load_before']}"),
        ("revision", report["revision"]),
        ("files", f"{report['months']:,} months as {report['format']}, {report['megabytes']:,} MB"),
        ("rows of a month", f"1/{report['scale']:,} of TLC's, {_FEWEST_ROWS} at least"),
        ("rows published", f"{report['rows']:,}"),
        ("killed", f"after {kills} months"),
        ("time to load all three stores", f"{report['load_s']:,.0f} s"),
        ("rows per second, published", f"{report['rows_per_s']:,}"),
        ("peak memory of the back-fill", f"{report['peak_mb']:,} MB"),
        ("fixed cost per month", "too few months" if fixed is None else f"{fixed:.2f} s"),
        ("cost per million rows", f"{per_row:.1f} s" if per_row else "too few rows to measure it"),
        ("the same back-fill again", f"{report['nothing_to_do_s']:,.0f} s"),
        ("differences between files and stores", f"{len(report['findings']):,}"),
    ]  # fmt: skip


def page(text: str, report: Mapping[str, Any]) -> str:
    """Return the page with the report's table."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    lines = ["| what | measured |", "|---|---|", *(f"| {what} | {much} |" for what, much in rows_of_table(report))]
    return f"{before}{_BEGIN}\n" + "\n".join(lines) + f"\n\n{_END}{after}"


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Lock the folder, and stop what a drill that was killed has left. Raise `DrillError` if a drill runs."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DrillError(f"another drill runs in {state}: wait for its end, or give another --state") from None
        if (state / "services").exists():
            down(state / "services")
        yield


def chosen(options: argparse.Namespace) -> tuple[list[TripMonth], list[str]]:
    """Return the months that the options choose, and the arguments with which the back-fill chooses the same."""
    if options.months:
        if options.since or options.until or options.colors:
            raise DrillError("give --months, or --since, --until and --colors, not both")
        parts = [re.fullmatch(r"(\w+) (\d{4})-(\d\d?)", month) for month in options.months]
        if None in parts:
            raise DrillError("--months takes months such as 'yellow 2021-01'")
        asked = {TripMonth(part[1], int(part[2]), int(part[3])) for part in parts if part}
        every = {month for color in COLORS for month in published_months(color, options.format, "", "")}
        if missing := sorted(asked - every):
            raise DrillError(f"TLC has not published {', '.join(map(str, missing))} as {options.format}")
        return sorted(asked, key=lambda month: month.file_month), ["--months", *options.months]
    if wrong := [bound for bound in (options.since, options.until) if not _BOUND.fullmatch(bound)]:
        raise DrillError(f"{wrong[0]!r} is not a month: use a month such as 2019-01, or a year")
    colors = options.colors or COLORS
    months = [m for color in colors for m in published_months(color, options.format, options.since, options.until)]
    if not months:
        raise DrillError(f"TLC has published none of these months as {options.format}")
    words = [
        word for name in ("since", "until") for word in (f"--{name}", getattr(options, name)) if getattr(options, name)
    ]
    return sorted(months, key=lambda month: month.file_month), words + (["--colors", *colors] if options.colors else [])


def main() -> int:
    """Run the drill. Return 0 if every month is in every store, exactly once, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m local.catalogue", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=int, default=500, help="real files have this many times more rows")
    parser.add_argument("--since", default="", help="first month, such as 2019-01 or 2019")
    parser.add_argument("--until", default="", help="last month")
    parser.add_argument("--colors", nargs="+", choices=COLORS, help="whose trips; all colors by default")
    parser.add_argument("--months", nargs="+", help="these months only, such as 'yellow 2021-01'")
    parser.add_argument(
        "--format", choices=ENDINGS, default="parquet", help="the format of the files; csv until 2021-07"
    )
    parser.add_argument("--kills", type=int, default=3, help="how often to kill the back-fill")
    parser.add_argument("--seed", type=int, default=0, help="another seed kills at other moments")
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".local" / "catalogue", help="folder for all files of the drill"
    )
    parser.add_argument("--page", action="store_true", help="run nothing; write the last report to docs/scale.md")
    options = parser.parse_args()
    results = options.state.with_name(f"{options.state.name}.json")
    try:
        if options.page:
            if not results.exists():
                raise DrillError(f"{results} does not exist: run `make catalogue` first")
            try:
                text = page(_PAGE.read_text("utf-8"), json.loads(results.read_text("utf-8")))
            except KeyError as error:
                raise DrillError(f"{results} is of an older version, without {error}: run `make catalogue`") from None
            _PAGE.write_text(text, "utf-8")
            return 0
        if options.scale < 1 or options.kills < 0:
            raise DrillError("--scale must be at least 1, and --kills at least 0")
        months, words = chosen(options)
        if len(months) <= options.kills:
            raise DrillError(f"{len(months)} months are too few to kill the back-fill {options.kills} times")
        drill = Drill(
            options.state.resolve(), months, words, options.format, options.scale, options.kills, options.seed
        )
        with _alone(drill.state):
            report = drill.run()
            if not report["findings"]:
                shutil.rmtree(drill.state / "services")
    except (DrillError, UnknownMonth, StackError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    results.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print("\n".join(f"{what:40} {much}" for what, much in rows_of_table(report)))
    for finding in report["findings"]:
        print(f"Error: {finding}", file=sys.stderr)
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
