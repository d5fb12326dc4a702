"""Labels of every form decode to the same class indices, by window, or raise a clear error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from scenes import NORTH_UP, ROTATED, SOUTH_UP, write_raster
from shapely.affinity import affine_transform
from shapely.geometry import Point, Polygon, box

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.align import AlignedLabels
from rsseg_cli.raster.decode import LabelCode, as_text
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import LabelReader, inexact_colors
from rsseg_cli.raster.scene import Scene

CLASSES = (
    Class(3, "water", (0, 0, 250)),
    Class(0, "field", (0, 200, 0)),
    Class(7, "road", (9, 9, 9)),
)
CODE = LabelCode(CLASSES, ignore=(255,))
TRUTH = (
    np.array([[0, 1, 2, IGNORE], [2, 2, 1, 0], [0, 0, IGNORE, 1]], np.uint8)
    .repeat(20, 0)
    .repeat(20, 1)
)
IDS = np.array([3, 0, 7] + [255] * 253)[TRUTH]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "image.tif", np.ones((3, *TRUTH.shape), np.uint8))


def read(path: Path, code: LabelCode, image: Path, window: Window | None = None) -> Any:
    with Scene.open(image, warn=False) as scene, LabelReader.open(path, code, scene) as reader:
        return reader.read(window or Window(0, 0, scene.width, scene.height))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_ids_of_any_type(tmp_path: Path, image: Path, dtype: str) -> None:
    label = write_raster(tmp_path / "label.tif", IDS[None].astype(dtype))
    np.testing.assert_array_equal(read(label, CODE, image), TRUTH)


def test_windows_hang_over_the_border(tmp_path: Path, image: Path) -> None:
    label = write_raster(tmp_path / "label.tif", IDS[None].astype("uint8"))
    got = read(label, CODE, image, Window(-5, 50, 90, 20))
    expected = np.pad(TRUTH, ((0, 10), (5, 5)), constant_values=IGNORE)[50:70]
    np.testing.assert_array_equal(got, expected)


def test_negative_and_large_ids(tmp_path: Path, image: Path) -> None:
    ids = np.where(TRUTH == 1, -7, np.where(TRUTH == 2, 70_000, IDS)).astype("int32")
    label = write_raster(tmp_path / "label.tif", ids[None])
    code = replace(CODE, remap=((-7, 0), (70_000, 7)))
    np.testing.assert_array_equal(read(label, code, image), TRUTH)


def test_remap_joins_ids(tmp_path: Path, image: Path) -> None:
    ids = np.where(TRUTH == 2, np.arange(80) % 3 + 20, IDS).astype("uint8")
    label = write_raster(tmp_path / "label.tif", ids[None])
    code = replace(CODE, remap=((20, 7), (21, 7), (22, 7)))
    np.testing.assert_array_equal(read(label, code, image), TRUTH)


@pytest.mark.parametrize("nodata", [255, 0])
def test_nodata_tag_means_no_class_unless_the_list_names_it(
    tmp_path: Path, image: Path, nodata: int
) -> None:
    label = write_raster(tmp_path / "label.tif", IDS[None].astype("uint8"), nodata=nodata)
    np.testing.assert_array_equal(read(label, CODE, image), TRUTH)
    bare = replace(CODE, classes=(CLASSES[0], CLASSES[2]))
    if nodata == 0:
        got = read(label, bare, image)
        assert (got[TRUTH == 1] == IGNORE).all()
        assert (got[TRUTH == 2] == 1).all()


def test_unknown_ids_are_named(tmp_path: Path, image: Path) -> None:
    ids = IDS.copy()
    ids[3, 4], ids[5, 6] = 44, 99
    label = write_raster(tmp_path / "label.tif", ids[None].astype("uint8"))
    with pytest.raises(RssegError, match=r"44, 99") as caught:
        read(label, CODE, image)
    assert caught.value.where == str(label)


def test_nan_is_no_class_but_fractions_are_refused(tmp_path: Path, image: Path) -> None:
    ids = IDS.astype("float32")
    ids[TRUTH == IGNORE] = np.nan
    label = write_raster(tmp_path / "label.tif", ids[None])
    np.testing.assert_array_equal(read(label, CODE, image), TRUTH)
    ids[0, 0] = 3.5
    label = write_raster(tmp_path / "label.tif", ids[None])
    with pytest.raises(RssegError, match=r"3\.5"):
        read(label, CODE, image)


def colors(jitter: int = 0) -> Any:
    table = np.zeros((256, 3), np.int64)
    table[:3] = [one.color for one in CLASSES]
    table[IGNORE] = (255, 255, 255)
    found = table[TRUTH]
    if jitter:
        found = found + np.random.default_rng(0).integers(-jitter, jitter + 1, found.shape)
    return np.moveaxis(found.clip(0, 255), -1, 0).astype("uint8")


@pytest.mark.parametrize("jitter", [0, 4])
def test_rgb_takes_the_nearest_colour_and_reports_it(
    tmp_path: Path, image: Path, jitter: int
) -> None:
    label = write_raster(tmp_path / "label.png", colors(jitter), driver="PNG", tiled=None,
                         blockxsize=None, blockysize=None, compress=None, photometric=None,
                         alpha=None, crs=None, transform=None)  # fmt: skip
    code = LabelCode(CLASSES, encoding="rgb", ignore=((255, 255, 255),), tolerance=10 + jitter)
    np.testing.assert_array_equal(read(label, code, image), TRUTH)
    found = inexact_colors(code)
    assert bool(found) == bool(jitter)
    assert all(0 < distance <= jitter * 3**0.5 for distance in found.values())


def test_a_colour_too_far_from_all_is_refused(tmp_path: Path, image: Path) -> None:
    samples = colors()
    samples[:, 0, 0] = (200, 100, 50)
    label = write_raster(tmp_path / "label.tif", samples)
    code = LabelCode(CLASSES, encoding="rgb", ignore=((255, 255, 255),))
    with pytest.raises(RssegError, match=r"\(200, 100, 50\)"):
        read(label, code, image)


def test_palette_goes_by_colour(tmp_path: Path, image: Path) -> None:
    label = tmp_path / "label.tif"
    numbers = np.array([9, 8, 7] + [1] * 253)[TRUTH].astype("uint8")
    table = {9: (0, 0, 250), 8: (0, 200, 0), 7: (9, 9, 9), 1: (1, 255, 1)}
    with rasterio.open(label, "w", driver="GTiff", width=80, height=60, count=1, dtype="uint8",
                       crs="EPSG:32633", transform=NORTH_UP) as file:  # fmt: skip
        file.write(numbers[None])
        file.write_colormap(1, {k: (*v, 255) for k, v in table.items()})
    code = LabelCode(CLASSES, encoding="palette", ignore=((1, 255, 1),))
    np.testing.assert_array_equal(read(label, code, image), TRUTH)
    plain = write_raster(tmp_path / "plain.tif", numbers[None])
    with pytest.raises(RssegError, match="no colour table"):
        read(plain, code, image)


def test_onehot_with_seven_bands(tmp_path: Path, image: Path) -> None:
    bands = np.zeros((7, *TRUTH.shape), np.uint8)
    for index, band in enumerate((5, 1, 2)):
        bands[band - 1][index == TRUTH] = 255
    bands[6][TRUTH == IGNORE] = 255
    label = write_raster(tmp_path / "label.tif", bands)
    code = LabelCode(CLASSES, values=(5, 1, 2), encoding="onehot")
    np.testing.assert_array_equal(read(label, code, image), TRUTH)


def test_threshold(tmp_path: Path, image: Path) -> None:
    grey = np.where(TRUTH == 0, 251, 3).astype("uint8")
    label = write_raster(tmp_path / "label.tif", grey[None])
    code = LabelCode(CLASSES[:2], encoding="threshold")
    np.testing.assert_array_equal(read(label, code, image), (TRUTH == 0).astype(np.uint8))


def test_size_and_place_must_fit(tmp_path: Path, image: Path) -> None:
    small = write_raster(tmp_path / "small.tif", IDS[None, :50].astype("uint8"))
    with pytest.raises(RssegError, match="80 x 50 pixels, its image 80 x 60"):
        read(small, CODE, image)
    moved = write_raster(tmp_path / "moved.tif", IDS[None].astype("uint8"),
                         transform=NORTH_UP @ rasterio.Affine.translation(7, 0))  # fmt: skip
    with pytest.raises(RssegError, match=r"shifted by 7\.0 pixels"):
        read(moved, CODE, image)


def test_label_of_the_whole_file_is_cut_like_its_image(tmp_path: Path, image: Path) -> None:
    margin = (7, 5, 71, 55)
    label = write_raster(tmp_path / "label.tif", IDS[None].astype("uint8"))
    window = Window(0, 0, 64, 50)
    with Scene.open(image, box=margin, warn=False) as scene:
        with LabelReader.open(label, CODE, scene, box=margin) as reader:
            np.testing.assert_array_equal(reader.read(window), TRUTH[5:55, 7:71])
        cut = IDS[None, 5:55, 7:71].astype("uint8")
        own = write_raster(tmp_path / "own.tif", cut, transform=scene.transform)
        with LabelReader.open(own, CODE, scene, box=margin) as reader:
            np.testing.assert_array_equal(reader.read(window), TRUTH[5:55, 7:71])


def write_vector(
    path: Path, shapes: list[Any], crs: str | None = "EPSG:32633", **columns: list[Any]
) -> Path:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def on_ground(shape: Any, grid: Any) -> Any:
    return affine_transform(shape, [grid.a, grid.b, grid.d, grid.e, grid.c, grid.f])


def expected(shapes: list[Any], indices: list[int], grid: Any, outside: int) -> Any:
    """Burn pixel by pixel: the last shape that holds the centre wins."""
    found = np.full((60, 80), outside, np.uint8)
    for row in range(60):
        for column in range(80):
            centre = Point(*(grid @ (column + 0.5, row + 0.5)))
            for shape, index in zip(shapes, indices, strict=True):
                if shape.contains(centre):
                    found[row, column] = index
    return found


PIXELS = [
    box(3.2, 4.1, 40.3, 33.7),
    Polygon([(20, 10), (70.4, 20.2), (35, 55.3)]),
    box(60, 2, 77, 9),
]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
@pytest.mark.parametrize("grid", [NORTH_UP, ROTATED, SOUTH_UP])
def test_later_polygons_win_on_any_grid(tmp_path: Path, suffix: str, grid: Any) -> None:
    image = write_raster(tmp_path / "i.tif", np.ones((1, 60, 80), np.uint8), transform=grid)
    shapes = [on_ground(shape, grid) for shape in PIXELS]
    crs = "EPSG:32633"
    label = write_vector(tmp_path / f"l{suffix}", shapes, crs, kind=["water", "field", "7"])
    code = replace(CODE, field="kind", encoding="vector")
    truth = expected(shapes, [0, 1, 2], grid, IGNORE)
    got = read(label, code, image)
    # GeoJSON goes through degrees: a pixel whose centre lies on an edge may change sides.
    assert (got != truth).sum() <= (4 if suffix == ".geojson" else 0)
    part = read(label, code, image, Window(30, -4, 60, 50))
    inside = np.pad(got, ((4, 0), (0, 10)), constant_values=IGNORE)
    np.testing.assert_array_equal(part, inside[:50, 30:90])


def test_polygons_in_another_crs(tmp_path: Path, image: Path) -> None:
    shapes = [on_ground(shape, NORTH_UP) for shape in PIXELS]
    frame = geopandas.GeoDataFrame({"kind": [3, 0, 7]}, geometry=shapes, crs="EPSG:32633")
    label = tmp_path / "label.gpkg"
    frame.to_crs("EPSG:4326").to_file(label)
    truth = expected(shapes, [0, 1, 2], NORTH_UP, IGNORE)
    got = read(label, replace(CODE, field="kind"), image)
    assert (got != truth).mean() < 0.002


def test_one_class_and_its_background(tmp_path: Path, image: Path) -> None:
    shapes = [on_ground(PIXELS[0], NORTH_UP)]
    label = write_vector(tmp_path / "label.gpkg", shapes)
    code = LabelCode(CLASSES[:2], background=1)
    got = read(label, code, image)
    np.testing.assert_array_equal(got, expected(shapes, [0], NORTH_UP, 1))
    assert set(np.unique(got)) == {0, 1}


def test_values_and_empty_attributes(tmp_path: Path, image: Path) -> None:
    shapes = [on_ground(shape, NORTH_UP) for shape in PIXELS]
    label = write_vector(tmp_path / "label.gpkg", shapes, kind=["a", None, "x"])
    code = LabelCode(CLASSES, values=("a", "b", "c"), field="kind", ignore=("x",))
    got = read(label, code, image)
    np.testing.assert_array_equal(got, expected(shapes, [0, IGNORE, IGNORE], NORTH_UP, IGNORE))


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 ", np.float64(7), np.int64(7)])
def test_numbers_and_texts_are_one(value: Any) -> None:
    assert as_text(value) == "7"


def test_what_is_wrong_with_polygons_is_said(tmp_path: Path, image: Path) -> None:
    shapes = [on_ground(shape, NORTH_UP) for shape in PIXELS]
    label = write_vector(tmp_path / "label.gpkg", shapes, kind=["water", "moon", "sun"])
    with pytest.raises(RssegError, match="moon, sun"):
        read(label, replace(CODE, field="kind"), image)
    with pytest.raises(RssegError, match="no attribute sort") as caught:
        read(label, replace(CODE, field="sort"), image)
    assert "kind" in caught.value.fix
    with pytest.raises(RssegError, match="3 classes are possible"):
        read(label, CODE, image)
    points = write_vector(tmp_path / "points.gpkg", [Point(0, 0)])
    with pytest.raises(UnreadableError, match="holds no polygons"):
        read(points, CODE, image)
    broken = tmp_path / "broken.geojson"
    broken.write_text("{")
    with pytest.raises(UnreadableError, match="cannot be read"):
        read(broken, CODE, image)
    with pytest.raises(UnreadableError, match="cannot be read"):
        read(tmp_path / "none.gpkg", CODE, image)
    write_vector(label, shapes, kind=[3, 3, 3])
    bare = write_raster(tmp_path / "bare.tif", np.ones((1, 60, 80), np.uint8), crs=None)
    with pytest.raises(RssegError, match="labels have a CRS but their image has none"):
        read(
            write_vector(tmp_path / "ok.gpkg", shapes, kind=[3, 3, 3]),
            replace(CODE, field="kind"),
            bare,
        )


def test_polygons_without_crs_take_that_of_the_image(tmp_path: Path, image: Path) -> None:
    shapes = [on_ground(PIXELS[0], NORTH_UP)]
    label = write_vector(tmp_path / "label.shp", shapes, kind=["water"])
    label.with_suffix(".prj").unlink()
    with pytest.warns(RssegWarning, match="no CRS"):
        got = read(label, replace(CODE, field="kind"), image)
    np.testing.assert_array_equal(got, expected(shapes, [0], NORTH_UP, IGNORE))


def test_nodata_that_is_not_a_number_is_not_a_class(tmp_path: Path) -> None:
    values = np.array([[3, 0], [np.nan, 7]], np.float32)[None]
    path = write_raster(tmp_path / "label.tif", values, nodata=np.nan)
    with Scene.open(path, warn=False) as scene:
        labels = AlignedLabels.open(path, CODE, scene)
        np.testing.assert_array_equal(labels.read(Window(0, 0, 2, 2)), [[0, 1], [IGNORE, 2]])
        labels.close()
