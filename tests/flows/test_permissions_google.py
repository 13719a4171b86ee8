"""Each flow does its work with exactly the permissions that docs/permissions.md lists, on a Google Cloud that refuses others."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import Forbidden
from google.cloud import bigquery
from prefect import Flow

from flows.catalog import catalog
from flows.etl_gcs_bq import etl_gcs_bq
from flows.load_zones import load_zones
from flows.prune_editions import prune_editions
from flows.query_lake import query_lake
from flows.tlc.errors import MonthsFailed
from flows.tlc.trips import TripMonth
from flows.verify import verify
from flows.withdraw import withdraw
from tests.flows.conftest import CREDENTIALS, LAKE, Runs
from tests.permissions import Gate, gates
from tests.stores import Stores

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "permissions.md").read_text("utf-8")
ROLES = {
    name: set(re.findall(r"(?:storage|bigquery)\.\w+\.\w+", permissions))
    for name, permissions in re.findall(r"^\| `([a-z][a-z -]+)` \| (.*) \|$", PAGE, re.MULTILINE)
}
"""The permissions of each flow, by the first cell of the page's table."""


@pytest.fixture
def dataset(ours: Stores) -> Iterator[str]:
    """A dataset that an administrator made."""
    client = bigquery.Client()
    client.create_dataset(f"{client.project}.by_an_administrator", exists_ok=True)
    yield "by_an_administrator"
    client.delete_dataset("by_an_administrator", delete_contents=True, not_found_ok=True)


class Scenes:
    """What people do with each flow, from a month's first load to its end."""

    def __init__(self, runs: Runs, month: TripMonth, dataset: str) -> None:
        self.runs, self.month, self.ours = runs, month, runs.ours
        self.warehouse = {"credentials_block": CREDENTIALS, "dataset": dataset, "block_name": LAKE}
        self.bound = f"{month.file_month:%Y-%m}"

    def republish(self) -> None:
        """Another edition of the month, with other rows."""
        self.ours.site.republish(f"{self.month.stem}.parquet", edition=2)

    def prepare(self, name: str) -> None:
        """What an earlier run, of an account that may do everything, has left."""
        if not name.startswith(("etl-web-gcs", "load-zones")):
            self.runs.lake(self.month)
        if name.startswith(("verify", "withdraw")):
            self.runs.of(etl_gcs_bq, self.month, **self.warehouse).result()
        if name == "load-zones lake":
            for key in self.ours.objects("zones/"):  # of other tests: an unchanged file is not written again
                self.ours.blob(key).delete()
        if name == "prune-editions":
            self.republish()
            self.runs.lake(self.month)

    def play(self, name: str) -> None:
        """Use the flow in each way that calls Google."""
        play: dict[str, Callable[[], Any]] = {
            "etl-web-gcs": self.lake,
            "etl-gcs-bq": lambda: self.into_warehouse("load_job"),
            "etl-gcs-bq --via dataframe": lambda: self.into_warehouse("dataframe"),
            "load-zones lake": lambda: self.zones("lake"),
            "load-zones warehouse": lambda: self.zones("warehouse"),
            "catalog": lambda: self.run(catalog, colors=[self.month.color], block_name=LAKE),
            "query-lake": lambda: self.run(query_lake, sql=f"select count(*) from {self.month.color}", block_name=LAKE),
            "verify lake": lambda: self.verified("lake"),
            "verify warehouse": lambda: self.verified("warehouse"),
            "withdraw lake": lambda: self.withdrawn("lake"),
            "withdraw warehouse": lambda: self.withdrawn("warehouse"),
            "prune-editions": self.pruned,
        }
        play[name]()

    def run(self, flow: Flow[..., Any], **parameters: Any) -> Any:
        return flow(**parameters, return_state=True).result()

    def lake(self) -> None:
        assert self.runs.lake(self.month).status == "loaded"
        assert self.runs.lake(self.month).status == "unchanged"
        file = f"/trip-data/{self.month.stem}.parquet"
        self.ours.site.fault(file, times=None, headers={"ETag": '"the same bytes"', "Last-Modified": ""})
        try:
            assert self.runs.lake(self.month).status == "unchanged"
        finally:
            self.ours.site.heal()
        self.republish()
        assert self.runs.lake(self.month).status == "replaced"

    def into_warehouse(self, via: str) -> None:
        for status in ("loaded", "unchanged"):
            outcome = self.runs.of(etl_gcs_bq, self.month, **self.warehouse, via=via).result()
            assert outcome.status == status

    def zones(self, store: str) -> None:
        about = self.warehouse | {"source": f"{self.ours.site.url}/misc/taxi_zone_lookup.csv"}
        self.run(load_zones, stores=[store], **about)
        self.run(load_zones, stores=[store], **about)

    def verified(self, store: str) -> None:
        about = self.warehouse | {"colors": [self.month.color], "since": self.bound, "until": self.bound}
        for depth in ("counts", "rows", "raw"):
            self.run(verify, stores=[store], depth=depth, **about)

    def pruned(self) -> None:
        about = {"colors": [self.month.color], "since": self.bound, "until": self.bound, "block_name": LAKE}
        self.run(prune_editions, keep="0", action="delete", **about)

    def withdrawn(self, store: str) -> None:
        of = {"color": self.month.color, "year": self.month.year, "months": [self.month.month]}
        self.run(withdraw, stores=[store], **of, **self.warehouse)


@pytest.fixture
def scenes(runs: Runs, month: TripMonth, dataset: str) -> Scenes:
    return Scenes(runs, month, dataset)


def through_gates(role: set[str] | None, scenes: Scenes, name: str) -> list[Gate]:
    """Play a flow with a role. What was needed and denied is in the gates."""
    where = os.environ["STORAGE_EMULATOR_HOST"], os.environ["BIGQUERY_EMULATOR_HOST"]
    with pytest.MonkeyPatch.context() as patch, gates(role, patch, *where) as both:
        scenes.play(name)
    return both


@pytest.mark.parametrize("name", ROLES)
def test_a_flow_needs_exactly_the_permissions_that_the_page_lists(name: str, scenes: Scenes) -> None:
    scenes.prepare(name)
    both = through_gates(ROLES[name], scenes, name)
    denied = {call for gate in both for call in gate.denied}
    # Google's client asks for the bucket in the background, for its own tracing.
    assert {call.rpartition(" ")[2] for call in denied} <= {"storage.buckets.get"}
    assert set().union(*(gate.needed for gate in both)) - {"storage.buckets.get"} == ROLES[name] - {
        "storage.buckets.get"
    }


def test_a_service_account_that_may_not_see_the_bucket_is_told_what_it_lacks(scenes: Scenes) -> None:
    """Prefect's own code asks for the bucket, when it stores a result."""
    with pytest.raises(Forbidden, match=r"does not have storage\.buckets\.get"):
        through_gates(ROLES["etl-web-gcs"] - {"storage.buckets.get"}, scenes, "etl-web-gcs")


def test_what_reads_cannot_write(scenes: Scenes) -> None:
    scenes.prepare("verify lake")
    before = scenes.ours.objects_of(scenes.month)
    with pytest.raises(MonthsFailed, match=r"storage\.objects\.(delete|create|update)"):
        through_gates(ROLES["verify lake"], scenes, "withdraw lake")
    assert scenes.ours.objects_of(scenes.month) == before
