"""`verify` finds and names manual changes in a store, and the command that it recommends corrects them."""

import json
import re
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.cloud import bigquery

from flows.bring_up_to_date import bring_up_to_date
from flows.connectors.bucket import Bucket
from flows.ingest_data import ingest_data
from flows.stores import Target
from flows.stores.verify import CHECKS
from flows.stores.verify.findings import Check, Findings
from flows.tasks.bring import remember
from flows.tlc.errors import MonthsFailed, Overtaken, TripDataError, VerificationFailed
from flows.tlc.manifest import Present
from flows.tlc.trips import Store, Terms, TripMonth
from flows.tlc.verify import Depth, Verified
from flows.verify import verify
from tests.flows.conftest import (
    CREDENTIALS,
    LAKE,
    POSTGRES,
    Program,
    Runs,
    database_of,
    dying,
    lake_of,
    no_progress,
    warehouse_of,
)
from tests.stores import Stores, same, with_passengers

EVERYWHERE: list[Store] = ["lake", "warehouse", "database"]


def verified(ours: Stores, month: TripMonth, stores: list[Store], depth: Depth, **more: Any) -> list[Verified]:
    bounds = {"colors": [month.color], "since": f"{month.file_month:%Y-%m}", "until": f"{month.file_month:%Y-%m}"}
    blocks = {"block_name": LAKE, "credentials_block": CREDENTIALS, "dataset": ours.dataset, "postgres_block": POSTGRES}
    return verify(**(bounds | blocks | {"stores": stores, "depth": depth} | more))


def check(ours: Stores, store: Store, month: TripMonth, depth: Depth = "rows") -> Findings:
    """Return what the store's check finds, without Prefect."""
    stores = {
        "lake": lake_of(LAKE),
        "warehouse": warehouse_of(CREDENTIALS, ours.dataset),
        "database": database_of(POSTGRES),
    }
    return CHECKS[store](stores[store], stores["lake"]).verify(month, depth, "by-hand")


def in_words(found: Findings) -> str:
    return "; ".join(found.differences)


def warehouse_query(ours: Stores, statement: str) -> None:
    list(bigquery.Client().query_and_wait(statement.replace("loads", f"{ours.dataset}.loads")))


def load(ours: Stores, runs: Runs, month: TripMonth, *stores: Store) -> None:
    """Load a month without Prefect, which is much faster."""
    runs.lake_by_hand(month)
    if "warehouse" in stores:
        warehouse = warehouse_of(CREDENTIALS, ours.dataset)
        manifest = warehouse.lake.required(month)
        warehouse.publish(warehouse.stage(manifest, Terms(), "by-hand", no_progress), Present(), "by-hand")
    if "database" in stores:
        runs.postgres_by_hand(month)


@pytest.fixture
def loaded(month: TripMonth, ours: Stores, runs: Runs) -> TripMonth:
    """Return a month that every store has."""
    load(ours, runs, month, *EVERYWHERE)
    return month


def run_advice(result: Verified, program: Program) -> None:
    """Run the command that a result recommends, as an operator does."""
    _, python, path, *arguments = shlex.split(result.mend)
    assert python == "python"
    done = program(path.removeprefix("flows/").removesuffix(".py"), *arguments)
    assert done.returncode == 0, done.stderr


def test_a_loaded_month_has_no_difference_at_any_depth(loaded: TripMonth, ours: Stores, runs: Runs) -> None:
    before = ours.objects_of(loaded), ours.loads(loaded)
    results = verified(ours, loaded, EVERYWHERE, "raw", at_once=1)
    assert [(r.store, r.status, r.differences) for r in results] == [(store, "verified", ()) for store in EVERYWHERE]
    assert (ours.objects_of(loaded), ours.loads(loaded)) == before
    assert not [table for table in bigquery.Client().list_tables(ours.dataset) if "verify" in table.table_id]
    assert f'"month": "{loaded}", "store": "database", "status": "verified"' in runs.artifacts("verify-months")[-1]
    by_frames = verified(ours, loaded, ["warehouse"], "rows", via="dataframe")
    assert [result.status for result in by_frames] == ["verified"]


