"""Small datasets on disk: images, labels as rasters and labels as polygons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from scenes import NORTH_UP, random_samples, write_raster
from shapely.geometry import box

PNG = {
    "driver": "PNG", "tiled": None, "blockxsize": None, "blockysize": None, "compress": None,
    "photometric": None, "alpha": None, "crs": None, "transform": None,
}  # fmt: skip


def folder(root: Path, count: int = 2, bands: int = 3, dtype: str = "uint8") -> Path:
    """Images a, b, ... of 96 x 64 pixels with labels of the classes 1 and 2."""
    for name in "abcdefgh"[:count]:
        image(root, f"images/{name}.tif", bands, dtype)
        label(root, f"labels/{name}.tif")
    return root


def image(root: Path, path: str, bands: int = 3, dtype: str = "uint8", **profile: Any) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    return write_raster(root / path, random_samples(bands, 64, 96, dtype), **profile)


def label(root: Path, path: str, values: tuple[int, ...] = (1, 2), **profile: Any) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    ids = np.resize(np.array(values, np.uint8), (8, 12)).repeat(8, 0).repeat(8, 1)
    return write_raster(root / path, ids[None], **profile)


def polygons(root: Path, path: str, **columns: list[Any]) -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    x, y = NORTH_UP.c, NORTH_UP.f
    count = len(next(iter(columns.values())))
    shapes = [box(x + 100 * i, y - 300, x + 100 * i + 90, y - 20) for i in range(count)]
    geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32633").to_file(root / path)
    return root / path


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
