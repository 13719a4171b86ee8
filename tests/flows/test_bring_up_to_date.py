"""The scheduled flow: what is new or re-published is brought into the stores, oldest first; nothing else is touched."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.bring_up_to_date import bring_up_to_date
from flows.catalog import catalog
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.tasks.months import MonthsFailed
from flows.tlc.catalog import months_since
from flows.tlc.errors import Overdue, RefusedMonth, TripDataError
from flows.tlc.manifest import Outcome
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import TripMonth
from local.servers.site import Site
from tests.flows.conftest import CREDENTIALS, ROOT, Runs, Started, postgres_block
from tests.stores import Stores, own_database

NAME = "up-to-date-tests"

pytestmark = pytest.mark.operations


@pytest.fixture(scope="module")
def own(ours: Stores, stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores that no other module's months are in, and a site whose last month is 2024-03; each test takes a color."""
    httpx.post(f"{stack.env['STORAGE_EMULATOR_HOST']}/storage/v1/b", json={"name": NAME}).raise_for_status()
    site = Site(tmp_path_factory.mktemp("site"), rows=300, last_month="2024-03")
    with own_database(NAME) as url, site:
        GcsBucket(bucket=NAME, bucket_folder="data", gcp_credentials=GcpCredentials()).save(NAME)
        postgres_block(url).save(NAME)
        yield Stores(site, NAME, "up_to_date_tests", url)


def bring(own: Stores, color: str, since: str, **changed: Any) -> list[Outcome]:
    places = {
        "source": own.official, "block_name": NAME, "credentials_block": CREDENTIALS, "dataset": own.dataset,
        "postgres_block": NAME, "expect_within": 0,
    }  # fmt: skip
    return bring_up_to_date(**{"colors": [color], "since": since, "into": ["lake"], **places, **changed})


def did(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.trip_month} {outcome.store} {outcome.status}" for outcome in outcomes]


def asked(own: Stores) -> list[str]:
    """Methods of the requests since the last time, but for the GETs of a byte of what is not published."""
    methods = [r.method for r in own.site.requests if (r.method, r.status, r.range) != ("GET", 403, "bytes=0-0")]
    own.site.forget_requests()
    return methods


def tables(runs: Runs) -> str:
    return "\n".join(runs.artifacts("bring-up-to-date-months"))


def test_what_is_new_goes_all_the_way_and_a_second_run_only_asks(own: Stores, runs: Runs) -> None:
    month = TripMonth("green", 2024, 3)
    into = ["warehouse"]  # which brings the lake along
    assert did(bring(own, "green", "2024-03", into=into)) == ["green 2024-03 warehouse loaded"]
    rows = own.site.rows_of("green", 2024, 3)
    assert own.in_lake(month).num_rows == own.in_warehouse(month).num_rows == rows
    assert "green 2024-04 is not published" in runs.logs()
    assert '"month": "green 2024-03", "status": "brought up to date", "lake": "loaded", "warehouse": "loaded"' in (
        tables(runs)
    )
    assert '"month": "green 2024-04", "status": "not published"' in tables(runs)

    before = own.objects_of(month)
    asked(own)
    assert bring(own, "green", "2024-03", into=into) == []
    assert set(asked(own)) == {"HEAD"}
    assert own.objects_of(month) == before

    # Older than `since`, and watched all the same.
    own.site.republish(f"{month.stem}.parquet", 2)
    assert did(bring(own, "green", "2024-04", into=into)) == ["green 2024-03 warehouse replaced"]
    assert asked(own).count("GET") == 1


def test_one_run_takes_at_most_so_many_months_the_oldest_and_the_next_goes_on(own: Stores, runs: Runs) -> None:
    assert did(bring(own, "fhv", "2024-01", at_most=1)) == ["fhv 2024-01 lake loaded"]
    assert "2 more months wait for the next run, from fhv 2024-02 to fhv 2024-03" in runs.logs()
    assert '"month": "fhv 2024-02", "status": "waits for the next run"' in tables(runs)
    # A store that is behind alone is brought up alone, and nothing is fetched for it.
    asked(own)
    assert did(bring(own, "fhv", "2024-01", at_most=1, into=["lake", "warehouse"])) == ["fhv 2024-01 warehouse loaded"]
    assert set(asked(own)) == {"HEAD"}


def test_a_month_of_before_from_another_source_stays_what_it_is(own: Stores, runs: Runs) -> None:
    month = TripMonth("yellow", 2020, 5)
    Runs(own).lake(month, block_name=NAME, source=own.mirror)
    before = own.objects_of(month)
    assert bring(own, "yellow", "2024-04") == []
    assert own.objects_of(month) == before


