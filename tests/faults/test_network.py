"""Break the network between a run and its peers: the web source, the lake, BigQuery and Postgres. Run by `make faults`."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import make_url

from flows.tlc.errors import PassingError, TripDataError
from tests.faults import digest
from tests.faults.by_hand import StoreName, bring
from tests.faults.crash import require_whole
from tests.faults.lab import POSTGRES, FlowName, Lab, chance, see
from tests.faults.proxy import Cut, Gate, Rule, Wire
from tests.faults.record import tried
from tests.flows.conftest import postgres_block
from tests.stores import Stores
from tests.strict_lake import StrictLake

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(3600),
    # Google's client leaves the socket of a broken answer to the garbage collector, which may run in any later test.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]
FLOW: Mapping[StoreName, FlowName] = {"lake": "etl_web_gcs", "warehouse": "etl_gcs_bq", "database": "ingest_data"}
FILE = r"green_tripdata_2019-06\.csv"
_FROM_NOW_ON = 10**6
_LIBRARIES = ("google", "requests", "psycopg2", "urllib3", "httpx")  # a task fails with their errors, after its retries


def _of_any_address(found: Mapping[str, Any], *urls: str) -> dict[str, Any]:
    """Return a digest without these addresses of the site, and without `known_rows`, which depend on the address."""
    text = json.dumps(found)
    for url in urls:
        text = text.replace(url, "http://site")
    dependent = r'(\\*"known_rows\\*": )(\\*"\w+\\*"|null)'
    any_address: dict[str, Any] = json.loads(re.sub(dependent, r"\1null", text))
    return any_address


@contextmanager
def survived(
    lab: Lab, into: StoreName, *, over: bool, part: str, fault: str, url: str = "", by: Gate | Wire | None = None
) -> Iterator[Callable[..., Any]]:
    """Yield a function that loads the month under a fault. After the block, check the stores.

    Under the fault, a store has the old month or the new one. If the run failed, a run without the fault must load the new one.
    Then the digest must be that of a run without a failure. `url` is the site's address for this case, if it differs.
    The fault is recorded only if `by` made it happen.
    """
    flow = FLOW[into]
    expected, allowed = lab.expected(flow, over=over), lab.states(flow, over=over)
    failures: list[Exception] = []

    def run(**named: Any) -> Exception | None:
        try:
            bring(lab, into, **named)
        except (TripDataError, PassingError) as error:
            failures.append(error)
        except Exception as error:
            if type(error).__module__.split(".")[0] not in _LIBRARIES:
                raise
            failures.append(error)
        return failures[-1] if failures else None

    with tried(part, fault) as trial:
        yield run
        if by and not by.happened:
            trial.times = 0
        now = see(lab)
        assert all(now[store] in states for store, states in allowed.items()), now
        if failures:
            with trial.recovering():
                bring(lab, into)
        else:
            trial.recoveries.append(0.0)
        found = digest.whole(lab.ours)
        if url:
            expected, found = (_of_any_address(one, url, lab.ours.site.url) for one in (expected, found))
        assert digest.different(expected, found) == []
        require_whole(lab, digest.whole(lab.ours))


WEB: dict[str, Callable[[], list[Rule]]] = {
    "the connection is reset": lambda: [Rule("reset", "GET", FILE)],
    "HEAD is reset": lambda: [Rule("reset", "HEAD", FILE)],
    "the body is cut at byte 0": lambda: [Rule("broken answer", "GET", FILE, at=0)],
    "the body is cut at byte 1": lambda: [Rule("broken answer", "GET", FILE, at=1)],
    "the body is cut three times": lambda: [Rule("broken answer", "GET", FILE, at=100_000, times=3)],
    "the last byte is missing": lambda: [Rule("broken answer", "GET", FILE, at=370_850)],
    "fewer bytes than Content-Length": lambda: [Rule("short", "GET", FILE, at=200_000)],
    "two seconds of silence": lambda: [Rule("stall", "GET", FILE, at=50_000, seconds=2)],
    "a slow line": lambda: [Rule("throttle", "GET", FILE, seconds=0.05)],
    "429 with Retry-After": lambda: [Rule("status", "GET", FILE, status=429, headers={"Retry-After": "1"})],
    "429": lambda: [Rule("status", "GET", FILE, status=429)],
    "500": lambda: [Rule("status", "GET", FILE, status=500)],
    "502": lambda: [Rule("status", "GET", FILE, status=502)],
    "503 with Retry-After": lambda: [Rule("status", "GET", FILE, status=503, headers={"Retry-After": "1"})],
    "503": lambda: [Rule("status", "GET", FILE, status=503)],
    "503 for HEAD, then for GET": lambda: [Rule("status", "HEAD", FILE), Rule("status", "GET", FILE)],
    "HTML with 200": lambda: [Rule("html", "GET", FILE)],
    "403 half-way": lambda: [
        Rule("broken answer", "GET", FILE, at=100_000), Rule("status", "GET", FILE, status=403, times=_FROM_NOW_ON)
    ],
    "Retry-After of an hour": lambda: [Rule("status", "GET", FILE, headers={"Retry-After": "3600"}, times=_FROM_NOW_ON)],
}  # fmt: skip


@pytest.mark.parametrize("into", ["lake", "database"])
@pytest.mark.parametrize("fault", WEB)
def test_a_run_survives_a_failure_of_the_web_source(fault: str, into: StoreName, lab: Lab) -> None:
    with (
        Gate(lab.ours.site.url) as gate,
        survived(lab, into, over=True, part="network", fault=f"web → {into}: {fault}", url=gate.url) as run,
    ):
        gate.rules = WEB[fault]()
        run(source=lab.source.replace(lab.ours.site.url, gate.url))
        assert gate.happened
        gate.rules = []


@pytest.mark.parametrize("into", ["lake", "database"])
def test_a_run_survives_downloads_cut_at_random_bytes(into: StoreName, lab: Lab) -> None:
    random = chance(f"cuts {into}")
    for _ in range(10):
        at = random.randrange(370_000)
        with (
            Gate(lab.ours.site.url) as gate,
            survived(
                lab, into, over=False, part="network", fault=f"web → {into}: cut at a random byte", url=gate.url
            ) as run,
        ):
            gate.rules = [Rule("broken answer", "GET", FILE, at=at)]
            assert run(source=lab.source.replace(lab.ours.site.url, gate.url)) is None
            assert gate.happened


@pytest.mark.parametrize("into", ["lake", "database"])
def test_a_redirect_is_followed(into: StoreName, lab: Lab) -> None:
    with (
        Gate(lab.ours.site.url) as gate,
        survived(lab, into, over=True, part="network", fault=f"web → {into}: a redirect", url=gate.url) as run,
    ):
        to = {"Location": lab.source.format(color="green", year=2019, month=6)}
        gate.rules = [Rule("redirect", path=FILE, headers=to, times=_FROM_NOW_ON)]
        assert run(source=lab.source.replace(lab.ours.site.url, gate.url)) is None
        assert gate.happened


@pytest.mark.parametrize("at", [1, 70_000, 200_000, 370_000])
@pytest.mark.parametrize("into", ["lake", "database"])
def test_a_file_that_changes_between_two_ranges_is_never_spliced(into: StoreName, at: int, lab: Lab) -> None:
    with (
        Gate(lab.ours.site.url) as gate,
        survived(
            lab,
            into,
            over=True,
            part="network",
            fault=f"web → {into}: the file changes between two ranges",
            url=gate.url,
        ) as run,
    ):
        allowed = {"absent", *lab.states(FLOW[into], over=True)[into]}
        lab.publish(1)
        lab.wipe()
        gate.rules = [Rule("broken answer", "GET", FILE, at=at, then=lambda: lab.publish(2))]
        error = run(source=lab.source.replace(lab.ours.site.url, gate.url))
        assert gate.happened
        assert see(lab)[into] in allowed, error
        # Load the second edition over the first, for the checks after this block.
        lab.prepare(FLOW[into], over=True)
        bring(lab, into)


# Every storage operation that the project uses, as the JSON API of Cloud Storage spells it.
OPERATIONS: Mapping[str, tuple[str, str]] = {
    "objects.list": ("GET", r"/b/[^/?]+/o(\?|$)"),
    "objects.get": ("GET", r"^/storage/v1/b/[^/]+/o/[^?]+(\?(?!.*alt=media)|$)"),
    "objects.get (media)": ("GET", r"alt=media"),
    "objects.insert (multipart)": ("POST", r"uploadType=multipart"),
    "objects.insert (resumable, start)": ("POST", r"uploadType=resumable"),
    "objects.insert (resumable, chunk)": ("PUT", r"upload_id="),
    "objects.rewrite": ("POST", r"/rewriteTo/"),
    "objects.delete": ("DELETE", r"/o/"),
}
# The ways in which a request fails once in Google's retry conformance tests.
RETRIES: Mapping[str, Callable[[str, str], Rule]] = {
    **{
        f"return-{status}": lambda method, path, status=status: Rule("status", method, path, status=status)  # type: ignore[misc]
        for status in (408, 429, 500, 502, 503, 504)
    },
    "return-reset-connection": lambda method, path: Rule("reset", method, path),
    "return-broken-stream": lambda method, path: Rule("broken answer", method, path, at=64),
    "broken-upload": lambda method, path: Rule("broken request", method, path, at=64),
    "response-lost-after-success": lambda method, path: Rule("lost answer", method, path),
}


# Only requests with a body can have a broken upload.
_FAILURES = [
    (failure, operation)
    for failure in RETRIES
    for operation, (method, _) in OPERATIONS.items()
    if failure != "broken-upload" or method in ("POST", "PUT")
]


@pytest.mark.parametrize(("failure", "operation"), _FAILURES)
def test_a_run_survives_one_failure_of_a_storage_operation(failure: str, operation: str, lab: Lab) -> None:
    method, path = OPERATIONS[operation]
    random = chance(f"{failure} {operation}")
    with StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict, Gate(strict.url) as gate:
        for skip in (0, random.randrange(1, 3)):  # the first call of the operation, and a later one if there is one
            with survived(
                lab, "lake", over=True, part="storage", fault=f"lake: {failure}, at each operation in turn", by=gate
            ) as run:
                rule = RETRIES[failure](method, path)
                rule.skip = skip
                gate.rules, gate.happened = [rule], []
                error = run(env={"STORAGE_EMULATOR_HOST": gate.url})
                assert error is None, f"a temporary failure ended the run: {error!r}"
                assert gate.happened or skip, f"{operation} is not used"
                gate.rules = []


LAKE: Mapping[str, Callable[[str, str], Rule]] = {
    "two seconds of silence": lambda method, path: Rule("stall", method, path, seconds=2),
    "two seconds of silence in an answer": lambda method, path: Rule("stall", method, path, at=64, seconds=2),
    "a slow line": lambda method, path: Rule("throttle", method, path, seconds=0.01, times=_FROM_NOW_ON),
    "fewer bytes than Content-Length": lambda method, path: Rule("short", method, path, at=64),
    "HTML with 200": lambda method, path: Rule("html", method, path),
    "a redirect to nowhere": lambda method, path: Rule("redirect", method, path, headers={"Location": "/nowhere"}),
    "503 with Retry-After": lambda method, path: Rule("status", method, path, headers={"Retry-After": "1"}),
}


@pytest.mark.parametrize("fault", LAKE)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_run_loses_nothing_by_a_bad_connection_to_the_lake(operation: str, fault: str, lab: Lab) -> None:
    method, path = OPERATIONS[operation]
    with (
        Gate(os.environ["STORAGE_EMULATOR_HOST"]) as gate,
        survived(lab, "lake", over=True, part="network", fault=f"lake: {fault}", by=gate) as run,
    ):
        gate.rules = [LAKE[fault](method, path)]
        run(env={"STORAGE_EMULATOR_HOST": gate.url})
        assert gate.happened
        gate.rules = []


@pytest.mark.parametrize("failure", [failure for failure in RETRIES if failure != "broken-upload"])
def test_a_run_into_bigquery_survives_one_failure_to_read_the_location_of_the_bucket(failure: str, lab: Lab) -> None:
    with (
        Gate(os.environ["STORAGE_EMULATOR_HOST"]) as gate,
        survived(
            lab, "warehouse", over=False, part="storage", fault=f"lake: {failure} for buckets.get", by=gate
        ) as run,
    ):
        gate.rules = [RETRIES[failure]("GET", r"/b/[^/?]+(\?(?!fields=name)|$)")]
        error = run(env={"STORAGE_EMULATOR_HOST": gate.url})
        assert error is None, f"a temporary failure ended the run: {error!r}"
        assert gate.happened


@pytest.mark.parametrize("failure", [failure for failure in RETRIES | LAKE if failure != "broken-upload"])
def test_the_facts_of_a_file_with_the_same_bytes_survive_one_failure(failure: str, lab: Lab) -> None:
    """Then only the metadata of the raw file is written, by one PATCH."""
    lab.prepare("etl_web_gcs", over=False)
    lab.load("lake")
    before = see(lab)
    lab.ours.site.fault(
        f"/legacy/{lab.month.stem}.csv", times=None, headers={"ETag": '"of the same bytes"', "Last-Modified": ""}
    )
    part = "storage" if failure in RETRIES else "network"
    try:
        with (
            StrictLake(os.environ["STORAGE_EMULATOR_HOST"]) as strict,
            Gate(strict.url) as gate,
            tried(part, f"lake: {failure} while a raw file's metadata is updated") as trial,
        ):
            gate.rules = [(RETRIES | LAKE)[failure]("PATCH", r"/o/")]
            with suppress(*(() if failure in RETRIES else (Exception,))):
                bring(lab, "lake", env={"STORAGE_EMULATOR_HOST": gate.url})
            assert gate.happened
            assert see(lab) == before
            with trial.recovering():
                bring(lab, "lake")
            raw = lab.ours.blob(lab.month.raw_key(".csv"))
            raw.reload()
            assert raw.metadata["etag"] == '"of the same bytes"'
            assert see(lab) == before
    finally:
        lab.ours.site.heal()


BIGQUERY: Mapping[str, Callable[[], Rule]] = {
    "503 for a load job": lambda: Rule("status", "POST", r"/jobs"),
    "the answer to a load job is lost": lambda: Rule("lost answer", "POST", r"/jobs"),
    "the connection is reset at a job": lambda: Rule("reset", "POST", r"/jobs"),
    "503 for query results": lambda: Rule("status", "GET", r"/queries/"),
    "the answer to a new table is lost": lambda: Rule("lost answer", "POST", r"/tables"),
    "the answer to a new dataset is lost": lambda: Rule("lost answer", "POST", r"/datasets(\?|$)"),
    "500 for a dataset": lambda: Rule("status", "GET", r"/datasets/[^/]+(\?|$)", status=500),
    "429 for everything, three times": lambda: Rule("status", status=429, times=3),
    "503 with Retry-After": lambda: Rule("status", "POST", r"/jobs", headers={"Retry-After": "1"}),
    "a load job is silent beyond the time limit": lambda: Rule("stall", "POST", r"/jobs", seconds=5),
    "a dataset is silent beyond the time limit": lambda: Rule("stall", "GET", r"/datasets/[^/]+(\?|$)", seconds=5),
    "the answer to a table is cut": lambda: Rule("broken answer", "GET", r"/tables/", at=64),
    "query results are cut": lambda: Rule("short", "GET", r"/queries/", at=64),
    "HTML with 200 for a job": lambda: Rule("html", "POST", r"/jobs"),
    "HTML with 200 for query results": lambda: Rule("html", "GET", r"/queries/"),
}


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize("fault", BIGQUERY)
def test_a_run_survives_a_failure_of_bigquery(
    fault: str, over: bool, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.connectors.bigquery.TIMEOUT", 2.0)
    for skip in (0, 1, 2):
        with (
            Gate(os.environ["BIGQUERY_EMULATOR_HOST"]) as gate,
            survived(lab, "warehouse", over=over, part="network", fault=f"BigQuery: {fault}", by=gate) as run,
        ):
            rule = BIGQUERY[fault]()
            rule.skip = skip
            gate.rules = [rule]
            run(env={"BIGQUERY_EMULATOR_HOST": gate.url})
            assert gate.happened or skip or over, "nothing makes this request"


CUTS: Mapping[str, Callable[[int], Cut]] = {
    "refused": lambda at: Cut("refuse", times=2),
    "reset while it is sent": lambda at: Cut("reset", at),
    "closed while it is sent": lambda at: Cut("close", at),
    "reset while it answers": lambda at: Cut("reset", at % 4000, "down"),
    "silent for two seconds": lambda at: Cut("stall", at, seconds=2),
    "slow": lambda at: Cut("throttle", 0, seconds=0.02),
}


@pytest.fixture(scope="module")
def wire(fault_stores: Stores) -> Iterator[Wire]:
    """Yield a wire to Postgres, and register a block with its port."""
    url = make_url(fault_stores.postgres_url)
    assert url.host
    assert url.port
    with Wire(url.host, url.port) as made:
        postgres_block(fault_stores.postgres_url, port=str(made.port)).save(f"{POSTGRES}-wire")
        yield made


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize("fault", CUTS)
def test_a_run_survives_a_broken_connection_to_postgres(fault: str, over: bool, lab: Lab, wire: Wire) -> None:
    random = chance(f"wire {fault} {over}")
    for _ in range(4):
        named = f"Postgres: the connection is {fault}"
        with survived(lab, "database", over=over, part="network", fault=named, by=wire) as run:
            wire.cuts, wire.happened = [CUTS[fault](random.randrange(600_000))], []
            run(postgres_block=f"{POSTGRES}-wire")
            wire.cuts = []
