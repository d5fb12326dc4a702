"""Only what is wanted of a scene is mapped, and nothing else is computed or read."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask
from scenes import ROTATED, WriteScene, random_samples
from test_engine import CLASSES, null_model
from torch import Tensor

from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene

SMALL = Tiling(tile=32, overlap=0.25, batch=4)


def write_area(path: Path, *shapes: shapely.Geometry, crs: str | None = "EPSG:32633") -> Path:
    geopandas.GeoDataFrame(geometry=list(shapes), crs=crs).to_file(path)
    return path


def placed(*points: tuple[float, float], transform: rasterio.Affine) -> shapely.Polygon:
    """Draw a polygon given in pixels."""
    return shapely.Polygon([transform @ point for point in points])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_outside_is_nodata_and_not_computed(
    write_scene: WriteScene, tmp_path: Path, turned: bool, crs: str
) -> None:
    profile = {"transform": ROTATED} if turned else {}
    samples = random_samples(1, 700, 1300)
    path = write_scene(samples, **profile)
    tiles = 0

    def model(batch: Tensor) -> Tensor:
        nonlocal tiles
        tiles += len(batch)
        return null_model(batch)

    with Scene.open(path) as scene:
        shape = placed((600, 100), (800, 90), (760, 260), (610, 240), transform=scene.transform)
        island = placed((900, 300), (905, 300), (905, 304), (900, 304), transform=scene.transform)
        there = geopandas.GeoSeries([shape, island], crs="EPSG:32633").to_crs(crs)
        area = Area.from_file(write_area(tmp_path / "a.gpkg", *there, crs=crs), scene)
        outputs = Outputs(map=tmp_path / "out.tif", classes=CLASSES, driver="GTiff")
        predict_scene(SceneTask(scene, model, outputs, SMALL, area=area))
        inside = geometry_mask(
            [shape, island], (700, 1300), scene.transform, invert=True
        )  # fmt: skip
    with rasterio.open(tmp_path / "out.tif") as file:
        made = file.read(1)
        assert file.transform == (ROTATED if turned else file.transform)
        assert file.shape == (700, 1300)
    firm = inside if crs == "EPSG:32633" else made != 255
    np.testing.assert_array_equal(made[firm], samples[0][firm] % 8)
    assert ((made != 255) != inside).mean() < 1e-4
    assert tiles < 12 * 12  # of 1,600


def test_box_is_read_in_any_crs(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(1, 200, 300))
    with Scene.open(path) as scene:
        left, top = scene.transform @ (50, 20)
        right, bottom = scene.transform @ (90, 120)
        own = Area.from_bounds((left, bottom, right, top), scene)
        assert own.box == Window(50, 20, 40, 100)
        assert own.mask(Window(40, 10, 20, 20)).sum() == 10 * 10
        assert not own.mask(Window(200, 10, 20, 20)).any()
        shape = geopandas.GeoSeries([shapely.box(left, bottom, right, top)], crs="EPSG:32633")
        x0, y0, x1, y1 = shape.to_crs("EPSG:4326").total_bounds
        other = Area.from_bounds((x0, y0, x1, y1), scene, "EPSG:4326")
        assert abs(other.box.x - 50) <= 4
        assert abs(other.box.height - 100) <= 8
        with pytest.raises(RssegError, match="does not overlap the scene"):
            Area.from_bounds((0, 0, 1, 1), scene)
        with pytest.raises(RssegError, match="the box is empty"):
            Area.from_bounds((5, 0, 1, 1), scene)
        with pytest.raises(RssegError, match="not a known CRS"):
            Area.from_bounds((0, 0, 1, 1), scene, "EPSG:none")


def test_area_of_a_scene_without_a_place(write_scene: WriteScene, tmp_path: Path) -> None:
    path = write_scene(random_samples(1, 60, 70), crs=None, transform=None)
    with pytest.warns(RssegWarning, match="no coordinate reference"):
        scene = Scene.open(path)
    with scene:
        assert Area.from_bounds((10, 20, 30, 40), scene).box == Window(10, 20, 20, 20)
        with pytest.raises(RssegError, match="box has a CRS but the scene has none"):
            Area.from_bounds((0, 0, 1, 1), scene, "EPSG:4326")
        with pytest.raises(RssegError, match="the scene has none"):
            Area.from_file(write_area(tmp_path / "a.gpkg", shapely.box(0, 0, 9, 9)), scene)


def test_area_in_swaths_and_parts_is_the_same(
    write_scene: WriteScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = random_samples(1, 1100, 1300)
    path = write_scene(samples)
    monkeypatch.setattr("rsseg_cli.predict.plan.PART_PIXELS", 1)
    maps = []
    for name, memory in (("one", None), ("many", 1)):
        if memory:
            monkeypatch.setattr("rsseg_cli.predict.plan._swath", lambda *known: 512)
        with Scene.open(path) as scene:
            area = Area.from_bounds((500_000, 5_289_200, 512_900, 5_299_000), scene)
            outputs = Outputs(map=tmp_path / f"{name}.tif", classes=CLASSES)
            predict_scene(SceneTask(scene, null_model, outputs, SMALL, area=area))
        with rasterio.open(outputs.map) as file:
            maps.append(file.read(1))
    np.testing.assert_array_equal(maps[0], maps[1])
    assert (maps[0][100:1080, :1290] == samples[0, 100:1080, :1290] % 8).all()
    assert (maps[0] != 255).sum() == 980 * 1290
