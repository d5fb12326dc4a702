"""Size and area of pixels on the ground, on the ellipsoid of the CRS.

Units of a CRS are not lengths on the ground: pixels of EPSG:3857 are too large by the cosine of the
latitude, and pixels in degrees shrink towards the poles. A CRS that is neither projected nor
geographic, such as a local one, has no place on the ellipsoid, so that areas are unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray

from rsseg_cli.raster.grid import Window

NOMINAL = 1e-3
"""Relative difference to the ground below which the pixel size in units of the CRS is reported."""
_NODE_M = 50_000
"""Distance of the nodes between which areas are interpolated."""
_MAX_NODES = 256
"""Largest number of nodes along a side of a raster."""


class GroundGrid(Protocol):
    """Grid of a raster, such as a `Scene` or a file of rasterio."""

    @property
    def width(self) -> int:
        """Number of columns."""

    @property
    def height(self) -> int:
        """Number of rows."""

    @property
    def crs(self) -> rasterio.CRS | None:
        """Coordinate reference system."""

    @property
    def transform(self) -> rasterio.Affine:
        """Pixel corners to the CRS."""


def pixel_area_m2(grid: GroundGrid) -> float | None:
    """Return the area in square metres of a pixel at the centre of a raster; None if unknown."""
    area = float(_areas_m2(grid, np.array(grid.width / 2), np.array(grid.height / 2)))
    return area if math.isfinite(area) else None


def pixel_size_m(grid: GroundGrid) -> float | None:
    """Return the side in metres of a square with the area of a pixel at the centre of a raster.

    It is the size in units of the CRS (10 m, not 10.004 m) if that is right to 0.1 %, as it is
    inside a UTM zone; None if the area is unknown.
    """
    area = pixel_area_m2(grid)
    if area is None or grid.crs is None:
        return None
    size = math.sqrt(area)
    if grid.crs.is_projected:
        metres = float(grid.crs.linear_units_factor[1])
        nominal = math.sqrt(abs(grid.transform.determinant)) * metres
        if abs(nominal - size) <= NOMINAL * size:
            return nominal
    return size


@dataclass(frozen=True)
class PixelAreas:
    """Areas in square metres of all pixels of a raster, interpolated between nodes.

    Attributes:
        nodes: (M, N) areas of the pixels at the nodes, which are evenly spaced from the first to
            the last pixel; NaN outside of the CRS.
        height: Number of rows.
        width: Number of columns.
    """

    nodes: NDArray[np.float64]
    height: int
    width: int

    @classmethod
    def of(cls, grid: GroundGrid) -> PixelAreas | None:
        """Compute the areas at the nodes of a raster; None if they are unknown."""
        centre = pixel_area_m2(grid)
        wanted = _MAX_NODES
        if centre is not None:
            extent = math.sqrt(centre) * max(grid.width, grid.height)
            wanted = min(_MAX_NODES, 2 + math.ceil(extent / _NODE_M))
        x, y = (
            np.linspace(0.5, size - 0.5, min(size, wanted)) for size in (grid.width, grid.height)
        )
        nodes = _areas_m2(grid, *np.meshgrid(x, y))
        return cls(nodes, grid.height, grid.width) if np.isfinite(nodes).any() else None

    def within(self, window: Window) -> NDArray[np.float64]:
        """Return the areas (h, w) of the pixels in a window of the raster."""
        rows = _interpolate(self.nodes, window.y, window.height, self.height)
        return _interpolate(rows.T, window.x, window.width, self.width).T


def _interpolate(
    nodes: NDArray[np.float64], first: int, count: int, size: int
) -> NDArray[np.float64]:
    """Interpolate `count` of `size` positions from `first` along axis 0 of evenly spaced nodes."""
    last = len(nodes) - 1
    position = (first + np.arange(count)) * (last / max(1, size - 1))
    lower = position.astype(int).clip(0, last)
    weight = (position - lower)[:, None]
    values: NDArray[np.float64] = nodes[lower] * (1 - weight)
    values += nodes[(lower + 1).clip(0, last)] * weight
    return values


def _areas_m2(
    grid: GroundGrid, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the areas of pixels centred at columns `x` and rows `y`; NaN where unknown.

    A pixel is the parallelogram between the middles of its sides, in geocentric coordinates, which
    have no singularity at the poles or the antimeridian.
    """
    unknown = np.full(x.shape, np.nan)
    if grid.crs is None or not (grid.crs.is_projected or grid.crs.is_geographic):
        return unknown
    surface = _Surface.of(grid.crs.to_wkt())
    if surface is None:
        return unknown
    right, left, below, above = (
        surface.to_geocentric(*(grid.transform @ (x + dx, y + dy)))
        for dx, dy in ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))
    )
    areas: NDArray[np.float64] = np.linalg.norm(np.cross(right - left, below - above), axis=-1)
    return areas


@dataclass(frozen=True)
class _Surface:
    """Ellipsoid of a CRS.

    Attributes:
        axis_m: Semi-major axis in metres.
        eccentricity2: Squared eccentricity.
        transformer: From the CRS to longitude and latitude in the same datum.
        radians: Radians per unit of these.
    """

    axis_m: float
    eccentricity2: float
    transformer: Any
    radians: float

    @staticmethod
    @lru_cache(maxsize=64)
    def of(wkt: str) -> _Surface | None:
        """Return the ellipsoid of a CRS; None if PROJ cannot transform to longitude, latitude."""
        from pyproj import CRS, Transformer  # slow to import
        from pyproj.exceptions import ProjError

        try:
            crs = CRS.from_wkt(wkt)
            geodetic = crs.geodetic_crs
            if geodetic is None or geodetic.ellipsoid is None:
                return None
            transformer = Transformer.from_crs(crs, geodetic, always_xy=True)
        except ProjError:
            return None
        inverse = geodetic.ellipsoid.inverse_flattening
        flattening = 1 / inverse if inverse else 0.0  # 0 denotes a sphere
        return _Surface(
            axis_m=geodetic.ellipsoid.semi_major_metre,
            eccentricity2=flattening * (2 - flattening),
            transformer=transformer,
            radians=geodetic.axis_info[0].unit_conversion_factor,
        )

    def to_geocentric(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transform coordinates to geocentric metres (..., 3); NaN outside of the CRS."""
        longitude, latitude = np.array(self.transformer.transform(x, y)) * self.radians
        valid = np.isfinite(longitude) & (np.abs(latitude) <= np.pi / 2 + 1e-12)
        longitude, latitude = np.where(valid, (longitude, latitude), np.nan)
        radius = self.axis_m / np.sqrt(1 - self.eccentricity2 * np.sin(latitude) ** 2)
        across = radius * np.cos(latitude)
        up = radius * (1 - self.eccentricity2) * np.sin(latitude)
        return np.stack([across * np.cos(longitude), across * np.sin(longitude), up], -1)
