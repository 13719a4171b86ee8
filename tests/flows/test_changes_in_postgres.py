"""A re-published month is compared with its partition in batches, and only what differs is written."""

import io
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from flows.connectors.web import look_up, source_of
from flows.stores import database
from flows.stores.database import Database
from flows.tlc.errors import NotReconciled, Vanished
from flows.tlc.manifest import Changes, StagedMonth
from flows.tlc.schema import arrow_schema
from flows.tlc.trips import Terms, TripMonth
from local.servers.stack import Stack
from tests.flows.conftest import POSTGRES, Runs, database_of, no_progress
from tests.stores import Stores, as_published, same, with_passengers

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BATCH", 7)


@pytest.fixture
def store() -> Database:
    return database_of(POSTGRES)


def edition(month: TripMonth, *row_numbers: int, fare: float | None = 5.0) -> list[Row]:
    names = arrow_schema(month.color).names
    facts = {"file_month": month.file_month, "fare_amount": fare}
    return [dict.fromkeys(names) | facts | {"row_number": number} for number in row_numbers]


def put(store: Database, month: TripMonth, rows: list[Row]) -> Changes | None:
    """Stage the rows, in two tables, and publish them."""
    table = pa.Table.from_pylist(rows, arrow_schema(month.color))
    half = len(rows) // 2
    staging = store._copy(month, iter([table[:half], table[half:]]), io.BytesIO(), str)
    with store.postgres.transaction() as cursor:
        if store._is_attached(cursor, month):
            return store._merge(cursor, month)
        store._attach(cursor, month)
    assert staging == f"{month.postgres_partition}_staging"
    return None


def staged_again(store: Database, month: TripMonth, ours: Stores) -> StagedMonth:
    """Stage the month's second edition."""
    ours.site.republish(f"{month.stem}.parquet", 2)
    raw = store.extract(look_up(source_of(ours.official), month), no_progress)
    return store.stage(raw, Terms(), "by-hand", no_progress)


def again(ours: Stores, month: TripMonth) -> pa.Table:
    return as_published(ours.site.file(f"{month.stem}.parquet"), month)


def stored(ours: Stores, month: TripMonth) -> list[Row]:
    return ours.in_postgres(month).sort_by("row_number").to_pylist()  # type: ignore[no-any-return]


def made_up(seed: int) -> tuple[list[int], list[int]]:
    """Return the row numbers of two editions that have some rows in common."""
    drawn = random.Random(seed)  # noqa: S311
    return sorted(drawn.sample(range(1, 80), 40)), sorted(drawn.sample(range(1, 80), 40))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (range(1, 41), range(1, 41)),
        (range(1, 41), range(11, 41)),
        (range(1, 41), range(1, 11)),
        (range(1, 41), [*range(1, 15), *range(30, 41)]),
        (range(1, 41), []),
        ([], range(1, 41)),
        (range(20, 41), range(1, 61)),
        (range(1, 8), range(1, 9)),
        (range(50, 60), range(1, 10)),
        (range(1, 10), range(50, 60)),
        *(made_up(seed) for seed in range(10)),
    ],
)
def test_a_partition_becomes_the_new_edition_and_every_change_is_counted(
    before: list[int], after: list[int], store: Database, month: TripMonth, ours: Stores
) -> None:
    store.ensure_tables(month.color)
    old = edition(month, *before)
    assert put(store, month, old) is None
    assert stored(ours, month) == old
    changed = [number for number in after if number % 5 == 0]
    new = [
        row | ({"fare_amount": None if row["row_number"] % 2 else 7.0} if row["row_number"] in changed else {})
        for row in edition(month, *after)
    ]
    kept = {*before} & {*after}
    assert put(store, month, new) == Changes(
        inserted=len({*after} - kept), updated=len(kept & {*changed}), removed=len({*before} - kept)
    )
    assert stored(ours, month) == new
    back = put(store, month, old)
    assert back == Changes(inserted=len({*before} - kept), updated=len(kept & {*changed}), removed=len({*after} - kept))
    assert stored(ours, month) == old


