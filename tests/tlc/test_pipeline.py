"""Pipeline stages run ahead in their own threads, lose no item, and all end when one of them ends."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc.pipeline import ahead


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@given(st.lists(st.one_of(st.none(), st.integers())), st.integers(1, 5))
def test_items_of_any_value_come_in_order(items: list[int | None], depth: int) -> None:
    assert list(ahead(iter(items), depth)) == items
    assert alive() == []


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), StopAsyncIteration()], ids=repr)
def test_an_error_of_the_producer_comes_after_the_items_before_it(error: BaseException) -> None:
    def make() -> Iterator[int]:
        yield from (1, 2, 3)
        raise error

    items = ahead(make())
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(type(error)) as raised:
        next(items)
    assert raised.value is error
    assert alive() == []


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_the_producer_is_at_most_depth_items_and_one_more_ahead(depth: int) -> None:
    made = 0
    stuck = threading.Event()

    def make() -> Iterator[int]:
        nonlocal made
        for n in range(1000):
            made += 1
            if made == 1 + depth + 1:
                stuck.set()
            yield n

    items = ahead(make(), depth)
    assert next(items) == 0
    assert stuck.wait(10)
    assert not threading.Event().wait(0.25)  # time in which the producer could make one item too many
    assert made == 1 + depth + 1
    items.close()
    assert made == 1 + depth + 1


def test_a_consumer_that_stops_early_closes_the_source_and_ends_the_thread() -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    items = ahead(make())
    assert next(items) == 0
    assert len(alive()) == 1
    items.close()
    assert closed.is_set()
    assert alive() == []


def test_nested_stages_end_when_the_last_one_ends() -> None:
    closed = threading.Event()

    def make() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    items = ahead(n for n in ahead(n + 1 for n in ahead(make())))
    assert next(items) == 1
    items.close()
    del items
    assert closed.wait(10)
    for thread in alive():
        thread.join(10)
    assert alive() == []


def test_nothing_runs_before_the_first_item_is_requested() -> None:
    ahead(iter([1]))
    assert alive() == []


class _Unclosable:
    """An iterable whose `close` raises an error."""

    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])

    def close(self) -> None:
        raise OSError("cannot close")


def test_an_error_on_closing_the_source_reaches_the_consumer_without_a_hang() -> None:
    items = ahead(_Unclosable())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="cannot close"):
        next(items)
    assert alive() == []


def test_a_list_which_has_no_close_is_accepted() -> None:
    assert list(ahead([1, 2, 3])) == [1, 2, 3]
