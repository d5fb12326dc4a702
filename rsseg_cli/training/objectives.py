"""Training objectives: `fit` and `adapt` pass different ones to the same loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

from rsseg_cli.data.tiles.augment import Augment, tile_generators
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json


class Objective(Protocol):
    """Computes the weighted terms of the loss for one batch on the model's device.

    What happens to a tile follows from its seed (`Batch.seeds`); what the model itself draws comes
    from torch's generators, which the loop seeds. A step is a pure function of weights, batch and
    step number.
    """

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Run the model forward and return its loss terms."""

    def worst_case(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of a step that takes the most memory; nothing is recorded."""

    def unrecorded(self) -> AbstractContextManager[None]:
        """Keep calls inside the block out of `record`: they are not part of the training."""

    def after_step(self, model: Segmenter, step: int) -> None:
        """Follow an update of the model (the EMA of a teacher)."""

    def record(self) -> dict[str, Json]:
        """Return what the objective adds to a line of `metrics.jsonl`."""

    def state(self) -> dict[str, Tensor]:
        """Return what must survive a restart."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load what `state` returned."""


class Supervised:
    """Supervised loss on labelled tiles, standardised and augmented on the device.

    Args:
        augment: Changes image and labels together.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the head's losses and the method's own terms."""
        image = model.standardise(batch.image)
        generators = tile_generators(batch.seeds, image.device)
        image, label = self.augment(image, batch.label, generators)
        losses: dict[str, Tensor] = model(image, label)
        return losses

    def worst_case(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms: all steps take the same memory."""
        return self(model, batch)

    def unrecorded(self) -> AbstractContextManager[None]:
        """Do nothing: there is no record."""
        return nullcontext()

    def after_step(self, model: Segmenter, step: int) -> None:
        """Do nothing: all state is in the model."""

    def record(self) -> dict[str, Json]:
        """Return nothing beside the losses."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return nothing: all state is in the model."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""
