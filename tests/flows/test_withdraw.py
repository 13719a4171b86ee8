"""A month can be withdrawn from stores and restored with the same rows. Its history has every publication and withdrawal."""

import getpass
from contextlib import suppress
from typing import Any, Literal

import pytest
from google.cloud import bigquery

from flows.bring_up_to_date import bring_up_to_date
from flows.catalog import catalog
from flows.connectors.bigquery import BigQuery
from flows.connectors.bucket import Bucket
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.stores.warehouse import Warehouse
from flows.tasks.editions import Listing
from flows.tlc.errors import MonthsFailed, TripDataError
from flows.tlc.manifest import Outcome
from flows.tlc.trips import TripMonth
from flows.withdraw import withdraw
from tests.flows.conftest import CREDENTIALS, LAKE, POSTGRES, Runs, database_of, dying, lake_of, warehouse_of
from tests.stores import Stores, same
from tests.strict_lake import StrictLake

ALL = ["lake", "warehouse", "database"]


def places(ours: Stores) -> dict[str, Any]:
    return {
        "block_name": LAKE, "credentials_block": CREDENTIALS, "dataset": ours.dataset, "postgres_block": POSTGRES,
    }  # fmt: skip


def withdraw_month(ours: Stores, month: TripMonth, stores: list[str]) -> Outcome:
    [outcome] = withdraw(month.color, month.year, [month.month], stores=stores, **places(ours))
    return outcome


def text(month: TripMonth) -> str:
    return f"{month.year}-{month.month:02d}"


def in_loads(ours: Stores, month: TripMonth) -> dict[str, Any]:
    query = f"SELECT * FROM {ours.dataset}.loads WHERE color = '{month.color}' AND file_month = '{month.file_month}'"
    [row] = bigquery.Client().query_and_wait(query)
    return dict(row)


