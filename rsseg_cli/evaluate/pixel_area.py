"""How much ground a pixel covers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.labels import Placed
from rsseg_cli.raster.pixel_size import pixel_area_m2

M2_PER_HECTARE = 10_000.0
_ROWS = 64
"""Rows counted at a time: bincount takes 8 bytes per pixel."""


def hectares_per_pixel(place: Placed) -> float | None:
    """Give the ground of a pixel; None where the CRS has no unit of length."""
    area = pixel_area_m2(place.crs, place.transform)
    return None if area is None else area / M2_PER_HECTARE


def count_classes(labels: Labels, classes: int) -> NDArray[np.int64]:
    """Count the pixels (K,) of class indices (h, w)."""
    counts = np.zeros(256, np.int64)
    for start in range(0, len(labels), _ROWS):
        counts += np.bincount(labels[start : start + _ROWS].ravel(), minlength=256)
    return counts[:classes]
