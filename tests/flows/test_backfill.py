"""A back-fill in this process: what is missing or changed, in order, resumed after a kill, with its board in the UI."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.backfill import backfill
from flows.tasks.months import MonthsFailed
from flows.tlc.errors import TripDataError, UnknownMonth
from flows.tlc.manifest import Outcome
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Started, postgres_block, until
from tests.stores import Stores, as_published, same, stores, with_passengers

NAME = "backfill-tests"


@pytest.fixture(scope="module")
def own(stack: Any, prefect_api: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """Stores that no other module's months are in."""
    with stores(tmp_path_factory.mktemp("site"), NAME, rows=300) as made:
        credentials = GcpCredentials()
        credentials.save(NAME)
        GcsBucket(bucket=NAME, bucket_folder="data", gcp_credentials=credentials).save(NAME)
        postgres_block(made.postgres_url).save(NAME)
        yield made


def places(own: Stores) -> dict[str, Any]:
    return {
        "source": own.official, "block_name": NAME, "credentials_block": NAME, "dataset": own.dataset, "postgres_block": NAME,
    }  # fmt: skip


def options(own: Stores) -> list[object]:
    return [word for name, value in places(own).items() for word in (f"--{name.replace('_', '-')}", value)]


def did(outcomes: list[Outcome]) -> list[str]:
    return [f"{outcome.trip_month} {outcome.store} {outcome.status}" for outcome in outcomes]


def runs_of(name: str) -> list[FlowRun]:
    """The runs with a name, oldest first."""

    async def read() -> list[FlowRun]:
        async with get_client() as client:
            return await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))

    return sorted(asyncio.run(read()), key=lambda run: str(run.created))


def board_of(run: FlowRun) -> list[dict[str, Any]]:
    """The rows of a run's board."""

    async def read() -> Any:
        async with get_client() as client:
            where = {"artifacts": {"key": {"any_": [f"backfill-{run.id}"]}}}
            return (await client._client.post("/artifacts/filter", json=where)).json()

    [artifact] = asyncio.run(read())
    return list(json.loads(artifact["data"]))


def require_exact(own: Stores, months: list[TripMonth]) -> None:
    for month in months:
        published = as_published(own.site.file(f"{month.stem}.parquet"), month)
        assert same(own.in_lake(month), published)
        assert same(own.in_warehouse(month), published)
        assert same(own.in_postgres(month), with_passengers(published))


def test_only_what_is_missing_or_changed_is_loaded_and_the_board_says_so(own: Stores) -> None:
    months = [TripMonth("green", 2020, n) for n in (1, 2, 3)]
    given = {"since": "2020-01", "until": "2020-03", "colors": ["green"], **places(own)}
    backfill(**given | {"until": "2020-01"})
    own.site.republish(f"{months[0].stem}.parquet", 2)
    own.site.forget_requests()
    outcomes = backfill(**given)
    assert did(outcomes) == [
        "green 2020-01 database replaced",
        "green 2020-02 database loaded",
        "green 2020-03 database loaded",
    ]
    require_exact(own, months)
    board = board_of(runs_of("2020-01 to 2020-03: green")[-1])
    assert board[0]["status"].startswith("3 done, ")
    rows = own.in_lake(months[1]).num_rows * 2 + own.in_postgres(months[1]).num_rows
    assert {"month": "green 2020-02", "status": "done", "rows": rows, "note": ""} in board

    own.site.forget_requests()
    assert backfill(**given) == []
    assert {request.method for request in own.site.requests} == {"HEAD"}


def test_the_newest_months_come_first_if_asked(own: Stores) -> None:
    outcomes = backfill("2019-01", "2019-03", ["fhv"], ["lake"], "newest", 1, **places(own))
    assert did(outcomes) == [f"fhv 2019-0{n} lake loaded" for n in (3, 2, 1)]
    times = [own.manifest(TripMonth("fhv", 2019, n))["published_at"] for n in (3, 2, 1)]
    assert times == sorted(times)


