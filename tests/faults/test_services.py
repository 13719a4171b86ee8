"""Kill a server with SIGKILL during a run, and start it again: Postgres, the lake, the warehouse. Run by `make faults`."""

from contextlib import suppress
from pathlib import Path

import pytest
from mirakuru.exceptions import ExecutorError

from local.servers.stack import Stack
from tests.faults.crash import require_whole
from tests.faults.lab import STORES_OF, FlowName, Lab, Reader, until
from tests.faults.record import tried

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

_CASES: list[tuple[str, FlowName, str]] = [
    ("postgres", "ingest_data", "flows.stores.database:Database.ensure_tables"),
    ("postgres", "ingest_data", "flows.stores.database:Database._copy"),
    ("postgres", "ingest_data", "flows.stores.database:Database._publish"),
    ("postgres", "ingest_data", "flows.stores.database:Database._write_manifest"),
    ("lake", "etl_web_gcs", "flows.connectors.bucket:Bucket.written"),
    ("lake", "etl_web_gcs", "flows.stores.lake:Lake._write"),
    ("lake", "etl_web_gcs", "flows.connectors.bucket:Bucket.copy"),
    ("lake", "etl_web_gcs", "flows.stores.lake:Lake.remember"),
    ("lake", "etl_gcs_bq", "flows.stores.lake:Lake.require_reconciled"),
    ("warehouse", "etl_gcs_bq", "flows.connectors.bigquery:BigQuery.ensure_dataset"),
    ("warehouse", "etl_gcs_bq", "flows.stores.warehouse:Warehouse._load_from_lake"),
    ("warehouse", "etl_gcs_bq", "flows.stores.warehouse:Warehouse._remembering"),
]


def kill_and_start(stack: Stack, service: str) -> None:
    """Kill a server, and start it again with its data."""
    server = stack.executors[service]
    server.kill()
    for _ in range(10):  # Postgres does not start until the processes of the killed server have ended
        with suppress(ExecutorError):
            server.start()
            return
    server.start()


@pytest.mark.parametrize("over", [False, True], ids=["empty", "over"])
@pytest.mark.parametrize(("service", "flow", "step"), _CASES)
def test_a_run_survives_the_kill_of_a_server(
    service: str, flow: FlowName, step: str, over: bool, lab: Lab, stack: Stack, tmp_path: Path
) -> None:
    expected, allowed = lab.expected(flow, over=over), lab.states(flow, over=over)
    go_on = tmp_path / "go.on"
    with (
        tried("services", f"{service} killed and started again while `{flow}` runs") as trial,
        Reader(lab, STORES_OF[flow], through_outages=True) as reader,
    ):
        run = lab.start(flow, {"pause_at": {"name": step, "when": "before", "file": str(go_on)}})
        until(go_on.with_suffix(".reached").exists)
        kill_and_start(stack, service)
        before = reader.reads
        go_on.touch()
        run.wait(900)
        if run.status:
            with trial.recovering():
                lab.start(flow).succeeded(900)
        else:
            trial.recoveries.append(0.0)
        require_whole(lab, expected)
    assert reader.reads > before
    reader.require_only(allowed)
