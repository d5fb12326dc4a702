"""Threads that read ahead of the caller or write behind it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Queue
from threading import Thread
from typing import Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Indexed(Protocol[T_co]):
    """Map-style dataset; several threads may call it."""

    def __getitem__(self, index: int, /) -> T_co:
        """Return item `index`."""


class Prefetcher(Generic[T]):
    """Iterates over `source[i] for i in indices`, computed ahead by threads, in order.

    Raster reading and decoding release the interpreter lock, so that threads suffice. An error is
    raised when its item is due. Closing the iterator joins the threads.

    Args:
        source: Dataset; with a single thread its items are computed in order.
        indices: Numbers of the items.
        threads: Number of threads; 0 computes items in the caller's thread.
        ahead: Largest number of items that wait for the caller.
    """

    def __init__(
        self, source: Indexed[T], indices: Iterable[int], *, threads: int, ahead: int = 4
    ) -> None:
        self.source, self.indices = source, indices
        self.threads, self.ahead = threads, max(ahead, threads)
        self.waited = 0.0
        """Seconds for which the caller has waited."""

    def __iter__(self) -> Generator[T, None, None]:
        """Yield the items in order."""
        if self.threads == 0:
            for index in self.indices:
                yield self._timed(partial(self.source.__getitem__, index))
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="rsseg-read") as pool:
            waiting: deque[Future[T]] = deque()
            try:
                for index in self.indices:
                    waiting.append(pool.submit(self.source.__getitem__, index))
                    if len(waiting) > self.ahead:
                        yield self._timed(waiting.popleft().result)
                while waiting:
                    yield self._timed(waiting.popleft().result)
            finally:
                for future in waiting:
                    future.cancel()

    def _timed(self, get: Callable[[], T]) -> T:
        started = time.perf_counter()
        item = get()
        self.waited += time.perf_counter() - started
        return item


class BackgroundWriter(Generic[T]):
    """Context manager that calls `work(item)` in a thread, with at most `depth` items waiting.

    An error in the thread is raised by the next `put`, or when the block ends.
    """

    def __init__(self, work: Callable[[T], None], depth: int) -> None:
        self._queue: Queue[tuple[T] | None] = Queue(depth)
        self._work = work
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="rsseg-write", daemon=True)

    def __enter__(self) -> BackgroundWriter[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def put(self, item: T) -> None:
        """Queue an item; blocks while `depth` items wait."""
        if self._error is not None:
            raise self._error
        self._queue.put((item,))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:  # after an error the queue is only emptied
                try:
                    self._work(item[0])
                except BaseException as error:
                    self._error = error
