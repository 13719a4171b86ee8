"""Stage a month while its file is still being extracted. It only saves time: if it fails, the month is staged afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect import get_run_logger

from flows.connectors.arriving import Arriving, NoMoreBytes
from flows.stores import FileStore, Target
from flows.tasks.policy import this_run
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import Manifest, RawFile, StagedMonth
from flows.tlc.pipeline import Add
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Store, Terms, TripMonth

_SHOWN_EVERY = 0.5  # seconds


class EarlyStaging:
    """Stages one month of a run in a thread of this process, for the tasks `extract` and `transform`."""

    def __init__(self, published: PublishedFile, terms: Terms, run: str) -> None:
        self._published, self._terms, self._run = published, terms, run
        self._arriving: Arriving | None = None
        self._thread = threading.Thread()
        self._staged: StagedMonth | None = None
        self._store: FileStore
        self._error: Exception | None = None
        self._rows, self._share = 0, 0.0

    @contextmanager
    def fed(self, store: FileStore) -> Iterator[Arriving]:
        """Yield where the block must show the file's bytes. They are staged until the file is complete, or the block ends."""
        self.close()  # what an earlier attempt of the task began
        self._store, self._error, self._rows, self._share = store, None, 0, 0.0
        arriving = self._arriving = Arriving()
        self._thread = threading.Thread(target=self._stage, args=[arriving], name="early staging", daemon=True)
        self._thread.start()
        try:
            yield arriving
        finally:
            if not arriving.sha256:
                arriving.stop()

    def _stage(self, arriving: Arriving) -> None:
        def count(rows: int, share: float) -> None:
            arriving.require()
            self._rows, self._share = self._rows + rows, share

        raw = RawFile(published=self._published, key="", generation=0, size=self._published.size or 0, sha256="")
        try:
            arriving.wait_for_first()  # a file that is refused at once must not create tables
            self._staged = self._store.stage(raw, self._terms, self._run, count, arriving)
        except Exception as error:
            self._error = error
            arriving.stop()

    def take(self, raw: RawFile, add: Add) -> StagedMonth | None:
        """Wait for the staged month and return it; None if `raw` must be staged in the normal way. `add` shows the progress."""
        arriving, shown = self._arriving, 0
        if arriving is None:
            return None
        while True:
            self._thread.join(_SHOWN_EVERY)
            rows = self._rows
            add(rows - shown, self._share)
            shown = rows
            if not self._thread.is_alive():
                break
        staged = self._staged if arriving.sha256 == raw.sha256 else None
        if staged is not None:
            self._staged = None  # it must not be discarded
        elif self._error and not isinstance(self._error, NoMoreBytes | TripDataError):
            # A `TripDataError` is raised again by the task.
            get_run_logger().info("%s is staged again: %s", raw.trip_month, type(self._error).__name__)
        self.close()
        return staged.model_copy(update={"raw": raw}) if staged else None

    def close(self) -> None:
        """Stop the thread, and discard what it staged and nobody took."""
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        arriving.stop()
        self._thread.join()
        arriving.close()
        staged, self._staged = self._staged, None
        if staged:
            with suppress(Exception):  # a later run deletes it
                self._store.discard(staged)


_open: dict[tuple[str, TripMonth, Store], EarlyStaging] = {}


@contextmanager
def early_staging(found: PublishedFile | RawFile | Manifest, terms: Terms, into: Target) -> Iterator[None]:
    """Let the tasks of this block stage a file early that is still to be extracted, if they run in this process."""
    if not isinstance(found, PublishedFile):
        yield
        return
    run = this_run()
    at = (run, found.trip_month, into.store)
    _open[at] = EarlyStaging(found, terms, run or "local")
    try:
        yield
    finally:
        _open.pop(at).close()


def early(trip_month: TripMonth, into: Target) -> EarlyStaging | None:
    """Return the early staging of this run's month; None if there is none, or the task runs in another process."""
    return _open.get((this_run(), trip_month, into.store))
