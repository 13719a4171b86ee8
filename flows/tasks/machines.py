"""The machines of a back-fill: agents and workers of the work queue, or the workers of a Dask cluster.

Both run the same flow for a batch of months. Both use the same Prefect server. Only the way to start the run differs.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, Protocol

from prefect import runtime, tags
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.tasks.policy import SCHEDULER
from flows.tlc.errors import TripDataError
from flows.tlc.trips import Spread

_FLOW = "flows.backfill:backfill"


class Machines(Protocol):
    """Start batches. A batch is a flow run with given parameters and tags; its last tag is unique."""

    advice: str
    """The end of the warning that no batch starts: what to check, as a question."""
    creates_runs: bool
    """Whether a batch has a flow run as soon as it is started. Otherwise the machine that begins it creates the run."""

    patience: float
    """Seconds to wait for the end of cancelled runs before `close`, because it would kill them; 0 if they live on."""

    async def start(self, client: PrefectClient, parameters: Mapping[str, Any], tags: Sequence[str]) -> None:
        """Start a batch, or put it into the queue. A second call with the same tags starts nothing else."""

    def lost(self, tag: str) -> str:
        """Return why a batch cannot continue; "" if it can, or if that is unknown."""

    def forget(self, tag: str) -> None:
        """Cancel a batch that has not started."""

    def close(self) -> None:
        """Stop what was started for this back-fill only."""


@contextmanager
def machines_of(spread: Spread, deployment: str, dask: str, processes: int) -> Iterator[Machines | None]:
    """Yield the machines for `spread`; None for this process alone. Raise `TripDataError` if they cannot be used."""
    if spread == "here":
        yield None
        return
    made: Machines = Queue(deployment) if spread == "queue" else Dask(dask, processes)
    try:
        yield made
    finally:
        made.close()


class Queue:
    """The agents or workers that take the runs of a deployment from its work queue."""

    creates_runs = True
    patience = 0.0

    def __init__(self, deployment: str) -> None:
        require_server("queue")
        self._name, self._deployment = deployment, asyncio.run(_deployment(deployment))
        self.advice = (
            f"is an agent or a worker running for the work queue {self._deployment.work_queue_name!r}, with a free slot? This run"
            " takes a slot, too, if an agent or a worker runs it"
        )

    async def start(self, client: PrefectClient, parameters: Mapping[str, Any], tags: Sequence[str]) -> None:
        """Put a run of the deployment into the queue."""
        # The client sends its request again if the answer is lost; the key makes the server create one run only.
        await client.create_flow_run_from_deployment(
            self._deployment.id, parameters=dict(parameters), tags=tags, idempotency_key=tags[-1]
        )

    def lost(self, tag: str) -> str:
        """Return "": only heartbeats show whether an agent's run is alive."""
        return ""

    def forget(self, tag: str) -> None:
        """Do nothing: agents and workers do not start a run that is cancelled on the server."""

    def close(self) -> None:
        """Do nothing: agents and workers stay."""


class Dask:
    """The workers of the Dask scheduler at `address`. Without an address, `processes` workers on this machine."""

    creates_runs = False

    def __init__(self, address: str, processes: int) -> None:
        require_server("dask")
        _require_own(address)
        from distributed import Client, LocalCluster  # imported here because the import takes a second

        logging.getLogger("distributed").setLevel(logging.WARNING)
        self._cluster: Any = None
        self.patience = 0.0 if address else 60.0
        if not address:
            # One thread per process: one run at a time. The run itself processes several months at once.
            self._cluster = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=processes,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                security=bool(find_spec("cryptography")) or None,  # TLS: other users of the machine cannot connect
            )
        try:
            self._client: Any = Client(self._cluster or address, timeout=30)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise TripDataError(
                f"dask is {address!r}, but no scheduler answers there ({type(error).__name__}); give the address that"
                " `dask scheduler` printed, such as tcp://10.0.0.5:8786. Nothing was started."
            ) from None
        self._futures: dict[str, Any] = {}
        self.advice = "do Dask workers run, and does one of them have a free thread?"

    async def start(self, client: PrefectClient, parameters: Mapping[str, Any], tags: Sequence[str]) -> None:
        """Submit a batch to the scheduler. If its worker dies, Dask starts it again on another one, three times at most."""
        self._futures[tags[-1]] = self._client.submit(run_batch, dict(parameters), list(tags), key=tags[-1], pure=False)

    def lost(self, tag: str) -> str:
        """Return the reason if the batch has ended in Dask, with or without an error."""
        future = self._futures[tag]
        if future.status == "pending":
            return ""
        if future.status == "finished":
            return "its Dask worker uses another Prefect server, or none: set PREFECT_API_URL in its environment"
        return f"Dask cannot run it: {type(future.exception()).__name__ if future.status == 'error' else future.status}"

    def forget(self, tag: str) -> None:
        """Cancel a batch that waits at the scheduler."""
        self._futures[tag].cancel()

    def close(self) -> None:
        """Disconnect from the scheduler, and stop the workers on this machine."""
        self._client.close()
        if self._cluster:
            self._cluster.close()


def run_batch(parameters: Mapping[str, Any], names: Sequence[str]) -> None:
    """Run the flow for a batch in a Dask worker. The Prefect server has the state of the run."""
    flow: Callable[..., Any] = resolve_name(_FLOW)
    with tags(*names):
        flow(**parameters, return_state=True)


def _require_own(address: str) -> None:
    """Raise `TripDataError` if the run of a deployment names a scheduler that the operator did not set.

    Everyone who may start a run chooses the address. A client unpickles what the scheduler sends, so it could run any code.
    """
    if address and runtime.deployment.id and address != os.environ.get(SCHEDULER):
        raise TripDataError(
            "dask names a scheduler that this process may not connect to. The run of a deployment uses only the one that the"
            f" operator sets as {SCHEDULER} in the environment of the process that runs the flow (docs/secrets.md). Leave dask"
            " empty for processes on that machine, or start the back-fill on a command line. Nothing was started."
        )


def require_server(spread: str) -> None:
    """Raise `TripDataError` unless the runs use a Prefect server that other processes can reach."""
    if not PREFECT_API_URL.value():
        raise TripDataError(
            f"--spread {spread} needs a Prefect server that all machines reach: set PREFECT_API_URL here and on each of them."
            " Nothing was started."
        )


async def _deployment(name: str) -> Any:
    async with get_client() as client:
        try:
            return await client.read_deployment_by_name(name)
        except (ObjectNotFound, ValueError):
            raise TripDataError(
                f"deployment {name!r} does not exist on this Prefect server; apply it with"
                " `prefect deployment apply deployments/backfill-deployment.yaml`, or name another. Nothing was started."
            ) from None
