"""A digest shows whether two stores have the same trips."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bench.files import digest, make


def test_the_digest_depends_on_the_trips_and_not_on_the_format_or_the_number_of_files(tmp_path: Path) -> None:
    made = make(tmp_path / "trips.csv.gz", 2021, 1, 1000, 1)
    assert made[0] == 1000
    trips = pa_csv.read_csv(tmp_path / "trips.csv.gz")
    pq.write_table(trips.slice(0, 400), tmp_path / "a.parquet")
    pq.write_table(trips.slice(400), tmp_path / "b.parquet")
    assert digest([tmp_path / "a.parquet", tmp_path / "b.parquet"]) == made


def test_a_changed_amount_or_time_changes_the_digest(tmp_path: Path) -> None:
    made = make(tmp_path / "trips.csv.gz", 2021, 1, 100, 1)
    trips = pa_csv.read_csv(tmp_path / "trips.csv.gz")
    changes = {
        "total_amount": pc.add(trips["total_amount"], 0.01),
        "tpep_pickup_datetime": pc.add(trips["tpep_pickup_datetime"], pa.scalar(1, pa.duration("s"))),
    }
    for name, values in changes.items():
        changed = trips.set_column(trips.schema.get_field_index(name), name, values)
        pq.write_table(changed, tmp_path / f"{name}.parquet")
        assert digest([tmp_path / f"{name}.parquet"]) != made


def test_a_store_without_objects_has_no_rows() -> None:
    assert digest([]) == (0,)
