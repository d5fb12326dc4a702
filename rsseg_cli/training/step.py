"""What a method sees of the loop: the step, and probes that leave the training stream alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli.data.tiles import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import distributed
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import Indexed

PROBE_STREAM = 0x5EED
"""Keeps the random numbers of probes apart from those of the training stream."""


def seed_for(seed: int, step: int, stream: int = 0) -> int:
    """Derive the seed of a step, the same in every process and after a restart."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)


@dataclass
class TaskProbe:
    """A labelled batch of its own and the seed of its random numbers; see `contract.Probe`."""

    model: Segmenter
    objective: Objective
    batch: Batch
    precision: Precision
    seed: int

    def backward(self) -> float:
        """Leave fresh gradients of the task loss in `.grad`; return the loss."""
        self.model.zero_grad(set_to_none=True)
        devices = [self.batch.image.device] if self.batch.image.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.seed)
            with self.precision.probing():
                loss = torch.stack(list(self.objective(self.model, self.batch).values())).sum()
            torch.autograd.backward(loss)
        return float(loss.detach())


@dataclass
class TrainingStep:
    """One update of the loop; see `contract.Step`.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the run.
        open_probes: Opens a stream of labelled batches of a given size, apart from training.
    """

    index: int
    total: int
    model: Segmenter
    objective: Objective
    precision: Precision
    device: torch.device
    seed: int
    open_probes: Callable[[int], Indexed[Batch]]

    def probes(self, count: int, *, samples: int = 1) -> Iterator[TaskProbe]:
        """Draw this process' share of `count` probes; afterwards no gradient is left."""
        stream = self.open_probes(samples)
        try:
            for number in range(distributed.rank(), count, distributed.world()):
                position = self.index * count + number
                yield TaskProbe(
                    self.model,
                    self.objective,
                    stream[position].to(self.device),
                    self.precision,
                    seed_for(self.seed, position, PROBE_STREAM),
                )
        finally:
            self.model.zero_grad(set_to_none=True)

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place."""
        return distributed.average(tensor)
