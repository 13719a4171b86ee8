"""Stage a month while its file is still being extracted. If early staging fails, the task `transform` stages the month."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect import get_run_logger

from flows.connectors.growing_file import Aborted, GrowingFile
from flows.stores import FileStore, Target
from flows.tasks.policy import this_run
from flows.tlc.errors import SchemaMismatch, TooManyRejects, UnreadableFile, Vanished, WrongMonth
from flows.tlc.manifest import Manifest, RawFile, StagedMonth
from flows.tlc.pipeline import Add
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Store, Terms, TripMonth

_SHOWN_EVERY = 0.5  # seconds
_PATIENCE = 60.0  # seconds to wait at the end of a run for a thread that hangs
# No file arrived, or the task `transform` finds the same fault in it.
_EXPECTED = (Aborted, UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth)


class EarlyStaging:
    """Stages one month of a run in a thread of this process, for the tasks `extract` and `transform`."""

    def __init__(self, published: PublishedFile, terms: Terms, run: str) -> None:
        self._published, self._terms, self._run = published, terms, run
        self._attempt: _Attempt | None = None

    @contextmanager
    def receiving(self, store: FileStore) -> Iterator[GrowingFile]:
        """Yield the file to write the published bytes to. If the block fails or does not complete it, nothing is staged."""
        self.close()  # two threads must not write the same staged object or table
        attempt = _Attempt(store, self._published, self._terms, self._run)
        self._attempt = attempt
        failed = True
        try:
            yield attempt.growing
            failed = not attempt.growing.sha256
        finally:
            if failed:
                attempt.growing.abort()

    def result(self, raw: RawFile, add: Add) -> StagedMonth | None:
        """Wait for the staged month and return it; None if `raw` must be staged now. `add` receives the progress."""
        attempt = self._attempt
        if attempt is None:
            return None
        shown = 0
        while True:
            attempt.thread.join(_SHOWN_EVERY)
            rows = attempt.rows
            add(rows - shown, attempt.share)
            shown = rows
            if not attempt.thread.is_alive():
                break
        staged = attempt.staged if attempt.growing.sha256 == raw.sha256 else None
        if staged:
            attempt.staged = None  # it must not be discarded
        else:
            add(-shown, 0.0)
            if isinstance(attempt.error, Vanished):  # what the run looked up is out of date
                self.close()
                raise attempt.error
            if attempt.error and not isinstance(attempt.error, _EXPECTED):
                get_run_logger().info("%s is staged again: %s", raw.trip_month, type(attempt.error).__name__)
        self.close()
        return staged.model_copy(update={"raw": raw}) if staged else None

    def close(self, patience: float | None = None) -> None:
        """Stop the thread. Discard its staged month unless `result` returned it. Leave a thread that does not stop in time."""
        attempt, self._attempt = self._attempt, None
        if attempt:
            attempt.close(patience)


class _Attempt:
    """The thread of one attempt of the task `extract`."""

    def __init__(self, store: FileStore, published: PublishedFile, terms: Terms, run: str) -> None:
        self.growing = GrowingFile()
        self.staged: StagedMonth | None = None
        self.error: Exception | None = None
        self.rows, self.share = 0, 0.0
        self._store = store
        self.thread = threading.Thread(
            target=self._stage, args=[published, terms, run], name="early staging", daemon=True
        )
        self.thread.start()

    def _stage(self, published: PublishedFile, terms: Terms, run: str) -> None:
        raw = RawFile(published=published, key="", generation=0, size=published.size or 0, sha256="")
        try:
            # Parquet is read from its end, so no transaction waits for it. A file that is refused at once creates no table.
            self.growing.wait(complete=published.ending == ".parquet")
            self.staged = self._store.stage(raw, terms, run, self._count, self.growing)
        except Exception as error:
            self.error = error
            self.growing.abort()

    def _count(self, rows: int, share: float) -> None:
        self.growing.require()
        self.rows, self.share = self.rows + rows, share

    def close(self, patience: float | None) -> None:
        self.growing.abort()
        self.thread.join(patience)
        if self.thread.is_alive():
            return
        self.growing.close()
        staged, self.staged = self.staged, None
        if staged:
            with suppress(Exception):  # a later run deletes it
                self._store.discard(staged)


_by_month: dict[tuple[str, TripMonth, Store], EarlyStaging] = {}


@contextmanager
def early_staging(found: PublishedFile | RawFile | Manifest, terms: Terms, into: Target) -> Iterator[None]:
    """Let the tasks of this block stage a file early that is still to be extracted, if they run in this process."""
    if not isinstance(found, PublishedFile):
        yield
        return
    run = this_run()
    key = (run, found.trip_month, into.store)
    _by_month[key] = EarlyStaging(found, terms, run or "local")
    try:
        yield
    finally:
        _by_month.pop(key).close(_PATIENCE)


def early_staging_of(trip_month: TripMonth, into: Target) -> EarlyStaging | None:
    """Return the early staging of this run's month; None if there is none, or the task runs in another process."""
    return _by_month.get((this_run(), trip_month, into.store))
