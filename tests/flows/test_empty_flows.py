"""The empty flows of the bench have as many tasks as the flows from whose time theirs is subtracted."""

from typing import Any

from prefect import Flow

from bench.contest import EMPTY
from flows.etl_gcs_bq import etl_gcs_bq, etl_gcs_bq_parent_flow
from flows.etl_web_gcs import etl_parent_flow, etl_web_gcs
from flows.ingest_data import ingest_data
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs
from tests.stores import Stores


def test_the_empty_flows_for_lake_and_warehouse_have_the_tasks_of_a_month_and_of_its_parent(
    month: TripMonth, runs: Runs
) -> None:
    flows: list[tuple[str, Flow[..., Any], Flow[..., Any]]] = [
        ("ours_lake", etl_web_gcs, etl_parent_flow),
        ("ours_warehouse", etl_gcs_bq, etl_gcs_bq_parent_flow),
    ]
    for empty, of_month, parent in flows:
        assert len(runs.task_runs(runs.of(of_month, month))) == EMPTY[empty].tasks
        again = parent(month.color, month.year, [month.month], **runs.places(parent), return_state=True)
        # Prefect adds a task run to the parent for the flow that it calls.
        assert len(runs.task_runs(again)) == EMPTY[empty].tasks_of_parent + 1


def test_the_empty_flows_for_postgres_have_the_tasks_of_a_load_and_of_the_same_month_again(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    for edition, empty in ((1, "ours_postgres"), (1, "ours_postgres_same"), (2, "ours_postgres")):
        if empty == "ours_postgres":
            ours.site.republish(f"{month.stem}.parquet", edition)
        assert len(runs.task_runs(runs.of(ingest_data, month))) == EMPTY[empty].tasks
