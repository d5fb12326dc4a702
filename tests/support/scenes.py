"""Tiny rasters of every kind, written on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from rsseg_cli.raster.grid import Axis, Window

NORTH_UP = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)
ROTATED = rasterio.Affine(8.66, -5.0, 500_000.0, -5.0, -8.66, 5_300_000.0)
SOUTH_UP = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, 10.0, 5_300_000.0)

WriteScene = Callable[..., Path]


def windows(width: int, height: int, tile: int, overlap: int = 0) -> Iterator[Window]:
    """Cover a scene with square windows, row by row; outer ones extend beyond its border."""
    across, down = Axis(width, tile, overlap), Axis(height, tile, overlap)
    for row in range(down.count):
        for column in range(across.count):
            yield Window(across.start(column), down.start(row), tile, tile)


def random_samples(
    count: int, height: int, width: int, dtype: str = "uint8", seed: int = 0
) -> NDArray[Any]:
    """Samples (C, H, W) from 1 to 99, smooth enough to compress and never a usual nodata value."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 100, (count, -(-height // 4), -(-width // 4)))
    return coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(dtype)


def write_raster(path: Path, samples: NDArray[Any], **profile: Any) -> Path:
    """Write (C, H, W) as a GeoTIFF in EPSG:32633, tiled in blocks of 64 by default."""
    count, height, width = samples.shape
    settings: dict[str, Any] = {
        "driver": "GTiff", "crs": "EPSG:32633", "transform": NORTH_UP, "tiled": True,
        "blockxsize": 64, "blockysize": 64, "compress": "deflate", "photometric": "minisblack",
        "alpha": "no",
    }  # fmt: skip
    settings |= profile
    settings = {key: value for key, value in settings.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(
            path, "w", width=width, height=height, count=count, dtype=samples.dtype, **settings
        )
    with file:
        file.write(samples)
    return path
