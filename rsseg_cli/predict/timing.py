"""Waiting times of the engine's main thread, and its number of CPU threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Wait:
    """Fractions of the time, 0 to 1, for which the main thread has waited."""

    disk: float = 0.0
    device: float = 0.0
    writer: float = 0.0


class WaitTimer:
    """Sum of the waiting times of the main thread."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = {"disk": 0.0, "device": 0.0, "writer": 0.0}

    def add(self, kind: Literal["disk", "device", "writer"], since: float) -> None:
        """Add the time from `since` (of `perf_counter`) until now."""
        self._waited[kind] += time.perf_counter() - since

    def fractions(self) -> Wait:
        """Return the fractions of the time so far."""
        seconds = time.perf_counter() - self._start
        return Wait(**{kind: waited / seconds for kind, waited in self._waited.items()})


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads inside the block.

    With several threads the engine's small operations would become many times slower: readers and
    writer keep the other cores busy.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
