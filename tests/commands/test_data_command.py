"""`rsseg data`: what is known, what is on disk, what does not fit and how to read it anyway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import LOCAL, write
from folders import PNG, folder, image, label
from runs import SMALL, rsseg
from scenes import random_samples, write_raster

from rsseg_cli import presets
from rsseg_cli.data.check.check_dataset import check
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.class_map import ClassMap
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window


def findings(root: Path, name: str, sample: int = 24) -> dict[str, Any]:
    """Findings that do not fit, by what they are about."""
    found = check(Source.locate(name, data_root=root), sample=sample)
    return {one.what: one for one in found.findings if one.fits is False}


def whole(bad: dict[str, Any]) -> dict[str, Any]:
    """Leave out that a tiny tree has fewer images than were published."""
    return {what: one for what, one in bad.items() if not what.startswith("split ")}


# --- list -----------------------------------------------------------------------------------------


def test_list_names_licence_size_and_page() -> None:
    call = rsseg("data", "list", "--json")
    assert len(call.document) == 34
    for row in call.document:
        assert row["licence"]
        assert row["size"]
        assert row["url"].startswith("http")
    assert "openearthmap" in rsseg("data", "list").out


# --- check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["loveda", "potsdam_rgb", "fbp_cmegacities", "flair1_13", "openearthmap", "orssd",
             "dynamicearthnet", "whu_ohs7", "casid", "cityscapes", "inria_building"]
)  # fmt: skip
def test_what_is_as_published_fits(tmp_path: Path, name: str) -> None:
    write(name, tmp_path)
    bad = whole(findings(tmp_path, name))
    if name == "dynamicearthnet":
        assert bad.pop("labels").found.startswith("1 without label")
    assert not bad


def test_counts_by_split_and_domain(tmp_path: Path) -> None:
    write("loveda", tmp_path)
    call = rsseg("data", "check", "loveda", "--data-root", tmp_path, "--json")
    assert call.code == 1
    assert not call.document["fits"]
    counts = {(c["split"], c["domain"]): (c["images"], c["labelled"]) for c in
              call.document["counts"]}  # fmt: skip
    assert counts["train", "rural"] == (1, 1)
    assert counts["test", "rural"] == (1, 0)
    assert ("val", "rural") not in counts
    shown = rsseg("data", "check", "loveda", "--data-root", tmp_path).out
    assert "1,669 images" in shown
    assert "rsseg data describe loveda" in shown


def shift_labels(root: Path, by: int) -> None:
    for path in root.rglob("*-label.png"):
        ids = np.resize(np.arange(5, dtype=np.uint8) + by, (64, 96))
        write_raster(path, ids[None], **PNG)


def test_ids_from_one_are_found_and_the_remap_said_reads_them(tmp_path: Path) -> None:
    write("casid", tmp_path)
    shift_labels(tmp_path, 1)
    bad = findings(tmp_path, "casid")["label values"]
    assert (bad.expected, bad.found) == ("ids 0..4", "1..5")
    assert bad.fix == "remap: {1: 0, 2: 1, 3: 2, 4: 3, 5: 4} and ignore: [0]"
    text = presets.find("datasets", "casid").read_text() + bad.fix.replace(" and ", "\n") + "\n"
    (tmp_path / "casid.yaml").write_text(text)
    source = Source.locate(str(tmp_path / "casid.yaml"))
    assert not whole(findings(tmp_path, str(tmp_path / "casid.yaml")))
    pair = source.pairs("train")[0]
    reader = source.opener.labels(pair)
    assert reader is not None
    assert reader.read(Window(0, 0, 6, 1)).tolist() == [[0, 1, 2, 3, 4, 0]]


def test_ids_from_zero_are_suspected(tmp_path: Path) -> None:
    write("gid5", tmp_path)
    small = Source.locate("gid5", data_root=tmp_path)
    reader = small.spec.reader.model_copy(update={"box": None})
    small.spec = small.spec.model_copy(update={"reader": reader})
    for path in tmp_path.rglob("*_5label.png"):
        write_raster(path, np.resize(np.arange(5, dtype=np.uint8), (64, 96))[None], **PNG)
    (one,) = [f for f in check(small, sample=4).findings if f.what == "label values"]
    assert one.fits is None
    assert "remap: {0: 1, 1: 2, 2: 3, 3: 4, 4: 5}" in one.fix


def test_colours_that_are_a_few_counts_off_are_reported(tmp_path: Path) -> None:
    write("potsdam_rgb", tmp_path)
    found = check(Source.locate("potsdam_rgb", data_root=tmp_path), sample=4).findings
    (one,) = [f for f in found if f.what == "label colours"]
    assert one.fits is None
    assert "1 of them up to 6 off" in one.found
    path = next(tmp_path.rglob("*noBoundary.tif"))
    write_raster(path, np.full((3, 64, 96), 128, np.uint8), crs=None, transform=None)
    assert "unknown: (128, 128, 128)" in findings(tmp_path, "potsdam_rgb")["label colours"].found


def test_masks_of_zero_and_one(tmp_path: Path) -> None:
    write("eorssd", tmp_path)
    for path in tmp_path.rglob("*.png"):
        write_raster(path, np.resize(np.array([0, 1], np.uint8), (64, 96))[None], **PNG)
    assert findings(tmp_path, "eorssd")["label values"].fix == "threshold: 0.5"


def test_half_downloaded(tmp_path: Path) -> None:
    write("loveda", tmp_path)
    (tmp_path / "LoveDA/Train/Rural/masks_png/0.png").unlink()
    (tmp_path / "LoveDA/Val/Urban/images_png/3514.png").unlink()
    bad = findings(tmp_path, "loveda")
    assert "Train/Rural/images_png/0.png" in bad["labels"].found
    assert "3514.png" in bad["images"].found
    assert bad["split train"].expected == "2,522 images"
    with pytest.raises(RssegError, match=r"no image for 1 label: 3514\.png"):
        Source.locate("loveda", data_root=tmp_path).pairs()


def test_truncated_and_wrong_files(tmp_path: Path) -> None:
    write("loveda", tmp_path)
    path = tmp_path / "LoveDA/Train/Urban/images_png/1366.png"
    path.write_bytes(b"<html>quota exceeded</html>")
    assert "1366.png" in findings(tmp_path, "loveda")["image"].found
    write_raster(path, random_samples(3, 64, 96, "uint16"), **PNG)
    assert findings(tmp_path, "loveda")["stored type"].found == "uint16 and uint8"


def test_label_of_another_size(tmp_path: Path) -> None:
    write("gtav", tmp_path)
    write_raster(tmp_path / "gta/labels/00002.png", np.full((1, 60, 96), 7, np.uint8), **PNG)
    bad = findings(tmp_path, "gtav")["label and image"]
    assert "96 x 60 pixels, its image 96 x 64" in bad.found
    assert "00002.png" in bad.found


def test_duplicated_stems(tmp_path: Path) -> None:
    write("orssd", tmp_path)
    shutil.copy(tmp_path / "ORSSD/test-images/0003.jpg", tmp_path / "ORSSD/train-images/0003.jpg")
    shutil.copy(tmp_path / "ORSSD/test-labels/0003.png", tmp_path / "ORSSD/train-labels/0003.png")
    names = [entry.name for entry in Source.locate("orssd", data_root=tmp_path).entries()]
    assert len(set(names)) == 4, "stems of two splits stay apart"
    image(tmp_path / "ORSSD", "train-images/0001.png", **PNG)
    assert "two images are called" in findings(tmp_path, "orssd")["files"].found


def test_swapped_lists_are_noticed(tmp_path: Path) -> None:
    write("openearthmap", tmp_path)
    root = tmp_path / "OpenEarthMap_wo_xBD"
    (root / "val.txt").write_text("rio_7.tif\n")
    (root / "test.txt").write_text("vienna_25.tif\n")
    assert findings(tmp_path, "openearthmap")["lists"].fix == "exchange val and test"


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    write("openearthmap", tmp_path)
    (tmp_path / "OpenEarthMap_wo_xBD/train.txt").unlink()
    assert "train.txt" in findings(tmp_path, "openearthmap")["split train"].found


def test_labels_whose_images_come_from_elsewhere(tmp_path: Path) -> None:
    write("openearthmap", tmp_path)
    label(tmp_path / "OpenEarthMap_wo_xBD", "joplin/labels/joplin_1.tif")
    assert not whole(findings(tmp_path, "openearthmap"))
    assert Source.locate("openearthmap:train", data_root=tmp_path).pairs()


def test_both_kinds_of_labels_may_lie_there(tmp_path: Path) -> None:
    """Potsdam's full and eroded labels: the eroded are taken, the others are not orphans."""
    write("potsdam_rgb", tmp_path)
    eroded = tmp_path / "Potsdam/5_Labels_all_noBoundary"
    full = tmp_path / "Potsdam/5_Labels_all"
    full.mkdir()
    for path in eroded.iterdir():
        shutil.copy(path, full / path.name.replace("_noBoundary", ""))
    write("gtav", tmp_path)
    for path in (tmp_path / "gta/labels").iterdir():
        shutil.copy(path, path.with_name(f"{path.stem}_labelTrainIds.png"))
    pairs = Source.locate("potsdam_rgb", data_root=tmp_path).pairs()
    assert {pair.label.parent.name for pair in pairs if pair.label} == {eroded.name}
    assert len(Source.locate("gtav", data_root=tmp_path).pairs()) == 3


