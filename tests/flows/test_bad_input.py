"""Bad input stops a run before any work. The error names the input and the remedy, and nothing is stored."""

import gzip
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from sqlalchemy import make_url

from blocks.register import BLOCKS
from flows.bring_up_to_date import bring_up_to_date
from flows.etl_gcs_bq import etl_gcs_bq, etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow, etl_web_gcs
from flows.ingest_data import ingest_data
from flows.load_zones import load_zones
from flows.query_lake import query_lake
from flows.tasks import stores
from flows.tlc.errors import ImpossibleDataset, MisconfiguredBlock, UnknownMonth
from flows.tlc.trips import COLORS, TripMonth
from local.trip_files.writing import write_month
from tests.flows.conftest import LAKE, POSTGRES, Program, Runs, lake_of, postgres_block
from tests.stores import Stores

CANARY = "canary-47110815"


def error_of(state: Any) -> str:
    assert state.is_failed()
    return f"{state.message} {state.result(raise_on_failure=False)}"


@pytest.mark.parametrize(
    ("flow", "color", "year", "months", "reason"),
    [
        (
            etl_parent_flow,
            "yellow",
            2021,
            [0, 13],
            "month 0 does not exist; months are 1 to 12. month 13 does not exist",
        ),
        (ingest_data, "yellow", 2021, [1, 13], "month 13 does not exist"),
        (etl_gcs_bq_parent_flow, "yellow", 2021, [], "months is empty"),
        (etl_parent_flow, "green", 2010, [1], "begin with 2013-08"),
        (ingest_data, "yellow", 2099, [1], "in the future"),
        (etl_gcs_bq_parent_flow, "yellow", 2021, [1, 13], "Nothing was started"),
    ],
)
def test_months_that_cannot_exist_stop_a_run_before_any_work(
    flow: Any, color: str, year: int, months: list[int], reason: str, ours: Stores, runs: Runs
) -> None:
    ours.site.forget_requests()
    state = flow(color=color, year=year, months=months, **runs.places(flow), return_state=True)
    assert reason in error_of(state)
    assert isinstance(state.result(raise_on_failure=False), UnknownMonth)
    assert ours.site.requests == []
    assert not runs.task_runs(state)  # the run of a month would be among them


