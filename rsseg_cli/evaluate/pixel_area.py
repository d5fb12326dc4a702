"""Area of pixels, and counts of pixels by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.labels import Placed
from rsseg_cli.raster.pixel_size import pixel_area_m2

M2_PER_HECTARE = 10_000.0
_ROWS = 64
"""Rows counted at a time, since bincount takes 8 bytes per pixel."""


def hectares_per_pixel(grid: Placed) -> float | None:
    """Return the area of a pixel; None if the CRS has no unit of length."""
    area = pixel_area_m2(grid.crs, grid.transform)
    return None if area is None else area / M2_PER_HECTARE


def count_classes(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Return the number of pixels (K,) of each class in class indices (h, w)."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[start : start + _ROWS].ravel(), minlength=256)
    return counts[:classes]