def test_missing_place_is_said(tmp_path: Path) -> None:
    write("fbp_cmegacities", tmp_path)
    root = tmp_path / "C-megacities"
    found = check(Source.locate("fbp_cmegacities", data_root=tmp_path), sample=4).findings
    assert "keep pixel order" in next(f for f in found if f.what == "place").fix
    (root / "Coordinate_files").mkdir()
    (root / "Coordinate_files/a.rpb").write_text("satId = x;")
    found = check(Source.locate("fbp_cmegacities", data_root=tmp_path), sample=4).findings
    assert ".rpb" in next(f for f in found if f.what == "place").fix


def test_an_assigned_crs_takes_the_place_of_a_local_one(tmp_path: Path) -> None:
    write("flair1_12", tmp_path)
    found = check(Source.locate("flair1_12", data_root=tmp_path), sample=4).findings
    (one,) = [f for f in found if f.what == "place"]
    assert LOCAL.startswith("LOCAL_CS")
    assert one.found == "EPSG:2154"


def test_where_it_was_looked_for(tmp_path: Path) -> None:
    call = rsseg("data", "check", "whu_ohs", "--data-root", tmp_path)
    assert call.code == 1
    assert str(tmp_path / "WHU_OHS") in call.err
    assert "{tr,val,ts}/image/*.tif" in call.err
    assert "irsip.whu.edu.cn" in call.err


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder(tmp_path)
    call = rsseg("data", "check", tmp_path, "--json")
    assert call.code == 0, call.out
    assert call.document["fits"]


