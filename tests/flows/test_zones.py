"""Every store has the zones as published, exactly once, and trips can be joined with them."""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from flows.load_zones import load_zones
from flows.tasks.command import run_as_program
from flows.tlc.errors import MisconfiguredBlock
from flows.tlc.trips import TripMonth
from tests.flows.conftest import CREDENTIALS, LAKE, POSTGRES, Runs, dying
from tests.stores import Stores, as_published

NAME = "taxi_zone_lookup.csv"
EVERYWHERE = ["lake", "warehouse", "database"]

pytestmark = pytest.mark.operations


@pytest.fixture
def dataset(ours: Stores) -> Iterator[str]:
    """Create a dataset without zones."""
    name = "zones_tests"
    yield name
    bigquery.Client().delete_dataset(name, delete_contents=True, not_found_ok=True)


@pytest.fixture
def load(ours: Stores, dataset: str) -> Iterator[Any]:
    """Return `load_zones` for the tests' stores, which have no zones before and after the test."""

    def run(*stores: str, source: str = "", **parameters: Any) -> Any:
        where = {"block_name": LAKE, "credentials_block": CREDENTIALS, "postgres_block": POSTGRES, "dataset": dataset}
        source = source or f"{ours.site.url}/misc/{NAME}"
        return load_zones(list(stores), source=source, **(where | parameters), return_state=True)

    def remove() -> None:
        for key in ours.objects("zones/"):
            ours.blob(key).delete()
        ours.query("DROP TABLE IF EXISTS zones")

    remove()
    yield run
    remove()


@pytest.fixture
def published(ours: Stores) -> Iterator[Path]:
    """Return the site's zone file. Restore its content after the test."""
    path = ours.site.file(NAME)
    before = path.read_bytes()
    yield path
    ours.site.put(NAME, before)


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    with path.open(newline="") as file:
        return [(int(row[0]), *row[1:]) for row in list(csv.reader(file))[1:]]


def in_stores(ours: Stores, dataset: str) -> list[list[tuple[Any, ...]]]:
    with ours.blob("zones/zones.parquet").open("rb") as file:
        lake = pq.read_table(file)
    assert lake.column_names == ["LocationID", "Borough", "Zone", "service_zone"]
    rows = bigquery.Client().query_and_wait(f"SELECT * FROM {dataset}.zones ORDER BY LocationID")
    return [
        [tuple(row.values()) for row in lake.to_pylist()],
        [tuple(row.values()) for row in rows],
        ours.query("SELECT locationid, borough, zone, service_zone FROM zones ORDER BY locationid"),
    ]


def state_of_stores(ours: Stores, dataset: str) -> list[Any]:
    table = bigquery.Client().get_table(f"{dataset}.zones")
    postgres = ours.query("SELECT xmin::text, ctid::text FROM zones")
    return [ours.objects("zones/"), table.modified, table.description, postgres]


