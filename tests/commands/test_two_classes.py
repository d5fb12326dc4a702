"""Objects against the rest, from masks to soft maps and their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from runs import SMALL, rsseg
from scenes import write_raster

KEYS = {"s_measure", "f_adaptive", "f_mean", "f_max", "e_measure", "mae", "mdice", "miou_05"}


def write_objects(root: Path) -> Path:
    """Write scenes of bright squares with masks of 0 and 255."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in "ab":
        rng = np.random.default_rng(ord(name))
        mask = (rng.random((6, 7)) < 0.3).repeat(16, 0).repeat(16, 1)
        seen = rng.normal(60, 8, (3, *mask.shape)) + 100 * mask
        write_raster(root / "images" / f"{name}.tif", seen.clip(1, 254).astype(np.uint8))
        write_raster(root / "labels" / f"{name}.tif", (mask[None] * 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_objects(tmp_path_factory.mktemp("data") / "objects")


@pytest.fixture(scope="module")
def run(objects: Path) -> Path:
    folder = objects.parent / "run"
    call = rsseg(
        "fit", "-m", "full", "--src", objects, "--output", folder, *SMALL, "--steps", "12",
        "--no-pretrained", "--set", "optimizer.lr=3e-3", "--set", "optimizer.backbone_lr=null",
    )  # fmt: skip
    assert call.code == 0, call.err
    return folder


def test_predict_writes_the_soft_map_and_the_cut_one(
    objects: Path, run: Path, tmp_path: Path
) -> None:
    scene, out = objects / "images" / "a.tif", tmp_path / "out"
    call = rsseg("predict", scene, "--model", run, "-o", out, "--probabilities", "--json")
    assert call.code == 0, call.err
    (one,) = call.document["scenes"]
    assert {Path(path).name for path in one["more"]} == {"a.soft.tif", "a.prob.tif", "a.seg.png"}
    with rasterio.open(out / "a.soft.tif") as file:
        soft = file.read(1)
        assert (file.count, file.dtypes[0], file.nodata) == (1, "uint8", 255)
        assert (file.scales, file.offsets) == ((1 / 254,), (0.0,))
        assert file.descriptions == ("object",)
    with rasterio.open(out / "a.prob.tif") as file:
        np.testing.assert_array_equal(soft, file.read(2))
    with rasterio.open(out / "a.seg.tif") as file:
        found, clear = file.read(1), np.abs(soft - 127.0) > 1
        np.testing.assert_array_equal(found[clear], (soft > 127)[clear])
    alone = rsseg("predict", scene, "--model", run, "-o", tmp_path / "b", "--no-soft", "--json")
    assert "a.soft.tif" not in str(alone.document)
    later = rsseg("predict", scene, "--model", run, "-o", tmp_path / "b", "--resume")
    assert later.code == 1, "a map without its soft one is not all that was asked for"
    assert "another model, input or options" in later.err


def test_both_ways_to_evaluate_say_the_same(objects: Path, run: Path, tmp_path: Path) -> None:
    scores = []
    for name in "ab":
        rsseg("predict", objects / "images" / f"{name}.tif", "--model", run, "-o", tmp_path)
        mask = objects / "labels" / f"{name}.tif"
        call = rsseg("evaluate", tmp_path / f"{name}.soft.tif", mask, "--json")
        assert call.code == 0, call.err
        assert call.document["saliency"].keys() >= KEYS | {"miou_mean"}
        thresholded = rsseg("evaluate", tmp_path / f"{name}.seg.tif", mask, "--json").document
        assert call.document["miou"] == pytest.approx(thresholded["miou"], abs=1e-2)
        assert "saliency" not in thresholded
        scores.append(call.document["saliency"])
    both = rsseg("evaluate", "--model", run, "--on", objects, "--json").document
    assert both["saliency"]["images"] == 2
    for key in KEYS - {"f_max"}:
        mean = (scores[0][key] + scores[1][key]) / 2
        assert both["saliency"][key] == pytest.approx(mean, abs=1e-6)
    shown = rsseg("evaluate", "--model", run, "--on", objects, "--report", tmp_path / "report")
    assert "S-measure" in shown.out
    assert "S-measure" in (tmp_path / "report" / "report.html").read_text()
