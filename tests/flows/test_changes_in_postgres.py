"""A re-published month is compared with its partition in batches, and only what differs is written."""

import datetime as dt
import io
import itertools
import os
import random
import signal
from collections.abc import Container, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg2
import pyarrow as pa
import pytest
from sqlalchemy import create_engine, make_url

from flows.stores import database
from flows.stores.database import Database
from flows.tlc.errors import Vanished
from flows.tlc.manifest import Changes, StagedMonth
from flows.tlc.schema import KEY, Column, Kind, arrow_schema, columns
from flows.tlc.trips import TripMonth
from local.servers.stack import Stack
from tests.flows.conftest import POSTGRES, Runs, database_of, staged_by_hand, until
from tests.stores import Stores, same, with_passengers

Row = dict[str, Any]
VALUES: dict[Kind, tuple[Any, ...]] = {
    "integer": (0, -1, 2**40),
    "number": (0.0, 0.1, -1e300),
    "datetime": (dt.datetime(2021, 1, 31, 23, 59, 59), dt.datetime(2021, 1, 31, 23, 59, 59, 1)),
    "text": ("", "N", "n", "ß"),
    "date": (),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BATCH", 7)


@pytest.fixture
def store() -> Database:
    return database_of(POSTGRES)


def edition(month: TripMonth, row_numbers: Iterable[int], seed: int = 0) -> list[Row]:
    """Return rows with made-up values in each column, and nulls in every third."""
    rows = []
    for number in row_numbers:
        drawn = random.Random(f"{seed} {number}")  # noqa: S311 - data, not a secret
        values = {column.name: drawn.choice([*VALUES[column.kind], None]) for column in columns(month.color)}
        rows.append(values | {"file_month": month.file_month, "row_number": number})
    return rows


def facts(month: TripMonth) -> list[Column]:
    """Return the columns that are not in the key."""
    return [column for column in columns(month.color) if column not in KEY]


def with_changes(month: TripMonth, rows: list[Row], numbers: Container[int]) -> list[Row]:
    """Return the rows, with another value in one column of those with these numbers: in each column in turn."""
    changed = []
    for row in rows:
        number = row["row_number"]
        if number in numbers:
            column = facts(month)[number % len(facts(month))]
            others = [value for value in (*VALUES[column.kind], None) if value != row[column.name]]
            row = row | {column.name: others[number % len(others)]}  # noqa: PLW2901
        changed.append(row)
    return changed


def put(store: Database, month: TripMonth, rows: list[Row], without: Container[str] = ()) -> Changes | None:
    """Stage the rows, in two tables, and publish them. Leave out the columns `without`, as for a file that lacks them."""
    table = pa.Table.from_pylist(rows, arrow_schema(month.color))
    table = table.select([name for name in table.column_names if name not in without])
    half = len(rows) // 2
    store._copy(month, iter([table[:half], table[half:]]), io.BytesIO(), str)
    with store.postgres.transaction() as cursor:
        if store._is_attached(cursor, month):
            return store._merge(cursor, month)
        store._attach(cursor, month)
    return None


def staged_again(store: Database, month: TripMonth, ours: Stores) -> StagedMonth:
    """Stage the month's second edition."""
    ours.site.republish(f"{month.stem}.parquet", 2)
    return staged_by_hand(store, month, ours.official)


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
    old = edition(month, before)
    assert put(store, month, old) is None
    assert stored(ours, month) == old
    kept = {*before} & {*after}
    changed = {number for number in kept if number % 2}
    new = with_changes(month, edition(month, after), changed)
    here, gone = len({*after} - kept), len({*before} - kept)
    assert put(store, month, new) == Changes(inserted=here, updated=len(changed), removed=gone)
    assert stored(ours, month) == new
    assert put(store, month, old) == Changes(inserted=gone, updated=len(changed), removed=here)
    assert stored(ours, month) == old


def test_every_column_is_compared(store: Database, month: TripMonth, ours: Stores) -> None:
    store.ensure_tables(month.color)
    old = edition(month, range(1, 2 * len(facts(month))))
    put(store, month, old)
    for number, row in enumerate(old):
        new = [*old[:number], *with_changes(month, [row], range(1000)), *old[number + 1 :]]
        assert put(store, month, new) == Changes(updated=1)
        assert stored(ours, month) == new
        assert put(store, month, old) == Changes(updated=1)


def test_a_user_may_forbid_nulls_in_a_column(month: TripMonth, ours: Stores) -> None:
    url = make_url(ours.postgres_url).set(database="without_nulls")
    store = Database(create_engine(url), lambda: pytest.fail("it needs no lake"))
    rows = [row | {"fare_amount": 1.0} for row in edition(month, range(1, 41))]
    with closing(psycopg2.connect(ours.postgres_url)) as admin:
        admin.autocommit = True
        admin.cursor().execute("CREATE DATABASE without_nulls")
        try:
            store.ensure_tables(month.color)
            with store.postgres.transaction() as cursor:
                cursor.execute(
                    f"ALTER TABLE {month.color} ALTER fare_amount SET NOT NULL, ADD theirs text NOT NULL DEFAULT 'x'"
                )
            assert put(store, month, rows) is None
            assert put(store, month, rows[:30]) == Changes(removed=10)
        finally:
            admin.cursor().execute("DROP DATABASE without_nulls WITH (FORCE)")


def test_a_column_that_the_file_lacks_is_null_whatever_its_default(
    store: Database, month: TripMonth, ours: Stores
) -> None:
    store.ensure_tables(month.color)
    lacking = facts(month)[-3:]
    without = {column.name for column in lacking}
    full = edition(month, range(1, 41))
    sparse = [row | dict.fromkeys(without) for row in full]
    number = next(column for column in lacking if column.kind == "number").postgres_name
    ours.query(f"ALTER TABLE {month.color} ALTER {number} SET DEFAULT 7")
    try:
        assert put(store, month, full, without) is None
        assert stored(ours, month) == sparse
        differing = sum(row != emptied for row, emptied in zip(full, sparse, strict=True))
        assert put(store, month, full) == Changes(updated=differing)
        assert stored(ours, month) == full
        assert put(store, month, full, without) == Changes(updated=differing)
        assert stored(ours, month) == sparse
    finally:
        ours.query(f"ALTER TABLE {month.color} ALTER {number} DROP DEFAULT")


def test_rows_that_do_not_differ_are_not_written(store: Database, month: TripMonth, ours: Stores) -> None:
    store.ensure_tables(month.color)
    put(store, month, edition(month, range(1, 41)))
    where = (
        f"SELECT row_number, xmin::text, ctid::text FROM {month.postgres_partition} WHERE row_number <> 12 ORDER BY 1"
    )
    before = ours.query(where)
    rows = edition(month, range(1, 41))
    assert put(store, month, with_changes(month, rows, [12])) == Changes(updated=1)
    assert ours.query(where) == before


def test_a_run_that_lost_its_claim_while_it_compares_writes_nothing_into_the_staging_table_of_another(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    other: list[StagedMonth] = []

    def interrupted() -> Iterator[pa.Table]:
        rows = pa.Table.from_pylist(edition(month, range(1, 41), seed=1), arrow_schema(month.color))
        yield rows[:20]
        other.append(staged_again(store, month, ours))
        yield rows[20:]

    with pytest.raises(Vanished, match=f"{month.postgres_partition}_staging or"):
        store._copy(month, interrupted(), io.BytesIO(), str)
    (staged,) = other
    assert store.publish(staged, store.present(month), "run 2").status == "replaced"
    assert same(ours.in_postgres(month), ours.published(month))


def test_changes_of_a_partition_that_was_withdrawn_are_not_published(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    staged = staged_again(store, month, ours)
    store.withdraw(month, "second")
    with pytest.raises(Vanished, match=f"or {month.postgres_partition} was changed during this run"):
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
    with pytest.raises(Vanished, match="by hand or by a crash of the server"):
        store.publish(staged, store.present(month), "by-hand")
    assert ours.loads(month) == before
    staged = staged_again(store, month, ours)
    assert store.publish(staged, store.present(month), "by-hand").manifest.removed == 1
    assert same(ours.in_postgres(month), ours.published(month))


def test_differences_from_another_load_of_the_partition_are_not_published(
    store: Database, month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    staged = staged_again(store, month, ours)
    ours.query(
        "UPDATE loads SET published_at = published_at + interval '1 microsecond' WHERE (color, file_month) = (%s, %s)"
        " RETURNING 1",
        *(month.color, month.file_month),
    )
    with pytest.raises(Vanished):
        store.publish(staged, store.present(month), "by-hand")


@pytest.mark.parametrize("over", [False, True], ids=["new", "over"])
def test_nobody_can_change_the_staging_table_while_it_is_published(
    over: bool, store: Database, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over:
        runs.postgres_by_hand(month)
    staged, tried = staged_again(store, month, ours), []

    def count(store: Database, cursor: Any, table: str) -> int:
        if table == staged.key:
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                ours.query(f"SET lock_timeout = '100ms'; INSERT INTO {table} (row_number) VALUES (1)")
            tried.append(table)
        return counted(store, cursor, table)

    counted = Database._count
    monkeypatch.setattr(Database, "_count", count)
    store.publish(staged, store.present(month), "by-hand")
    assert tried
    assert same(ours.in_postgres(month), ours.published(month))


@pytest.mark.parametrize("step", ["_copy_differences", "_copy"])
def test_differences_that_a_crash_of_the_server_emptied_are_not_published(
    step: str, store: Database, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    before = ours.loads(month)
    original = getattr(Database, step)

    def then_crash(*arguments: Any) -> Any:
        result = original(*arguments)
        crash(ours)
        return result

    monkeypatch.setattr(Database, step, then_crash)
    staged = staged_again(store, month, ours)
    assert ours.query(f"SELECT count(*) FROM {staged.key}") == [(0,)]
    with pytest.raises(Vanished, match="by a crash of the server"):
        store.publish(staged, store.present(month), "by-hand")
    assert ours.loads(month) == before


def test_a_run_stages_again_if_the_server_crashes_before_it_publishes(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs.postgres_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    publish = Database.publish
    crashes: list[str] = []

    def crash_before(*arguments: Any) -> Any:
        if not crashes:
            crashes.append("crash")
            crash(ours)
        return publish(*arguments)

    monkeypatch.setattr(Database, "publish", crash_before)
    outcome = runs.postgres(month)
    assert "it is looked up once more" in caplog.text
    assert (outcome.status, outcome.manifest.updated > 0) == ("replaced", True)
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


def test_a_month_is_looked_up_once_more_if_early_staging_lost_its_table(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs.postgres_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    compare = Database._compare
    lost: list[str] = []

    def lose(store: Database, cursor: Any, *arguments: Any) -> Any:
        if not lost:
            lost.append("lost")
            raise Vanished("another run has the table now")
        return compare(store, cursor, *arguments)

    monkeypatch.setattr(Database, "_compare", lose)
    assert runs.postgres(month).status == "replaced"
    assert "it is looked up once more, because of this: another run has the table now" in caplog.text
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))


def test_a_second_attempt_finds_what_the_first_one_has_just_committed(
    store: Database, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    present, staged = store.present(month), staged_again(store, month, ours)
    first = store.publish(staged, present, "run")
    remembered, answers = Database.remembered, [present.manifest]
    monkeypatch.setattr(
        Database, "remembered", lambda *asked: answers.pop() if answers else remembered(*asked)
    )  # the second attempt begins before the first one commits
    second = store.publish(staged, present, "run")
    assert (second.status, second.manifest) == ("replaced", first.manifest)


def crash(ours: Stores) -> None:
    """Kill a session of the server. It ends all sessions, recovers, and empties tables that are not logged."""
    with (
        closing(psycopg2.connect(ours.postgres_url)) as witness,
        closing(psycopg2.connect(ours.postgres_url)) as victim,
    ):
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        until(lambda: not answers(witness))
    until(lambda: recovered(ours))


def answers(connection: Any) -> bool:
    with suppress(psycopg2.Error):
        connection.cursor().execute("SELECT 1")
        return True
    return False


def recovered(ours: Stores) -> bool:
    with suppress(psycopg2.OperationalError):
        return ours.query("SELECT 1") == [(1,)]
    return False


def test_a_run_succeeds_if_the_server_restarts_while_it_compares(
    month: TripMonth, ours: Stores, runs: Runs, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.postgres_by_hand(month)
    ours.site.republish(f"{month.stem}.parquet", 2)
    server, compare, number = stack.executors["postgres"], Database._compare, itertools.count(1)
    compared: list[int] = []

    def restart(*arguments: Any) -> Any:
        compared.append(one := next(number))
        if one == 2:
            server.stop()
            server.start()
        return compare(*arguments)

    monkeypatch.setattr(Database, "_compare", restart)
    assert runs.postgres(month).status == "replaced"
    assert len(compared) > 4
    assert same(ours.in_postgres(month), with_passengers(ours.published(month)))
