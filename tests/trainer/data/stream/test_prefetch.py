"""Prefetching: the source's order, at most so far ahead, its errors where items are taken, and no thread left behind."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from trainer.data.stream.prefetch import Prefetch


def counting(limit: int, taken: list[int]) -> Iterator[int]:
    for number in range(limit):
        taken.append(number)
        yield number


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 4, 100])
def test_items_come_in_order_and_all(depth):
    with Prefetch(iter(range(50)), depth) as items:
        assert list(items) == list(range(50))
    assert threads() == []


def test_nothing_to_iterate():
    with Prefetch(iter([])) as items:
        assert list(items) == []


def test_items_that_look_like_ends_are_items():
    with Prefetch(iter([None, False, StopIteration, 0])) as items:
        assert list(items) == [None, False, StopIteration, 0]


def test_the_source_runs_ahead_but_not_further_than_the_depth():
    taken: list[int] = []
    with Prefetch(counting(100, taken), depth=3) as items:
        iterator = iter(items)
        assert next(iterator) == 0
        assert wait_until(lambda: len(taken) >= 4)  # it does not wait to be asked
        time.sleep(0.05)
        assert len(taken) <= 5  # one taken, three queued, one in hand
        assert next(iterator) == 1


def test_the_source_runs_in_another_thread():
    with Prefetch(threading.current_thread().name for _ in range(1)) as items:
        assert list(items) == ["prefetch"]


def test_an_error_of_the_source_is_raised_after_the_items_before_it():
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("row group 7")

    seen = []
    with pytest.raises(KeyError, match="row group 7"), Prefetch(broken()) as items:  # noqa: PT012
        for item in items:
            seen.append(item)
    assert seen == [1, 2]
    assert threads() == []


def test_an_error_before_the_first_item_is_raised_too():
    def broken() -> Iterator[int]:
        raise OSError("cannot be read")
        yield

    with pytest.raises(OSError, match="cannot be read"), Prefetch(broken()) as items:
        list(items)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_consumer_that_stops_early_stops_the_thread(taken):
    with Prefetch(itertools.count(), depth=2) as items:
        assert list(itertools.islice(iter(items), taken)) == list(range(taken))
        assert len(threads()) == 1
    assert threads() == []


def test_an_error_of_the_consumer_passes_through_and_stops_the_thread():
    with pytest.raises(ZeroDivisionError), Prefetch(itertools.count(), depth=2) as items:  # noqa: PT012
        for item in items:
            1 // (item - 2)
    assert threads() == []


def test_leaving_while_the_source_fails_raises_nothing():
    started = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        started.wait(5.0)
        raise OSError("nobody takes this any more")

    with Prefetch(slow()) as items:
        assert next(iter(items)) == 1
        started.set()
    assert threads() == []
