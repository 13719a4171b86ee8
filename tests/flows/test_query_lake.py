"""SQL queries of the lake return the published trips and read few bytes. A query cannot reach anything else."""

import datetime as dt
import io
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from blocks import GCP_CREDENTIALS, GCS_BUCKET
from blocks import POSTGRES as PG_BLOCK
from flows.connectors.ask import answer
from flows.load_zones import load_zones
from flows.query_lake import query_lake
from flows.stores.lake import Lake
from flows.tasks.command import run_as_program
from flows.tlc.errors import Unanswerable
from flows.tlc.schema import KINDS, columns
from flows.tlc.trips import COLORS, TripMonth
from tests.flows.conftest import ROOT, Program, Runs, postgres_block
from tests.stores import Stores, stores

BLOCK = "tests-asked-lake"
MONTHS = [TripMonth("green", 2022, 1), TripMonth("green", 2022, 2), TripMonth("green", 2022, 3)]

pytestmark = pytest.mark.operations


@dataclass(frozen=True)
class Asked:
    """A lake of three green months and the zones."""

    stores: Stores
    block: GcsBucket

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """Return the rows that the flow returns."""
        return query_lake(sql, **({"block_name": BLOCK} | parameters))

    def reason(self, sql: str) -> str:
        """Return the error of a query that must fail."""
        state = query_lake(sql, block_name=BLOCK, return_state=True)
        assert state.is_failed()
        return str(state.message)


@pytest.fixture(scope="module")
def asked(ours: Stores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with stores(tmp_path_factory.mktemp("asked"), "asked_tests", rows=20_000) as made:
        block = GcsBucket(bucket=made.bucket, bucket_folder="data", gcp_credentials=GcpCredentials())
        block.save(BLOCK)
        runs = Runs(made)
        for month in MONTHS:
            runs.lake(month, block_name=BLOCK)
        load_zones(["lake"], source=f"{made.site.url}/misc/taxi_zone_lookup.csv", block_name=BLOCK)
        yield Asked(made, block)


def test_counts_and_sums_match_the_published_trips(asked: Asked) -> None:
    trips = asked.stores.in_lake(MONTHS[0])
    [found] = asked.rows("select count(*) as n, sum(total_amount) as s from green where file_month = '2022-01-01'")
    assert found["n"] == trips.num_rows == asked.stores.site.rows_of("green", 2022, 1)
    assert found["s"] == pytest.approx(pc.sum(trips["total_amount"]).as_py())
    by_month = asked.rows("select file_month, count(*) as n from green group by 1 order by 1")
    assert by_month == [
        {"file_month": m.file_month, "n": asked.stores.site.rows_of("green", m.year, m.month)} for m in MONTHS
    ]


def test_every_canonical_column_has_its_values(asked: Asked) -> None:
    trips = asked.stores.in_lake(MONTHS[1]).slice(0, 500)
    found = asked.rows("from GREEN where file_month = date '2022-02-01' and row_number <= 500 order by row_number")
    assert found == trips.to_pylist()


def test_trips_can_be_joined_with_the_zones(asked: Asked) -> None:
    trips = asked.stores.in_lake(MONTHS[2])
    [found] = asked.rows(
        "select count(*) as n, count(distinct Zone) as names from green join zones on LocationID = DOLocationID"
        " where file_month = '2022-03-01'"
    )
    assert found["n"] == trips.num_rows - trips["DOLocationID"].null_count
    assert found["names"] > 50


def test_a_long_result_is_cut_and_the_log_says_so(asked: Asked, runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(asked.rows("select row_number from green")) == 1000
    assert "1000 rows, and more" in caplog.text


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) as yellow from green",
        "select count(*) yellow from green -- fhv\n/* fhvhv */",
        "with yellow as (select * from green) select count(*) as n from yellow",
        "select count(fhv) as n from (select 1 as fhv from zones, green)",
        'select count(*) as n from "green" as fhvhv',
    ],
)
def test_only_the_tables_that_a_query_reads_are_opened(sql: str, asked: Asked) -> None:
    [found] = asked.rows(sql)
    assert next(iter(found.values())) > 0