def test_rows_edited_in_postgres_are_named_and_corrected_by_the_recommended_command(
    loaded: TripMonth, ours: Stores, runs: Runs, program: Program
) -> None:
    [(first,), (second,), (third,)] = ours.query(
        f"SELECT row_number FROM {loaded.postgres_partition} ORDER BY row_number LIMIT 3"
    )
    ours.query(f"UPDATE {loaded.color} SET fare_amount = 7e7, tip_amount = NULL WHERE file_month = %s AND row_number = %s",
               loaded.file_month, first)  # fmt: skip
    ours.query(f"DELETE FROM {loaded.postgres_partition} WHERE row_number = %s", second)
    ours.query(f"UPDATE {loaded.postgres_partition} SET row_number = -5 WHERE row_number = %s", third)
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, ["database"], "rows")
    for words in (
        f"{loaded} in the database: ",
        f"4 rows differ from the lake: row -5 was not published; row {first}: fare_amount, tip_amount;"
        f" row {second} is missing; row {third} is missing",
        f"run python flows/ingest_data.py {loaded.color} {loaded.year} {loaded.month} --source '",
    ):
        assert words in str(failed.value)
    assert "rows differ from the lake" in ours.loads(loaded)["fault"] or "rows in" in ours.loads(loaded)["fault"]
    assert '"status": "differs"' in runs.artifacts("verify-months")[-1]
    # The fault stays until the month is loaded again, even for a run that only counts.
    options = [
        "--colors",
        loaded.color,
        "--since",
        f"{loaded.file_month:%Y-%m}",
        "--until",
        f"{loaded.file_month:%Y-%m}",
    ]
    by_command = program("verify", *options, "--stores", "database", "--postgres-block", POSTGRES, "--depth", "counts")
    assert by_command.returncode == 1
    assert "an earlier verification found damage, and no run loaded the month again" in by_command.stderr

    check_result = Verified("database", loaded, ("",), mend=str(failed.value).rpartition("To mend it: ")[2])
    run_advice(check_result, program)
    assert same(ours.in_postgres(loaded), with_passengers(ours.in_lake(loaded)))
    assert ours.loads(loaded)["updated"] == 1
    assert [result.status for result in verified(ours, loaded, ["database"], "rows")] == ["verified"]


def test_rows_edited_in_bigquery_are_named_and_corrected_by_the_recommended_command(
    loaded: TripMonth, ours: Stores, program: Program
) -> None:
    table, month = f"{ours.dataset}.{loaded.color}", f"file_month = '{loaded.file_month}'"
    client = bigquery.Client()
    client.query_and_wait(f"UPDATE {table} SET fare_amount = 7e7, tip_amount = NULL WHERE {month} AND row_number = 3")
    client.query_and_wait(f"UPDATE {table} SET row_number = 900000 WHERE {month} AND row_number = 5")
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, ["warehouse"], "rows")
    assert (
        "3 rows differ from the lake: row 3: fare_amount, tip_amount; row 5 is missing; row 900000 was not published"
        in str(failed.value)
    )
    run_advice(Verified("warehouse", loaded, ("",), mend=str(failed.value).rpartition("To mend it: ")[2]), program)
    assert same(ours.in_warehouse(loaded), ours.in_lake(loaded))
    assert [result.status for result in verified(ours, loaded, ["warehouse"], "rows")] == ["verified"]


def overwrite(ours: Stores, month: TripMonth) -> int:
    """Replace the lake's object with a copy that has one changed fare, and return the new generation."""
    trips = ours.in_lake(month)
    fares = trips["fare_amount"].to_pylist()
    fares[2] = 7e7
    edited = trips.set_column(trips.column_names.index("fare_amount"), "fare_amount", pa.array(fares))
    sink = pa.BufferOutputStream()
    pq.write_table(edited, sink)
    blob = ours.blob(month.key)
    blob.upload_from_string(sink.getvalue().to_pybytes())
    blob.reload()
    return int(blob.generation)


def test_an_object_overwritten_in_the_lake_is_named_and_corrected_by_the_recommended_command(
    loaded: TripMonth, ours: Stores, program: Program
) -> None:
    before = ours.in_lake(loaded)
    generation = overwrite(ours, loaded)
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, EVERYWHERE, "counts")
    assert f"{loaded.key} has generation {generation}, the manifest names" in str(failed.value)
    assert str(failed.value).count(f"{loaded} in the") == 1  # the other stores are not blamed
    run_advice(Verified("lake", loaded, ("",), mend=str(failed.value).rpartition("To mend it: ")[2]), program)
    assert same(ours.in_lake(loaded), before)
    assert ours.manifest(loaded)["updated"] == 1
    assert {result.status for result in verified(ours, loaded, EVERYWHERE, "raw")} == {"verified"}


