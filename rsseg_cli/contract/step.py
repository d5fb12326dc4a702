"""What the training loop tells a method around an update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor


class Probe(Protocol):
    """Some labelled samples with random numbers of their own, outside the training stream."""

    def backward(self) -> float:
        """Put fresh gradients of the task loss into `.grad` of all that requires them.

        Gradients that were there are dropped first; they are fp32 and unscaled. Called twice it
        uses the same samples, crops, matching points and random numbers. Returns the loss.
        """


class Step(Protocol):
    """What the loop tells a method around an update."""

    index: int
    """Number of this step, from 0."""
    total: int
    """Number of steps of the whole run."""

    def probes(self, count: int, *, samples: int = 1) -> Iterator[Probe]:
        """Draw `count` probes of `samples` images each; never touches the training stream.

        Nothing is updated. After the last one the gradients are gone. Under several processes
        each draws its own share of `count`.
        """

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place; all of them must call it."""