def test_every_store_has_the_published_zones_with_na_and_repeated_names(
    load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    outcomes = load(*EVERYWHERE).result()
    assert [(o.store, o.status, o.rows, o.inserted) for o in outcomes] == [
        (store, "loaded", 265, 265) for store in EVERYWHERE
    ]
    truth = rows_of(published)
    assert [Counter(rows) for rows in in_stores(ours, dataset)] == [Counter(truth)] * 3
    by_id = {row[0]: row for row in truth}
    assert by_id[264][2:] == ("N/A", "N/A")
    assert by_id[56][1:] == by_id[57][1:]
    assert ours.blob(f"zones/{NAME}").download_as_bytes() == published.read_bytes()
    with pytest.raises(Exception, match="duplicate key"):
        ours.query("INSERT INTO zones SELECT * FROM zones LIMIT 1")


def test_loading_the_same_zones_again_writes_nothing(load: Any, published: Path, ours: Stores, dataset: str) -> None:
    load(*EVERYWHERE)
    before = state_of_stores(ours, dataset)
    assert [(o.status, o.rows) for o in load(*EVERYWHERE).result()] == [("unchanged", 265)] * 3
    assert state_of_stores(ours, dataset) == before


def test_republished_zones_replace_the_old_ones_and_the_outcome_has_the_counts(
    load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    load(*EVERYWHERE)
    # TLC's editions differ in these ways: case of the header, line ends, a corrected name, a removed id and a new one.
    lines = published.read_text().replace("LocationID", "locationid").splitlines()
    lines = [line for line in lines if not line.startswith("100,")]
    lines[5] = '5,"Staten Island","Arden Hills","Boro Zone"'
    ours.site.put(NAME, ("\n".join([*lines, '266,"Queens","New ""Place"", N.Y.",""']) + "\n").encode())
    outcomes = load(*EVERYWHERE).result()
    assert [(o.status, o.rows, o.inserted, o.updated, o.removed) for o in outcomes] == [("replaced", 265, 1, 1, 1)] * 3
    for rows in in_stores(ours, dataset):
        by_id = {row[0]: row[1:] for row in rows}
        assert by_id[5] == ("Staten Island", "Arden Hills", "Boro Zone")
        assert by_id[266] == ("Queens", 'New "Place", N.Y.', None)
        assert 100 not in by_id


def test_each_store_records_the_source_of_its_zones(load: Any, published: Path, ours: Stores, dataset: str) -> None:
    load(*EVERYWHERE)
    blob = ours.blob("zones/zones.parquet")
    blob.reload()
    [(comment,)] = ours.query("SELECT obj_description('zones'::regclass)")
    description = bigquery.Client().get_table(f"{dataset}.zones").description
    for facts in (blob.metadata, json.loads(description), json.loads(comment)):
        assert facts["url"] == f"{ours.site.url}/misc/{NAME}"
        assert facts["etag"] == ours.site.etag(published)
        assert len(facts["sha256"]) == 64
        assert (facts["inserted"], facts["removed"]) == ("265", "0")


SOUND = '"LocationID","Borough","Zone","service_zone"\n1,"EWR","Newark Airport","EWR"\n'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<!DOCTYPE html><html></html>", "HTML or XML page"),
        ("", "it is empty"),
        ("PAR1", "binary, not CSV"),
        (SOUND.partition("\n")[0], "it has no zones"),
        (SOUND.replace("Borough", "boro"), r"Borough: missing; 'boro': unknown"),
        (SOUND.replace('"Zone"', '"Borough"'), "Zone: missing; borough: twice"),
        (SOUND + '1,"Queens","Corona","Boro Zone"\n', "line 3: LocationID 1 is repeated"),
        (SOUND + '2.5,"Queens","Corona","Boro Zone"\n', "line 3: LocationID '2.5' is not a whole number"),
        (SOUND + f'{"9" * 30},"Queens","Corona","Boro Zone"\n', "is not a whole number"),
        (SOUND + '2,"Queens"\n', "line 3 has 2 fields, the header 4"),
        (SOUND + '2,"Queens"x,"Corona","Boro Zone"\n', "not CSV text"),
        (SOUND + "3,Caf\udce9,a,b\n", "not CSV text"),
    ],
)
def test_an_invalid_zone_file_is_refused_with_the_reason_and_changes_nothing(
    content: str, reason: str, tmp_path: Path, load: Any, ours: Stores
) -> None:
    (tmp_path / NAME).write_text(content, errors="surrogateescape")
    state = load("lake", "database", source=f"file://{tmp_path / NAME}")
    assert state.is_failed()
    with pytest.raises(Exception, match=reason) as raised:
        state.result()
    assert str(tmp_path) in str(raised.value)
    assert ours.objects("zones/") == {}
    assert ours.query("SELECT to_regclass('zones')") == [(None,)]


def test_the_error_for_a_missing_source_names_it(load: Any, ours: Stores) -> None:
    for source, reason in (
        (f"{ours.site.url}/misc/none.csv", "answered HTTP 404"),
        ("file:///none.csv", "there is no file"),
        ("zones.csv", "neither official nor"),
        ("http://me:secret@127.0.0.1/zones.csv", "contains a user name or password"),
    ):
        state = load("database", source=source)
        assert reason in state.message
        assert "secret" not in state.message


def test_a_transient_failure_of_the_site_is_retried(load: Any, published: Path, ours: Stores) -> None:
    ours.site.fault(f"/misc/{NAME}", status=503, retry_after=0)
    assert load("database").result()[0].status == "loaded"


