"""Size and area of pixels on the ground."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import rasterio


def pixel_area_m2(crs: rasterio.CRS | None, transform: rasterio.Affine) -> float | None:
    """Return the area of a pixel in square metres, by the unit of length of the CRS.

    None without a projected CRS: pixels in degrees differ in area, and rasterio does not tell the
    unit of a local CRS.
    """
    if crs is None or not crs.is_projected:
        return None
    metres = float(crs.linear_units_factor[1])
    return float(abs(transform.determinant)) * metres**2


def pixel_size_m(crs: rasterio.CRS | None, transform: rasterio.Affine) -> float | None:
    """Return the side of a square with the area of a pixel in metres, None where unknown."""
    area = pixel_area_m2(crs, transform)
    return None if area is None else math.sqrt(area)


def ellipsoid_areas_m2(outlines: Iterable[Any], wkt: str) -> list[float]:
    """Return the areas of polygons in degrees in square metres, on the ellipsoid of their CRS."""
    from pyproj import CRS  # slow to import, and few maps are in degrees

    ellipsoid = CRS(wkt).get_geod()
    assert ellipsoid is not None  # a CRS in degrees has one
    return [abs(ellipsoid.geometry_area_perimeter(outline)[0]) for outline in outlines]
