"""Two small threads: one that works ahead of the caller, one that works behind it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 0.1
"""How long a thread waits before it looks whether it should stop."""


class Ahead(Generic[T]):
    """Makes the items of `source` in a thread, up to `depth` ahead; a context manager.

    An error in the thread is raised where the items are taken. Leaving the block closes `source`,
    in the thread, and joins the thread.
    """

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._queue: Queue[tuple[T] | BaseException | None] = Queue(depth)
        self._source = source
        self._stop = Event()
        self._thread = Thread(target=self._run, name="rsseg-read", daemon=True)

    def __enter__(self) -> Ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]

    def _run(self) -> None:
        try:
            with closing(self._source):
                for item in self._source:
                    self._put((item,))
                    if self._stop.is_set():
                        return
            self._put(None)
        except BaseException as error:  # raised again where the items are taken
            self._put(error)

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=PATIENCE_S)
            except Full:
                continue
            return


class Behind(Generic[T]):
    """Hands items to `work` in a thread, at most `depth` behind; a context manager.

    An error in the thread is raised by the next `put`, or when the block ends.
    """

    def __init__(self, work: Callable[[T], None], depth: int) -> None:
        self._queue: Queue[tuple[T] | None] = Queue(depth)
        self._work = work
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="rsseg-write", daemon=True)

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def put(self, item: T) -> None:
        """Queue an item; waits while the thread is `depth` behind."""
        if self._error is not None:
            raise self._error
        self._queue.put((item,))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error items are only taken off the queue
                try:
                    self._work(item[0])
                except BaseException as error:
                    self._error = error
