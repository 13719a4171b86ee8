"""Many months in one run: some at once, each on its own; one that fails stops no other."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from prefect import get_run_logger
from prefect.runtime import flow_run

from flows.tasks.report import report_months
from flows.tlc.errors import MonthsFailed, TripDataError, UnknownMonth
from flows.tlc.manifest import Outcome, total
from flows.tlc.trips import TripMonth, asked_for, in_words


def named(template: str) -> Callable[[], str]:
    """Return what names a run for its parameters, with lists as a person writes them."""

    def name() -> str:
        given = flow_run.parameters.items()
        return template.format(
            **{name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in given}
        ).strip()

    return name


def named_for_months(more: str = "") -> Callable[[], str]:
    """Return what names a parent run for its months, such as green 2021-01 to 2021-03, and for `more` of its parameters."""

    def name() -> str:
        given = flow_run.parameters
        since, until = given.get("since") or "", given.get("until") or ""
        try:
            months = in_words(asked_for(given["color"], given.get("year"), given.get("months"), since, until))
        except UnknownMonth:  # the flow itself says so
            months = f"{given['color']}, no month"
        return months + more.format(**given)

    return name


def chosen_months(
    color: str, year: int | None, months: Sequence[int] | None, since: str, until: str
) -> list[TripMonth]:
    """Return the months that a parent run was asked for, and log which parameters count."""
    chosen = asked_for(color, year, months, since, until)
    log = get_run_logger()
    if (since or until) and (year is not None or months):
        log.info("since and until are given: year %s and months %s are not used", year, months)
    log.info("%s of %s", "1 month" if len(chosen) == 1 else f"{len(chosen)} months", in_words(chosen))
    return chosen


Tell = Callable[[str, Sequence[Outcome], Sequence[tuple[str, str]]], None]


def each_month(
    name: str,
    trip_months: Sequence[TripMonth],
    at_once: int,
    load: Callable[[TripMonth], Outcome],
    tell: Tell = report_months,
) -> list[Outcome]:
    """Do every month that can be done, `at_once` at a time, then raise `MonthsFailed` naming the rest.

    A run that is interrupted or cancelled finishes the months it is at, and begins no further one.

    `tell` gets the name of the run's artifact, what was done, and what failed why.
    """
    if at_once < 1:
        raise TripDataError(f"at_once is {at_once}; it must be at least 1.")
    log = get_run_logger()
    done: list[Outcome] = []
    failed: list[tuple[str, str]] = []
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="month")
    try:
        # Each month carries a copy of the context, so that Prefect knows whose child its runs are.
        running = [(m, pool.submit(copy_context().run, load, m)) for m in trip_months]
        for trip_month, future in running:
            try:
                done.append(future.result())
            except Exception as error:
                reason = str(error) or type(error).__name__
                failed.append((str(trip_month), reason))
                log.error("%s could not be loaded: %s", trip_month, reason)
    except BaseException:  # Ctrl-C, or somebody cancelled the run
        log.warning("interrupted: the months at work are finished, no other is begun")
        pool.shutdown(cancel_futures=True)  # under months still at work Prefect's engine would wait for ever
        raise
    pool.shutdown()
    ends = Counter([outcome.status for outcome in done] + ["failed"] * len(failed))
    log.info(
        "%s of %s months are done: %s", len(done), len(running), ", ".join(f"{n} {end}" for end, n in ends.items())
    )
    if done:
        log.info("%s", total(done))
    tell(f"{name}-months", done, failed)
    if odd := [str(outcome.trip_month) for outcome in done if outcome.warnings]:
        log.warning(
            "look at %s of %s months: %s; their reports and the warnings above say why",
            len(odd),
            len(running),
            ", ".join(odd),
        )
    if failed:
        failure = MonthsFailed(
            f"{len(failed)} of {len(running)} months could not be loaded:\n"
            + "\n".join(f"  - {month}: {reason}" for month, reason in failed)
        )
        failure.done = done
        raise failure
    return done
