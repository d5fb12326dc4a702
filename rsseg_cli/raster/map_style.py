"""Grid of a map, and meaning of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import rasterio

from rsseg_cli.classes import Class


@dataclass(frozen=True)
class ControlPoints:
    """Ground control points: (column, row, x, y, z) each, the first two in pixels."""

    crs: rasterio.CRS | None
    points: tuple[tuple[float, float, float, float, float], ...]


@dataclass(frozen=True)
class MapGrid:
    """Grid of a map, which is exactly that of its scene; the attributes are those of `Scene`."""

    width: int
    height: int
    crs: rasterio.CRS | None
    transform: rasterio.Affine
    gcps: ControlPoints | None = None
    acquired: datetime | None = None


@dataclass(frozen=True)
class MapStyle:
    """Meaning of the values of a map.

    Attributes:
        bands: Names of the bands.
        classes: Classes of a class map; empty for a map of quantities.
        scale: Quantity per unit of the stored values.
        tags: Provenance of the map (model, method, ...), stored in the file.
    """

    bands: tuple[str, ...]
    classes: tuple[Class, ...] = ()
    scale: float = 1.0
    tags: Mapping[str, str] = field(default_factory=dict)
