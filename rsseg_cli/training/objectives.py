"""Training objectives: `fit` and `adapt` pass different ones to the same loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from rsseg_cli.data.tiles.augment import Augment, tile_generators
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json


class Objective(ABC):
    """Computes the weighted loss terms of a batch on the model's device.

    All random numbers come from the tiles' seeds (`Batch.seeds`) and from torch's generators,
    which the loop seeds: a step is a pure function of weights, batch and step number.

    An objective with a state of its own overrides the other methods.
    """

    @abstractmethod
    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Run the model forward and return its loss terms."""

    def worst_case(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of a step that takes the most memory; nothing is recorded."""
        return self(model, batch)

    def unrecorded(self) -> AbstractContextManager[None]:
        """Exclude calls inside the block from `record`, because they do not train."""
        return nullcontext()

    def after_step(self, model: Segmenter, step: int) -> None:  # noqa: B027
        """Follow an update of the model (for the EMA of a teacher)."""

    def record(self) -> dict[str, Json]:
        """Return additional entries for a line of `metrics.jsonl`."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the state that `restore` needs to resume a run."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Load the state of an interrupted run."""


class Supervised(Objective):
    """Supervised loss on labelled tiles, standardised and augmented on the device."""

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        """Return the head's losses and the method's own terms."""
        image = model.standardise(batch.image)
        generators = tile_generators(batch.seeds, image.device)
        image, label = self.augment(image, batch.label, generators)
        losses: dict[str, Tensor] = model(image, label)
        return losses
