"""What a method sees of the loop: the step, and probes that leave the training stream alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.data.tiles import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.passes import backward
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.room import Buffers, Room

PROBE_STREAM = 0x5EED
"""Keeps the random numbers of probes apart from those of the training stream."""


def seed_for(seed: int, step: int, stream: int = 0) -> int:
    """Derive the seed of a step, the same in every process and after a restart."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)


@dataclass
class TaskProbe:
    """A labelled batch of its own and the seed of its random numbers; see `rsseg_cli.step.Probe`.

    Where memory runs out it is cut into pieces, as the training's passes are.
    """

    model: Segmenter
    objective: Objective
    batch: Batch
    precision: Precision
    seed: int
    room: Room

    def backward(self) -> float:
        """Leave fresh gradients of the task loss in `.grad`; return the loss."""
        buffers = Buffers(self.model.method, self.model.head)
        loss = self.room.run(self._backward, buffers.restore, lambda: self.batch)
        return float(loss)

    def _backward(self) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        devices = [self.batch.image.device] if self.batch.image.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            terms = backward(
                self.model,
                self.objective,
                [self.room.cut(self.batch)],
                count=1,
                seed=self.seed,
                autocast=self.precision.probing,
            )
        return torch.stack(list(terms.values())).sum()


@dataclass
class TrainingStep:
    """One update of the loop; see `rsseg_cli.step.Step`.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the run.
        open_probes: Opens a stream of labelled batches of a given size, apart from training.
        room: Knows how many images fit into memory.
    """

    index: int
    total: int
    model: Segmenter
    objective: Objective
    precision: Precision
    device: torch.device
    seed: int
    open_probes: Callable[[int], Indexed[Batch]]
    room: Room = field(default_factory=Room)

    def probes(self, count: int, *, samples: int = 1) -> Iterator[TaskProbe]:
        """Draw this process' share of `count` probes; afterwards no gradient is left."""
        stream = self.open_probes(samples)
        try:
            for number in range(distributed.rank(), count, distributed.world_size()):
                position = self.index * count + number
                yield TaskProbe(
                    self.model,
                    self.objective,
                    stream[position].to(self.device),
                    self.precision,
                    seed_for(self.seed, position, PROBE_STREAM),
                    self.room,
                )
        finally:
            self.model.zero_grad(set_to_none=True)
            self.objective.undo()  # what was said of probes is no part of the training

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place."""
        return distributed.average(tensor)
