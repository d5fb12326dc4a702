"""Scores a model on held-back ground while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import Class
from rsseg_cli.data.covering import CoveringTiles
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.plain import Json
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import pinned


def inferred(
    model: Segmenter, tiles: CoveringTiles, precision: Precision, *, threads: int, gain: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give what a model says about tiles, and their labels; the model is left in eval mode.

    Yields:
        Probabilities (B, K, T, T) and class indices (B, T, T), on the device.
    """
    model.eval()
    source = pinned(tiles, precision.device)
    for batch in Prefetcher(source, range(len(tiles)), threads=threads):
        moved = batch.to(precision.device)
        image = moved.image if gain == 1.0 else moved.image * gain
        with precision.autocast():
            scores = model.infer(image)
        yield scores, moved.label


@dataclass
class Validation:
    """Runs a model over tiles that cover the ground, and counts.

    Attributes:
        tiles: This process' share of the tiles.
        classes: What the indices mean.
        precision: Autocast of the forward pass.
        threads: Readers.
        gain: Factor from stored values to the model's unit.
    """

    tiles: CoveringTiles
    classes: Sequence[Class]
    precision: Precision
    threads: int
    gain: float = 1.0

    @torch.inference_mode()
    def __call__(self, model: Segmenter) -> dict[str, Json]:
        """Give the score object; the model is left in eval mode."""
        matrix = ConfusionMatrix(self.classes)
        walk = inferred(model, self.tiles, self.precision, threads=self.threads, gain=self.gain)
        for scores, label in walk:
            matrix.update(scores.argmax(1), label)
        counts = torch.from_numpy(matrix.counts).to(self.precision.device)
        summed = distributed.total(counts).cpu().numpy()
        return ConfusionMatrix(self.classes, summed).scores().to_json()
