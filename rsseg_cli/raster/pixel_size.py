"""Size and area of pixels on the ground."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import rasterio


def pixel_area_m2(crs: rasterio.CRS | None, transform: rasterio.Affine) -> float | None:
    """Return the area of a pixel in square metres, by the unit of length of the CRS.

    It is None without a projected CRS: pixels in degrees differ in area, and rasterio does not
    expose the unit of a local CRS.
    """
    if crs is None or not crs.is_projected:
        return None
    metres = float(crs.linear_units_factor[1])
    return float(abs(transform.determinant)) * metres**2


def pixel_hectares(crs: rasterio.CRS | None, transform: rasterio.Affine) -> float | None:
    """Return the area of a pixel in hectares; None if unknown."""
    area = pixel_area_m2(crs, transform)
    return None if area is None else area / 10_000


def pixel_size_m(crs: rasterio.CRS | None, transform: rasterio.Affine) -> float | None:
    """Return the side in metres of a square with the area of a pixel; None if unknown."""
    area = pixel_area_m2(crs, transform)
    return None if area is None else math.sqrt(area)


def ellipsoid_areas_m2(outlines: Iterable[Any], wkt: str) -> list[float]:
    """Return the areas in square metres of polygons in degrees, on the ellipsoid of their CRS."""
    from pyproj import CRS  # slow to import, and needed for few maps only

    ellipsoid = CRS(wkt).get_geod()
    assert ellipsoid is not None  # set for every CRS in degrees
    return [abs(ellipsoid.geometry_area_perimeter(outline)[0]) for outline in outlines]
