"""Polygons of a map: every pixel once, valid, and no trace of the strips."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize, shapes, sieve
from scenes import NORTH_UP, ROTATED, write_raster
from scipy import ndimage

from rsseg_cli.classes import Class
from rsseg_cli.errors import RssegError
from rsseg_cli.raster import polygonize
from rsseg_cli.raster.connected_components import label_patches, sieve_patches
from rsseg_cli.raster.polygonize import patches_of, write_polygons

CLASSES = [Class(k, f"class {k}", (k, k, k)) for k in range(6)]
MAPS = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2)
)


@pytest.fixture(autouse=True)
def _narrow_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read few rows at a time, so that small maps have many seams."""
    monkeypatch.setattr(polygonize, "STRIP_PIXELS", 1)
    monkeypatch.setattr(polygonize, "BLOCK", 16)


def ground(height: int = 150, width: int = 130, seed: int = 0) -> np.ndarray:
    """Class ids with long, branching and nested patches, single pixels, and nodata."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), 5)
    values = np.digitize(smooth, np.quantile(smooth, [0.2, 0.5, 0.8])).astype(np.uint8)
    values[rng.random(values.shape) < 0.03] = 4
    values[10:40, 20:60] = 255
    values[:, 100] = 5  # one patch through all strips
    return values


def draw(values: np.ndarray, folder: Path, **settings: object) -> geopandas.GeoDataFrame:
    profile = {"nodata": 255} | {key: settings.pop(key) for key in ("transform", "crs")
                                 if key in settings}  # fmt: skip
    path = write_raster(folder / "map.tif", values[None], **profile)
    count = write_polygons(path, folder / "map.gpkg", CLASSES, **settings)  # type: ignore[arg-type]
    assert {one.name for one in folder.iterdir()} == {"map.tif", "map.gpkg"}
    table = geopandas.read_file(folder / "map.gpkg")
    assert len(table) == count
    return table


def test_polygons_are_those_of_the_whole_map_at_once(tmp_path: Path) -> None:
    values = ground()
    table = draw(values, tmp_path)
    assert table.is_valid.all()
    assert set(table.geom_type) == {"Polygon"}
    known = {
        (value, shapely.normalize(shapely.simplify(shapely.geometry.shape(outline), 0)).wkb)
        for outline, value in shapes(values, values != 255, connectivity=4, transform=NORTH_UP)
    }
    drawn = {
        (value, shapely.normalize(shapely.simplify(outline, 0)).wkb)
        for value, outline in zip(table.class_id, table.geometry, strict=True)
    }
    assert drawn == known
    np.testing.assert_allclose(table.geometry.area, table.area_m2, rtol=1e-3)
    np.testing.assert_allclose(table.pixels * 100, table.area_m2, rtol=1e-3)
    names = dict(zip(table.class_id, table.class_name, strict=True))
    assert names == {k: f"class {k}" for k in range(6)}


def test_areas_sum_to_those_of_the_map_and_burn_back_to_it(tmp_path: Path) -> None:
    values = ground(seed=1)
    table = draw(values, tmp_path, transform=ROTATED)
    pixel = abs(ROTATED.determinant)
    for value, area in table.groupby("class_id").area_m2.sum().items():
        assert area == pytest.approx((values == value).sum() * pixel, rel=1e-3)
    burned = rasterize(
        zip(table.geometry, table.class_id, strict=True), values.shape, fill=255,
        transform=ROTATED, dtype="uint8",
    )  # fmt: skip
    np.testing.assert_array_equal(burned, values)


def test_confidence_is_the_mean_of_a_patch(tmp_path: Path) -> None:
    values = ground()
    sure = np.random.default_rng(0).integers(0, 255, values.shape, "uint8")
    path = write_raster(tmp_path / "map.tif", values[None], nodata=255)
    beside = write_raster(tmp_path / "sure.tif", sure[None], nodata=255)
    with rasterio.open(beside, "r+") as file:
        file.scales = (1 / 254,)
    patches = list(patches_of(path, beside))
    through = next(patch for patch in patches if patch.value == 5)
    assert through.pixels == 150
    assert through.confidence_sum / 150 == pytest.approx(sure[:, 100].mean() / 254)
    kept = values != 255
    assert sum(patch.confidence_sum for patch in patches) == pytest.approx(sure[kept].sum() / 254)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:3857", rasterio.Affine(10, 0, -7_910_000, 0, -10, 5_215_000)),
        ("EPSG:3857", rasterio.Affine(20_000, 0, -7_910_000, 0, -20_000, 8_000_000)),
        ("EPSG:4326", rasterio.Affine(0.001, 0, 11, 0, -0.001, 60)),
        ("EPSG:4326", rasterio.Affine(0.25, 0, 140, 0, -0.25, 60)),
        ("EPSG:32633", rasterio.Affine(10, 0, 300_000, 0, -10, 5_300_000)),
        ("EPSG:2263", rasterio.Affine(3, 0, 980_000, 0, -3, 200_000)),
    ],
)
def test_areas_are_those_of_an_equal_area_projection(
    tmp_path: Path, crs: str, transform: rasterio.Affine
) -> None:
    table = draw(ground(), tmp_path, transform=transform, crs=crs)
    side = abs(transform.a)
    equal = table.set_geometry(shapely.segmentize(table.geometry, side)).to_crs("EPSG:6933")
    np.testing.assert_allclose(table.area_m2, equal.area, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("crs", [None, 'LOCAL_CS["site",UNIT["unknown",1]]'])
def test_no_area_is_written_without_a_unit(tmp_path: Path, crs: str | None) -> None:
    table = draw(ground(), tmp_path, crs=crs)
    assert "area_m2" not in table.columns
    assert (table.pixels > 0).all()


def test_map_of_nothing_has_an_empty_layer(tmp_path: Path) -> None:
    table = draw(np.full((40, 40), 255, np.uint8), tmp_path)
    assert len(table) == 0
    assert {"class_id", "class_name", "area_m2", "pixels"} <= set(table.columns)


def test_simplified_outlines_are_valid_and_keep_their_measured_area(tmp_path: Path) -> None:
    values = ground()
    table = draw(values, tmp_path, simplify=20.0)
    assert table.is_valid.all()
    assert not table.is_empty.any()
    np.testing.assert_allclose(table.pixels * 100, table.area_m2, rtol=1e-3)
    vertices = shapely.get_num_coordinates(table.geometry).sum()
    (tmp_path / "whole").mkdir()
    whole = draw(values, tmp_path / "whole")
    assert vertices < 0.7 * shapely.get_num_coordinates(whole.geometry).sum()


def test_sieve_shows_no_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ground(seed=3)
    table = draw(values, tmp_path, sieve=9)
    expected = sieve_patches(values, 9)
    assert (expected != values).mean() > 0.02
    burned = rasterize(
        zip(table.geometry, table.class_id, strict=True), values.shape, fill=255,
        transform=NORTH_UP, dtype="uint8",
    )  # fmt: skip
    np.testing.assert_array_equal(burned, expected)
    assert table.is_valid.all()


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "map.tif", ground()[None])
    with pytest.raises(RssegError, match=r"cannot be written as \.shp"):
        write_polygons(path, tmp_path / "map.shp", CLASSES)


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raster(tmp_path / "map.tif", ground()[None])

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(polygonize, "BATCH", 20)
    monkeypatch.setattr(polygonize, "_join", broken)
    with pytest.raises(KeyboardInterrupt):
        write_polygons(path, tmp_path / "map.gpkg", CLASSES)
    assert [one.name for one in tmp_path.iterdir()] == ["map.tif"]


@given(MAPS)
def test_patches_are_connected_pixels_of_a_class(values: np.ndarray) -> None:
    numbers, count = label_patches(values)
    known = sum(ndimage.label(values == k)[1] for k in range(3))
    assert count == known == len(np.unique(numbers))
    for number in range(count):
        inside = numbers == number
        assert len(np.unique(values[inside])) == 1
        assert ndimage.label(inside)[1] == 1


@given(MAPS, st.integers(2, 6))
def test_sieve_keeps_what_is_large(values: np.ndarray, least: int) -> None:
    sieved = sieve_patches(values, least)
    numbers, _ = label_patches(values)
    sizes = np.bincount(numbers.ravel())
    large = sizes[numbers] >= least
    np.testing.assert_array_equal(sieved[large], values[large])
    if not large.any():
        np.testing.assert_array_equal(sieved, values)


def test_sieve_takes_lonely_pixels_out_as_gdal_does() -> None:
    values = np.zeros((60, 60), np.uint8)
    values[:, 30:] = 1
    lonely = np.random.default_rng(0).integers(0, 30, (15, 2)) * 2
    values[lonely[:, 0], lonely[:, 1]] = 4
    np.testing.assert_array_equal(sieve_patches(values, 4), sieve(values, 4))
