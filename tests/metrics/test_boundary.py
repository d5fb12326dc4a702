"""Outlines equal those of repeated 3x3 erosion, and windows add up to the scene."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.metrics.boundary import BoundaryIoU, outline
from rsseg_cli.metrics.confusion import ConfusionMatrix

CLASSES = [Class(i, name, (0, 0, 0)) for i, name in enumerate("abc")]


def blobs(seed: int, shape: tuple[int, int] = (61, 47)) -> NDArray[np.uint8]:
    """Three classes in patches, with a hole that has no label."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, *shape)), (0, 4, 4))
    labels = noise.argmax(0).astype(np.uint8)
    labels[20:30, 10:18] = IGNORE
    return labels


def by_erosion(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Cheng et al.: a mask without its `distance`-fold 3x3 erosion, the border being outside."""
    inner = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
    return mask & ~inner


@pytest.mark.parametrize("distance", [1, 2, 5, 40])
def test_equals_erosion_class_by_class(distance: int) -> None:
    truth, predicted = blobs(1), blobs(2)
    predicted[truth == IGNORE] = IGNORE
    score = BoundaryIoU(CLASSES, distance=distance)
    score.update(predicted, truth)
    for index, found in enumerate(score.iou()):
        of_truth = by_erosion(truth == index, distance)
        of_guess = by_erosion(predicted == index, distance)
        expected = (of_truth & of_guess).sum() / (of_truth | of_guess).sum()
        assert found == pytest.approx(expected)
        np.testing.assert_array_equal(outline(truth, distance) & (truth == index), of_truth)


@given(seed=st.integers(0, 10**6), distance=st.integers(1, 6), row=st.integers(7, 50))
def test_windows_add_up_to_the_scene(seed: int, distance: int, row: int) -> None:
    truth, predicted = blobs(seed), blobs(seed + 1)
    whole = BoundaryIoU(CLASSES, distance=distance)
    whole.update(predicted, truth)
    above, below = (BoundaryIoU(CLASSES, distance=distance) for _ in range(2))
    every = slice(None)
    above.update(predicted[: row + distance], truth[: row + distance], (slice(0, row), every))
    start = max(0, row - distance)
    below.update(predicted[start:], truth[start:], (slice(row - start, None), every))
    np.testing.assert_array_equal(above.counts + below.counts, whole.counts)


def test_thick_objects_show_their_boundary_errors() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[20:80, 20:80] = 1
    predicted = np.zeros_like(truth)
    predicted[22:78, 22:78] = 1
    area, edge = ConfusionMatrix(CLASSES), BoundaryIoU(CLASSES, distance=2)
    area.update(predicted, truth)
    edge.update(predicted, truth)
    scores = edge.add_to(area.scores())
    square = scores.classes[1]
    assert square.iou == pytest.approx(56**2 / 60**2)
    assert square.boundary_iou == 0  # outlines two pixels wide, two pixels apart
    assert scores.boundary_px == 2
    assert scores.classes[2].boundary_iou is None
    known = [row.boundary_iou for row in scores.classes[:2]]
    assert scores.boundary_miou == pytest.approx(sum(known) / 2)


def test_unmapped_pixels_have_no_outline_and_unknown_truth_counts_for_neither() -> None:
    truth, predicted = np.ones((2, 30, 30), np.uint8)
    predicted[:, 15:] = IGNORE
    score = BoundaryIoU(CLASSES, distance=1)
    score.update(predicted, truth)
    # The truth's outline is the border; the prediction's is its half of that and the cut.
    assert score.counts[:, 1].tolist() == [58, 116, 86]
    same = BoundaryIoU(CLASSES, distance=3)
    truth[10:20] = IGNORE
    same.update(np.ones_like(truth), truth)
    assert same.iou()[1] == 1


def test_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel"):
        BoundaryIoU(CLASSES, distance=0)
    with pytest.raises(ValueError, match="shapes differ"):
        BoundaryIoU(CLASSES, distance=1).update(np.zeros((3, 4)), np.zeros((4, 3)))
