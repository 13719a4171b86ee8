"""Kill a flow's process again and again, let one run finish, and compare the stores."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.faults import digest
from tests.faults.lab import STORES_OF, FlowName, Lab, Reader, see, until
from tests.faults.record import Trial, tried

# All named steps of a run. The tests kill a run before and after each of them.
STEPS: Mapping[FlowName, tuple[str, ...]] = {
    "etl_web_gcs": (
        "flows.tasks.bring:look_up", "flows.stores.raw_zone:RawZone.extract", "flows.connectors.bucket:Bucket.written",
        "flows.tasks.bring:extract_file", "flows.stores.lake:Lake._sweep", "flows.stores.lake:Lake._write",
        "flows.tasks.bring:transform", "flows.stores.lake:Lake._changes", "flows.connectors.bucket:Bucket.copy",
        "flows.stores.lake:Lake._publish_side_object", "flows.stores.lake:Lake.remember", "flows.connectors.bucket:Bucket.delete",
        "flows.tasks.bring:load",
    ),
    "etl_gcs_bq": (
        "flows.tasks.bring:look_up", "flows.connectors.bigquery:BigQuery.ensure_dataset",
        "flows.connectors.bigquery:BigQuery.ensure_table", "flows.tasks.bring:transform",
        "flows.stores.lake:Lake.require_reconciled", "flows.connectors.bigquery:BigQuery.load",
        "flows.stores.warehouse:Warehouse._require_reconciled", "flows.stores.warehouse:Warehouse._remembering",
        "flows.tasks.bring:load",
    ),
    "ingest_data": (
        "flows.tasks.bring:look_up", "flows.connectors.scratch:keep", "flows.stores.database:Database.ensure_tables",
        "flows.stores.database:Database._copy", "flows.tasks.bring:transform",
        "flows.stores.database:Database._publish_rejects", "flows.stores.database:Database._write_manifest",
        "flows.stores.database:Database._publish", "flows.tasks.bring:load",
    ),
    "etl_gcs_bq_dataframe": (
        "flows.tasks.bring:look_up", "flows.connectors.bigquery:BigQuery.ensure_table",
        "flows.connectors.bigquery:BigQuery.write_frames", "flows.tasks.bring:transform",
        "flows.stores.warehouse:Warehouse._replace_from", "flows.stores.warehouse:Warehouse._require_reconciled",
        "flows.connectors.bigquery:BigQuery.drop", "flows.tasks.bring:load",
    ),
    "backfill": (
        "flows.stores.lake:Lake.publish", "flows.stores.warehouse:Warehouse.publish",
        "flows.stores.database:Database._publish",
    ),
    "load_edition_database": (
        "flows.tasks.bring:look_up", "flows.stores.database:Database._copy", "flows.tasks.bring:transform",
        "flows.stores.database:Database._write_manifest", "flows.stores.database:Database._publish", "flows.tasks.bring:load",
    ),
    "verify": ("flows.tasks.verify:find_months", "flows.tasks.verify:verify_month"),
    "bring_up_to_date": ("flows.stores.lake:Lake.publish", "flows.stores.warehouse:Warehouse.publish"),
    "withdraw": (
        "flows.stores.warehouse:Warehouse._remembering", "flows.stores.warehouse:Warehouse.withdraw",
        "flows.stores.database:Database._write_manifest", "flows.stores.database:Database.withdraw",
        "flows.stores.lake:Lake.append_history", "flows.stores.lake:Lake._write_manifest",
        "flows.stores.lake:Lake._publish_side_object", "flows.connectors.bucket:Bucket.delete", "flows.stores.lake:Lake.withdraw",
    ),
    "prune_editions": ("flows.tasks.editions:surplus", "flows.stores.raw_zone:RawZone.delete_edition"),
    "load_edition": (
        "flows.stores.lake:Lake._write", "flows.stores.lake:Lake.copy_edition", "flows.stores.lake:Lake._changes",
        "flows.stores.lake:Lake._publish_side_object", "flows.stores.lake:Lake.remember",
    ),
    "replay_quarantine": (
        "flows.stores.lake:Lake._write", "flows.connectors.bucket:Bucket.copy", "flows.stores.lake:Lake._publish_side_object",
        "flows.stores.lake:Lake.remember",
    ),
    "load_zones": ("flows.tasks.zones:extract_zones", "flows.tasks.zones:load_zones_into"),
}  # fmt: skip
# Steps that only a first load has, and steps that only a replacement has.
FIRST: Mapping[str, tuple[str, ...]] = {"ingest_data": ("flows.stores.database:Database._attach",)}
AGAIN: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("ingest_data", "load_edition_database"),
    ("flows.stores.database:Database._compare", "flows.stores.database:Database._merge"),
)


def steps_of(flow: FlowName, *, over: bool) -> tuple[str, ...]:
    """Return the steps of a flow that starts with empty stores, or over a published month."""
    return STEPS[flow] + (AGAIN if over else FIRST).get(flow, ())


Kill = Mapping[str, Any]
"""Hooks that end a run: see hooks.py."""


@dataclass
class Siege:
    """Kills runs of a flow for one month, and checks the stores."""

    lab: Lab
    flow: FlowName
    over: bool
    kills: int = 0
    recoveries: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Bring the stores into the state in which the flow starts."""
        self.expected = self.lab.expected(self.flow, over=self.over)
        self.allowed = self.lab.states(self.flow, over=self.over)

    def strike(self, kill: Kill) -> bool:
        """Start a run that is to be killed. Return False if it finished before the kill."""
        run = self.lab.start(self.flow, kill)
        if not run.was_killed:
            run.succeeded()
            return False
        self.kills += 1
        now = see(self.lab)
        for store, states in self.allowed.items():
            assert now[store] in states, f"{store} after a kill at {kill}: {now[store]}, allowed {states}"
        return True

    def recover(self) -> None:
        """Run once more, without a fault, and compare the stores with those of a run without a failure."""
        run = self.lab.start(self.flow).succeeded()
        self.recoveries.append(run.seconds)
        require_whole(self.lab, self.expected)

    def under(self, kills: list[Kill], at_once: int = 4) -> None:
        """Kill runs in series, each series from the beginning, and recover after each."""
        waiting = list(kills)
        while waiting:
            self.lab.prepare(self.flow, over=self.over)
            with Reader(self.lab, STORES_OF[self.flow]) as reader:
                series = 0
                while waiting and series < at_once:
                    if self.strike(waiting[0]):
                        waiting.pop(0)
                        series += 1
                    elif series:  # the month is published, so this run had nothing to do: try it from the beginning
                        break
                    else:
                        raise AssertionError(f"no run of {self.flow} reached {waiting[0]}")
                self.recover()
            reader.require_only(self.allowed)