def test_a_month_that_fails_stops_no_other_and_is_named_in_the_end(own: Stores, runs: Runs) -> None:
    own.site.fault("*/yellow_tripdata_2024-01*", methods=["GET"], body="html", times=None)
    own.site.fault("*/yellow_tripdata_2024-02*", status=401, times=None)
    try:
        with pytest.raises(MonthsFailed) as failed:
            bring(own, "yellow", "2024-01")
    finally:
        own.site.heal()
    assert "2 of 3 months" in str(failed.value)
    assert "yellow 2024-01" in str(failed.value)
    assert "yellow 2024-02: " in str(failed.value)
    assert own.in_lake(TripMonth("yellow", 2024, 3)).num_rows
    assert '"month": "yellow 2024-02", "status": "failed: ' in tables(runs)


def test_two_runs_at_once_load_every_month_once(own: Stores, start: Started) -> None:
    # Into Postgres alone, where nothing of Google is asked for.
    options = ["--colors", "fhvhv", "--since", "2024-03", "--into", "database", "--source", own.official]
    options += ["--postgres-block", NAME, "--block-name", "no-such-block", "--expect-within", 0]
    other = start("bring_up_to_date", *options)
    assert other.stderr
    begun = next(line for line in other.stderr if "Created flow run" in line)
    outcomes = bring(own, "fhvhv", "2024-03", into=["database"], block_name="no-such-block")
    said = begun + "".join(other.communicate())
    assert other.returncode == 0, said
    assert did(outcomes).count("fhvhv 2024-03 database loaded") + said.count("fhvhv 2024-03: loaded") == 1
    month = TripMonth("fhvhv", 2024, 3)
    assert own.in_postgres(month).num_rows == own.loads(month)["loaded"] == own.site.rows_of("fhvhv", 2024, 3)


@pytest.fixture
def blocked(own: Stores) -> Iterator[None]:
    """A proxy that refuses everything, as it does whatever it is asked with."""
    own.site.fault("*", methods=["HEAD", "GET"], status=403, times=None)
    yield
    own.site.heal()


def test_a_month_that_a_store_holds_and_its_source_refuses_is_a_failed_run_with_the_reason(
    own: Stores, runs: Runs
) -> None:
    bring(own, "yellow", "2023-06", at_most=1)
    held, other = TripMonth("yellow", 2023, 6), TripMonth("yellow", 2023, 7)
    before = own.objects_of(held)
    own.site.fault(f"*/{held.stem}*", methods=["HEAD", "GET"], status=404, times=None)
    try:
        with pytest.raises(MonthsFailed) as failed:
            bring(own, "yellow", "2023-07", at_most=1)
    finally:
        own.site.heal()
    assert str(failed.value).startswith("1 of 2 months could not be loaded:\n  - yellow 2023-06 is known")
    rows = own.manifest(held)["source_rows"]
    for words in (
        f"({rows:,} rows in the lake, ",
        f"{held.stem}.parquet answered HTTP 404",
        "a proxy or firewall may be",
    ):
        assert words in str(failed.value)
    assert own.in_lake(other).num_rows
    assert own.objects_of(held) == before
    assert '"month": "yellow 2023-06", "status": "failed: yellow 2023-06 is known to be published' in tables(runs)


@pytest.mark.usefixtures("blocked")
def test_a_machine_that_a_proxy_blocks_fails_for_months_that_tlc_is_known_to_publish(
    own: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)  # as if the site were TLC's own
    with pytest.raises(MonthsFailed) as failed:
        bring(own, "green", "2024-04")
    assert {f"  - green 2024-0{n} is known" in str(failed.value) for n in (4, 5)} == {True}
    assert "green 2024-06" not in str(failed.value)  # nothing is known of it


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("flow", "place"), [(etl_web_gcs, "lake"), (ingest_data, "database")])
def test_a_run_of_one_known_month_that_is_refused_says_so_too(
    flow: Any, place: str, own: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)
    runs = Runs(own)
    state = runs.of(flow, TripMonth("green", 2021, 1), block_name=NAME)
    said = str(state.result(raise_on_failure=False))
    assert "green 2021-01 is known to be published (76,518 rows on 2022-" in said
    assert "HTTP 403: a proxy or firewall may be blocking this machine" in said
    unknown = runs.of(flow, TripMonth("green", 2025, 6), block_name=NAME)
    assert "green 2025-06 is not published at" in str(unknown.result(raise_on_failure=False))


def test_a_file_that_a_store_was_loaded_from_and_that_is_gone_from_the_disk_is_a_failed_run(
    own: Stores, tmp_path: Path
) -> None:
    month = TripMonth("fhvhv", 2024, 1)
    file = tmp_path / f"{month.stem}.parquet"
    file.write_bytes(own.site.file(file.name).read_bytes())
    source = f"file://{tmp_path}/{{color}}_tripdata_{{year}}-{{month:02d}}.parquet"
    bring(own, "fhvhv", "2024-01", source=source)
    file.unlink()
    with pytest.raises(
        MonthsFailed, match=f"{month} is known .*but there is no file at file://.*: it was moved or deleted"
    ):
        bring(own, "fhvhv", "2024-02", source=source)
    with pytest.raises(RefusedMonth, match="but there is no file at"):
        Runs(own).lake(month, source=source, block_name=NAME)


