"""Threads that work ahead of or behind the caller."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Thread
from typing import Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Indexed(Protocol[T_co]):
    """Items by number, as a map-style dataset; called from several threads."""

    def __getitem__(self, index: int, /) -> T_co:
        """Make item `index`."""


class Prefetcher(Generic[T]):
    """Iterates over `source[i] for i in indices`, computed ahead by threads, in order.

    Raster reading and decoding release the interpreter's lock, so threads with a handle each
    keep up without copies between processes. An error is raised where its item is taken. Closing
    the iterator joins the threads.

    Args:
        source: Makes the items; a single thread makes them one after the other.
        indices: Numbers of the items, in order.
        threads: Number of threads; 0 makes items in the caller's thread.
        ahead: Items that may wait.
    """

    def __init__(
        self, source: Indexed[T], indices: Iterable[int], *, threads: int, ahead: int = 4
    ) -> None:
        self.source, self.indices = source, indices
        self.threads, self.ahead = threads, max(ahead, threads)
        self.waited = 0.0
        """Seconds that the caller has waited for items."""

    def __iter__(self) -> Generator[T, None, None]:
        """Yield the items in order."""
        if self.threads == 0:
            for index in self.indices:
                started = time.perf_counter()
                item = self.source[index]
                self.waited += time.perf_counter() - started
                yield item
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="rsseg-read") as pool:
            waiting: deque[Future[T]] = deque()
            try:
                for index in self.indices:
                    waiting.append(pool.submit(self.source.__getitem__, index))
                    if len(waiting) > self.ahead:
                        yield self._next(waiting)
                while waiting:
                    yield self._next(waiting)
            finally:
                for future in waiting:
                    future.cancel()

    def _next(self, waiting: deque[Future[T]]) -> T:
        started = time.perf_counter()
        item = waiting.popleft().result()
        self.waited += time.perf_counter() - started
        return item


class BackgroundWriter(Generic[T]):
    """Passes items to `work` in a thread, at most `depth` behind; a context manager.

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
        """Queue an item; blocks while the thread is `depth` behind."""
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