def test_rows_that_do_not_differ_are_not_written(store: Database, month: TripMonth, ours: Stores) -> None:
    store.ensure_tables(month.color)
    put(store, month, edition(month, *range(1, 41)))
    where = (
        f"SELECT row_number, xmin::text, ctid::text FROM {month.postgres_partition} WHERE row_number <> 12 ORDER BY 1"
    )
    before = ours.query(where)
    rows = edition(month, *range(1, 41))
    rows[11]["fare_amount"] = 6.0
    assert put(store, month, rows) == Changes(updated=1)
    assert ours.query(where) == before


def test_a_run_that_lost_its_claim_while_it_compares_writes_nothing_into_the_staging_table_of_another(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    other: list[StagedMonth] = []

    def interrupted() -> Iterator[pa.Table]:
        rows = pa.Table.from_pylist(edition(month, *range(1, 41), fare=-1.0), arrow_schema(month.color))
        yield rows[:20]
        other.append(staged_again(store, month, ours))
        yield rows[20:]

    with pytest.raises(Vanished, match=f"another run changed {month.postgres_partition}_staging"):
        store._copy(month, interrupted(), io.BytesIO(), str)
    (staged,) = other
    assert store.publish(staged, store.present(month), "run 2").status == "replaced"
    assert same(ours.in_postgres(month), again(ours, month))


def test_changes_of_a_partition_that_was_withdrawn_are_not_published(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    staged = staged_again(store, month, ours)
    store.withdraw(month, "second")
    with pytest.raises(Vanished, match=f"or {month.postgres_partition} during this run"):
        store.publish(staged, store.present(month), "first")
    assert store.remembered(month) is None
    store.discard(staged)


def test_a_row_that_somebody_adds_while_the_month_is_loaded_is_noticed(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    before = ours.loads(month)
    staged = staged_again(store, month, ours)
    ours.query(
        f"INSERT INTO {month.postgres_partition} (file_month, row_number) VALUES (%s, 900000) RETURNING 1",
        month.file_month,
    )
    with pytest.raises(NotReconciled, match="Nothing was published; run again"):
        store.publish(staged, store.present(month), "by-hand")
    assert ours.loads(month) == before
    staged = staged_again(store, month, ours)
    assert store.publish(staged, store.present(month), "by-hand").manifest.removed == 1
    assert same(ours.in_postgres(month), again(ours, month))


def test_a_run_stages_again_if_a_crash_of_the_server_emptied_its_changes(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    publish = Database._publish
    crashes: list[list[tuple[str]]] = []

    def crash(store: Database, staging: str, *arguments: Any) -> Any:
        if not crashes:
            crashes.append(ours.query("SELECT relpersistence FROM pg_class WHERE relname = %s", staging))
            ours.query(f"DELETE FROM {staging} RETURNING 1")
        return publish(store, staging, *arguments)

    monkeypatch.setattr(Database, "_publish", crash)
    outcome = runs.postgres(month)
    assert crashes == [[("u",)]]  # unlogged
    assert (outcome.status, outcome.manifest.updated > 0) == ("replaced", True)
    assert same(ours.in_postgres(month), with_passengers(again(ours, month)))


def test_a_run_succeeds_if_the_server_restarts_while_it_compares(
    month: TripMonth, ours: Stores, runs: Runs, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    server, compare = stack.executors["postgres"], Database._compare
    compared: list[str] = []

    def restart(*arguments: Any) -> None:
        compared.append("batch")
        if len(compared) == 2:
            server.stop()
            server.start()
        compare(*arguments)

    monkeypatch.setattr(Database, "_compare", restart)
    assert runs.postgres(month).status == "replaced"
    assert len(compared) > 2
    assert same(ours.in_postgres(month), with_passengers(again(ours, month)))
