"""Grid and content of a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import rasterio

from rsseg_cli.classes import Class


@dataclass(frozen=True)
class ControlPoints:
    """Ground control points of a scene without a transform.

    Attributes:
        crs: Coordinate reference system of the points, None when unknown.
        points: Column, row, x, y and z of each, the first two in pixels.
    """

    crs: rasterio.CRS | None
    points: tuple[tuple[float, float, float, float, float], ...]


@dataclass(frozen=True)
class MapGrid:
    """The grid of a map, which is exactly that of its scene.

    Attributes:
        width: Columns.
        height: Rows.
        crs: Coordinate reference system, None when unknown.
        transform: Pixel corners to the CRS.
        control: Ground control points, where the scene has these instead of a transform.
        acquired: When the scene was taken, None when unknown.
    """

    width: int
    height: int
    crs: rasterio.CRS | None
    transform: rasterio.Affine
    control: ControlPoints | None = None
    acquired: datetime | None = None


@dataclass(frozen=True)
class MapStyle:
    """What the values of a map mean.

    Attributes:
        bands: Names of the bands.
        classes: Classes of a class map; empty for maps of quantities.
        scale: Quantity = stored value * scale; for maps of quantities.
        tags: How the map was made, kept in the file.
    """

    bands: tuple[str, ...]
    classes: tuple[Class, ...] = ()
    scale: float = 1.0
    tags: Mapping[str, str] = field(default_factory=dict)
