"""What the engine waits for, and how much of the machine it lets its own steps have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Wait:
    """Share of the time for which the caller's thread had to wait, 0 to 1."""

    disk: float = 0.0
    device: float = 0.0
    writer: float = 0.0


class Clock:
    """Adds up what the caller's thread waits for."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = {"disk": 0.0, "device": 0.0, "writer": 0.0}

    def add(self, what: Literal["disk", "device", "writer"], since: float) -> None:
        """Count the time from `since` (of `perf_counter`) until now."""
        self._waited[what] += time.perf_counter() - since

    def shares(self) -> Wait:
        """Give the shares of the time so far."""
        seconds = time.perf_counter() - self._start
        return Wait(**{what: waited / seconds for what, waited in self._waited.items()})


@contextmanager
def computing_with(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads of the CPU.

    The engine's own steps are small. Spread over threads they would wait for each other while
    readers and writer keep the cores busy, which makes them many times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
