"""The size of pixels follows from the unit of the CRS."""

from __future__ import annotations

import pytest
import rasterio

from rsseg_cli.raster.pixel_size import pixel_area_m2, pixel_size_m

TRANSFORM = rasterio.Affine(3, 0, 100, 0, -12, 200)


@pytest.mark.parametrize(
    ("crs", "area"),
    [
        ("EPSG:32633", 36.0),
        ("EPSG:2263", 36 * (1200 / 3937) ** 2),  # US survey feet
        ('LOCAL_CS["site",UNIT["metre",1]]', None),
        ("EPSG:4326", None),
        (None, None),
    ],
)
def test_area_of_a_pixel(crs: str | None, area: float | None) -> None:
    known = None if crs is None else rasterio.CRS.from_user_input(crs)
    assert pixel_area_m2(known, TRANSFORM) == (area and pytest.approx(area))
    assert pixel_size_m(known, TRANSFORM) == (area and pytest.approx(area**0.5))