class TestReading:
    """The number of bytes that a query reads from the lake."""

    def read(self, asked: Asked, sql: str) -> int:
        sizes: list[int] = []
        answer(sql, {"green": Lake(asked.block).dataset("green", sizes.append)}, 10)
        return sum(sizes)

    def size(self, asked: Asked, month: TripMonth) -> int:
        blob = asked.stores.blob(month.key)
        blob.reload()
        return int(blob.size)

    def test_a_query_of_one_column_of_one_month_reads_a_small_part_of_the_file(self, asked: Asked) -> None:
        read = self.read(asked, "select sum(total_amount) from green where file_month = '2022-01-01'")
        assert 0 < read < self.size(asked, MONTHS[0]) / 3
        with asked.stores.blob(MONTHS[0].key).open("rb") as file:
            footer = pq.ParquetFile(file).metadata
        columns_read = [footer.row_group(0).column(i) for i in range(footer.num_columns)]
        [amount] = [c.total_compressed_size for c in columns_read if c.path_in_schema == "total_amount"]
        assert read - amount < 2 * (footer.serialized_size + 64 * 1024)

    def test_a_month_that_the_condition_excludes_is_not_opened(self, asked: Asked) -> None:
        one = self.read(asked, "select sum(total_amount) from green where file_month = '2022-01-01'")
        assert self.read(asked, "select sum(total_amount) from green") > 2 * one
        assert self.read(asked, "select sum(total_amount) from green where file_month > '2030-01-01'") == 0

    def test_row_groups_that_the_condition_excludes_are_not_read(self, asked: Asked) -> None:
        every = "select max(tip_amount), max(store_and_fwd_flag) from green where file_month = '2022-01-01'"
        assert self.read(asked, f"{every} and row_number > 1000000") < self.read(asked, every)


class TestPublished:
    """Queries read only objects that a manifest names."""

    @pytest.fixture
    def more(self, asked: Asked) -> Iterator[list[str]]:
        """Yield a list for the keys of objects that the test adds. Delete them after the test."""
        keys: list[str] = []
        yield keys
        for key in keys:
            asked.stores.blob(key).delete()

    def test_an_object_without_a_manifest_is_not_read(self, asked: Asked, more: list[str]) -> None:
        more.append("green/green_tripdata_2022-04.parquet")
        asked.stores.blob(more[0]).upload_from_string(asked.stores.blob(MONTHS[0].key).download_as_bytes())
        assert asked.rows("select count(distinct file_month) as n from green") == [{"n": 3}]
        months = Lake(asked.block)._published("green")
        assert [manifest.trip_month for manifest, *_ in months] == MONTHS

    def test_an_object_newer_than_its_manifest_is_not_read(self, asked: Asked, more: list[str]) -> None:
        month = TripMonth("green", 2022, 5)
        Runs(asked.stores).lake(month, block_name=BLOCK)
        more += [month.key, month.manifest_key]
        assert asked.rows("select max(file_month) as m from green") == [{"m": dt.date(2022, 5, 1)}]
        asked.stores.blob(month.key).upload_from_string(asked.stores.blob(MONTHS[0].key).download_as_bytes())
        assert asked.rows("select max(file_month) as m from green") == [{"m": dt.date(2022, 3, 1)}]

    def test_a_query_fails_with_the_reason_if_its_month_is_replaced(self, asked: Asked, more: list[str]) -> None:
        month = TripMonth("green", 2022, 6)
        Runs(asked.stores).lake(month, block_name=BLOCK)
        more += [month.key, month.manifest_key]
        table = Lake(asked.block).dataset("green", lambda size: None)
        blob = asked.stores.blob(month.key)
        content = blob.download_as_bytes()
        blob.delete()
        blob.upload_from_string(content)
        with pytest.raises(Exception, match="was replaced while it was being read"):
            answer("select sum(total_amount) from green", {"green": table}, 1)


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select 1", f"names no table of the lake; its tables are {', '.join(COLORS)}, zones"),
        ("select from from green", "syntax error"),
        ("select totl from green", "totl"),
        ("select count(*) from yellow", "no month of yellow is in the lake .*run etl-web-gcs first"),
        ("select * from read_csv('/etc/hostname'), green", "disabled by configuration"),
        ("copy (select 1 from green) to 'x.csv'", "must be one SELECT statement, not COPY"),
        ("set enable_external_access = true; select 1 from green", "must be one SELECT statement, not SET, SELECT"),
        ("install httpfs; select 1 from green", "must be one SELECT statement, not LOAD, SELECT"),
    ],
)
def test_the_error_of_an_invalid_query_names_the_reason(sql: str, reason: str, asked: Asked) -> None:
    assert re.search(reason, asked.reason(sql))


