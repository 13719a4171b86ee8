"""Pipeline stages run ahead in their own threads, lose no item, and all end when one of them ends."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.tlc.pipeline import ahead, closing_if_open, mapped


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "mapped"))]


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


@given(st.lists(st.integers()), st.integers(1, 4))
def test_mapped_results_come_in_the_order_of_their_items(items: list[int], threads: int) -> None:
    assert list(mapped(lambda n: (n, n + 1), iter(items), threads)) == [(n, n + 1) for n in items]
    assert alive() == []


def test_mapped_items_are_worked_on_at_the_same_time() -> None:
    both = threading.Barrier(2)
    assert list(mapped(lambda n: n + both.wait(10) * 0, range(6), 2)) == list(range(6))


def test_an_error_of_mapped_work_comes_after_the_results_before_it() -> None:
    results = mapped(lambda n: 6 // n, [3, 2, 0, 1], 2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert alive() == []


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_of_the_mapped_items_comes_after_the_results_before_it(threads: int) -> None:
    def make() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("bad")

    results = mapped(abs, make(), threads)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="bad"):
        next(results)
    assert alive() == []


@pytest.mark.parametrize("threads", [1, 3])
def test_at_most_one_item_more_than_the_threads_is_in_work(threads: int) -> None:
    made = 0

    def make() -> Iterator[int]:
        nonlocal made
        for n in range(1000):
            made += 1
            yield n

    results = mapped(abs, make(), threads)
    assert next(results) == 0
    assert made == threads + 1
    results.close()
    assert made == threads + 1
    assert alive() == []


def test_a_generator_that_still_runs_in_a_thread_is_left_to_it() -> None:
    running, finish = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        running.set()
        finish.wait(30)
        yield 1

    generator = items()
    thread = threading.Thread(target=next, args=(generator,))
    thread.start()
    assert running.wait(30)
    try:
        with pytest.raises(KeyboardInterrupt), closing_if_open(generator):
            raise KeyboardInterrupt
    finally:
        finish.set()
        thread.join()
