"""Validates a model during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import Class
from rsseg_cli.commands.fit.job import RunTiles
from rsseg_cli.data.sources import Sources
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import pinned


def predict_tiles(
    model: Segmenter, tiles: CoveringTiles, precision: Precision, *, threads: int, unit_scale: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Predict tiles; the model is left in eval mode.

    Yields:
        Probabilities (B, K, T, T) and class indices (B, T, T), on the device.
    """
    model.eval()
    source = pinned(tiles, precision.device)
    for batch in Prefetcher(source, range(len(tiles)), threads=threads):
        moved = batch.to(precision.device)
        image = moved.image if unit_scale == 1.0 else moved.image * unit_scale
        with precision.autocast():
            probabilities = model.infer(image)
        yield probabilities, moved.label


@dataclass
class Validation:
    """Computes the scores of a model on the validation set.

    Attributes:
        tiles: This process' shard of the tiles.
        classes: Class of each index.
        precision: Autocast of the forward pass.
        threads: Number of reading threads.
        unit_scale: Factor from stored values to the model's unit.
    """

    tiles: CoveringTiles
    classes: Sequence[Class]
    precision: Precision
    threads: int
    unit_scale: float = 1.0

    @classmethod
    def of(cls, sources: Sources, tiles: RunTiles, precision: Precision) -> Validation | None:
        """Return the validation of a run on its labelled data; None without a validation set."""
        if not sources.validation:
            return None
        threads = tiles.config.training.num_workers
        return cls(tiles.covering(sources.validation), sources.classes, precision, threads)

    @torch.inference_mode()
    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Return the scores; the model is left in eval mode."""
        matrix = ConfusionMatrix(self.classes)
        for probabilities, label in predict_tiles(
            model, self.tiles, self.precision, threads=self.threads, unit_scale=self.unit_scale
        ):
            matrix.update(probabilities.argmax(1), label)
        counts = torch.from_numpy(matrix.counts).to(self.precision.device)
        summed = distributed.reduce_sum(counts).cpu().numpy()
        return ConfusionMatrix(self.classes, summed).scores().to_json()
