"""Validates a model during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import Class
from rsseg_cli.commands.fit.run_tiles import RunTiles
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import pinned


@dataclass
class Validation:
    """Computes the scores of a model on the validation set.

    Attributes:
        classes: Class of each index.
        threads: Number of threads that read tiles.
        unit_scale: Factor from stored values to the model's unit.
    """

    tiles: CoveringTiles
    classes: Sequence[Class]
    precision: Precision
    threads: int
    unit_scale: float = 1.0

    @classmethod
    def of(
        cls, sources: Sources, tiles: RunTiles, precision: Precision, *, whole: bool = False
    ) -> Validation | None:
        """Return the validation on labelled data; None without a validation set.

        It takes the shard of this process, or all tiles if `whole`.
        """
        if not sources.validation:
            return None
        covering = tiles.covering(sources.validation, whole=whole)
        return cls(covering, sources.classes, precision, tiles.config.training.num_workers)

    def predict(self, model: Segmenter) -> Iterator[tuple[Batch, Tensor]]:
        """Predict the tiles; the model is left in eval mode.

        Yields:
            A batch on the CPU, and its class probabilities (B, K, T, T) on the device.
        """
        model.eval()
        device = self.precision.device
        numbers = range(len(self.tiles))
        for batch in Prefetcher(pinned(self.tiles, device), numbers, threads=self.threads):
            image = batch.image.to(device, non_blocking=True)
            with self.precision.autocast():
                probabilities = model.infer(
                    image if self.unit_scale == 1.0 else image * self.unit_scale
                )
            yield batch, probabilities

    @torch.inference_mode()
    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Return the scores; the model is left in eval mode."""
        matrix, device = ConfusionMatrix(self.classes), self.precision.device
        for batch, probabilities in self.predict(model):
            matrix.update(probabilities.argmax(1), batch.label.to(device, non_blocking=True))
        counts = distributed.reduce_sum(torch.from_numpy(matrix.counts).to(device))
        return ConfusionMatrix(self.classes, counts.cpu().numpy()).scores().to_json()
