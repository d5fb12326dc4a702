"""Scores equal torchmetrics, add up, and treat classes that do not occur as documented."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.metrics import confusion
from rsseg_cli.metrics.confusion import ConfusionMatrix
from rsseg_cli.metrics.scores import Scores


def classes(number: int) -> list[Class]:
    return [Class(10 * i, f"class {i}", (i, i, i)) for i in range(number)]


def maps(number: int, seed: int, shape: tuple[int, int] = (37, 53)) -> tuple[np.ndarray, ...]:
    """A truth with ignored pixels and a prediction that is right about half the time."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, number, shape).astype(np.uint8)
    noise = rng.integers(0, number, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.5, truth, noise)
    truth[rng.random(shape) < 0.1] = IGNORE
    return predicted, truth


def scored(number: int, predicted: np.ndarray, truth: np.ndarray) -> Scores:
    matrix = ConfusionMatrix(classes(number))
    matrix.update(predicted, truth)
    return matrix.scores()


@pytest.mark.parametrize("number", [2, 5, 24])
def test_equals_torchmetrics(number: int) -> None:
    predicted, truth = maps(number, seed=number)
    scores = scored(number, predicted, truth)
    given = torch.from_numpy(predicted).long(), torch.from_numpy(truth).long()
    how = {"num_classes": number, "ignore_index": IGNORE}
    per_class = {
        "iou": multiclass_jaccard_index(*given, average=None, **how),
        "f1": multiclass_f1_score(*given, average=None, **how),
        "precision": multiclass_precision(*given, average=None, **how),
        "recall": multiclass_recall(*given, average=None, **how),
    }
    for name, expected in per_class.items():
        found = [getattr(row, name) for row in scores.classes]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    assert scores.miou == pytest.approx(float(per_class["iou"].mean()))
    assert scores.macc == pytest.approx(float(per_class["recall"].mean()))
    assert scores.f1 == pytest.approx(float(per_class["f1"].mean()))
    assert scores.accuracy == pytest.approx(
        float(multiclass_accuracy(*given, average="micro", **how))
    )
    expected_counts = multiclass_confusion_matrix(*given, **how)
    np.testing.assert_array_equal(scores.confusion, expected_counts.numpy())


def test_strays_are_shown_but_outside_the_mean_and_torchmetrics_mean_is_given_too() -> None:
    truth = np.array([[0, 0, 0, 1, 1, 1]])
    predicted = np.array([[0, 0, 2, 1, 1, 0]])
    scores = scored(4, predicted, truth)
    first, second, stray, absent = scores.classes
    assert (first.iou, second.iou) == (2 / 4, 2 / 3)
    assert (stray.stray, stray.iou, stray.f1, stray.precision, stray.recall) == (
        True,
        0,
        0,
        0,
        None,
    )
    assert absent.absent
    assert (absent.iou, absent.f1, absent.precision, absent.recall) == (None,) * 4
    assert scores.miou == pytest.approx((2 / 4 + 2 / 3) / 2)
    with_strays = multiclass_jaccard_index(
        torch.from_numpy(predicted), torch.from_numpy(truth), num_classes=4
    )
    assert scores.miou_with_strays == pytest.approx(float(with_strays))
    assert '"iou": null' in json.dumps(scores.to_json())


def test_a_pixel_without_prediction_is_a_miss() -> None:
    truth = np.array([0, 0, 1, 1, IGNORE], np.uint8)
    predicted = np.array([0, IGNORE, 1, 1, IGNORE], np.uint8)
    scores = scored(2, predicted, truth)
    assert scores.unmapped == scores.classes[0].unmapped == 1
    assert scores.accuracy == 3 / 4
    assert (scores.classes[0].iou, scores.classes[0].precision) == (1 / 2, 1)
    assert np.sum(scores.confusion) == 3


def test_nothing_labelled_has_no_scores() -> None:
    scores = scored(2, np.zeros((3, 3), np.uint8), np.full((3, 3), IGNORE, np.uint8))
    assert (scores.miou, scores.macc, scores.accuracy, scores.f1) == (None,) * 4
    assert scores.miou_with_strays is None
    assert scores.pixels == 0


@given(seed=st.integers(0, 10**6), cut=st.integers(0, 37), number=st.integers(1, 6))
def test_parts_add_up_to_the_whole(seed: int, cut: int, number: int) -> None:
    predicted, truth = maps(number, seed)
    whole = ConfusionMatrix(classes(number))
    whole.update(predicted, truth)
    parts = [ConfusionMatrix(classes(number)) for _ in range(2)]
    parts[0].update(predicted[:cut], truth[:cut])
    parts[1].update(predicted[cut:], truth[cut:])
    np.testing.assert_array_equal((parts[0] + parts[1]).counts, whole.counts)


def test_counting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, truth = maps(4, seed=1)
    whole = scored(4, predicted, truth)
    monkeypatch.setattr(confusion, "_CHUNK", 100)
    assert scored(4, predicted, truth) == whole


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_tensors_count_like_arrays_and_stay_as_they_were(dtype: torch.dtype) -> None:
    predicted, truth = maps(3, seed=2)
    predicted[0, :5] = IGNORE
    tensors = [torch.from_numpy(one).to(dtype) for one in (predicted, truth)]
    kept = [one.clone() for one in tensors]
    of_arrays, of_tensors = ConfusionMatrix(classes(3)), ConfusionMatrix(classes(3))
    of_arrays.update(predicted, truth)
    of_tensors.update(*tensors)
    np.testing.assert_array_equal(of_tensors.counts, of_arrays.counts)
    assert all(torch.equal(one, before) for one, before in zip(tensors, kept, strict=True))


def test_many_pixels_do_not_overflow() -> None:
    matrix = ConfusionMatrix(classes(255))
    labels = np.full(3 * 2**20, 254, np.uint8)
    matrix.update(labels, labels)
    assert matrix.counts[254, 254] == matrix.pixels == labels.size


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        ([0, 3], [0, 1], r"prediction holds \[3\]"),
        ([0, 1], [0, 2], r"truth holds \[2\]"),
        ([0, -1], [0, 1], r"prediction holds -1\.\.0"),
        ([0, 1], [0, 256], r"truth holds 0\.\.256"),
        ([0, 1, 1], [0, 1], "shapes differ"),
    ],
)
def test_refuses_what_is_no_class(predicted: list[int], truth: list[int], message: str) -> None:
    matrix = ConfusionMatrix(classes(2))
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(predicted), np.array(truth))
    assert matrix.pixels == 0


def test_other_classes_do_not_add() -> None:
    with pytest.raises(ValueError, match="different classes"):
        ConfusionMatrix(classes(2)) + ConfusionMatrix(classes(3))
    with pytest.raises(ValueError, match="needs classes"):
        ConfusionMatrix([])


def test_scores_survive_json() -> None:
    predicted, truth = maps(3, seed=5)
    scores = scored(3, predicted, truth)
    assert Scores.from_json(json.loads(json.dumps(scores.to_json()))) == scores
