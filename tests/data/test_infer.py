"""Inference of the spec of a folder without a YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from folders import PNG, folder, folder_of, image, label, polygons
from scenes import write_raster

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.source import Source
from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.grid import Window


def test_a_folder_is_inferred_and_its_spec_written(tmp_path: Path) -> None:
    source = Source.locate(str(folder(tmp_path)))
    assert [band.name for band in source.spec.bands] == ["red", "green", "blue"]
    assert [(one.id, one.name) for one in source.classes] == [(1, "class 1"), (2, "class 2")]
    pairs = source.pairs()
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert [pair.label and pair.label.name for pair in pairs] == ["a.tif", "b.tif"]
    assert source.spec.gsd_m == 10.0
    written = source.save_inferred_spec(tmp_path / "run")
    assert written == tmp_path / "dataset.yaml"
    again = Source.locate(str(tmp_path))
    assert again.spec == source.spec
    assert again.save_inferred_spec(tmp_path) is None


# --- layouts --------------------------------------------------------------------------------------


def labels_of(source: Source) -> dict[str, str | None]:
    """Path of the label of each image, below the root."""
    return {
        pair.name: pair.label and pair.label.relative_to(source.root).as_posix()
        for pair in source.pairs()
    }


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "masks"), ("image", "mask"), ("img", "lbl"), ("imgs", "masks"),
        ("images", "annotations"), ("JPEGImages", "SegmentationClass"), ("Images", "GT"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["", "_mask", "_GT"])
def test_folders_of_usual_names(tmp_path: Path, images: str, labels: str, ending: str) -> None:
    expected = {}
    for name in ("a.b", "north/c_2"):
        image(tmp_path, f"{images}/{name}.tif")
        label(tmp_path, f"{labels}/{name}{ending}.tif")
        expected[name] = f"{labels}/{name}{ending}.tif"
    source = Source.locate(str(tmp_path))
    assert labels_of(source) == expected
    assert f"{images}/ with {labels}/ is assumed from the names." in source.remark
    assert (f"the name of their image, followed by {ending}." in source.remark) == bool(ending)
    source.save_inferred_spec(tmp_path)
    assert labels_of(Source.locate(str(tmp_path))) == labels_of(source)


@pytest.mark.parametrize("ending", ["_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_Mask"])
def test_labels_beside_their_images(tmp_path: Path, ending: str) -> None:
    expected = {}
    for name in ("tile_0", "tile.1", "masked"):
        image(tmp_path, f"{name}.tif", 2, "float32")
        expected[name] = label(tmp_path, f"{name}{ending}.png", **PNG).name
    (tmp_path / "notes.txt").write_text("no raster")
    source = Source.locate(str(tmp_path))
    assert labels_of(source) == expected
    assert "Inferred from 3 images and 3 labels" in source.remark
    assert f"Files named *{ending} are assumed to be the labels" in source.remark
    source.save_inferred_spec(tmp_path)
    assert labels_of(Source.locate(str(tmp_path))) == expected


def test_polygons_beside_their_images_and_files_without_partner(tmp_path: Path) -> None:
    image(tmp_path, "a.tif")
    polygons(tmp_path, "a_labels.gpkg", kind=["x", "y"] * 2)
    polygons(tmp_path, "lost_labels.gpkg", kind=["x", "y"] * 2)
    with pytest.raises(RssegError, match=r"no image for 1 label: lost_labels\.gpkg"):
        Source.locate(str(tmp_path)).pairs()
    (tmp_path / "lost_labels.gpkg").unlink()
    image(tmp_path, "b.tif")
    with pytest.raises(RssegError, match=r"no label for 1 image: b\.tif"):
        Source.locate(str(tmp_path)).pairs()
    (tmp_path / "b.tif").unlink()
    assert labels_of(Source.locate(str(tmp_path))) == {"a": "a_labels.gpkg"}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["img/a", "masks/a", "gt/a"], r"img/ with gt/, or img/ with masks/"),
        (["img/a", "image/a", "gt/a"], r"image/ with gt/, or img/ with gt/"),
        (["img/a", "gt/a", "a", "a_seg"], r"img/ with gt/, or labels named \*_seg beside"),
        (["a", "a_gt", "a_mask"], r"labels named \*_gt .*, or labels named \*_mask beside"),
        (["a", "a_gt", "b", "b_mask"], r"labels named \*_gt .*, or labels named \*_mask beside"),
        (["a", "a_mask", "b_seg"], r"labels named \*_mask .*, or labels named \*_seg beside"),
        (["img/a", "gt/a_gt", "gt/a_mask"], r"gt\b.*some end in _gt, some in _mask"),
    ],
)
def test_ambiguous_layouts_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    for path in paths:
        label(tmp_path, f"{path}.tif")
    with pytest.raises(RssegError, match="ambiguous") as refused:
        Source.locate(str(tmp_path))
    assert re.search(message, f"{refused.value.where} {refused.value.what}")


def test_the_documented_folders_take_precedence(tmp_path: Path) -> None:
    folder(tmp_path)
    for path in ("masks/a.tif", "img/a.tif", "b.tif", "b_gt.tif"):
        label(tmp_path, path, (7, 8, 9))
    source = Source.locate(str(tmp_path))
    assert labels_of(source) == {"a": "labels/a.tif", "b": "labels/b.tif"}
    assert len(source.classes) == 2
    assert "Not read: img/, masks/, labels named *_gt beside their images." in source.remark
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(RssegError, match="images/ with masks/, or img/ with masks/, or labels"):
        Source.locate(str(tmp_path))


def test_errors_list_the_known_layouts(tmp_path: Path) -> None:
    image(tmp_path, "a.tif")
    label(tmp_path, "a_truth.tif")
    folder_of(tmp_path / "imgs")
    with pytest.raises(UnreadableError, match=r"imgs/, img/ or JPEGImages/.*a_gt\.\* or a_seg\.\*"):
        Source.locate(str(tmp_path))
    image(tmp_path, "imgs/a.tif")
    label(tmp_path, "truths/a.tif")
    with pytest.raises(UnreadableError, match=r"imgs/ without any of labels/, .*, mask/, gt/"):
        Source.locate(str(tmp_path))


# --- bands and classes ----------------------------------------------------------------------------


def test_bands_take_their_names_from_the_file(tmp_path: Path) -> None:
    path = image(tmp_path, "images/a.tif", 3, "uint16")
    label(tmp_path, "labels/a.tif")
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("SWIR_16", "nir", "depth")
    bands = Source.locate(str(tmp_path)).spec.bands
    assert [(band.name, band.wavelength_nm) for band in bands] == [
        ("swir_16", 1610.0), ("nir", 830.0), ("depth", None),
    ]  # fmt: skip


def test_four_bands_are_red_green_blue_nir_and_six_are_numbered(tmp_path: Path) -> None:
    four = Source.locate(str(folder(tmp_path / "four", bands=4))).spec
    assert [band.wavelength_nm for band in four.bands] == [660, 560, 485, 830]
    six = Source.locate(str(folder(tmp_path / "six", bands=6, dtype="float32"))).spec
    assert [band.name for band in six.bands] == [f"band {n}" for n in range(1, 7)]


@pytest.mark.parametrize(
    ("values", "ids", "ignore", "encoding"),
    [
        ((0, 1, 5), [0, 1, 5], (), "index"),
        ((0, 1, 255), [0, 1], (255,), "index"),
        ((0, 255), [0, 1], (), "threshold"),
    ],
)
def test_ids_are_found(
    tmp_path: Path, values: tuple[int, ...], ids: list[int], ignore: Any, encoding: str
) -> None:
    image(tmp_path, "images/a.tif")
    label(tmp_path, "labels/a.tif", values)
    spec = Source.locate(str(tmp_path)).spec
    assert ([one.id for one in spec.classes], spec.ignore, spec.encoding) == (ids, ignore, encoding)


def test_255_beside_0_is_ignored_if_the_spec_ignores_it(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    label(tmp_path, "labels/a.tif", (0, 255))
    source = Source.locate(str(tmp_path))
    assert "`ignore: [255]` if 255 is not a class" in source.remark
    written = source.save_inferred_spec(tmp_path)
    assert written is not None
    seen = {}
    for ignore in ("", "ignore: [255]\n"):
        written.write_text(source.spec.to_yaml() + ignore)
        described = Source.locate(str(tmp_path))
        reader = described.opener.labels(described.pairs()[0])
        assert reader is not None
        seen[ignore] = np.unique(reader.read(Window(0, 0, 96, 64))).tolist()
        reader.close()
    assert list(seen.values()) == [[0, 1], [0, IGNORE]]


def test_the_nodata_value_of_a_label_is_not_a_class(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    label(tmp_path, "labels/a.tif", (0, 1, 2), nodata=0)
    source = Source.locate(str(tmp_path))
    assert [one.id for one in source.classes] == [1, 2]


def test_palettes_keep_their_colours(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    path = label(tmp_path, "labels/a.tif")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (10, 20, 30, 255), 2: (200, 0, 0, 255)})
    assert [one.color for one in Source.locate(str(tmp_path)).classes] == [
        (10, 20, 30),
        (200, 0, 0),
    ]


def test_colours_become_classes(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    rgb = np.zeros((3, 64, 96), np.uint8)
    rgb[0, :, 40:] = 250
    write_raster(folder_of(tmp_path / "labels") / "a.tif", rgb)
    source = Source.locate(str(tmp_path))
    assert source.spec.encoding == "rgb"
    assert [one.name for one in source.classes] == ["#000000", "#fa0000"]
    reader = source.opener.labels(source.pairs()[0])
    assert reader is not None
    np.testing.assert_array_equal(reader.read(Window(0, 0, 96, 64)), (rgb[0] > 0).astype(np.uint8))


def test_measurements_are_refused_as_labels(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    values = np.arange(64 * 96, dtype=np.float32).reshape(1, 64, 96)
    write_raster(folder_of(tmp_path / "labels") / "a.tif", values)
    with pytest.raises(RssegError, match="more than 64 distinct values"):
        Source.locate(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "classes", "field"),
    [
        ({"Class": ["b", "a", "b"]}, [(1, "a"), (2, "b")], "Class"),
        ({"class": [3, 0, 3]}, [(0, "class 0"), (3, "class 3")], "class"),
        ({"class": [3, 0, 3], "name": ["x", "y", "x"]}, [(0, "y"), (3, "x")], "class"),
        ({"class": [3, 0, 3], "name": ["x", "y", "z"]}, [(0, "class 0"), (3, "class 3")], "class"),
        ({"Quatreclasses": ["1", "255", "4"]}, [(1, "class 1"), (4, "class 4")], "Quatreclasses"),
        ({"ground": ["b", "a", "b", "a"]}, [(1, "a"), (2, "b")], "ground"),
        ({"owner": ["Ann", "Bob", "Cy"]}, [(0, "background"), (1, "object")], None),
        ({"x": ["b", "a"] * 2, "y": ["c", "d"] * 2}, [(0, "background"), (1, "object")], None),
        ({"Id": [5, 6, 7]}, [(0, "background"), (1, "object")], None),
        ({"building": ["yes"] * 3}, [(0, "background"), (1, "building")], None),
        ({"class": [1] * 3, "name": ["pool"] * 3}, [(0, "background"), (1, "pool")], None),
    ],
)
def test_attributes_become_classes(
    tmp_path: Path, columns: Any, classes: Any, field: str | None
) -> None:
    image(tmp_path, "images/a.tif")
    polygons(tmp_path, "labels/a.gpkg", **columns)
    source = Source.locate(str(tmp_path))
    assert [(one.id, one.name) for one in source.classes] == classes
    assert source.spec.field == field
    source.save_inferred_spec(tmp_path)
    assert Source.locate(str(tmp_path)).spec == source.spec
    reader = source.opener.labels(source.pairs()[0])
    assert reader is not None
    values = set(np.unique(reader.read(Window(0, 0, 96, 64))))
    assert values == ({0, 1} if field is None else {0, 1, 255})


def test_unused_attributes_are_listed(tmp_path: Path) -> None:
    image(tmp_path, "images/a.tif")
    polygons(tmp_path, "labels/a.gpkg", x=["b", "a"] * 2, y=["c", "d"] * 2)
    assert (
        "`field: NAME` if one of these holds the classes: x, y."
        in Source.locate(str(tmp_path)).remark
    )


def test_rasters_and_polygons_side_by_side(tmp_path: Path) -> None:
    folder(tmp_path, 1)
    image(tmp_path, "images/b.tif")
    polygons(tmp_path, "labels/b.geojson", **{"class": [2, 4]})
    source = Source.locate(str(tmp_path))
    assert [one.id for one in source.classes] == [1, 2, 4]
    polygons(tmp_path, "labels/b.geojson", **{"class": ["x", "y"]})
    with pytest.raises(RssegError, match="cannot be matched"):
        Source.locate(str(tmp_path))


def test_one_label_serves_several_dates(tmp_path: Path) -> None:
    image(tmp_path, "images/spring.gtif", 4, "int16", nodata=-99)
    image(tmp_path, "images/summer.gtif", 4, "int16")
    label(tmp_path, "labels/truth.gtif")
    polygons(tmp_path, "labels/truth.shp", kind=["a", "b"])
    with pytest.warns(RssegWarning, match=r"truth\.gtif is read as the label"):
        source = Source.locate(str(tmp_path))
    assert {pair.label.name for pair in source.pairs() if pair.label} == {"truth.gtif"}
    assert "labels/truth.gtif is assumed to be the label of every image." in source.remark
    assert source.spec.reader.nodata == -99