def test_a_month_that_fails_stops_no_other_and_is_named_once(own: Stores) -> None:
    own.site.fault("*/yellow_tripdata_2020-02*", methods=["GET"], body="html", times=None)
    try:
        with pytest.raises(MonthsFailed) as failed:
            backfill("2020-01", "2020-03", ["yellow"], ["lake"], **places(own))
    finally:
        own.site.heal()
    assert str(failed.value).startswith("1 of 3 months could not be loaded:\n  - yellow 2020-02: ")
    board = board_of(runs_of("2020-01 to 2020-03: yellow")[-1])
    assert board[0]["status"].startswith("2 done, 1 failed, ")
    [line] = [line for line in board if line["status"] == "failed"]
    assert line["note"] in str(failed.value)
    assert own.in_lake(TripMonth("yellow", 2020, 3)).num_rows


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"into": []}, "name at least one store"),
        ({"since": "2020-05", "until": "2020-01"}, "is before since"),
        ({"spread": "queue"}, "--spread queue needs a Prefect server that all machines reach: set PREFECT_API_URL"),
        ({"spread": "dask"}, "--spread dask needs a Prefect server"),
        ({"months": ["blue 2020-01"]}, "color 'blue' is unknown"),
        ({"months": ["green 2013-01"]}, "TLC's green files begin with 2013-08"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(own: Stores, given: dict[str, Any], reason: str) -> None:
    own.site.forget_requests()
    with pytest.raises((TripDataError, UnknownMonth), match=reason):
        backfill(**places(own) | given)
    assert not own.site.requests


def test_a_backfill_that_is_killed_is_resumed_and_ends_exact(own: Stores, start: Started, tmp_path: Path) -> None:
    months = [TripMonth("green", 2018, n) for n in range(1, 5)]
    words = ["--since", "2018-01", "--until", "2018-04", "--colors", "green", "--into", "lake", "warehouse", "database"]
    words += ["--at-once", 1, "--silent-after", 6, *options(own)]
    first = start("backfill", *words, TRIPS_SCRATCH=str(tmp_path / "scratch"))
    until(lambda: bool(own.objects(months[0].manifest_key)) or first.poll() is not None)
    first.send_signal(signal.SIGKILL)
    first.wait()
    loaded = own.objects("manifests/green/green_tripdata_2018")
    assert 1 <= len(loaded) < 4
    again = start("backfill", *words, TRIPS_SCRATCH=str(tmp_path / "scratch"))
    _, said = again.communicate()
    assert again.returncode == 0, said
    require_exact(own, months)
    assert own.objects("manifests/green/green_tripdata_2018").items() >= loaded.items()
    # Prefect would let the killed run stay Running for ever.
    killed, resumed = runs_of("2018-01 to 2018-04: green")
    assert killed.state.is_crashed()
    assert "its process is gone: no heartbeat for" in killed.state.message
    assert resumed.state.is_completed()


def test_a_backfill_that_is_cancelled_starts_no_other_step_and_can_be_resumed(own: Stores) -> None:
    months = [TripMonth("green", 2017, n) for n in range(1, 7)]
    own.site.fault(f"*/{months[1].stem}*", methods=["GET"], stall=8, times=1)
    name = "2017-01 to 2017-06: green"

    def cancel() -> None:
        until(lambda: bool(own.objects(months[0].manifest_key)))
        run = runs_of(name)[-1].id

        async def ask() -> None:
            async with get_client() as client:
                await client.set_flow_run_state(run, Cancelling(), force=True)

        asyncio.run(ask())

    canceller = Thread(target=copy_context().run, args=(cancel,))  # a copy of the context has Prefect's settings
    canceller.start()
    try:
        state = backfill(
            "2017-01", "2017-06", ["green"], ["lake"], at_once=1, silent_after=6, **places(own), return_state=True
        )
    finally:
        canceller.join()
        own.site.heal()
    assert state.is_cancelled()
    assert 1 <= len(own.objects("manifests/green/green_tripdata_2017")) < 6
    backfill("2017-01", "2017-06", ["green"], ["lake"], **places(own))
    for month in months:
        assert same(own.in_lake(month), as_published(own.site.file(f"{month.stem}.parquet"), month))
