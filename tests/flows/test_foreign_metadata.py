"""Objects of the lake may have metadata from the server or from another tool. No run changes it or fails because of it."""

import itertools

import pytest

from flows.connectors.bucket import Bucket, Object
from flows.connectors.web import look_up, source_of
from flows.load_zones import load_zones
from flows.query_lake import query_lake
from flows.tlc.errors import Overtaken, Vanished
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, Runs, lake_of, no_progress
from tests.flows.test_new_columns import put
from tests.flows.test_replay import BARE, accept_times_without_seconds, replay
from tests.stores import Stores, same
from tests.strict_lake import StrictLake
from tests.tlc.published import csv_file, line, times

MONTH = TripMonth("green", 2015, 1)
LABELS = {"owner": "data-platform", "x-scanned": "clean"}


def csv_month(rows: int) -> bytes:
    """Return a CSV month with one bad row."""
    trips = [line(fare_amount=f"{n}.5", **times(MONTH)) for n in range(rows - 1)]
    return csv_file(*trips, line(lpep_pickup_datetime=BARE))


def test_all_flows_work_if_the_server_adds_metadata(
    ours: Stores, runs: Runs, strict_lake: StrictLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()
    strict_lake.shown = lambda metadata: (
        metadata | {"x_testbench_upload": "resumable", "x_testbench_look": f"{next(looks)}"}
    )
    month = MONTH
    source = put(ours, month, csv_month(400), ".csv")
    assert runs.lake(month, source=source).status == "loaded"
    assert runs.lake(month, source=source).status == "unchanged"
    assert runs.warehouse(month).manifest.loaded == 399
    present = lake_of(LAKE).bucket.stat(month.key)
    assert present is not None
    assert "x_testbench_look" in present.metadata

    put(ours, month, csv_month(500), ".csv")
    outcome = runs.lake(month, source=source)
    assert (outcome.status, outcome.manifest.inserted, outcome.manifest.quarantined) == (
        "replaced", 100, {"lpep_pickup_datetime: not a datetime": 1},
    )  # fmt: skip
    assert len(ours.quarantined(month)) == 1
    accept_times_without_seconds(monkeypatch)
    [replayed] = replay(month).result()
    assert (replayed.manifest.inserted, replayed.manifest.quarantined) == (1, {})
    assert runs.warehouse(month).manifest.loaded == 500
    assert same(ours.in_warehouse(month), ours.in_lake(month))
    assert not [key for key in ours.objects("staging/") if month.stem in key]

    [counted] = query_lake(f"select count(*) as trips from green where file_month = '{month.file_month}'", LAKE)
    assert counted == {"trips": 500}
    for key in ours.objects("zones/"):  # another test may have loaded them
        ours.blob(key).delete()
    zones = {"source": f"{ours.site.url}/misc/taxi_zone_lookup.csv", "block_name": LAKE}
    assert [load_zones(["lake"], **zones)[0].status for _ in range(2)] == ["loaded", "unchanged"]
    for key in ours.objects("zones/"):
        ours.blob(key).delete()


def test_labels_of_another_tool_do_not_hide_an_object(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    runs.lake(month)
    strict_lake.shown = lambda metadata: metadata | LABELS
    assert runs.lake(month).status == "unchanged"
    raw = lake_of(LAKE).extract(look_up(source_of(ours.official), month), no_progress)
    assert raw.key == month.raw_key(".parquet")
    ours.site.republish(f"{month.stem}.parquet", 2)
    assert runs.lake(month).status == "replaced"


def test_the_manifest_identifies_a_month_whose_metadata_was_replaced(
    month: TripMonth, ours: Stores, runs: Runs, strict_lake: StrictLake
) -> None:
    runs.lake(month)
    strict_lake.shown = lambda metadata: LABELS if "staged" in metadata else metadata
    assert runs.lake(month).status == "unchanged"
    ours.site.republish(f"{month.stem}.parquet", 2)
    assert runs.lake(month).status == "replaced"


def test_a_run_does_not_mistake_the_raw_file_of_another_run_for_its_own(
    month: TripMonth, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Bucket.written
    key = month.raw_key(".parquet")

    def replaced(self: Bucket, key: str) -> Object:
        with self.writer(key, {"url": "https://tlc.example/other.parquet", "sha256": "other"}) as file:
            file.write(b"of another run")
        return written(self, key)

    monkeypatch.setattr(Bucket, "written", replaced)
    with pytest.raises(Overtaken, match=key):
        lake_of(LAKE).extract(look_up(source_of(ours.official), month), no_progress)


def test_metadata_is_added_only_to_the_object_that_was_seen(ours: Stores, strict_lake: StrictLake) -> None:
    bucket = lake_of(LAKE).bucket
    key = "raw/of-two-runs"
    seen = []
    for owner in ("first", "second"):
        with bucket.writer(key, {"owner": owner}) as file:
            file.write(b"bytes")
        seen.append(bucket.stat(key))
    first, second = seen
    assert bucket.add_metadata(second, {"etag": "e"}).metadata == {"owner": "second", "etag": "e"}
    with pytest.raises(Overtaken):
        bucket.add_metadata(first, {"etag": "other"})
    assert bucket.stat(key).metadata["etag"] == "e"
    ours.blob(key).delete()


def test_metadata_is_not_added_to_an_object_that_was_deleted(ours: Stores) -> None:
    with pytest.raises(Vanished, match="raw/deleted"):
        lake_of(LAKE).bucket.add_metadata(Object("raw/deleted", generation=1), {"etag": "e"})
