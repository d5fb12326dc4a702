"""What a step minimises: `fit` and `adapt` differ by the objective they hand to the loop."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json


class Objective(Protocol):
    """Names the weighted terms of a loss for one batch on the model's device.

    Every random number comes from torch's global generator, which the loop seeds per step: a
    step is a pure function of weights, batch and step number.
    """

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Run the model forward and return its loss terms."""

    def undo(self) -> None:
        """Forget the calls since the last `after_step`: the step begins anew."""

    def after_step(self, model: Segmenter, step: int) -> None:
        """Follow an update of the model (a teacher's moving average)."""

    def record(self) -> dict[str, Json]:
        """Return what the objective adds to a line of `metrics.jsonl`."""

    def state(self) -> dict[str, Tensor]:
        """Collect what must survive a restart."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` collected."""


class Supervised:
    """Learns from labelled tiles: standardise, augment on the device, compare with the labels.

    Args:
        augment: Changes image and labels together.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the head's losses and the method's own terms."""
        generator = generator_like(batch.image)
        image = model.standardise(batch.image)
        image, label = self.augment(image, batch.label, generator)
        losses: dict[str, Tensor] = model(image, label)
        return losses

    def undo(self) -> None:
        """Do nothing: calls leave nothing behind."""

    def after_step(self, model: Segmenter, step: int) -> None:
        """Do nothing: there is nothing beside the model."""

    def record(self) -> dict[str, Json]:
        """Return nothing: the losses say it all."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return nothing: all state is in the model."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""


def generator_like(tensor: Tensor) -> torch.Generator:
    """Make a generator on the tensor's device, seeded from the global CPU generator.

    The seed is drawn on the CPU, so the device is not waited for.
    """
    seed = int(torch.randint(0, 2**62, (1,)).item())
    return torch.Generator(device=tensor.device).manual_seed(seed)
