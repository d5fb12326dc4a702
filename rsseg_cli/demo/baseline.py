"""Nearest-mean classifier: each pixel gets the class with the nearest mean spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.data.tiles.validation_tiles import CoveringTiles
from rsseg_cli.metrics.confusion import ConfusionMatrix


def nearest_mean(train: CoveringTiles, test: CoveringTiles, classes: Sequence[Class]) -> float:
    """Compute class means on `train` and return the mIoU of the nearest mean on `test`."""
    means = _class_means(train, len(classes))
    matrix = ConfusionMatrix(classes)
    for number in range(len(test)):
        batch = test[number]
        image = batch.image.numpy().astype(np.float64)  # (B, C, H, W)
        distances = ((image[:, None] - means[None, :, :, None, None]) ** 2).sum(2)
        matrix.update(distances.argmin(1), batch.label.numpy())
    return matrix.scores().miou or 0.0


def _class_means(tiles: CoveringTiles, classes: int) -> NDArray[np.float64]:
    """Return the mean spectrum of each class (K, C)."""
    sums: NDArray[np.float64] | float = 0.0
    counts = np.zeros(classes)
    for number in range(len(tiles)):
        batch = tiles[number]
        pixels = batch.image.numpy().astype(np.float64).transpose(0, 2, 3, 1)
        label = batch.label.numpy()
        labelled = label != IGNORE
        one_hot = np.eye(classes)[label[labelled]]
        sums = sums + one_hot.T @ pixels[labelled]
        counts += one_hot.sum(0)
    means: NDArray[np.float64] = sums / counts[:, None]
    return means
