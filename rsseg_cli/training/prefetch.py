"""Read-ahead of the next batches while the device works on this one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from rsseg_cli.data.tiles.tile_stream import Batch

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Indexed(Protocol[T_co]):
    """Source of numbered items; called from several threads."""

    def __getitem__(self, index: int, /) -> T_co:
        """Return item `index`."""


@dataclass(frozen=True)
class _Pinned:
    source: Indexed[Batch]

    def __getitem__(self, index: int) -> Batch:
        return self.source[index].pin_memory()


def pinned(source: Indexed[Batch], device: torch.device) -> Indexed[Batch]:
    """Return the source with pinned batches for a GPU; else the source itself."""
    return _Pinned(source) if device.type == "cuda" else source


class Prefetch(Generic[T]):
    """Iterator over `source[i] for i in indices`, read ahead in order by threads.

    Raster reading and decoding release the interpreter's lock, so threads with their own handles
    need no processes and no copies between them.

    Args:
        source: Source of the items.
        indices: Which items, in order.
        threads: Number of reader threads; 0 reads in the caller's thread.
        ahead: Items read ahead.
    """

    def __init__(
        self, source: Indexed[T], indices: Iterable[int], *, threads: int, ahead: int = 4
    ) -> None:
        self.source, self.indices = source, indices
        self.threads, self.ahead = threads, max(ahead, threads)
        self.waited = 0.0
        """Seconds that the caller has waited for items."""

    def __iter__(self) -> Iterator[T]:
        """Yield the items in order; an error of a reader is raised here."""
        if self.threads == 0:
            for index in self.indices:
                started = time.perf_counter()
                item = self.source[index]
                self.waited += time.perf_counter() - started
                yield item
            return
        with ThreadPoolExecutor(self.threads, thread_name_prefix="read") as pool:
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