@pytest.mark.parametrize("place", [":memory:", ":memory:.wal", "x.csv"])
def test_no_query_writes_a_file(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = f"copy (select 1) to '{place}'"
    with pytest.raises(Unanswerable, match="must be one SELECT statement, not COPY"):
        answer(copy, {}, 1)
    with pytest.raises(Unanswerable, match="disabled by configuration"):  # EXPLAIN ANALYZE runs the statement
        answer(f"explain analyze {copy}", {}, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql", ["with a as (select 1 b) from a", "values (1)", "explain select 1", "pivot (select 1 b) on b"]
)
def test_every_kind_of_statement_that_only_reads_is_answered(sql: str) -> None:
    assert answer(sql, {}, 1).rows


def test_without_duckdb_the_error_says_how_to_get_it(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install duckdb" in asked.reason("select 1 from green")


def test_the_external_tables_for_bigquery_have_the_columns_of_the_files(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked.rows("green", engine="bigquery", dataset="mine") == []
    output = capsys.readouterr().out
    assert "`mine.green_in_lake`" in output
    assert f'uris = ["gs://{asked.stores.bucket}/data/green/*.parquet"]' in output
    listed = re.findall(r"^  `(\w+)` (\w+) OPTIONS", output, re.MULTILINE)
    as_bigquery = {kind.arrow: kind.bigquery for kind in KINDS.values()}
    for month in MONTHS:
        written = pq.read_schema(io.BytesIO(asked.stores.blob(month.key).download_as_bytes()))
        assert listed == [(field.name, as_bigquery[field.type]) for field in written]
    assert len(listed) == len(columns("green"))


def test_the_commands_in_the_documentation_work(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GcpCredentials().save(GCP_CREDENTIALS, overwrite=True)
    asked.block.save(GCS_BUCKET, overwrite=True)
    postgres_block(asked.stores.postgres_url).save(PG_BLOCK, overwrite=True)
    monkeypatch.setenv("TLC_ZONES_URL", f"{asked.stores.site.url}/misc/taxi_zone_lookup.csv")
    flows = {"flows/load_zones.py": load_zones, "flows/query_lake.py": query_lake}
    commands = [
        command
        for page in ("zones.md", "query.md")
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
        for command in block.splitlines()
        if command.startswith("python flows/")
    ]
    outputs = []
    for command in commands:  # in this process, because importing Prefect takes longer than any command
        _, program, *arguments = shlex.split(command, comments=True)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as left:
            run_as_program(flows[program])
        out, err = capsys.readouterr()
        assert left.value.code == 0, f"$ {command}\n{err}"
        outputs.append(out)
    count = asked.stores.in_lake(MONTHS[0]).num_rows
    assert any(re.search(rf"^{count},\d+", out, re.MULTILINE) for out in outputs)
    assert any(re.search(r"^Brooklyn,\d+$", out, re.MULTILINE) for out in outputs)
    assert any(out.count("CREATE OR REPLACE EXTERNAL TABLE") == 2 for out in outputs)
    assert asked.stores.query("SELECT count(*) FROM zones") == [(265,)]


def test_a_slow_query_shows_no_progress_bar() -> None:
    assert answer("select current_setting('enable_progress_bar')", {}, 1).rows == [(False,)]


def test_the_program_prints_nothing_but_the_answer(asked: Asked, program: Program) -> None:
    sql = "select count(*) as trips from green where file_month = '2022-02-01'"
    done = program("query_lake", sql, "--block-name", BLOCK)
    assert done.returncode == 0, done.stderr
    assert "nanobind" not in done.stderr
    assert done.stdout == f"trips\n{asked.stores.in_lake(MONTHS[1]).num_rows}\n"