def test_an_object_edited_with_its_manifest_differs_from_the_raw_file_and_the_schedule_corrects_it(
    loaded: TripMonth, ours: Stores
) -> None:
    before, manifest = ours.in_lake(loaded), ours.manifest(loaded)
    manifest["generation"] = overwrite(ours, loaded)
    ours.blob(loaded.manifest_key).upload_from_string(json.dumps(manifest))
    assert check(ours, "lake", loaded).differences == []
    with pytest.raises(VerificationFailed, match="1 row differs from the raw file: row 3: fare_amount"):
        verified(ours, loaded, ["lake"], "raw")
    with suppress(MonthsFailed):  # the files of some other tests' months are wrong on purpose
        bring_up_to_date(
            [loaded.color], f"{loaded.file_month:%Y-%m}", into=["lake"], source=ours.official, block_name=LAKE,
            until=f"{loaded.file_month:%Y-%m}", expect_within=0,
        )  # fmt: skip
    assert same(ours.in_lake(loaded), before)
    assert check(ours, "lake", loaded, "raw").differences == []


Edit = Callable[[Stores, TripMonth], object]
BY_HAND: dict[str, tuple[Store, Edit, str]] = {
    "the lake's object is gone": ("lake", lambda o, m: o.blob(m.key).delete(), ".parquet is missing"),
    "the lake's manifest is gone": ("lake", lambda o, m: o.blob(m.manifest_key).delete(), ".json is missing or cannot"),
    "the raw file is gone": ("lake", lambda o, m: o.blob(m.raw_key(".parquet")).delete(), "the raw file is missing"),
    "there is a quarantine that the manifest does not name": (
        "lake", lambda o, m: o.blob(m.quarantine_key).upload_from_string("x"), "the manifest names no such object",
    ),
    "the lake's object is no Parquet": ("lake", lambda o, m: o.blob(m.key).upload_from_string("x"), "has generation"),
    "the partition is gone": (
        "database", lambda o, m: o.query(f"DROP TABLE {m.postgres_partition}"), "the table {} is missing",
    ),
    "the partition is detached": (
        "database", lambda o, m: o.query(f"ALTER TABLE {m.color} DETACH PARTITION {m.postgres_partition}"),
        "the table {} is not a partition of",
    ),
    "a row of loads is gone": (
        "database",
        lambda o, m: o.query("DELETE FROM loads WHERE color = %s AND file_month = %s", m.color, m.file_month),
        "the table {} has no row in loads",
    ),
    "a row of Postgres is gone": (
        "database", lambda o, m: o.query(f"DELETE FROM {m.postgres_partition} WHERE row_number < 3"), "rows in {}: ",
    ),
    "a count of loads was edited": (
        "database",
        lambda o, m: o.query("UPDATE loads SET source_rows = 5 WHERE color = %s AND file_month = %s", m.color, m.file_month),
        "the manifest does not add up",
    ),
    "a row is twice in BigQuery": (
        "warehouse",
        lambda o, m: warehouse_query(
            o, f"INSERT INTO {o.dataset}.{m.color} SELECT * FROM {o.dataset}.{m.color}"
            f" WHERE file_month = '{m.file_month}' AND row_number = 1",
        ),
        "1 rows in {color} have the key of another row",
    ),
    "a row of BigQuery is in the wrong month": (
        "warehouse",
        lambda o, m: warehouse_query(
            o, f"UPDATE {o.dataset}.{m.color} SET file_month = '{m.file_month:%Y-%m}-09'"
            f" WHERE file_month = '{m.file_month}' AND row_number = 1",
        ),
        "1 rows of the partition have a file_month that is not the first of the month",
    ),
    "a row of BigQuery's loads is gone": (
        "warehouse",
        lambda o, m: warehouse_query(
            o, f"DELETE FROM loads WHERE color = '{m.color}' AND file_month = '{m.file_month}'"
        ),
        "loads has 0 rows of the month instead of 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_a_manual_change_is_found_by_counting(case: str, month: TripMonth, ours: Stores, runs: Runs) -> None:
    store, edit, words = BY_HAND[case]
    load(ours, runs, month, store)
    edit(ours, month)
    assert words.format(month.postgres_partition, color=month.color) in in_words(check(ours, store, month, "counts"))


def test_a_changed_raw_file_is_found_by_its_checksum(month: TripMonth, ours: Stores, runs: Runs) -> None:
    load(ours, runs, loaded := month)
    blob = ours.blob(loaded.raw_key(".parquet"))
    blob.reload()
    data = bytearray(blob.download_as_bytes())
    data[100] ^= 1
    blob.upload_from_string(bytes(data))  # the client keeps the metadata
    found = check(ours, "lake", loaded, "raw")
    assert "does not have the SHA-256 of the published file" in in_words(found)
    assert found.remove.endswith(loaded.raw_key(".parquet"))


def test_a_month_of_another_source_is_not_compared_with_the_lake(
    mirrored_month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake_by_hand(mirrored_month)
    runs.postgres(mirrored_month, source=ours.mirror)
    [_, result] = verified(ours, mirrored_month, ["lake", "database"], "rows")
    assert (result.status, result.not_compared) == ("not compared", "the lake has the month from another source")


def test_negative_zero_and_empty_text_are_not_differences(loaded: TripMonth, ours: Stores) -> None:
    column = "tip_amount"
    ours.query(f"UPDATE {loaded.color} SET {column} = '-0' WHERE file_month = %s AND {column} = 0", loaded.file_month)
    assert check(ours, "database", loaded).differences == []
    ours.query(f"UPDATE {loaded.color} SET store_and_fwd_flag = '' WHERE file_month = %s", loaded.file_month)
    assert "store_and_fwd_flag" in in_words(check(ours, "database", loaded))


def test_invalid_parameters_are_refused_before_any_work(ours: Stores, month: TripMonth) -> None:
    for wrong, words in (
        ({"stores": []}, "stores is empty"),
        ({"sample": -1}, "sample is -1"),
        ({"since": "2021-05", "until": "2021-04"}, "is before since"),
        ({"at_once": 0}, "at_once is 0"),
    ):
        with pytest.raises(TripDataError, match=words):
            verified(ours, month, **({"stores": ["database"], "depth": "counts"} | wrong))


def test_a_withdrawn_month_is_correct_unless_it_has_trips(loaded: TripMonth, ours: Stores) -> None:
    for store in (database_of(POSTGRES), warehouse_of(CREDENTIALS, ours.dataset), lake_of(LAKE)):
        store.withdraw(loaded, "by-hand")
    for name in EVERYWHERE:
        found = check(ours, name, loaded)
        assert (found.differences, found.not_compared) == ([], "withdrawn")
    ours.blob(loaded.key).upload_from_string(b"by another program")
    assert in_words(check(ours, "lake", loaded)).endswith("exists, but the month was withdrawn")
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, ["lake"], "counts")
    assert str(failed.value).endswith(f"To mend it: move gs://{ours.bucket}/data/{loaded.key} away")
    ours.blob(loaded.key).delete()
    assert [result.status for result in verified(ours, loaded, ["lake"], "counts")] == ["not compared"]


VANISH: dict[Store, Edit] = {
    "lake": lambda o, m: [o.blob(key).delete() for key in (m.key, m.manifest_key)],
    "warehouse": lambda o, m: [
        warehouse_query(o, f"DELETE FROM loads WHERE color = '{m.color}' AND file_month = '{m.file_month}'"),
        warehouse_query(o, f"DELETE FROM {o.dataset}.{m.color} WHERE file_month = '{m.file_month}'"),
    ],
    "database": lambda o, m: [
        o.query(f"DROP TABLE {m.postgres_partition}"),
        o.query("DELETE FROM loads WHERE color = %s AND file_month = %s", m.color, m.file_month),
    ],
}


@pytest.mark.parametrize("store", EVERYWHERE)
def test_a_month_that_vanished_with_its_manifest_is_missed_by_its_history_and_mended_by_the_named_command(
    store: Store, loaded: TripMonth, ours: Stores, program: Program
) -> None:
    before = ours.in_lake(loaded)
    VANISH[store](ours, loaded)
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, [store], "counts")
    assert f"{loaded} in the {store}: " in str(failed.value)
    run_advice(Verified(store, loaded, ("",), mend=str(failed.value).rpartition("To mend it: ")[2]), program)
    assert same(ours.in_lake(loaded), before)
    assert [result.status for result in verified(ours, loaded, [store], "rows")] == ["verified"]


def months_of_the_lake(month: TripMonth) -> set[TripMonth]:
    return CHECKS["lake"](lake_of(LAKE), None).months([month.color])


def test_a_month_of_which_the_lake_has_only_the_raw_file_is_missed_after_a_day(loaded: TripMonth, ours: Stores) -> None:
    for key in (loaded.key, loaded.manifest_key, *ours.objects(loaded.history_key(""))):
        ours.blob(key).delete()
    assert loaded not in months_of_the_lake(loaded)  # a run may be loading it
    raw = ours.blob(loaded.raw_key(".parquet"))
    raw.reload()
    raw.metadata = raw.metadata | {"fetched_at": "2021-01-01T00:00:00+00:00"}
    raw.patch()
    assert loaded in months_of_the_lake(loaded)
    assert in_words(check(ours, "lake", loaded, "counts")).endswith(".parquet is missing")


def test_a_month_of_bigquery_of_which_the_lake_has_nothing_is_missed_in_the_lake(
    loaded: TripMonth, ours: Stores
) -> None:
    for key in (*ours.objects_of(loaded), *ours.objects(loaded.history_key(""))):
        ours.blob(key).delete()
    with pytest.raises(VerificationFailed, match=f"{loaded} in the lake: .*parquet is missing"):
        verified(ours, loaded, ["lake", "warehouse"], "counts")


def test_a_withdrawn_month_that_lost_its_mark_is_not_missed(loaded: TripMonth, ours: Stores) -> None:
    lake_of(LAKE).withdraw(loaded, "by-hand")
    ours.blob(loaded.manifest_key).delete()
    assert loaded not in months_of_the_lake(loaded)


def test_rows_of_bigquery_without_a_month_are_found_with_the_statement_that_deletes_them(
    loaded: TripMonth, ours: Stores
) -> None:
    table = f"{ours.dataset}.{loaded.color}"
    for month in ("NULL", "DATE '1999-01-01'", "DATE '2098-01-01'"):
        warehouse_query(ours, f"INSERT INTO {table} (file_month, row_number) VALUES ({month}, 1)")
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, loaded, ["warehouse"], "counts")
    text = str(failed.value)
    assert f"{loaded.color} in the warehouse: 3 rows of {loaded.color} belong to no month" in text
    assert f"{loaded} in the" not in text  # the months are not blamed
    warehouse_query(ours, text.rpartition("To mend it: run in BigQuery: ")[2])
    assert [result.status for result in verified(ours, loaded, ["warehouse"], "counts")] == ["verified"]