def test_a_withdrawn_month_stays_withdrawn_until_it_is_restored_with_the_same_rows(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    for load in (runs.lake, runs.warehouse, runs.postgres):
        load(month)
    lake, database, objects = ours.in_lake(month), ours.in_postgres(month), ours.objects_of(month)
    content = ours.blob(month.key).download_as_bytes()
    opened = [lake_of(LAKE), warehouse_of(CREDENTIALS, ours.dataset), database_of(POSTGRES)]

    assert withdraw_month(ours, month, ALL).status == "withdrawn"
    left = ours.objects_of(month).keys()
    assert month.raw_key(".parquet") in left
    assert not {month.key, month.quarantine_key, month.extra_key} & left
    assert ours.in_warehouse(month).num_rows == 0
    assert ours.query(f"SELECT count(*) FROM {month.color} WHERE file_month = %s", month.file_month) == [(0,)]
    for facts in (ours.manifest(month), in_loads(ours, month), ours.loads(month)):
        assert facts["withdrawn_at"]
        assert facts["removed"] == facts["loaded"]
    for store in opened:
        assert store.present(month).manifest is None
        assert store.remembered(month) is None
        assert month not in store.months([month.color])
        assert store.months([month.color], "withdrawn")[month].manifest.withdrawn_at

    before = ours.objects_of(month)
    assert withdraw_month(ours, month, ALL).status == "unchanged"
    assert ours.objects_of(month) == before
    with suppress(MonthsFailed):  # the files of some other tests' months are wrong on purpose
        bring_up_to_date(
            colors=[month.color], since=text(month), until=text(month), into=ALL, source=ours.official, expect_within=0,
            **places(ours),
        )  # fmt: skip
    assert month.key not in ours.objects()
    decided = "withdrawn in the lake, withdrawn in the warehouse, withdrawn in the database"
    assert f"{month} is {decided}; it is not updated" in runs.logs()
    [entry] = [e for e in catalog([month.color], text(month), text(month), block_name=LAKE) if e.trip_month == month]
    assert (entry.listed, entry.differs[0].split(" on ")[0]) == (None, "withdrawn")
    with pytest.raises(TripDataError, match=r"was withdrawn from the lake on .* to restore it, run etl-web-gcs"):
        runs.warehouse(month)

    ours.site.forget_requests()
    assert [load(month).status for load in (runs.lake, runs.warehouse, runs.postgres)] == ["loaded"] * 3
    assert "GET" not in [request.method for request in ours.requests(month)]
    assert ours.blob(month.key).download_as_bytes() == content
    assert same(ours.in_lake(month), lake)
    assert same(ours.in_warehouse(month), lake)
    assert same(ours.in_postgres(month), database)
    assert ours.objects_of(month).keys() >= objects.keys()
    for facts in (ours.manifest(month), in_loads(ours, month), ours.loads(month)):
        assert facts["withdrawn_at"] is None

    for store in opened:
        history = store.history(month)
        assert [bool(manifest.withdrawn_at) for manifest in history] == [False, True, False]
        assert [manifest.inserted - manifest.removed for manifest in history] == [
            history[0].loaded, -history[0].loaded, history[0].loaded,
        ]  # fmt: skip
        assert all(manifest.flow_run_id for manifest in history)
        assert {manifest.started_by for manifest in history} == {getpass.getuser()}
        listing = catalog(history=str(month), store=store.name, **places(ours))
        assert isinstance(listing, Listing)
        assert [row[1] for row in listing.rows] == ["published", "withdrawn", "published"]


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [(Lake, "append_history", "before"), (Lake, "append_history", "after"), (Lake, "_write_manifest", "before"),
     (Lake, "_write_manifest", "after"), (Lake, "_publish_side_object", "after"), (Bucket, "delete", "before"),
     (Bucket, "delete", "after")],
)  # fmt: skip
def test_after_a_fault_in_a_withdrawal_the_lake_has_all_or_nothing_and_the_next_completes_it(
    owner: type, name: str, when: Literal["before", "after"], month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    rows, lake = ours.in_lake(month), lake_of(LAKE)
    with dying(owner, name, when=when), pytest.raises(TripDataError):
        lake.withdraw(month, "")
    marked = bool(ours.manifest(month)["withdrawn_at"])
    assert (month in lake.months([month.color])) is not marked
    assert (month in lake.months([month.color], "withdrawn")) is True
    assert marked or same(ours.in_lake(month), rows)
    lake.withdraw(month, "")
    assert month.key not in ours.objects()
    assert lake.withdraw(month, "").status == "unchanged"
    runs.lake_by_hand(month)
    assert same(ours.in_lake(month), rows)
    assert not lake.history(month)[-1].withdrawn_at


@pytest.mark.parametrize("name", ["_write_manifest", "_append_to_history"])
def test_a_withdrawal_from_postgres_is_one_transaction(name: str, month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.postgres_by_hand(month)
    rows, loads = ours.in_postgres(month), ours.loads(month)
    with dying(Database, name, when="after"), pytest.raises(TripDataError):
        database_of(POSTGRES).withdraw(month, "")
    assert same(ours.in_postgres(month), rows)
    assert ours.loads(month) == loads
    assert len(database_of(POSTGRES).history(month)) == 1
    assert database_of(POSTGRES).withdraw(month, "").status == "withdrawn"


def test_a_withdrawal_from_bigquery_is_one_transaction(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    warehouse, rows, loads = warehouse_of(CREDENTIALS, ours.dataset), ours.in_warehouse(month), in_loads(ours, month)
    with monkeypatch.context() as patch:
        patch.setattr(
            Warehouse,
            "_remembering",
            lambda *_: (
                [f"INSERT INTO {ours.dataset}.no_table VALUES (1)"],
                {"file_month": ("DATE", month.file_month)},
            ),
        )
        with pytest.raises(Exception, match="no_table"):
            warehouse.withdraw(month, "")
    assert same(ours.in_warehouse(month), rows)
    assert in_loads(ours, month) == loads
    assert warehouse.withdraw(month, "").status == "withdrawn"
    assert ours.in_warehouse(month).num_rows == 0
    assert runs.warehouse(month).status == "loaded"
    assert same(ours.in_warehouse(month), rows)


def test_a_retried_step_writes_one_entry_of_history(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    opened = [lake_of(LAKE), warehouse_of(CREDENTIALS, ours.dataset), database_of(POSTGRES)]
    with dying(Lake, "_write_manifest", when="before", times=1):
        runs.lake(month)
    with dying(BigQuery, "transact", when="after", times=1):
        runs.warehouse(month)
    with dying(Database, "_publish", when="after", times=1):
        runs.postgres(month)
    assert [len(store.history(month)) for store in opened] == [1, 1, 1]
    with dying(Lake, "_write_manifest", when="before", times=1):
        assert withdraw_month(ours, month, ["lake"]).status == "withdrawn"
    with dying(BigQuery, "transact", when="after", times=1):
        assert withdraw_month(ours, month, ["warehouse"]).status == "withdrawn"
    with dying(Database, "_write_manifest", when="after", times=1):
        assert withdraw_month(ours, month, ["database"]).status == "withdrawn"
    assert [len(store.history(month)) for store in opened] == [2, 2, 2]


def test_a_month_that_one_store_does_not_have_is_withdrawn_from_none(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    before = ours.objects_of(month)
    with pytest.raises(TripDataError, match=f"{month} is not in BigQuery or Postgres; name only stores that have it"):
        withdraw_month(ours, month, ALL)
    assert ours.objects_of(month) == before


def test_months_of_an_older_version_get_a_history_without_a_reload(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    runs.postgres_by_hand(month)
    for key in ours.objects(month.history_key("")):
        ours.blob(key).delete()
    ours.query("DELETE FROM loads_history WHERE color = %s AND file_month = %s", month.color, month.file_month)
    bigquery.Client().query_and_wait(
        f"DELETE FROM {ours.dataset}.loads_history WHERE color = '{month.color}' AND file_month = '{month.file_month}'"
    )
    opened = [lake_of(LAKE), warehouse_of(CREDENTIALS, ours.dataset), database_of(POSTGRES)]
    assert [len(store.history(month)) for store in opened] == [1, 1, 1]
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake_by_hand(month)
    runs.warehouse(month)
    runs.postgres_by_hand(month)
    assert [len(store.history(month)) for store in opened] == [2, 2, 2]
    assert ours.query(
        "SELECT count(*) FROM loads_history WHERE color = %s AND file_month = %s", month.color, month.file_month
    ) == [(2,)]


def test_a_load_job_that_ends_after_a_withdrawal_is_undone_by_the_next(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    warehouse = warehouse_of(CREDENTIALS, ours.dataset)
    manifest = warehouse.lake.required(month)
    warehouse.withdraw(month, "first")
    [late] = warehouse._of_month("loads", month)
    warehouse._load_from_lake(manifest, late)  # as if its run was killed
    assert ours.in_warehouse(month).num_rows == manifest.loaded
    assert warehouse.withdraw(month, "second").status == "withdrawn"
    assert ours.in_warehouse(month).num_rows == 0
    assert warehouse.withdraw(month, "third").status == "unchanged"


def test_a_withdrawal_from_bigquery_deletes_rows_that_were_moved_to_another_day(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(month)
    runs.warehouse(month)
    table = f"{ours.dataset}.{month.color}"
    moved = f"DATE '{month.file_month:%Y-%m}-09'"
    bigquery.Client().query_and_wait(
        f"UPDATE {table} SET file_month = {moved} WHERE file_month = '{month.file_month}' AND row_number = 1"
    )
    warehouse_of(CREDENTIALS, ours.dataset).withdraw(month, "by-hand")
    [row] = bigquery.Client().query_and_wait(
        f"SELECT COUNT(*) AS n FROM {table} WHERE file_month IN ('{month.file_month}', {moved})"
    )
    assert row["n"] == 0


def test_a_withdrawn_month_of_postgres_that_has_trips_again_is_withdrawn_again(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    ours.query(
        "UPDATE loads SET withdrawn_at = now() WHERE color = %s AND file_month = %s", month.color, month.file_month
    )
    database = database_of(POSTGRES)
    assert [database.withdraw(month, run).status for run in ("first", "second")] == ["withdrawn", "unchanged"]
    assert ours.query("SELECT to_regclass(%s)", month.postgres_partition) == [(None,)]
