"""Load many months in one run, several at once. A month that fails does not stop the others."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import TypeVar

from prefect import get_run_logger
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows.tasks.policy import is_being_cancelled
from flows.tasks.report import report_months
from flows.tasks.stores import forget_stores
from flows.tlc.errors import MisconfiguredBlock, MonthsFailed, TripDataError, UnknownMonth
from flows.tlc.manifest import Outcome, total
from flows.tlc.trips import TripMonth, in_words, requested_months

_GRACE = 5.0  # seconds from SIGTERM to the end of the process; without it, Prefect waits 30 seconds


def named(template: str) -> Callable[[], str]:
    """Return a function that names a run after its parameters. Lists are joined with commas."""

    def name() -> str:
        given = flow_run.parameters.items()
        words = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in given}
        return template.format(**words).strip()

    return name


def named_for_months(more: str = "") -> Callable[[], str]:
    """Return a function that names a parent run after its months, such as green 2021-01 to 2021-03.

    `more` is a template that adds other parameters.
    """

    def name() -> str:
        given = flow_run.parameters
        since, until = given.get("since") or "", given.get("until") or ""
        try:
            months = in_words(requested_months(given["color"], given.get("year"), given.get("months"), since, until))
        except UnknownMonth:  # the flow itself raises this error with its reason
            months = f"{given['color']}, no month"
        return months + more.format(**given)

    return name


def chosen_months(color: str, year: int | None, months: list[int] | None, since: str, until: str) -> list[TripMonth]:
    """Return the months that a parent run has to load. Log them, and log the parameters that are not used."""
    chosen = requested_months(color, year, months, since, until)
    log = get_run_logger()
    if (since or until) and (year is not None or months):
        log.info("since and until are given: year %s and months %s are not used", year, months)
    log.info("%s of %s", "1 month" if len(chosen) == 1 else f"{len(chosen)} months", in_words(chosen))
    return chosen


T = TypeVar("T")


def several_at_once(
    trip_months: Sequence[TripMonth], at_once: int, work: Callable[[TripMonth], T]
) -> Generator[tuple[TripMonth, T | Exception], None, None]:
    """Yield each month with the result or the error of `work`, in order. Work on `at_once` months at the same time.

    Use it with `closing`. A run that is interrupted finishes the months in progress, and starts no other. If a run of a
    deployment is cancelled, its process ends after `_GRACE` seconds: a step cannot be interrupted, and may take an hour.
    """
    if at_once < 1:
        raise TripDataError(f"at_once is {at_once}; it must be at least 1.")
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="month")
    try:
        # Each month runs in a copy of the context, so that Prefect knows the parent of its runs.
        running = [(m, pool.submit(copy_context().run, work, m)) for m in trip_months]
        for trip_month, future in running:
            try:
                end: T | Exception = future.result()
            except Exception as error:
                end = error
            yield trip_month, end
    except BaseException as interrupt:  # Ctrl-C, or somebody cancelled the run
        if isinstance(interrupt, TerminationSignal) and is_being_cancelled():
            _end_soon()
        else:
            get_run_logger().warning("interrupted: the months in progress are finished; no other month is started")
        pool.shutdown(cancel_futures=True)  # if months were still running, Prefect's engine would wait for ever
        raise
    pool.shutdown()


def _end_soon() -> None:
    """Kill this process after `_GRACE` seconds, as a crash would. The next run completes what is left."""
    get_run_logger().warning(
        "cancelled: the months in progress have %.0f seconds to end; the same run completes those that do not", _GRACE
    )
    killer = threading.Timer(_GRACE, os.kill, (os.getpid(), signal.SIGKILL))
    killer.daemon = True
    killer.start()


Report = Callable[[str, Sequence[Outcome], Sequence[tuple[str, str]]], None]
"""Reports a run. It receives the artifact's name, the outcomes, and the failed months with their reasons."""


def each_month(
    name: str,
    trip_months: Sequence[TripMonth],
    at_once: int,
    load: Callable[[TripMonth], Outcome],
    report: Report = report_months,
) -> list[Outcome]:
    """Load every month, `at_once` at a time.

    Raises:
        MonthsFailed: Some months failed. It is raised after all other months are loaded.
    """
    done: list[Outcome] = []
    failed: list[tuple[str, str]] = []
    with closing(several_at_once(trip_months, at_once, load)) as ends_of_months:
        for trip_month, end in ends_of_months:
            if isinstance(end, Exception):
                failed.append((str(trip_month), reason_of(trip_month, end)))
                if isinstance(end, MisconfiguredBlock):
                    forget_stores()  # somebody may correct the block while the other months are loaded
                get_run_logger().error("could not be loaded: %s", failed[-1][1])
            else:
                done.append(end)
    return end_of_months(name, done, failed, report)


def end_of_months(
    name: str, done: list[Outcome], failed: Sequence[tuple[str, str]], report: Report = report_months
) -> list[Outcome]:
    """Log and report the months of a run at its end. Return the outcomes, or raise `MonthsFailed` if some months failed."""
    log, count = get_run_logger(), len(done) + len(failed)
    ends = Counter([outcome.status for outcome in done] + ["failed"] * len(failed))
    counts = ", ".join(f"{n} {end}" for end, n in ends.items())
    log.info("%s of %s months are done: %s", len(done), count, counts)
    if done:
        log.info("%s", total(done))
    report(f"{name}-months", done, failed)
    if odd := [str(outcome.trip_month) for outcome in done if outcome.warnings]:
        why = "their reports and the warnings above say why"
        log.warning("look at %s of %s months: %s; %s", len(odd), count, ", ".join(odd), why)
    if failed:
        failure = MonthsFailed(
            f"{len(failed)} of {count} months could not be loaded:\n"
            + "\n".join(f"  - {reason}" for _, reason in failed)
        )
        failure.done = done
        raise failure
    return done


def reason_of(trip_month: TripMonth, error: Exception) -> str:
    """Return an error's text. It begins with the month, once."""
    text = str(error) or type(error).__name__
    return text if text.startswith(str(trip_month)) else f"{trip_month}: {text}"