def test_a_month_in_which_every_row_was_edited_is_counted_and_the_first_rows_are_named(
    loaded: TripMonth, ours: Stores
) -> None:
    partition = loaded.postgres_partition
    [(rows,)] = ours.query(f"UPDATE {partition} SET fare_amount = fare_amount + 1; SELECT count(*) FROM {partition}")
    ours.query(f"UPDATE {partition} SET tolls_amount = 'NaN', tip_amount = '-Infinity', store_and_fwd_flag = E'\n\",' "
               f" WHERE row_number IN (SELECT row_number FROM {partition} ORDER BY 1 LIMIT 1)")  # fmt: skip
    picked_up = next(name for name in ours.in_lake(loaded).column_names if "pickup" in name)
    ours.query(f"UPDATE {partition} SET {picked_up} = 'infinity', fare_amount = fare_amount - 1"
               f" WHERE row_number IN (SELECT row_number FROM {partition} ORDER BY 1 LIMIT 1 OFFSET 1)")  # fmt: skip
    words = in_words(check(ours, "database", loaded))
    assert words.startswith(f"{rows:,} rows differ from the lake: row ")
    assert words.count("; row ") == 4
    first, second = words.split("; row ")[:2]
    assert {"fare_amount", "tolls_amount", "tip_amount", "store_and_fwd_flag"} <= set(re.findall(r"\w+", first))
    assert second.endswith(picked_up)


