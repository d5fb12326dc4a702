"""Maps are compared on one grid only, window by window, wherever the class list comes from."""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from scenes import NORTH_UP, ROTATED, WriteScene, write_raster
from shapely.geometry import box

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.evaluate import (
    Comparison,
    evaluate_rasters,
    evaluate_scenes,
    rasters,
    read_class_list,
)
from rsseg_cli.evaluate.reference import open_reference
from rsseg_cli.metrics.boundary import BoundaryIoU
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.raster import sidecars
from rsseg_cli.raster.class_names import classes_in_use, read_classes
from rsseg_cli.raster.decode import LabelCode
from rsseg_cli.raster.grid import Window

CLASSES = [
    Class(0, "land", (10, 20, 30)),
    Class(4, "water", (0, 0, 250)),
    Class(9, "town", (250, 0, 0)),
]
IDS = np.array([one.id for one in CLASSES], np.uint8)


def indices(seed: int, shape: tuple[int, int] = (71, 93)) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (-(-shape[0] // 8), -(-shape[1] // 8)))
    return coarse.repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]].astype(np.uint8)


def to_ids(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, H, W) ids, 255 where there is no class."""
    return np.where(labels == IGNORE, IGNORE, IDS[np.minimum(labels, 2)])[None].astype(np.uint8)


@pytest.fixture
def pair(write_scene: WriteScene) -> tuple[Path, Path, NDArray[np.uint8], NDArray[np.uint8]]:
    """A named map with empty pixels, its truth with unknown ones, and both as indices."""
    predicted, truth = indices(1), indices(2)
    truth[:20] = predicted[:20]
    truth[5:9, 7:30] = IGNORE
    predicted[60:, 80:] = IGNORE
    made = write_scene(to_ids(predicted), "map.tif", nodata=255)
    Path(f"{made}.aux.xml").write_text(sidecars.pam_sidecar(CLASSES))
    return made, write_scene(to_ids(truth), "truth.tif"), predicted, truth


def test_scores_are_those_of_the_arrays(
    pair: tuple[Path, Path, NDArray[np.uint8], NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, true, predicted, truth = pair
    expected, outlines = ConfusionMatrix(CLASSES), BoundaryIoU(CLASSES, distance=3)
    expected.update(predicted, truth)
    outlines.update(predicted, truth)
    for step in ((1024, 4096), (16, 24)):  # in one piece, and in windows with a halo
        monkeypatch.setattr(rasters, "_STEP", step)
        found = evaluate_rasters(made, true)
        assert found.classes == tuple(CLASSES)
        np.testing.assert_array_equal(found.total.counts, expected.counts)
        assert found.scores().boundary_miou == outlines.add_to(expected.scores()).boundary_miou
    assert found.scores().unmapped > 0
    assert evaluate_rasters(made, true, boundary_px=None).scores().boundary_px is None


def test_numpy_and_torchless_ids_of_any_integer_type(write_scene: WriteScene) -> None:
    labels = to_ids(indices(3))
    made = write_scene(labels.astype(np.int16), "map.tif", nodata=-1)
    found = evaluate_rasters(made, write_scene(labels, "truth.tif"), CLASSES)
    assert found.scores().accuracy == 1
    bad = labels.astype(np.int16)
    bad[0, 0, 0] = 300
    with pytest.raises(RssegError, match=r"ids that are not classes: 300"):
        evaluate_rasters(write_scene(bad, "bad.tif"), made, CLASSES)


def test_colours_in_the_truth_are_classes(write_scene: WriteScene) -> None:
    labels = indices(4)
    colors = np.array([one.color for one in CLASSES], np.uint8)[labels]
    truth = write_scene(np.moveaxis(colors, -1, 0), "truth.tif")
    made = write_scene(to_ids(labels), "map.tif")
    assert evaluate_rasters(made, truth, CLASSES).scores().miou == 1


@pytest.mark.parametrize(("crs", "transform"), [("EPSG:4326", NORTH_UP), ("EPSG:32633", ROTATED)])
def test_polygons_in_any_crs(
    tmp_path: Path, write_scene: WriteScene, crs: str, transform: rasterio.Affine
) -> None:
    shapes = [box(0, 0, 40, 71), box(50, 10, 80, 60)]
    placed = [
        geopandas.GeoSeries([one]).affine_transform(
            [transform.a, transform.b, transform.d, transform.e, transform.c, transform.f]
        )[0]
        for one in shapes
    ]
    table = geopandas.GeoDataFrame(
        {"fid_1": [1, 2], "landcover": ["water", "town"]}, geometry=placed, crs="EPSG:32633"
    )
    table.to_crs(crs).to_file(tmp_path / "truth.gpkg")
    burned = rasterize(zip(placed, (4, 9), strict=True), (71, 93), fill=255, transform=transform)
    made = write_scene(burned[None].astype(np.uint8), "map.tif", transform=transform)
    found = evaluate_rasters(made, tmp_path / "truth.gpkg", CLASSES)
    scores = found.scores()
    # Reprojecting there and back may move a border pixel.
    assert scores.miou == pytest.approx(1, abs=0.01)
    assert scores.pixels == pytest.approx(40 * 71 + 30 * 50, abs=40)
    with pytest.raises(RssegError, match="no attribute nothing"):
        evaluate_rasters(made, tmp_path / "truth.gpkg", CLASSES, attribute="nothing")


def test_polygons_of_one_kind_are_the_class_beside_background(
    tmp_path: Path, write_scene: WriteScene
) -> None:
    two = [Class(0, "background", (0, 0, 0)), Class(1, "building", (255, 0, 0))]
    x, y = NORTH_UP @ (10, 10)
    table = geopandas.GeoDataFrame({"osm": [7]}, geometry=[box(x, y - 200, x + 100, y)], crs=32633)
    table.to_file(tmp_path / "truth.geojson")
    made = np.zeros((1, 64, 64), np.uint8)
    made[0, 10:30, 10:20] = 1
    scores = evaluate_rasters(write_scene(made), tmp_path / "truth.geojson", two).scores()
    assert (scores.miou, scores.pixels) == (1, 64 * 64)
    three = [*two, Class(2, "road", (0, 0, 0))]
    with pytest.raises(RssegError, match="attribute of the polygons") as caught:
        evaluate_rasters(write_scene(made), tmp_path / "truth.geojson", three)
    assert "osm" in caught.value.fix


def test_other_grid_is_refused_with_both_grids_and_aligned_on_demand(
    tmp_path: Path, write_scene: WriteScene
) -> None:
    labels = indices(5, (64, 64))
    made = write_scene(to_ids(labels), "map.tif")
    fine = to_ids(labels.repeat(2, 0).repeat(2, 1))
    half = NORTH_UP @ rasterio.Affine.scale(0.5)
    truth = write_scene(fine, "truth.tif", transform=half)
    with pytest.raises(RssegError, match="different grids") as caught:
        evaluate_rasters(made, truth, CLASSES)
    for part in ("64 x 64", "128 x 128", "EPSG:32633", "10 x -10", "5 x -5"):
        assert part in caught.value.what
    assert "--align" in caught.value.fix
    aligned = evaluate_rasters(made, truth, CLASSES, align=True).scores()
    assert (aligned.miou, aligned.pixels) == (1, 64 * 64)
    shifted = NORTH_UP @ rasterio.Affine.translation(32, 0)
    part = evaluate_rasters(
        made, write_scene(to_ids(labels), "s.tif", transform=shifted), CLASSES, align=True
    )
    assert part.scores().pixels == 64 * 32  # nothing is known outside the truth


def test_alignment_reprojects_as_gdal_does(write_scene: WriteScene) -> None:
    labels = indices(6, (64, 64))
    truth = write_scene(to_ids(labels), "truth.tif")
    with rasterio.open(truth) as file:
        west, south, east, north = rasterio.warp.transform_bounds(
            file.crs, "EPSG:4326", *file.bounds
        )
        width, height = 80, 60
        step = (east - west) / width, (north - south) / height
        place = rasterio.Affine(step[0], 0, west, 0, -step[1], north)
        warped = np.full((height, width), 255, np.uint8)
        rasterio.warp.reproject(
            file.read(1), warped, src_transform=file.transform, src_crs=file.crs,
            dst_transform=place, dst_crs="EPSG:4326", dst_nodata=255, init_dest_nodata=True,
        )  # fmt: skip
    made = write_scene(warped[None], "map.tif", transform=place, crs="EPSG:4326", nodata=255)
    scores = evaluate_rasters(made, truth, CLASSES, align=True).scores()
    assert scores.accuracy == pytest.approx(1, abs=2e-3)
    assert scores.pixels == pytest.approx((warped != 255).sum(), abs=5)


def test_a_nodata_tag_on_a_class_does_not_hide_it(write_scene: WriteScene) -> None:
    labels = to_ids(indices(7, (64, 64)))
    made = write_scene(labels, "map.tif", nodata=0)
    truth = write_scene(labels, "truth.tif", nodata=0)
    coarse = write_scene(
        labels, "other.tif", nodata=0, transform=NORTH_UP @ rasterio.Affine.translation(1, 0)
    )
    assert evaluate_rasters(made, truth, CLASSES).scores().pixels == 64 * 64
    assert evaluate_rasters(made, coarse, CLASSES, align=True).scores().pixels == 64 * 63


def test_alignment_needs_a_crs(write_scene: WriteScene) -> None:
    labels = to_ids(indices(8, (64, 64)))
    made = write_scene(labels, "map.tif")
    homeless = write_scene(labels[:, :32], "truth.tif", crs=None, transform=None)
    with pytest.raises(RssegError, match="without a CRS") as caught:
        evaluate_rasters(made, homeless, CLASSES, align=True)
    assert "truth.tif" in caught.value.where
    with pytest.raises(RssegError, match="different grids") as caught:
        evaluate_rasters(made, homeless, CLASSES)
    assert "missing CRS" in caught.value.fix
    same_size = write_scene(labels, "same.tif", crs=None, transform=None)
    assert evaluate_rasters(made, same_size, CLASSES).scores().miou == 1


def test_names_come_from_the_map_then_the_truth_then_the_ids(
    pair: tuple[Path, Path, NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    made, true, *_ = pair
    Path(f"{made}.aux.xml").rename(f"{true}.aux.xml")
    assert evaluate_rasters(made, true).classes == tuple(CLASSES)
    others = [CLASSES[0], Class(4, "river", (0, 0, 0)), CLASSES[2]]
    Path(f"{made}.aux.xml").write_text(sidecars.pam_sidecar(others))
    clash = evaluate_rasters(made, true)
    assert clash.classes == tuple(others)
    assert clash.remarks == ["id 4 is river in the map but water in the truth"]
    for path in (made, true):
        Path(f"{path}.aux.xml").unlink()
    found = evaluate_rasters(made, true)
    assert [one.id for one in found.classes] == [0, 4, 9]
    assert "lists its classes" in found.remarks[0]
    assert found.report("t").to_json()["remarks"] == found.remarks


def test_unnamed_map_against_polygons_needs_classes(
    tmp_path: Path, write_scene: WriteScene
) -> None:
    geopandas.GeoDataFrame(geometry=[box(0, 0, 1, 1)], crs=32633).to_file(tmp_path / "t.gpkg")
    with pytest.raises(RssegError, match="classes of the map are unknown") as caught:
        evaluate_rasters(write_scene(to_ids(indices(1))), tmp_path / "t.gpkg")
    assert "--classes" in caught.value.fix


def test_ids_of_the_truth_that_are_no_class(write_scene: WriteScene) -> None:
    labels = to_ids(indices(9))
    made = write_scene(labels, "map.tif")
    odd = labels.copy()
    odd[0, 3, 3] = 77
    truth = write_scene(odd, "truth.tif")
    with pytest.raises(RssegError, match="77") as caught:
        evaluate_rasters(made, truth, CLASSES)
    assert caught.value.where.endswith("truth.tif")
    assert evaluate_rasters(made, truth, CLASSES, ignore=[77]).scores().pixels == labels.size - 1


def test_truth_that_says_nothing(write_scene: WriteScene) -> None:
    made = write_scene(to_ids(indices(1)), "map.tif")
    nothing = write_scene(np.full((1, 71, 93), 255, np.uint8), "truth.tif")
    with pytest.raises(RssegError, match="no pixel of the map") as caught:
        evaluate_rasters(made, nothing, CLASSES)
    assert "map.tif: 93 x 71, EPSG:32633" in caught.value.where


def test_implausible_counts_have_a_remark(write_scene: WriteScene) -> None:
    two = [Class(0, "background", (0, 0, 0)), Class(1, "building", (255, 0, 0))]
    mask = np.where(indices(1) == 1, 255, 0)[None].astype(np.uint8)
    made = write_scene((mask > 0).astype(np.uint8), "map.tif")
    only = write_scene(np.zeros_like(mask), "only.tif")
    assert "pixels are background" in evaluate_rasters(made, only, two).remarks[0]
    tagged = write_scene(mask, "tagged.tif", nodata=255)  # then 255 is not an object
    assert "pixels are background" in evaluate_rasters(made, tagged, two).remarks[0]
    empty = np.full_like(mask, 255)
    empty[:, :10] = 0
    assert "is empty on" in evaluate_rasters(write_scene(empty, "e.tif"), made, two).remarks[0]


def test_255_beside_0_is_an_object_unless_the_user_says_otherwise(
    write_scene: WriteScene,
) -> None:
    two = [Class(0, "background", (0, 0, 0)), Class(1, "building", (255, 0, 0))]
    mask = np.where(indices(1) == 1, 255, 0)[None].astype(np.uint8)
    made = write_scene((mask > 0).astype(np.uint8), "map.tif")
    truth = write_scene(mask, "truth.tif")
    taken = evaluate_rasters(made, truth, two)
    assert taken.total.pixels == mask.size
    assert "255 is read as building (--ignore 255 if it is not a class)" in taken.remarks[0]
    left = evaluate_rasters(made, truth, two, ignore=[255])
    assert left.total.pixels == (mask == 0).sum()
    assert not any("255" in remark for remark in left.remarks)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((1, 9, 9), np.float32), "soft map needs two classes, not 3"),
        (np.zeros((3, 9, 9), np.uint8), "3 band"),
    ],
)
def test_what_is_no_class_map(
    write_scene: WriteScene, samples: NDArray[np.uint8], message: str
) -> None:
    truth = write_scene(np.zeros((1, 9, 9), np.uint8), "truth.tif")
    with pytest.raises(RssegError, match=message):
        evaluate_rasters(write_scene(samples, "soft.tif"), truth, CLASSES)


def test_missing_files(tmp_path: Path, write_scene: WriteScene) -> None:
    made = write_scene(to_ids(indices(1)))
    for files in (
        (tmp_path / "no.tif", made),
        (made, tmp_path / "no.tif"),
        (made, tmp_path / "no.gpkg"),
    ):
        with pytest.raises(UnreadableError):
            evaluate_rasters(*files, CLASSES)


def test_scenes_and_domains_add_up(write_scene: WriteScene) -> None:
    code = LabelCode(tuple(CLASSES))
    comparisons = []
    for index, domain in enumerate(("north", "north", "south")):
        made = write_scene(to_ids(indices(index)), f"map{index}.tif")
        true = write_scene(to_ids(indices(index + 10)), f"truth{index}.tif")
        regions = (Window(0, 0, 40, 71), Window(50, 8, 20, 30)) if index == 2 else None
        opened = partial(open_reference, true, code, align=False)
        comparisons.append(Comparison(f"scene {index}", made, opened, domain, regions))
    found = evaluate_scenes(iter(comparisons), CLASSES)
    scores = found.scores()
    assert list(scores.groups) == ["north", "south"]
    assert list(scores.scenes) == ["scene 0", "scene 1", "scene 2"]
    assert scores.groups["south"].pixels == 40 * 71 + 20 * 30
    assert scores.pixels == sum(part.pixels for part in scores.groups.values())
    np.testing.assert_array_equal(
        found.total.counts, sum(one.counts for one in found.scenes.values())
    )
    twice = evaluate_scenes([comparisons[0], comparisons[0]], CLASSES)
    assert twice.scenes["scene 0"].pixels == twice.total.pixels == 2 * 71 * 93
    no_domains = [Comparison(one.name, one.prediction, one.open_truth) for one in comparisons]
    assert list(evaluate_scenes(no_domains, CLASSES).scores().groups) == list(scores.scenes)


def test_memory_does_not_grow_with_the_map(tmp_path: Path) -> None:
    def peak_mb(rows: int) -> float:
        labels = np.zeros((1, rows, 1024), np.uint8)
        paths = [write_raster(tmp_path / f"{name}{rows}.tif", labels) for name in "ab"]
        tracemalloc.start()
        evaluate_rasters(*paths, CLASSES)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    small, large = peak_mb(1024), peak_mb(4096)
    assert large < 1.3 * small  # blocks are larger in a larger map, up to a bound


def test_category_names_and_colour_table_of_gdal(write_scene: WriteScene) -> None:
    path = write_scene(np.zeros((1, 8, 8), np.uint8))
    assert read_classes(path) == []
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {2: (9, 8, 7, 255)})
    Path(f"{path}.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><CategoryNames><Category/><Category/>"
        "<Category>lake &amp; sea</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    assert read_classes(path) == [Class(2, "lake & sea", (9, 8, 7))]
    Path(f"{path}.aux.xml").write_text("<PAMDataset>")
    with pytest.raises(UnreadableError, match="class names"):
        read_classes(path)


def test_class_lists_come_from_yaml_or_from_a_map(tmp_path: Path, write_scene: WriteScene) -> None:
    (tmp_path / "dataset.yaml").write_text(
        "name: d\nbands: [{name: a}]\nencoding: threshold\nclasses:\n"
        "- {id: 0, name: land, color: [1, 2, 3]}\n- {id: 1, name: house, color: [4, 5, 6]}\n"
    )
    code = read_class_list(tmp_path / "dataset.yaml")
    assert isinstance(code, LabelCode)
    assert code.classes == (Class(0, "land", (1, 2, 3)), Class(1, "house", (4, 5, 6)))
    labels = indices(1)
    made = write_scene((labels == 1)[None].astype(np.uint8), "map.tif")
    mask = np.where(labels == 1, 255, np.where(labels == 2, 7, 0))[None].astype(np.uint8)
    truth = write_scene(mask, "mask.tif")
    assert evaluate_rasters(made, truth, code).scores().miou == 1
    ignored = evaluate_rasters(made, truth, code, ignore=[7]).scores()
    assert ignored.pixels == (labels != 2).sum()
    with pytest.raises(RssegError, match="lists no classes"):
        read_class_list(made)
    Path(f"{made}.aux.xml").write_text(sidecars.pam_sidecar(CLASSES))
    assert read_class_list(made) == CLASSES
    with pytest.raises(UnreadableError):
        read_class_list(tmp_path / "none.yaml")


def test_ids_in_use(write_scene: WriteScene) -> None:
    path = write_scene(to_ids(indices(1)), nodata=0)
    assert [one.id for one in classes_in_use(path)] == [4, 9]
    with pytest.raises(RssegError, match="1000 cannot be class ids"):
        classes_in_use(write_scene(np.full((1, 8, 8), 1000, np.uint16), "far.tif"))
    with pytest.raises(RssegError, match="float32"):
        classes_in_use(write_scene(np.zeros((1, 8, 8), np.float32), "soft.tif"))


def test_class_areas_of_a_tall_map_are_those_on_the_ellipsoid(write_scene: WriteScene) -> None:
    labels = np.repeat(np.array([[0], [1]], np.uint8), 100, 0).repeat(80, 1)
    tall = {"crs": "EPSG:4326", "transform": rasterio.Affine(0.1, 0, 10, 0, -0.1, 60)}
    truth = write_scene(to_ids(labels), "truth.tif", **tall)
    made = write_scene(to_ids(labels), "map.tif", **tall)
    area = evaluate_rasters(made, truth, CLASSES).scores().area
    assert area is not None
    assert area.hectares is not None
    extents = [box(10, 50, 18, 60), box(10, 40, 18, 50)]
    known = geopandas.GeoSeries(extents, crs="EPSG:4326").segmentize(0.1).to_crs("EPSG:6933").area
    for row, size in zip(area.classes, known / 10_000, strict=False):
        assert row.area.value * area.hectares == pytest.approx(size, rel=1e-3)


def test_hectares_are_unknown_without_a_crs(write_scene: WriteScene) -> None:
    truth = write_scene(to_ids(indices(1)), "truth.tif", crs=None)
    made = write_scene(to_ids(indices(1)), "map.tif", crs=None)
    area = evaluate_rasters(made, truth, CLASSES).scores().area
    assert area is not None
    assert area.hectares is None