def test_what_was_found_by_looking_can_be_changed(tmp_path: Path) -> None:
    folder(tmp_path / "city")
    call = rsseg("data", "describe", tmp_path / "city")
    assert call.code == 0, call.err
    mine = tmp_path / "elsewhere" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text(call.out.replace("name: city", "name: mine"))
    again = rsseg("data", "check", mine, "--json")
    assert again.code == 0, again.out
    assert again.document["name"] == "mine"
    assert not (tmp_path / "city/dataset.yaml").exists()


def test_nodata_of_a_label_is_no_strange_value(tmp_path: Path) -> None:
    folder(tmp_path)
    ids = random_samples(1, 64, 96) % 3
    write_raster(tmp_path / "labels/a.tif", ids, nodata=0)
    call = rsseg("data", "check", tmp_path, "--json")
    assert call.code == 0, call.out
    assert call.document["fits"]


# --- stats ----------------------------------------------------------------------------------------


def test_statistics_leave_out_what_is_missing(tmp_path: Path) -> None:
    samples = random_samples(3, 64, 96).astype("int16")
    samples[:, :20] = -999
    (tmp_path / "images").mkdir()
    write_raster(tmp_path / "images/a.tif", samples, nodata=-999)
    label(tmp_path, "labels/a.tif", (1, 1, 1, 2))
    call = rsseg("data", "stats", tmp_path, "--all", "--json")
    assert call.code == 0, call.err
    there = samples[:, 20:].reshape(3, -1).astype(float)
    np.testing.assert_allclose(call.document["mean"], there.mean(1))
    np.testing.assert_allclose(call.document["std"], there.std(1))
    shares = {row["id"]: row["share"] for row in call.document["classes"]}
    assert shares[1] == pytest.approx(0.75)
    shown = rsseg("data", "stats", tmp_path).out
    assert "norm:\n  mean: [" in shown