def test_rows_of_postgres_in_the_default_partition_are_found_with_the_statement_that_detaches_it(
    loaded: TripMonth, ours: Stores
) -> None:
    other, table = ("yellow" if loaded.color == "green" else "green"), loaded.color
    rest = f'"{table} re""st"'  # any role that may create tables can choose such a name
    ours.query(f"CREATE TABLE {rest} PARTITION OF {table} DEFAULT")
    try:
        assert [result.status for result in verified(ours, loaded, ["database"], "counts")] == ["verified"]
        ours.query(f"INSERT INTO {table} (file_month, row_number) VALUES ('2098-01-01', 1)")
        assert database_check().strays([other]) == []
        with pytest.raises(VerificationFailed, match=f"1 rows of {table} belong to no month.*{table} re") as failed:
            verified(ours, loaded, ["database"], "counts")
        ours.query(str(failed.value).rpartition("To mend it: run in Postgres: ")[2])
        assert [result.status for result in verified(ours, loaded, ["database"], "counts")] == ["verified"]
    finally:
        ours.query(f"DROP TABLE {rest}")


def database_check() -> Check:
    return CHECKS["database"](database_of(POSTGRES), None)


def test_a_month_that_is_pinned_in_one_store_only_is_not_compared_with_the_lake(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.lake(month)
    first = ours.manifest(month)["sha256"][:12]
    ours.site.republish(f"{month.stem}.parquet", 2)
    runs.lake(month)
    runs.postgres(month, edition=first, lake_block=LAKE)
    [_, result] = verified(ours, month, ["lake", "database"], "rows")
    assert (result.status, result.not_compared) == (
        "not compared", "a person chose another edition than the lake's, or for the lake"
    )  # fmt: skip
    assert ours.loads(month)["fault"] == ""


def test_a_withdrawal_that_died_is_completed_by_the_recommended_command(
    loaded: TripMonth, ours: Stores, program: Program
) -> None:
    with dying(Bucket, "delete", when="before", times=1) as died, suppress(Exception):
        lake_of(LAKE).withdraw(loaded, "by-hand")
    assert died
    with pytest.raises(VerificationFailed, match="but the month was withdrawn") as failed:
        verified(ours, loaded, ["lake"], "counts")
    advice = str(failed.value).rpartition("To mend it: ")[2]
    assert advice.startswith(f"run python flows/withdraw.py {loaded.color} {loaded.year} {loaded.month} --stores lake")
    run_advice(Verified("lake", loaded, ("",), mend=advice), program)
    assert not ours.blob(loaded.key).exists()
    assert [result.status for result in verified(ours, loaded, ["lake"], "counts")] == ["not compared"]


def test_a_month_that_is_twice_in_bigquerys_loads_is_there_once_after_the_recommended_command(
    loaded: TripMonth, ours: Stores, program: Program
) -> None:
    where = f"WHERE color = '{loaded.color}' AND file_month = '{loaded.file_month}'"
    warehouse_query(ours, f"INSERT INTO loads SELECT * FROM loads {where}")
    with pytest.raises(VerificationFailed, match="loads has 2 rows of the month instead of 1") as failed:
        verified(ours, loaded, ["warehouse"], "counts")
    advice = str(failed.value).rpartition("To mend it: ")[2]
    run_advice(Verified("warehouse", loaded, ("",), mend=advice), program)
    assert [result.status for result in verified(ours, loaded, ["warehouse"], "rows")] == ["verified"]


def test_the_advice_names_an_edition_only_if_the_lake_has_it(month: TripMonth, ours: Stores, runs: Runs) -> None:
    runs.lake(month)
    edition = ours.manifest(month)["sha256"][:12]
    runs.postgres(month, edition=edition, lake_block=LAKE)
    ours.query(f"DELETE FROM {month.postgres_partition} WHERE row_number < 3")
    with pytest.raises(VerificationFailed, match=rf"--edition {edition} .*--lake-block {LAKE}"):
        verified(ours, month, ["database"], "counts")
    ours.blob(month.raw_key(".parquet")).delete()
    with pytest.raises(VerificationFailed) as failed:
        verified(ours, month, ["database"], "counts")
    assert "--edition" not in str(failed.value)


def test_a_fault_that_is_found_during_a_run_is_not_erased_by_it(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake(month)
    lake = lake_of(LAKE)
    manifest = lake.required(month)
    CHECKS["lake"](lake, lake).mark(manifest, "damaged")
    with pytest.raises(Overtaken, match="verify found a fault during this run"):
        remember.fn(manifest, lake.raw_of(manifest), Target("lake", LAKE))
    assert ours.manifest(month)["fault"] == "damaged"


def test_a_month_whose_partition_is_detached_is_not_reported_as_loaded(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres_by_hand(month)
    ours.query(f"ALTER TABLE {month.color} DETACH PARTITION {month.postgres_partition}")
    state = runs.of(ingest_data, month)
    with pytest.raises(MonthsFailed, match=f"the database has a table '{month.postgres_partition}' that is not"):
        state.result()
    ours.query(f"DROP TABLE {month.postgres_partition}")
    assert runs.postgres(month).status == "loaded"
