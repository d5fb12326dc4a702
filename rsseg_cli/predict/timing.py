"""Waiting times of the engine, and the number of CPU threads of its own steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Wait:
    """Fractions of the time for which the main thread has waited, 0 to 1."""

    disk: float = 0.0
    device: float = 0.0
    writer: float = 0.0


class Clock:
    """Sum of the waiting times of the main thread."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = {"disk": 0.0, "device": 0.0, "writer": 0.0}

    def add(self, what: Literal["disk", "device", "writer"], since: float) -> None:
        """Add the time from `since` (of `perf_counter`) until now."""
        self._waited[what] += time.perf_counter() - since

    def shares(self) -> Wait:
        """Return the fractions of the time so far."""
        seconds = time.perf_counter() - self._start
        return Wait(**{what: waited / seconds for what, waited in self._waited.items()})


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Set the number of PyTorch's CPU threads inside the block.

    The engine's own steps are small. Spread over threads they would wait for each other while
    readers and writer keep the cores busy, and become many times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