# --- classes of another scheme --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dataset"),
    [("potsdam_to_rescuenet5", "potsdam_rgb"), ("potsdam_to_rescuenet5", "vaihingen"),
     ("fbp_to_gid5", "fbp_gf2"), ("fbp_to_gid5", "fbp_cmegacities")],
)  # fmt: skip
def test_maps_are_complete(name: str, dataset: str) -> None:
    from rsseg_cli.data.spec.dataset_spec import DatasetSpec

    spec = presets.read(presets.find("datasets", dataset)).parse(DatasetSpec)
    merge = ClassMap.read(name).fit(spec.class_list(), where=dataset)
    other = {"potsdam_to_rescuenet5": "rescuenet5", "fbp_to_gid5": "gid5"}[name]
    target = presets.read(presets.find("datasets", other)).parse(DatasetSpec)
    assert list(merge.classes) == target.class_list()
    assert set(range(len(merge.classes))) <= set(merge.table)


def test_labels_are_read_as_the_other_classes(tmp_path: Path) -> None:
    write("potsdam_rgb", tmp_path)
    source = Source.locate("potsdam_rgb", data_root=tmp_path, class_map="potsdam_to_rescuenet5")
    assert [one.name for one in source.classes][2] == "vegetation"
    pair = source.pairs("train")[0]
    reader = source.opener.labels(pair)
    assert reader is not None
    row = reader.read(Window(0, 0, 96, 1))[0]
    assert [int(v) for v in row[6::12]] == [0, 1, 2, 2, 3, 4, 255, 4]


MAP = """\
classes: [{id: 1, name: land, color: [1, 1, 1]}, {id: 9, name: sea, color: [9, 9, 9]}]
map: {class 1: land, class 2: land}
"""


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        (", class 2: land", "", "leaves out 1 class: class 2"),
        ("class 2", "clas 2", "clas 2 is not a known class"),
        ("class 2: land", "class 2: lnad", "map leads to lnad"),
        ("name: sea", "name: land", "name land occurs twice"),
    ],
)
def test_maps_that_do_not_fit(tmp_path: Path, old: str, new: str, what: str) -> None:
    folder(tmp_path / "d")
    path = tmp_path / "map.yaml"
    path.write_text(MAP.replace(old, new))
    with pytest.raises(RssegError, match=what):
        Source.locate(str(tmp_path / "d"), class_map=str(path))


def test_a_model_is_scored_on_other_classes(tmp_path: Path) -> None:
    """Both ways: labels become the model's classes, or its scores become the dataset's."""
    fine, coarse = folder(tmp_path / "fine"), folder(tmp_path / "coarse")
    for path in (coarse / "labels").iterdir():
        write_raster(path, np.ones((1, 64, 96), np.uint8))
    path = tmp_path / "map.yaml"
    path.write_text(MAP)
    lines = "bands: [{name: red}, {name: green}, {name: blue}]\n"
    rows = ", ".join(f"{{id: {i}, name: class {i}, color: [{i}, {i}, {i}]}}" for i in (1, 2))
    (fine / "dataset.yaml").write_text(f"name: fine\n{lines}classes: [{rows}]\n")
    (coarse / "dataset.yaml").write_text(f"name: coarse\n{lines}{MAP.splitlines()[0]}\n")
    quick = [*SMALL, "--no-pretrained", "--steps", "1", "--set", "data.val_fraction=0"]
    call = rsseg("fit", "-m", "frozen", "--src", fine, "--output", tmp_path / "r", *quick)
    assert call.code == 0, call.err
    call = rsseg("evaluate", "--model", tmp_path / "r", "--on", coarse, "--device", "cpu", "--json")
    assert call.code == 1
    assert "--class-map" in call.err
    more = ("--class-map", path, "--device", "cpu", "--json")
    call = rsseg("evaluate", "--model", tmp_path / "r", "--on", coarse, *more)
    assert call.code == 0, call.err
    assert [one["name"] for one in call.document["classes"]] == ["land", "sea"]
    assert call.document["accuracy"] == 1.0, "both classes are land, and sea is never predicted"
    call = rsseg(
        "fit",
        "-m",
        "frozen",
        "--src",
        fine,
        "--class-map",
        path,
        "--output",
        tmp_path / "m",
        *quick,
    )
    assert call.code == 0, call.err
    call = rsseg("evaluate", "--model", tmp_path / "m", "--on", fine, *more)
    assert call.code == 0, call.err
    assert [one["pixels"] for one in call.document["classes"]] == [2 * 64 * 96, 0]
    config = json.dumps((tmp_path / "m/config.yaml").read_text())
    assert "map.yaml" in config
