"""Threads pass things on in order, hand over errors, and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from rsseg_cli.predict.threads import Ahead, Behind


def no_thread_is_left() -> bool:
    return not [one for one in threading.enumerate() if one.name.startswith("rsseg")]


def test_items_come_in_order_and_no_further_ahead_than_allowed() -> None:
    made = []

    def source() -> Generator[int, None, None]:
        for item in range(20):
            made.append(item)
            yield item

    with Ahead(source(), 2) as items:
        for expected, item in enumerate(items):
            assert item == expected
            assert len(made) <= item + 4  # taken, two in the queue, one in the hand
    assert no_thread_is_left()


def test_error_of_the_source_is_raised_after_what_came_before() -> None:
    def source() -> Generator[int, None, None]:
        yield 1
        raise KeyError("lost")

    taken: list[int] = []
    with Ahead(source(), 2) as items, pytest.raises(KeyError, match="lost"):
        taken.extend(items)
    assert taken == [1]
    assert no_thread_is_left()


def test_source_is_closed_when_the_caller_stops_early() -> None:
    closed = threading.Event()

    def source() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with Ahead(source(), 1) as items:
        next(iter(items))
    assert closed.is_set()
    assert no_thread_is_left()


def test_work_is_done_in_order_before_the_block_ends() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with Behind(work, 2) as behind:
        for item in range(20):
            behind.put(item)
    assert done == list(range(20))
    assert no_thread_is_left()


def test_error_of_the_work_reaches_the_caller_and_stops_the_rest() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 1:
            raise OSError("full")
        done.append(item)

    def hand_over() -> None:
        with Behind(work, 1) as behind:
            for item in range(100):
                behind.put(item)

    with pytest.raises(OSError, match="full"):
        hand_over()
    assert done == [0]
    assert no_thread_is_left()


def test_error_of_the_caller_is_not_hidden_by_one_of_the_work() -> None:
    def work(item: int) -> None:
        raise OSError("full")

    def hand_over() -> None:
        with Behind(work, 1) as behind:
            behind.put(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hand_over()
