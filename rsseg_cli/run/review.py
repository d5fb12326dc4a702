"""Looks once more, closely, at the held-back ground with the model that a fit kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg_cli.bands import Bands
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.covering import CoveringTiles
from rsseg_cli.data.tiles import Batch
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.raster.decode import Labels
from rsseg_cli.report.samples import Sample, shrink
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.threads import Prefetcher
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.prefetch import pinned

SHOWN = 256
"""Side in pixels at which tiles are shown."""
LABELLED = 0.1
"""Share of a tile that must have a truth for the tile to be shown."""


def shown_bands(bands: Bands) -> tuple[int, ...]:
    """Choose the bands to show, from 0: red, green and blue, else the first three, else one."""
    return bands.rgb() or ((0, 1, 2) if len(bands) >= 3 else (0,))


@torch.inference_mode()
def review(
    model: Segmenter,
    tiles: CoveringTiles,
    classes: Sequence[Class],
    precision: Precision,
    *,
    rgb: tuple[int, ...],
    threads: int,
) -> Evaluation:
    """Score every tile on its own: intervals, scenes, domains, calibration, best and worst tiles.

    Args:
        model: On its device; left in eval mode.
        tiles: The held-back ground.
        classes: What the indices mean.
        precision: Autocast of the forward pass.
        rgb: Bands to show, from 0.
        threads: Readers.
    """
    model.eval()
    found = Evaluation.of(classes, boundary_px=None)
    for batch in Prefetcher(pinned(tiles, precision.device), range(len(tiles)), threads=threads):
        with precision.autocast():
            shares = model.infer(batch.image.to(precision.device))
        sure, best = (part.cpu().numpy() for part in shares.float().max(1))
        for index in range(len(best)):
            _add(found, batch, index, best[index].astype(np.uint8), sure[index], rgb)
    return found


def _add(
    found: Evaluation,
    batch: Batch,
    index: int,
    predicted: Labels,
    sure: NDArray[np.float32],
    rgb: tuple[int, ...],
) -> None:
    """Add one tile of a batch."""
    truth = batch.label[index].numpy()
    known = truth != IGNORE
    if not known.any():
        return
    matrix = ConfusionMatrix(found.classes)
    matrix.update(predicted, truth)
    found.add(batch.names[index], batch.domains[index], [matrix])
    found.calibration.update(sure[known], (predicted == truth)[known])
    miou = matrix.scores().miou
    if miou is not None and known.mean() > LABELLED:
        image = batch.image[index][list(rgb)].numpy()
        load = partial(_sample, batch.names[index], miou, truth, predicted, image)
        found.gallery.consider(miou, load)


def _sample(
    name: str, score: float, truth: Labels, predicted: Labels, image: NDArray[np.generic]
) -> Sample:
    small = (shrink(one, SHOWN).copy() for one in (truth, predicted, image))
    return Sample(name, score, *small)