@pytest.mark.parametrize("store", ["warehouse", "database"])
def test_a_foreign_table_zones_is_not_changed(
    store: str, load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    client = bigquery.Client()
    client.create_dataset(dataset)
    client.create_table(bigquery.Table(f"{client.project}.{dataset}.zones", [bigquery.SchemaField("name", "STRING")]))
    ours.query("CREATE TABLE zones (locationid bigint, borough text, zone text, service_zone text)")
    state = load(store)
    assert "that this project did not make" in state.message
    assert ours.query("SELECT count(*) FROM zones") == [(0,)]


def with_tables_of_zones(ours: Stores, dataset: str) -> bigquery.Client:
    """Make empty tables with TLC's columns and no description in BigQuery and Postgres. Return the client of BigQuery."""
    client = bigquery.Client()
    client.create_dataset(dataset)
    client.query_and_wait(
        f"CREATE TABLE {dataset}.zones (LocationID INT64, Borough STRING, Zone STRING, service_zone STRING)"
    )
    ours.query("CREATE TABLE zones (locationid bigint PRIMARY KEY, borough text, zone text, service_zone text)")
    return client


THEIRS = "(1, 'EWR', 'our own name', 'EWR')"


@pytest.mark.parametrize("described", ["", "zones as we edited them", '{"sha256": "of another tool"}', "[1]"])
@pytest.mark.parametrize("store", EVERYWHERE)
def test_zones_that_were_loaded_by_hand_are_not_changed(
    store: str, described: str, load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    client = with_tables_of_zones(ours, dataset)
    client.query_and_wait(f"INSERT INTO {dataset}.zones VALUES {THEIRS}")
    table = client.get_table(f"{dataset}.zones")
    table.description = described
    client.update_table(table, ["description"])
    ours.query(f"INSERT INTO zones VALUES {THEIRS}; COMMENT ON TABLE zones IS '{described}'")
    blob = ours.blob("zones/zones.parquet")
    blob.metadata = {"sha256": described}
    blob.upload_from_string("no table of zones")
    before = state_of_stores(ours, dataset)
    result = load(store).result(raise_on_failure=False)
    assert isinstance(result, MisconfiguredBlock)
    assert "that this project did not make" in str(result) or "not an object that this project wrote" in str(result)
    assert state_of_stores(ours, dataset) == before


@pytest.mark.parametrize("store", ["warehouse", "database"])
def test_an_empty_table_without_a_description_is_filled(
    store: str, load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    with_tables_of_zones(ours, dataset)
    assert [load(store).result()[0].status for _ in range(2)] == ["loaded", "unchanged"]


@pytest.mark.parametrize(
    ("dies", "status"), [("load_table_from_file", "loaded"), ("update_table", "unchanged")], ids=["empty", "full"]
)
def test_a_table_that_a_killed_run_created_is_this_projects(
    dies: str, status: str, load: Any, published: Path, ours: Stores, dataset: str
) -> None:
    with dying(bigquery.Client, dies, when="before"):
        assert load("warehouse").is_failed()
    assert "sha256" in json.loads(bigquery.Client().get_table(f"{dataset}.zones").description)
    assert load("warehouse").result()[0].status == status


def test_loading_the_database_needs_no_google_service(
    load: Any, published: Path, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as environment:
        for name in [name for name in os.environ if name.startswith(("GOOGLE_", "STORAGE_", "BIGQUERY_", "LAKE_"))]:
            environment.delenv(name)
        nothing = {"block_name": "no-such-block", "credentials_block": "no-such-block"}
        assert load("database", **nothing).result()[0].status == "loaded"


def test_the_environment_sets_the_address_of_official(load: Any, ours: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLC_ZONES_URL", f"{ours.site.url}/misc/{NAME}")
    assert load("database", source="official").result()[0].rows == 265


def test_the_command_line_accepts_only_the_names_of_stores(
    load: Any, ours: Stores, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{ours.site.url}/misc/{NAME}"
    for stores, status in ((["database"], 0), (["database", "cellar"], 2), ([], 2)):
        monkeypatch.setattr(sys, "argv", ["x", *stores, "--postgres-block", POSTGRES, "--source", source])
        with pytest.raises(SystemExit) as left:
            run_as_program(load_zones)
        assert left.value.code == status
    assert "'lake', 'warehouse', 'database'" in capsys.readouterr().err
    assert ours.query("SELECT count(*) FROM zones") == [(265,)]


JOIN = """
    SELECT p.Borough AS pickup, d.Zone AS dropoff, count(*) AS trips
    FROM {trips} JOIN {zones} p ON p.LocationID = PULocationID JOIN {zones} d ON d.LocationID = DOLocationID
    WHERE file_month = '{month.file_month}' GROUP BY 1, 2
"""


def test_trips_can_be_joined_with_the_zones_in_every_store(
    load: Any, runs: Runs, published: Path, ours: Stores, month: TripMonth
) -> None:
    runs.lake(month)
    runs.warehouse(month)
    runs.postgres(month, rows="all")
    load(*EVERYWHERE, dataset=ours.dataset)
    names = {row[0]: row for row in rows_of(published)}
    trips = as_published(ours.site.file(f"{month.stem}.parquet"), month)
    ids = zip(trips["PULocationID"].to_pylist(), trips["DOLocationID"].to_pylist(), strict=True)
    truth = Counter((names[p][1], names[d][2]) for p, d in ids if p is not None and d is not None)
    assert len(truth) > 100

    def counted(rows: Any) -> Counter[tuple[str, str]]:
        return Counter({(pickup, dropoff): trips for pickup, dropoff, trips in rows})

    tables = {"trips": f"{ours.dataset}.{month.color}", "zones": f"{ours.dataset}.zones", "month": month}
    warehouse = bigquery.Client().query_and_wait(JOIN.format(**tables))
    assert counted(row.values() for row in warehouse) == truth
    assert counted(ours.query(JOIN.format(trips=month.color, zones="zones", month=month))) == truth
    lake = duckdb.connect()
    with ours.blob("zones/zones.parquet").open("rb") as file:
        lake.register("zones", pq.read_table(file))
    lake.register("trips", ours.in_lake(month))
    assert counted(lake.execute(JOIN.format(trips="trips", zones="zones", month=month)).fetchall()) == truth
    lake.close()
    bigquery.Client().delete_table(f"{ours.dataset}.zones")
