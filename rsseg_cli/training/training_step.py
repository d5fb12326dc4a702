"""A training step as a method sees it, with probes that do not affect the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Indexed
from rsseg_cli.training.gradient_accumulation import accumulate_gradients
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.precision import Precision

PROBE_STREAM = 0x5EED
"""Number of the stream of random numbers for probes."""


def seed_for(seed: int, step: int, stream: int = 0) -> int:
    """Return the seed of a stream of random numbers at a step; it does not change on restart."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)


@dataclass
class TaskProbe:
    """A labelled batch outside the training stream, with its own seed; see `contract.Probe`."""

    model: Segmenter
    objective: Objective
    batch: Batch
    precision: Precision
    seed: int

    def backward(self) -> float:
        """Replace all `.grad` by the gradients of the task loss; return the loss."""
        self.model.zero_grad(set_to_none=True)
        devices = [self.batch.image.device] if self.batch.image.is_cuda else []
        with (
            torch.random.fork_rng(devices),
            torch.enable_grad(),
            self.objective.unrecorded(),
        ):
            terms = accumulate_gradients(
                self.model,
                self.objective,
                iter([self.batch]),
                seeds=[self.seed],
                autocast=self.precision.probing,
            )
        return float(torch.stack(list(terms.values())).sum())


@dataclass
class TrainingStep:
    """One update of the loop; see `rsseg_cli.contract.Step`.

    Attributes:
        index: Number of the step, from 0.
        total: Number of steps of the run.
        open_probes: See `loop.Job`.
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
        """Yield this rank's part of `count` probes; delete all gradients afterwards."""
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
                )
        finally:
            self.model.zero_grad(set_to_none=True)

    def average(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, in place."""
        return distributed.reduce_mean(tensor)
