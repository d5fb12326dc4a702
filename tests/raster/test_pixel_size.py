"""Sizes and areas of pixels are those on the ellipsoid."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.pixel_size import PixelAreas, pixel_area_m2, pixel_size_m

BOSTON = rasterio.Affine(10, 0, -7_910_000, 0, -10, 5_215_000)
GRIDS = [
    ("EPSG:3857", BOSTON, (120, 90)),
    ("EPSG:3857", rasterio.Affine(20_000, 0, -7_910_000, 0, -20_000, 10_000_000), (30, 900)),
    ("EPSG:4326", rasterio.Affine(0.0001, 0, 13, 0, -0.0001, 42), (120, 90)),
    ("EPSG:4326", rasterio.Affine(0.25, 0, -180, 0, -0.25, 85), (1440, 680)),
    ("EPSG:4326", rasterio.Affine(0.1, 0, 175, 0, -0.1, 10), (100, 100)),
    ("EPSG:4807", rasterio.Affine(0.001, 0, 5, 0, -0.001, 50), (60, 60)),
    ("EPSG:32633", rasterio.Affine(8.66, -5, 500_000, -5, -8.66, 5_300_000), (200, 300)),
    ("EPSG:32633", rasterio.Affine(100, 0, 100_000, 0, -100, 5_300_000), (9000, 300)),
    ("EPSG:2263", rasterio.Affine(3, 0, 980_000, 0, -3, 200_000), (100, 100)),
    ("EPSG:3413", rasterio.Affine(1000, 0, -500_000, 0, -1000, 500_000), (1000, 1000)),
]


def grid_of(crs: str | None, transform: rasterio.Affine, size: tuple[int, int]) -> Any:
    known = None if crs is None else rasterio.CRS.from_user_input(crs)
    return SimpleNamespace(crs=known, transform=transform, width=size[0], height=size[1])


def equal_area(grid: Any, column: int, row: int) -> float:
    """Return the area of a pixel in an equal-area projection around it."""
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    points = [grid.transform @ (column + x, row + y) for x, y in corners]
    outline = shapely.segmentize(shapely.Polygon(points), abs(grid.transform.a) / 20)
    lon, lat = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(
        *points[0]
    )
    local = f"+proj=laea +lon_0={lon} +lat_0={lat} +ellps=WGS84"
    to_local = Transformer.from_crs(grid.crs.to_wkt(), local, always_xy=True)
    return shapely.transform(outline, lambda xy: np.stack(to_local.transform(*xy.T), 1)).area


@pytest.mark.parametrize(("crs", "transform", "size"), GRIDS)
def test_areas_are_those_of_an_equal_area_projection(
    crs: str, transform: rasterio.Affine, size: tuple[int, int]
) -> None:
    grid = grid_of(crs, transform, size)
    areas = PixelAreas.of(grid)
    assert areas is not None
    width, height = size
    whole = areas.within(Window(0, 0, width, height))
    assert whole.shape == (height, width)
    for column, row in [(0, 0), (width - 1, 0), (width // 2, height // 2), (5, height - 1)]:
        known = equal_area(grid, column, row)
        assert whole[row, column] == pytest.approx(known, rel=1e-3)
        assert areas.within(Window(column, row, 1, 1))[0, 0] == pytest.approx(whole[row, column])
    middle = equal_area(grid, width // 2, height // 2)
    assert pixel_area_m2(grid) == pytest.approx(middle, rel=5e-3 if size[1] > 300 else 1e-3)
    assert pixel_size_m(grid) == pytest.approx(pixel_area_m2(grid) ** 0.5, rel=1e-3)


def test_pixels_of_web_mercator_shrink_with_latitude() -> None:
    grid = grid_of("EPSG:3857", BOSTON, (100, 100))
    assert pixel_size_m(grid) == pytest.approx(10 * np.cos(np.radians(42.3)), rel=5e-3)


def test_size_in_a_utm_zone_is_a_round_one() -> None:
    assert pixel_size_m(grid_of(*GRIDS[6])) == pytest.approx(10, rel=1e-4)
    square = rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000)
    assert pixel_size_m(grid_of("EPSG:32633", square, (90, 90))) == 10.0


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (None, BOSTON),
        ('LOCAL_CS["site",UNIT["metre",1]]', BOSTON),
        ('LOCAL_CS["site",UNIT["unknown",1]]', BOSTON),
        ("EPSG:4978", BOSTON),
        ("EPSG:4326", BOSTON),  # latitudes of millions of degrees
    ],
)
def test_areas_are_unknown_off_the_ellipsoid(crs: str | None, transform: rasterio.Affine) -> None:
    grid = grid_of(crs, transform, (64, 64))
    assert PixelAreas.of(grid) is None
    assert pixel_area_m2(grid) is None
    assert pixel_size_m(grid) is None
