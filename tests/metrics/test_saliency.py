"""Saliency scores equal PySODMetrics used as its authors do, and are defined on odd images."""

from __future__ import annotations

import numpy as np
import py_sod_metrics
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from rsseg_cli.classes import IGNORE
from rsseg_cli.metrics.saliency import Saliency
from rsseg_cli.metrics.scores import SALIENCY_NAMES


def image(seed: int, shape: tuple[int, int] = (48, 37)) -> tuple[NDArray[np.uint8], ...]:
    """A soft uint8 map that PySODMetrics does not stretch (0 to 255), and its mask (0 or 1)."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 5)
    truth = (smooth > np.quantile(smooth, 0.7)).astype(np.uint8)
    soft = ndimage.gaussian_filter(truth * 200.0, 2) + rng.uniform(0, 40, shape)
    soft = (soft - soft.min()) * 255 / np.ptp(soft)
    return soft.round().astype(np.uint8), truth


def reference(images: list[tuple[NDArray[np.uint8], ...]]) -> dict[str, float]:
    handlers = {
        "f": py_sod_metrics.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
        "iou": py_sod_metrics.IOUHandler(True, False, with_binary=True),
        "dice": py_sod_metrics.DICEHandler(True, False, with_binary=True),
    }
    measures = [
        py_sod_metrics.Smeasure(),
        py_sod_metrics.Emeasure(),
        py_sod_metrics.MAE(),
        py_sod_metrics.FmeasureV2(handlers),
    ]
    for soft, truth in images:
        for measure in measures:
            measure.step(pred=soft, gt=truth * 255)
    structure, enhanced, error, overlap = (measure.get_results() for measure in measures)
    return {
        "s_measure": structure["sm"],
        "e_measure": enhanced["em"]["curve"].mean(),
        "e_adaptive": enhanced["em"]["adp"],
        "e_max": enhanced["em"]["curve"].max(),
        "mae": error["mae"],
        "f_adaptive": overlap["f"]["adaptive"],
        "f_mean": overlap["f"]["dynamic"].mean(),
        "f_max": overlap["f"]["dynamic"].max(),
        "miou_05": overlap["iou"]["binary"],
        "miou_mean": overlap["iou"]["dynamic"].mean(),
        "dice_05": overlap["dice"]["binary"],
        "mdice": overlap["dice"]["dynamic"].mean(),
    }


def score(*images: tuple[NDArray[np.uint8], ...]) -> dict[str, float]:
    found = Saliency()
    for soft, truth in images:
        found.update(soft, truth)
    return found.scores()


def test_equals_pysodmetrics() -> None:
    images = [image(seed) for seed in range(3)]
    found, expected = score(*images), reference(images)
    assert set(expected) == set(SALIENCY_NAMES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-12), name
    assert (found["images"], found["empty"]) == (3, 0)


def test_shares_and_bytes_score_alike() -> None:
    soft, truth = image(1)
    assert score((soft / 255, truth)) == pytest.approx(score((soft, truth)))
    assert score(((soft / 255).astype(np.float32), truth))["mae"] == pytest.approx(
        score((soft, truth))["mae"], abs=1e-6
    )


def test_iou_at_half_and_mean_over_thresholds_of_a_binary_map() -> None:
    _, truth = image(2)
    predicted = np.roll(truth, 3, axis=1)
    found = score((predicted * 255, truth))
    iou = (predicted & truth).sum() / (predicted | truth).sum()
    assert found["miou_05"] == pytest.approx(iou)
    # 255 of the 256 thresholds cut the same mask; the lowest takes every pixel.
    assert found["miou_mean"] == pytest.approx((255 * iou + truth.mean()) / 256)


def test_image_without_object_is_scored_by_what_is_defined_there() -> None:
    soft, truth = image(3)
    nothing = np.zeros_like(truth)
    with_empty, without = score((soft, truth), (nothing, nothing)), score((soft, truth))
    for name in ("f_max", "f_adaptive", "mdice", "miou_05", "miou_mean", "dice_05"):
        assert with_empty[name] == without[name]
    assert with_empty["mae"] == pytest.approx(without["mae"] / 2)
    assert with_empty["s_measure"] == pytest.approx((without["s_measure"] + 1) / 2)
    assert with_empty["empty"] == 1
    only_empty = score((nothing, nothing))
    assert only_empty["miou_05"] is None
    assert only_empty["mae"] == 0


def test_image_that_is_all_object() -> None:
    full = np.ones((20, 20), np.uint8)
    found = score((full * 255, full))
    for name in ("s_measure", "f_max", "miou_05", "mdice"):
        assert found[name] == pytest.approx(1)
    assert found["mae"] == 0


def test_pixels_without_truth_do_not_count() -> None:
    soft, truth = image(4)
    unknown = truth.copy()
    unknown[:, :10] = IGNORE
    other = soft.copy()
    other[:, :10] = 255 - other[:, :10]
    assert score((soft, unknown)) == score((other, unknown))
    cut = score((soft[:, 10:], truth[:, 10:]))
    found = score((soft, unknown))
    for name in ("mae", "f_max", "miou_05", "e_measure"):
        assert found[name] == pytest.approx(cut[name])


def test_an_image_without_any_truth_adds_nothing() -> None:
    soft, truth = image(5)
    assert score((soft, np.full_like(truth, IGNORE)), (soft, truth)) == score((soft, truth))
    assert score((soft, np.full_like(truth, IGNORE)))["s_measure"] is None


def test_maps_are_not_stretched() -> None:
    soft, truth = image(6)
    faint = (soft // 4).astype(np.uint8)
    assert score((faint, truth))["miou_05"] == 0
    assert score((soft, truth))["miou_05"] > 0.5


def test_refuses_nonsense() -> None:
    soft, truth = image(7)
    with pytest.raises(ValueError, match="0, 1 or 255"):
        score((soft, truth * 2))
    with pytest.raises(ValueError, match="shapes differ"):
        score((soft[1:], truth))
    with pytest.raises(ValueError, match="floats"):
        score((soft.astype(np.float64), truth))
    with pytest.raises(ValueError, match="floats"):
        score((soft.astype(np.int16), truth))