@pytest.mark.parametrize(
    ("flow", "parameters"),
    [
        (etl_gcs_bq, {"color": "green", "year": 2021, "month": 1}),
        (etl_gcs_bq_parent_flow, {"color": "green", "year": 2021, "months": [1]}),
        (bring_up_to_date, {}),
        (load_zones, {"stores": ["warehouse"]}),
        (query_lake, {"sql": "green", "engine": "bigquery"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_dataset_whose_name_is_sql_stops_a_run_before_any_work(
    flow: Any, parameters: dict[str, Any], ours: Stores
) -> None:
    ours.site.forget_requests()
    name = f"{ours.dataset}.loads`; DROP TABLE `{ours.dataset}.loads"
    state = flow(**parameters, dataset=name, return_state=True)
    assert isinstance(state.result(raise_on_failure=False), ImpossibleDataset)
    assert f"dataset {name!r} is not a valid BigQuery dataset name" in error_of(state)
    assert state.state_details.flow_run_id is None  # it never ran
    assert ours.site.requests == []


def test_the_error_for_an_unknown_color_lists_the_known_ones(runs: Runs) -> None:
    state = etl_parent_flow(color="red", year=2021, months=[1], **runs.places(etl_parent_flow), return_state=True)
    assert f"{', '.join(map(repr, COLORS[:-1]))} or {COLORS[-1]!r}" in error_of(state)


def test_the_error_for_a_missing_block_says_how_to_make_it(month: TripMonth, runs: Runs) -> None:
    for flow, slug in ((etl_web_gcs, "gcs-bucket"), (ingest_data, "sqlalchemy-connector")):
        text = error_of(runs.of(flow, month, block_name="no-such-block"))
        assert f"{slug}/no-such-block does not exist; make it in the UI, or name another block" in text


def test_the_error_for_a_missing_standard_block_names_the_program_that_makes_it(
    ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {(kind, name) for kind, (name, *_) in BLOCKS.items()} == stores._REGISTERED
    monkeypatch.setattr(stores, "_REGISTERED", {("gcs-bucket", "not-made-yet")})
    with pytest.raises(
        MisconfiguredBlock, match=r"not-made-yet does not exist; make it with `python -m blocks\.register`"
    ):
        stores.load_block("gcs-bucket", "not-made-yet")


def test_the_error_for_a_missing_bucket_names_it(month: TripMonth, runs: Runs, ours: Stores) -> None:
    GcsBucket(bucket="no-such-lake", bucket_folder="data", gcp_credentials=GcpCredentials()).save(
        "nowhere", overwrite=True
    )
    assert "'no-such-lake' does not exist; create it" in error_of(runs.of(etl_web_gcs, month, block_name="nowhere"))


def test_a_bucket_may_be_called_bucket(month: TripMonth, runs: Runs, ours: Stores) -> None:
    credentials = GcpCredentials()
    credentials.get_cloud_storage_client().create_bucket("my-bucket-of-taxis")
    GcsBucket(bucket="my-bucket-of-taxis", bucket_folder="data", gcp_credentials=credentials).save(
        "named-so", overwrite=True
    )
    assert runs.lake(month, block_name="named-so").status == "loaded"


def test_a_wrong_password_is_reported_and_never_quoted(
    month: TripMonth, runs: Runs, ours: Stores, capfd: pytest.CaptureFixture[str]
) -> None:
    postgres_block(ours.postgres_url, password=CANARY).save("wrong-password", overwrite=True)
    text = error_of(runs.of(ingest_data, month, block_name="wrong-password"))
    assert "password authentication failed" in text
    assert "SqlAlchemyConnector block" in text
    assert CANARY not in text
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err


@pytest.mark.parametrize(
    "table",
    [
        "{color}", "loads", "loads_history", "quarantine", "{partition}_staging", "{partition}_staging_quarantine",
        "{partition}_staging_batch_1",
    ],
)  # fmt: skip
def test_a_foreign_table_is_not_changed(table: str, month: TripMonth, runs: Runs, ours: Stores) -> None:
    name = "bad_input_foreign"
    table = table.format(color=month.color, partition=month.postgres_partition)
    url = make_url(ours.postgres_url).set(database=name).render_as_string(hide_password=False)
    with closing(psycopg2.connect(ours.postgres_url)) as admin:
        admin.autocommit = True
        admin.cursor().execute(f"CREATE DATABASE {name}")
        try:
            with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
                cursor.execute(f"CREATE TABLE {table} AS SELECT 1 AS theirs")
            postgres_block(url).save("foreign", overwrite=True)
            text = error_of(runs.of(ingest_data, month, block_name="foreign"))
            assert f"a table {table!r} that this project did not make" in text
            with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
                cursor.execute(f"SELECT * FROM {table}")
                assert cursor.fetchall() == [(1,)]
        finally:
            admin.cursor().execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("table", ["loads", "loads_history"])
def test_a_foreign_table_in_bigquery_is_not_changed(table: str, month: TripMonth, runs: Runs, ours: Stores) -> None:
    runs.lake_by_hand(month)
    dataset, client = f"{ours.dataset}_foreign_{table}", bigquery.Client()
    client.create_dataset(dataset)
    try:
        client.query_and_wait(f"CREATE TABLE {dataset}.{table} AS SELECT 1 AS theirs")
        text = error_of(runs.of(etl_gcs_bq, month, dataset=dataset))
        assert f"{table} that this project did not make (it has no color, file_month, sha256)" in text
        assert [dict(row) for row in client.query_and_wait(f"SELECT * FROM {dataset}.{table}")] == [{"theirs": 1}]
        assert month.color not in [there.table_id for there in client.list_tables(dataset)]
    finally:
        client.delete_dataset(dataset, delete_contents=True)


def test_a_foreign_raw_file_is_not_overwritten(month: TripMonth, runs: Runs, ours: Stores) -> None:
    """A raw file that was copied from a backup without its metadata may be the only copy of its edition."""
    raw = ours.blob(month.raw_key(".parquet"))
    raw.upload_from_string(b"from a backup")
    try:
        text = error_of(runs.of(etl_web_gcs, month))
        assert f"{month.raw_key('.parquet')} is not a raw file that this project wrote" in text
        assert raw.download_as_bytes() == b"from a backup"
        assert month.key not in ours.objects()
    finally:
        raw.delete()


def test_an_unpublished_month_fails_and_the_others_are_loaded(runs: Runs, ours: Stores, tmp_path: Path) -> None:
    published, not_yet = TripMonth("green", 2026, 2), TripMonth("green", 2026, 1)
    write_month(tmp_path / "month.parquet", "green", 2026, 2, rows=300)
    ours.site.put(f"{published.stem}.parquet", tmp_path / "month.parquet")
    for flow in (etl_parent_flow, ingest_data):
        places = runs.places(flow) | {"rows": "all"}
        text = error_of(flow(color="green", year=2026, months=[1, 2], **places, return_state=True))
        assert "1 of 2 months could not be loaded" in text
        assert f"{not_yet} is not published" in text
        assert "HTTP 403" in text
    assert ours.in_lake(published).num_rows == ours.in_postgres(published).num_rows == 300
    assert ours.objects_of(not_yet) == {}
    assert ours.query("SELECT to_regclass(%s)", not_yet.postgres_partition) == [(None,)]


@pytest.mark.parametrize(
    ("body", "source", "reason"),
    [
        ("html", "official", "HTML or XML page"),
        ("lfs_pointer", "official", "Git LFS pointer"),
        ("truncated", "official", "truncated"),
        ("conflict_markers", "mirror", "merge-conflict marker"),
        ("excel_dates", "mirror", "Dates without seconds come from a spreadsheet"),
    ],
)
def test_a_file_in_a_wrong_format_is_refused_and_nothing_is_stored(
    body: str, source: str, reason: str, mirrored_month: TripMonth, runs: Runs, ours: Stores
) -> None:
    ours.site.fault(f"*{mirrored_month.stem}*", times=None, body=body)
    try:
        for flow in (etl_web_gcs, ingest_data):
            assert reason in error_of(runs.of(flow, mirrored_month, source=getattr(ours, source)))
    finally:
        ours.site.heal()
    assert ours.objects_of(mirrored_month) == {}
    assert ours.query("SELECT to_regclass(%s)", mirrored_month.postgres_partition) == [(None,)]
    assert runs.lake(mirrored_month).status == "loaded"


SECRET = "someone:x:0:0:hunter2:/home/someone:/bin/bash"


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_a_file_without_trips_stores_nothing_in_the_lake_and_is_not_quoted(
    ending: str, month: TripMonth, runs: Runs, ours: Stores, tmp_path: Path
) -> None:
    path = tmp_path / f"{month.stem}{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table({"a": [SECRET]}), path)
    else:
        text = f"{SECRET}\n".encode() * 3
        path.write_bytes(gzip.compress(text) if ending == ".csv.gz" else text)
    before = ours.objects()
    text = error_of(
        runs.of(etl_web_gcs, month, source=f"file://{tmp_path}/{{color}}_tripdata_{{year}}-{{month:02d}}{ending}")
    )
    assert "Nothing was loaded" in text
    assert "someone" not in text
    assert ours.objects() == before


def test_a_refused_edition_does_not_change_the_published_month(month: TripMonth, runs: Runs, ours: Stores) -> None:
    runs.lake(month)
    before = ours.objects()
    ours.site.put(f"{month.stem}.parquet", b"PAR1" + b"no trips at all" * 9 + b"PAR1")
    try:
        assert "Nothing was loaded" in error_of(runs.of(etl_web_gcs, month))
    finally:
        (ours.site._put / f"{month.stem}.parquet").unlink()
    assert ours.objects() == before
    assert lake_of(LAKE).raw_of(lake_of(LAKE).current(month)).verified == "md5"


def test_a_deployments_run_refuses_files_and_private_addresses_unless_the_operator_allows_them(
    month: TripMonth, runs: Runs, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIPS_ALLOW_SOURCES")
    ours.site.forget_requests()
    for flow in (etl_web_gcs, ingest_data):
        for source, reason in (
            ("file:///etc/{color}{year}-{month:02d}.csv", "is a local file"),
            (ours.official.replace("127.0.0.1", "localhost"), "is at a private or local address"),
        ):
            text = error_of(runs.of(flow, month, source=source))
            assert reason in text
            assert "the operator sets TRIPS_ALLOW_SOURCES=" in text
    assert "is a local file" in error_of(
        load_zones(["database"], "file:///etc/hosts", postgres_block=POSTGRES, return_state=True)
    )
    assert ours.site.requests == []


@pytest.mark.parametrize(
    "template",
    [
        f"https://me:{CANARY}@[h/{{year}}-{{month}}.csv",
        f"https://me:{{{CANARY}@h/{{year}}-{{month}}.csv",
        f"https:/me:{CANARY}@h/{{year}}-{{month}}.csv",
        f"https://me:1/{CANARY}@h/{{year}}-{{month}}.csv",
        f"https://me:{CANARY}%40h/{{year}}-{{month}}.csv",
        f"https://me:{CANARY}\uff20h/{{year}}-{{month}}.csv",
    ],
)
def test_a_password_in_a_malformed_address_is_not_logged(
    template: str, runs: Runs, month: TripMonth, ours: Stores, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", template)
    for source in (template, "official"):
        text = error_of(runs.of(ingest_data, month, source=source))
        assert "source" in text
        assert CANARY not in text
    assert CANARY not in "".join(capfd.readouterr())
    assert CANARY not in runs.logs()


def test_a_password_in_a_malformed_address_is_not_printed(program: Program) -> None:
    source = f"https://me:{CANARY}@[h/{{year}}-{{month}}.csv"
    done = program("ingest_data", "green", 2021, 1, "--block-name", POSTGRES, TLC_OFFICIAL_URL=source)
    assert done.returncode == 1
    assert "user name or password" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_a_program_prints_an_error_in_one_line_and_fails(program: Program) -> None:
    done = program("ingest_data", "green", 2021, 1, "--block-name", POSTGRES, "--source", "ftp://x")
    assert done.returncode == 1
    errors = done.stderr
    assert any(line.startswith("error: source 'ftp://x'") for line in errors.splitlines())
    assert "Traceback" not in errors
