"""Overlap the stages of a stream: each runs in a thread of its own, a few items ahead of the next."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_END = object()


@contextmanager
def closing_if_open(items: Iterable[object]) -> Iterator[None]:
    """Close `items` afterwards, as generators and files can be, and lists cannot."""
    try:
        yield
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield `items` in order, made in a background thread at most `depth` ahead; memory stays bounded.

    An error of the maker is raised here; a consumer that stops early stops the maker too, and closes its iterator.
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

    def make() -> None:
        try:
            with closing_if_open(items):
                for item in items:
                    if not put(item):
                        break
        except BaseException as caught:
            error.append(caught)
        put(_END)

    maker = threading.Thread(target=make, name="ahead", daemon=True)
    maker.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if error:
            raise error[0]
    finally:
        stopped.set()
        maker.join()
