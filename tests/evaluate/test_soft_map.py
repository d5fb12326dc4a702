"""Soft maps of objects: files as `predict` writes them, scored like PySODMetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import py_sod_metrics
import pytest
import rasterio
from numpy.typing import NDArray
from scenes import WriteScene

from rsseg_cli.classes import Class
from rsseg_cli.errors import RssegError
from rsseg_cli.evaluate import evaluate_rasters
from rsseg_cli.evaluate.reference import OBJECT_CLASSES
from rsseg_cli.raster.class_names import classes_tag, read_classes

SHIP = [Class(0, "background", (0, 0, 0)), Class(1, "ship", (255, 0, 0))]


THREE = [*SHIP, Class(2, "pier", (0, 255, 0))]


def blobs() -> NDArray[np.uint8]:
    """Objects (96, 64) of several sizes."""
    coarse = np.random.default_rng(2).random((12, 8)) < 0.3
    return coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)


def shares(seed: int, truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A soft map in 254ths that is mostly right."""
    noise = np.random.default_rng(seed).integers(-90, 90, truth.shape)
    return np.clip(truth * 140.0 + 60 + noise, 0, 254).astype(np.uint8)


def as_soft(write: WriteScene, values: NDArray[np.uint8], name: str) -> Path:
    """Write it as `predict` does, with its scale."""
    path = write(values[None], name, nodata=255)
    with rasterio.open(path, "r+") as file:
        file.scales = (1 / 254,)
    return path


@pytest.mark.filterwarnings("ignore:This class will be removed")  # simpler than its successor
@pytest.mark.parametrize("one", [1, 255], ids=["mask of 0 and 1", "mask of 0 and 255"])
def test_soft_maps_score_as_pysodmetrics_says(write_scene: WriteScene, one: int) -> None:
    truth = blobs()
    soft = shares(0, truth)
    true = write_scene(truth[None] * one, "truth.tif")
    found = evaluate_rasters(as_soft(write_scene, soft, "s.tif"), true).scores()
    share = soft / 254
    measures = {
        "s_measure": py_sod_metrics.Smeasure(), "e_measure": py_sod_metrics.Emeasure(),
        "mae": py_sod_metrics.MAE(), "f": py_sod_metrics.Fmeasure(),
    }  # fmt: skip
    for measure in measures.values():
        measure.step(share, truth > 0, normalize=False)
    adaptive = measures["f"].get_results()["fm"]
    expected = {
        "s_measure": measures["s_measure"].get_results()["sm"],
        "e_measure": measures["e_measure"].get_results()["em"]["curve"].mean(),
        "mae": measures["mae"].get_results()["mae"],
        "f_adaptive": adaptive["adp"], "f_mean": adaptive["curve"].mean(),
        "f_max": adaptive["curve"].max(),
    }  # fmt: skip
    assert {key: found.saliency[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert found.saliency["images"] == 1
    hits = share > 0.5
    iou = (hits & (truth > 0)).sum() / (hits | (truth > 0)).sum()
    assert found.classes[1].iou == pytest.approx(iou)
    assert found.saliency["miou_05"] == pytest.approx(iou, abs=1e-2)


def test_soft_maps_of_floats_and_of_bytes_without_a_scale(write_scene: WriteScene) -> None:
    truth = blobs()
    soft, true = shares(0, truth), write_scene(truth[None], "truth.tif")
    floats = evaluate_rasters(write_scene((soft / 255)[None].astype(np.float32), "f.tif"), true)
    grey = evaluate_rasters(write_scene(soft[None], "g.tif"), true, soft=True)
    assert floats.scores().saliency == pytest.approx(grey.scores().saliency, abs=1e-3)
    assert list(floats.classes) == list(OBJECT_CLASSES)
    with pytest.raises(RssegError, match="not probabilities"):
        evaluate_rasters(write_scene(soft[None].astype(np.float32), "logits.tif"), true)
    with pytest.raises(RssegError, match="not 3"):
        evaluate_rasters(as_soft(write_scene, soft, "s.tif"), true, THREE)


def test_large_soft_maps_are_several_images(
    write_scene: WriteScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = blobs()
    made, true = as_soft(write_scene, shares(0, truth), "s.tif"), write_scene(truth[None], "t.tif")
    monkeypatch.setattr("rsseg_cli.evaluate.soft_map.IMAGE_PX", 48)
    assert evaluate_rasters(made, true).scores().saliency["images"] == 4


@pytest.mark.parametrize(("value", "empty"), [(0, 1), (255, 0)], ids=["none", "all"])
def test_truth_without_any_or_full_of_objects(
    write_scene: WriteScene, value: int, empty: int
) -> None:
    soft = shares(0, np.full((40, 40), value > 0, np.uint8))
    truth = write_scene(np.full((1, 40, 40), value, np.uint8), "truth.tif")
    found = evaluate_rasters(as_soft(write_scene, soft, "s.tif"), truth, SHIP).scores()
    assert found.saliency["empty"] == empty
    for key in ("s_measure", "e_measure", "mae"):
        assert 0 <= found.saliency[key] <= 1
    overlap = [found.saliency[key] for key in ("f_max", "mdice", "miou_05")]
    assert all(one is None for one in overlap) if empty else all(0 < one <= 1 for one in overlap)


def test_masks_of_other_values_are_named(write_scene: WriteScene) -> None:
    truth = np.zeros((1, 40, 40), np.uint8)
    truth[0, :9], truth[0, 9:11] = 255, 128
    made = as_soft(write_scene, shares(0, truth[0] // 255), "s.tif")
    with pytest.raises(RssegError, match="not classes: 128") as caught:
        evaluate_rasters(made, write_scene(truth, "mask.tif"), SHIP)
    assert caught.value.where.endswith("mask.tif")


def test_statistics_beside_a_soft_map_do_not_hide_its_classes(write_scene: WriteScene) -> None:
    classes = [Class(0, "land", (1, 2, 3)), Class(1, "lake", (4, 5, 6))]
    path = write_scene(np.zeros((1, 8, 8), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(rsseg_classes=classes_tag(classes)["classes"])
    assert read_classes(path) == classes
    # As QGIS leaves it, once it has shown the map.
    statistics = '<MDI key="STATISTICS_MEAN">0</MDI>'
    sidecar = f'<PAMDataset><PAMRasterBand band="1"><Metadata>{statistics}</Metadata>'
    Path(f"{path}.aux.xml").write_text(f"{sidecar}</PAMRasterBand></PAMDataset>")
    assert read_classes(path) == classes
