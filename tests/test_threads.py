"""Threads pass items on in order, raise errors where they are noticed, and end."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from rsseg_cli.threads import BackgroundWriter, Prefetcher


class Slow:
    """Items that take a while, with an error at number 13."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.items: list[int] = []

    def __getitem__(self, index: int) -> int:
        self.threads.add(threading.get_ident())
        self.items.append(index)
        time.sleep(0.02 if index % 2 else 0.001)
        if index == 13:
            raise ValueError("broken item")
        return index * 10


def no_thread_is_left() -> bool:
    return not [one for one in threading.enumerate() if one.name.startswith("rsseg")]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_order(threads: int) -> None:
    source = Slow()
    prefetcher = Prefetcher(source, range(2, 9), threads=threads)
    assert list(prefetcher) == [20, 30, 40, 50, 60, 70, 80]
    assert prefetcher.waited > 0
    assert (threading.get_ident() in source.threads) == (threads == 0)
    assert no_thread_is_left()


def test_items_are_made_no_further_ahead_than_allowed() -> None:
    source = Slow()
    for number, _ in enumerate(Prefetcher(source, range(12), threads=1, ahead=2)):
        assert len(source.items) <= number + 3  # taken, and two that wait


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_after_the_items_before_it(threads: int) -> None:
    items = iter(Prefetcher(Slow(), range(10, 20), threads=threads))
    assert [next(items) for _ in range(3)] == [100, 110, 120]
    with pytest.raises(ValueError, match="broken item"):
        next(items)
    assert no_thread_is_left()


def test_stopping_early_ends_the_threads() -> None:
    with closing(iter(Prefetcher(Slow(), range(1000), threads=2))) as items:
        assert next(items) == 0
    assert no_thread_is_left()


def test_reading_overlaps_with_work() -> None:
    prefetcher = Prefetcher(Slow(), range(0, 12), threads=2)
    for _ in prefetcher:
        time.sleep(0.02)
    assert prefetcher.waited < 0.1


def test_work_is_done_in_order_before_the_block_ends() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with BackgroundWriter(work, 2) as writer:
        for item in range(20):
            writer.put(item)
    assert done == list(range(20))
    assert no_thread_is_left()


def test_error_of_the_work_reaches_the_caller_and_stops_the_rest() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            raise OSError("full")
        done.append(item)

    def hand_over() -> None:
        with BackgroundWriter(work, 1) as writer:
            for item in range(100):
                writer.put(item)

    with pytest.raises(OSError, match="full"):
        hand_over()
    assert done == [0]
    assert no_thread_is_left()


def test_error_of_the_caller_is_not_hidden_by_one_of_the_work() -> None:
    def work(item: int) -> None:
        raise OSError("full")

    def hand_over() -> None:
        with BackgroundWriter(work, 1) as writer:
            writer.put(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hand_over()
