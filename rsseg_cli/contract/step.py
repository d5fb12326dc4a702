"""Interface of the training loop for the hooks of a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Probe(Protocol):
    """Labelled samples whose gradients a method measures, apart from the training stream."""

    def backward(self) -> float:
        """Return the task loss and store its gradients, replacing all others, in `.grad`.

        They are fp32 and unscaled. Each call uses the same samples, crops, matching points and
        random numbers.
        """


class Step(Protocol):
    """The current training step."""

    index: int
    """Number of this step, from 0."""
    total: int
    """Number of steps of the whole run."""

    def probes(self, count: int, *, samples: int = 1) -> Iterator[Probe]:
        """Yield `count` probes of `samples` images each; several processes divide them.

        No parameter is updated, the training stream is not used, and gradients are removed after
        the last probe.
        """

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place; all of them must call it."""
