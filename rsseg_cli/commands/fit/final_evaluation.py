"""Evaluates the best model on the validation set, tile by tile."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE
from rsseg_cli.commands.fit.validation import Validation
from rsseg_cli.contract import Bands
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.raster.decode import Labels
from rsseg_cli.report.tile_gallery import TileSample, subsample
from rsseg_cli.segmenter import Segmenter

SHOWN = 256
"""Side in pixels of tiles in the report."""
LABELLED = 0.1
"""Smallest fraction of labelled pixels in a tile that is shown in the report."""


def shown_bands(bands: Bands) -> tuple[int, ...]:
    """Return the bands of a picture, from 0: red, green, blue; else the first three; else one."""
    return bands.rgb() or ((0, 1, 2) if len(bands) >= 3 else (0,))


@torch.inference_mode()
def final_evaluation(model: Segmenter, validation: Validation, rgb: tuple[int, ...]) -> Evaluation:
    """Evaluate a model on tiles: intervals, scenes, domains, calibration, best and worst tiles.

    The model is left in eval mode; `rgb` are the bands of the pictures, from 0.
    """
    evaluation = Evaluation.empty(validation.classes, boundary_px=None)
    for batch, probabilities in validation.predict(model):
        confidence, predicted = (part.cpu().numpy() for part in probabilities.float().max(1))
        for index in range(len(predicted)):
            labels = predicted[index].astype(np.uint8)
            _add(evaluation, batch, index, labels, confidence[index], rgb)
    return evaluation


def _add(
    evaluation: Evaluation,
    batch: Batch,
    index: int,
    predicted: Labels,
    confidence: NDArray[np.float32],
    rgb: tuple[int, ...],
) -> None:
    """Add one tile of a batch."""
    truth = batch.label[index].numpy()
    valid = truth != IGNORE
    if not valid.any():
        return
    matrix = ConfusionMatrix(evaluation.classes)
    matrix.update(predicted, truth)
    evaluation.add(batch.names[index], batch.domains[index], [matrix])
    evaluation.calibration.update(confidence[valid], (predicted == truth)[valid])
    miou = matrix.scores().miou
    if miou is not None and valid.mean() > LABELLED:
        image = batch.image[index][list(rgb)].numpy()
        load = partial(_sample, batch.names[index], miou, truth, predicted, image)
        evaluation.gallery.add(miou, load)


def _sample(
    name: str, score: float, truth: Labels, predicted: Labels, image: NDArray[np.generic]
) -> TileSample:
    small = (subsample(array, SHOWN).copy() for array in (truth, predicted, image))
    return TileSample(name, score, *small)
