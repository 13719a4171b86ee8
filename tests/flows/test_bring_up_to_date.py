"""The scheduled flow loads new and re-published months into the stores, the oldest first, and changes nothing else."""

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
from flows.withdraw import withdraw
from local.servers.site import Site
from tests.flows.conftest import CREDENTIALS, ROOT, Runs, Started, postgres_block
from tests.stores import Stores, own_database

NAME = "up-to-date-tests"

pytestmark = pytest.mark.operations


@pytest.fixture(scope="module")
def own(ours: Stores, stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Create stores for this module, and a site whose last month is 2024-03. Each test uses its own color."""
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


def summaries(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.trip_month} {outcome.store} {outcome.status}" for outcome in outcomes]


def asked(own: Stores) -> list[str]:
    """Return the methods of the requests since the last call, without the one-byte GETs that look for unpublished months."""
    methods = [r.method for r in own.site.requests if (r.method, r.status, r.range) != ("GET", 403, "bytes=0-0")]
    own.site.forget_requests()
    return methods


def tables(runs: Runs) -> str:
    return "\n".join(runs.artifacts("bring-up-to-date-months"))


def test_a_new_month_is_loaded_into_lake_and_warehouse_and_a_second_run_only_sends_head_requests(
    own: Stores, runs: Runs
) -> None:
    month = TripMonth("green", 2024, 3)
    into = ["warehouse"]  # the flow adds the lake, from which it loads the warehouse
    assert summaries(bring(own, "green", "2024-03", into=into)) == ["green 2024-03 warehouse loaded"]
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

    # The month is older than `since`, but the flow checks every month that a store has.
    own.site.republish(f"{month.stem}.parquet", 2)
    assert summaries(bring(own, "green", "2024-04", into=into)) == ["green 2024-03 warehouse replaced"]
    assert asked(own).count("GET") == 1


def test_at_most_limits_a_run_to_the_oldest_months_and_the_next_run_continues(own: Stores, runs: Runs) -> None:
    assert summaries(bring(own, "fhv", "2024-01", at_most=1)) == ["fhv 2024-01 lake loaded"]
    assert "2 more months wait for the next run, from fhv 2024-02 to fhv 2024-03" in runs.logs()
    assert '"month": "fhv 2024-02", "status": "waits for the next run"' in tables(runs)
    # Only the warehouse is behind, so only the warehouse is loaded, without a download.
    asked(own)
    assert summaries(bring(own, "fhv", "2024-01", at_most=1, into=["lake", "warehouse"])) == [
        "fhv 2024-01 warehouse loaded"
    ]
    assert set(asked(own)) == {"HEAD"}


def test_a_month_from_another_source_is_not_replaced(own: Stores, runs: Runs) -> None:
    month = TripMonth("yellow", 2020, 5)
    Runs(own).lake(month, block_name=NAME, source=own.mirror)
    before = own.objects_of(month)
    assert bring(own, "yellow", "2024-04") == []
    assert own.objects_of(month) == before


def test_until_is_the_last_month_that_is_checked(own: Stores) -> None:
    bring(own, "yellow", "2021-01", until="2021-02")
    for month in ("2021-01", "2021-02"):
        own.site.republish(f"yellow_tripdata_{month}.parquet", 2)
    assert summaries(bring(own, "yellow", "2020-12", until="2021-01", at_most=2)) == [
        "yellow 2020-12 lake loaded",
        "yellow 2021-01 lake replaced",
    ]
    assert summaries(bring(own, "yellow", "2021-03", until="2021-03")) == [
        "yellow 2021-02 lake replaced",
        "yellow 2021-03 lake loaded",
    ]


def test_a_month_that_fails_does_not_stop_the_others_and_the_error_names_it(own: Stores, runs: Runs) -> None:
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
    # Load only Postgres, which needs no Google service: the lake's block does not exist.
    options = ["--colors", "fhvhv", "--since", "2024-03", "--into", "database", "--source", own.official]
    options += ["--postgres-block", NAME, "--block-name", "no-such-block", "--expect-within", 0]
    other = start("bring_up_to_date", *options)
    assert other.stderr
    begun = next(line for line in other.stderr if "Created flow run" in line)
    outcomes = bring(own, "fhvhv", "2024-03", into=["database"], block_name="no-such-block")
    output = begun + "".join(other.communicate())
    assert other.returncode == 0, output
    assert summaries(outcomes).count("fhvhv 2024-03 database loaded") + output.count("fhvhv 2024-03: loaded") == 1
    month = TripMonth("fhvhv", 2024, 3)
    assert own.in_postgres(month).num_rows == own.loads(month)["loaded"] == own.site.rows_of("fhvhv", 2024, 3)


@pytest.fixture
def blocked(own: Stores) -> Iterator[None]:
    """Make the site refuse every request, as a blocking proxy does."""
    own.site.fault("*", methods=["HEAD", "GET"], status=403, times=None)
    yield
    own.site.heal()


def test_a_run_fails_with_the_reason_if_the_source_refuses_a_month_that_a_store_has(own: Stores, runs: Runs) -> None:
    bring(own, "yellow", "2023-06", at_most=1)
    stored, other = TripMonth("yellow", 2023, 6), TripMonth("yellow", 2023, 7)
    before = own.objects_of(stored)
    own.site.fault(f"*/{stored.stem}*", methods=["HEAD", "GET"], status=404, times=None)
    try:
        with pytest.raises(MonthsFailed) as failed:
            bring(own, "yellow", "2023-07", at_most=1)
    finally:
        own.site.heal()
    assert str(failed.value).startswith("1 of 2 months could not be loaded:\n  - yellow 2023-06 was published before")
    rows = own.manifest(stored)["source_rows"]
    for words in (
        f"({rows:,} rows in the lake, ",
        f"{stored.stem}.parquet answered HTTP 404",
        "a proxy or firewall may be",
    ):
        assert words in str(failed.value)
    assert own.in_lake(other).num_rows
    assert own.objects_of(stored) == before
    assert '"month": "yellow 2023-06", "status": "failed: yellow 2023-06 was published before' in tables(runs)


@pytest.mark.parametrize(("number", "decision"), [(1, "withdrawn"), (2, "pinned")])
def test_a_month_that_was_withdrawn_or_pinned_and_that_the_source_refuses_is_left_out(
    number: int, decision: str, own: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)  # TLC's own months are known to be published
    month = TripMonth("fhv", 2022, number)
    bring(own, "fhv", f"2022-0{number}", until=f"2022-0{number}")
    if decision == "withdrawn":
        withdraw("fhv", 2022, [number], stores=["lake"], block_name=NAME)
    else:
        edition = own.manifest(month)["sha256"][:12]
        assert etl_web_gcs("fhv", 2022, number, NAME, edition=edition).status == "unchanged"
    before = own.objects_of(month)
    own.site.fault(f"*/{month.stem}*", status=403, times=None)
    try:
        assert bring(own, "fhv", f"2022-0{number}", until=f"2022-0{number}") == []
    finally:
        own.site.heal()
    assert f"{month} is {decision} in the lake; it is not updated; its source does not have it" in runs.logs()
    assert f"{month} is not published" not in runs.logs()
    assert own.objects_of(month) == before
    withdraw("fhv", 2022, [number], stores=["lake"], block_name=NAME)  # other tests of this color must not find it


@pytest.mark.usefixtures("blocked")
def test_behind_a_blocking_proxy_a_run_fails_for_months_that_tlc_has_published(
    own: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)  # as if the site were TLC's own
    with pytest.raises(MonthsFailed) as failed:
        bring(own, "green", "2024-04")
    assert {f"  - green 2024-0{n} was published before" in str(failed.value) for n in (4, 5)} == {True}
    assert "green 2024-06" not in str(failed.value)  # not in the list of published months


@pytest.mark.usefixtures("blocked")
@pytest.mark.parametrize(("flow", "place"), [(etl_web_gcs, "lake"), (ingest_data, "database")])
def test_a_run_of_one_published_month_reports_a_refusal(
    flow: Any, place: str, own: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)
    runs = Runs(own)
    state = runs.of(flow, TripMonth("green", 2021, 1), block_name=NAME)
    output = str(state.result(raise_on_failure=False))
    assert "green 2021-01 was published before (76,518 rows on 2022-" in output
    assert "HTTP 403: a proxy or firewall may be blocking this machine" in output
    unknown = runs.of(flow, TripMonth("green", 2025, 6), block_name=NAME)
    assert "green 2025-06 is not published at" in str(unknown.result(raise_on_failure=False))


def test_a_run_fails_if_the_local_file_of_a_stored_month_was_deleted(own: Stores, tmp_path: Path) -> None:
    month = TripMonth("fhvhv", 2024, 1)
    file = tmp_path / f"{month.stem}.parquet"
    file.write_bytes(own.site.file(file.name).read_bytes())
    source = f"file://{tmp_path}/{{color}}_tripdata_{{year}}-{{month:02d}}.parquet"
    bring(own, "fhvhv", "2024-01", source=source)
    file.unlink()
    with pytest.raises(
        MonthsFailed, match=f"{month} was published before .*but there is no file at file://.*: it was moved or deleted"
    ):
        bring(own, "fhvhv", "2024-02", source=source)
    with pytest.raises(RefusedMonth, match="but there is no file at"):
        Runs(own).lake(month, source=source, block_name=NAME)


def test_a_run_does_its_work_and_then_fails_if_the_newest_month_is_too_old(own: Stores, runs: Runs) -> None:
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
    # Another test may have loaded 2024-03 into the database. Then the flow also checks that month.
    with pytest.raises(Overdue, match=r"fhvhv: (no month since 2024-04 is published|the newest month .* is 2024-03)"):
        bring(own, "fhvhv", "2024-04", into=["database"], expect_within=4)
    with pytest.raises(TripDataError, match="expect_within is -1"):
        bring(own, "fhvhv", since, expect_within=-1)

    # The mirror ended in 2021, so no new month is expected there.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLC_MIRROR_URL", own.mirror)
        assert bring(own, "fhvhv", "2025-01", source="mirror", into=["database"], expect_within=4) == []

    # The error lists failed months before the overdue one.
    own.site.fault("*/fhvhv_tripdata_2024-03*", status=401, times=None)
    try:
        with pytest.raises(MonthsFailed, match=r"(?s)1 of 2 months.*fhvhv: the newest month published"):
            bring(own, "fhvhv", "2024-02", at_most=1, expect_within=4, into=["lake"])
    finally:
        own.site.heal()


def test_a_run_without_a_store_or_a_month_is_refused(own: Stores) -> None:
    for nothing in ({"into": []}, {"at_most": 0}):
        with pytest.raises(TripDataError, match="at least one month into at least one store"):
            bring(own, "green", "2024-03", **nothing)


def test_the_catalog_compares_the_lake_with_the_source(
    own: Stores, runs: Runs, prefect_api: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEMPLATES, "official", own.official)  # as if the site were TLC's, whose row counts are known
    stored = TripMonth("fhvhv", 2023, 1)
    Runs(own).lake(stored, block_name=NAME)
    own.site.republish(f"{stored.stem}.parquet", 2)
    asked(own)
    alone = catalog(colors=["fhvhv"], until="2023-02", block_name=NAME)
    assert [str(entry.trip_month) for entry in alone] == ["fhvhv 2023-01"]
    assert asked(own) == []

    entries = catalog(colors=["fhvhv"], since="2023", until="2023-02", against=own.official, block_name=NAME)
    [found, missing] = entries
    assert found.differs == ["re-published", "18,479,031 rows were known on 2023-03-20"]
    assert missing.differs == ["new"]
    assert found.listed is not None
    assert found.listed.manifest.loaded == own.in_lake(stored).num_rows
    assert found.listed.size == len(own.blob(stored.key).download_as_bytes())
    assert asked(own) == ["HEAD", "HEAD"]
    sizes = [own.site.file(f"{month.stem}.parquet").stat().st_size for month in (stored, TripMonth("fhvhv", 2023, 2))]
    assert [entry.published.size for entry in entries if entry.published] == sizes
    [page] = [page for page in runs.artifacts("catalog") if "Months at the source" in page]
    assert "| **2023** | 0 ↻ ≠ | + | · |" in page
    for entry, size in zip(entries, sizes, strict=True):
        assert entry.published.last_modified.endswith(" GMT")
        assert f"| {entry.trip_month} | {size:,} | {entry.published.last_modified} |" in page
    # The wrong row count did not stop the load; the run reported it.
    assert own.manifest(stored)["known_rows"] == 18_479_031
    assert (
        f"fhvhv 2023-01: re-published: {found.listed.manifest.source_rows} rows, 18,479,031 were last known"
        in runs.logs()
    )

    options = ["--colors", "fhvhv", "--until", "2023-02", "--against", own.official, "--block-name", NAME]
    command = [sys.executable, "-m", "flows.catalog", *options]
    listed = subprocess.run(
        command, cwd=ROOT, env=os.environ | prefect_api, capture_output=True, text=True, check=False
    )
    assert listed.returncode == 0, listed.stderr
    assert re.search(rf"fhvhv 2023-01 +{found.listed.manifest.loaded} .* {sizes[0]:,} .* re-published", listed.stdout)
    assert re.search(rf"fhvhv 2023-02 +{sizes[1]:,} +\w+, \d+ \w+ \d+ [\d:]+ GMT +new", listed.stdout)