def test_a_source_whose_newest_month_is_older_than_expected_fails_the_run_after_its_work(
    own: Stores, runs: Runs
) -> None:
    since = "2024-03"
    age = months_since(TripMonth("green", 2024, 3))
    with pytest.raises(Overdue) as late:
        bring(own, "fhvhv", since, expect_within=age - 1)
    assert f"fhvhv: the newest month published at {own.official} is 2024-03, more than {age - 1} months ago" in str(
        late.value
    )
    assert own.in_lake(TripMonth("fhvhv", 2024, 3)).num_rows
    assert f"fhvhv: the newest month published at {own.official}" in runs.logs()
    assert bring(own, "fhvhv", since, expect_within=age) == []
    assert bring(own, "fhvhv", since, expect_within=0) == []
    # Another test may have loaded 2024-03 into the database, which is then watched as well.
    with pytest.raises(Overdue, match=r"fhvhv: (no month since 2024-04 is published|the newest month .* is 2024-03)"):
        bring(own, "fhvhv", "2024-04", into=["database"], expect_within=4)
    with pytest.raises(TripDataError, match="expect_within is -1"):
        bring(own, "fhvhv", since, expect_within=-1)

    # The mirror ended in 2021, and is not expected to have anything new.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLC_MIRROR_URL", own.mirror)
        assert bring(own, "fhvhv", "2025-01", source="mirror", into=["database"], expect_within=4) == []

    # Months that failed come first.
    own.site.fault("*/fhvhv_tripdata_2024-03*", status=401, times=None)
    try:
        with pytest.raises(MonthsFailed, match=r"(?s)1 of 2 months.*fhvhv: the newest month published"):
            bring(own, "fhvhv", "2024-02", at_most=1, expect_within=4, into=["lake"])
    finally:
        own.site.heal()


def test_no_store_or_no_month_is_refused(own: Stores) -> None:
    for nothing in ({"into": []}, {"at_most": 0}):
        with pytest.raises(TripDataError, match="at least one month into at least one store"):
            bring(own, "green", "2024-03", **nothing)


def test_the_catalog_tells_what_is_in_the_lake_what_the_source_has_and_what_differs(
    own: Stores, runs: Runs, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)  # as if the site were TLC's own, whose counts are known
    held = TripMonth("fhvhv", 2023, 1)
    Runs(own).lake(held, block_name=NAME)
    own.site.republish(f"{held.stem}.parquet", 2)
    asked(own)
    alone = catalog(colors=["fhvhv"], until="2023-02", block_name=NAME)
    assert [str(entry.trip_month) for entry in alone] == ["fhvhv 2023-01"]
    assert asked(own) == []

    entries = catalog(colors=["fhvhv"], since="2023", until="2023-02", against=own.official, block_name=NAME)
    [there, missing] = entries
    assert there.differs == ["re-published", "18,479,031 rows were known on 2023-03-20"]
    assert missing.differs == ["new"]
    assert there.listed is not None
    assert there.listed.manifest.loaded == own.in_lake(held).num_rows
    assert there.listed.size == len(own.blob(held.key).download_as_bytes())
    assert asked(own) == ["HEAD", "HEAD"]
    sizes = [own.site.file(f"{month.stem}.parquet").stat().st_size for month in (held, TripMonth("fhvhv", 2023, 2))]
    assert [entry.published.size for entry in entries if entry.published] == sizes
    [page] = [page for page in runs.artifacts("catalog") if "What the source has" in page]
    assert "| **2023** | 0 ↻ ≠ | + | · |" in page
    for entry, size in zip(entries, sizes, strict=True):
        assert entry.published.last_modified.endswith(" GMT")
        assert f"| {entry.trip_month} | {size:,} | {entry.published.last_modified} |" in page
    # The month was loaded all the same, and its count reported.
    assert own.manifest(held)["known_rows"] == 18_479_031
    assert (
        f"fhvhv 2023-01: re-published: {there.listed.manifest.source_rows} rows, 18,479,031 were last known"
        in runs.logs()
    )

    options = ["--colors", "fhvhv", "--until", "2023-02", "--against", own.official, "--block-name", NAME]
    command = [sys.executable, "-m", "flows.catalog", *options]
    listed = subprocess.run(
        command, cwd=ROOT, env=os.environ | prefect_api, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    assert re.search(rf"fhvhv 2023-01 +{there.listed.manifest.loaded} .* {sizes[0]:,} .* re-published", listed.stdout)
    assert re.search(rf"fhvhv 2023-02 +{sizes[1]:,} +\w+, \d+ \w+ \d+ [\d:]+ GMT +new", listed.stdout)
