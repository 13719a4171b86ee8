"""Overlap the stages of a stream: each stage runs in its own thread or threads, a few items ahead of the next."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

Add = Callable[[int, float], None]
"""Receives how many more rows or bytes are done, and which share of the month is done so far (0 to 1; 0 if unknown)."""

_END = object()


@contextmanager
def closing_if_open(items: Iterable[object]) -> Iterator[None]:
    """Close `items` afterwards if they can be closed: generators and files can, lists cannot.

    A generator that is running in a thread cannot, either. This happens if a wait for that thread is interrupted.
    """
    try:
        yield
    finally:
        close = getattr(items, "close", None)
        if close is not None and not getattr(items, "gi_running", False):
            close()


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield `items` in order, while a background thread produces at most `depth` items ahead.

    An error in the thread is raised here. If the consumer stops early, the thread stops too, and `items` are closed.
    """
    ready: queue.Queue[object] = queue.Queue(depth)
    stopped = threading.Event()
    error: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            with closing_if_open(items):
                for item in items:
                    if not put(item):
                        break
        except BaseException as caught:
            error.append(caught)
        put(_END)

    producer = threading.Thread(target=produce, name="ahead", daemon=True)
    producer.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if error:
            raise error[0]
    finally:
        stopped.set()
        producer.join()


def mapped(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Yield `work(item)` for each item, in the order of `items`, while this many threads work ahead.

    At most `threads` + 1 results are in progress, or finished and not yet yielded. An error of `work` or of `items` is raised
    here, after the results before it. If the consumer stops early, the threads stop after their current items.
    """
    error: list[Exception] = []

    def until_error() -> Iterator[T]:
        try:
            yield from items
        except Exception as caught:
            error.append(caught)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="mapped")
    waiting: deque[Future[R]] = deque()
    try:
        for item in until_error():
            waiting.append(pool.submit(work, item))
            del item  # only the thread that works on it keeps it in memory
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if error:
            raise error[0]
    finally:
        pool.shutdown(cancel_futures=True)