def require_whole(lab: Lab, expected: Mapping[str, Any]) -> None:
    """Compare the stores with a digest. Raise `AssertionError` if they differ, or if staging or a lock is left."""
    different = digest.different(expected, digest.whole(lab.ours))
    assert different == [], different  # pytest shows no values of an assertion outside a test module
    lab.sweep()
    assert digest.staging(lab.ours) == []
    until(lambda: digest.locks(lab.ours) == [], 30)


@contextmanager
def recorded(siege: Siege, fault: str) -> Iterator[Trial]:
    """Record a siege for the table of docs/reliability.md."""
    with tried("crash", fault) as trial:
        try:
            yield trial
        finally:
            trial.times, trial.recoveries = siege.kills, siege.recoveries


def at_events(lab: Lab, siege: Siege, count: int, chance: Callable[[int, int], int]) -> list[Kill]:
    """Return kills at events of a whole run, chosen at random: see hooks.py."""
    lab.prepare(siege.flow, over=siege.over)
    total = len(lab.start(siege.flow, {"events": True}).succeeded().events)
    return [{"kill_at_event": chance(1, int(total * 0.95))} for _ in range(count)]


def at_steps(steps: tuple[str, ...], when: tuple[Literal["before", "after"], ...] = ("before", "after")) -> list[Kill]:
    """Return a kill before and after each step."""
    return [{"kill_at": {"name": step, "when": moment}} for step in steps for moment in when]
