"""Confusion matrix of true and predicted classes, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.metrics.scores import ClassScore, Scores

if TYPE_CHECKING:
    from torch import Tensor

Indices: TypeAlias = "NDArray[Any] | Tensor"
"""Class indices of any shape and integer type, `IGNORE` for pixels without a class."""

_CHUNK = 2**20
"""Pixels counted at a time, since bincount takes 8 bytes per pixel."""


class ConfusionMatrix:
    """Pixels by true and by predicted class, which can be added over tiles and scenes.

    Pixels without a class in the reference are not counted. A labelled pixel without a class in
    the prediction (nodata of the map) is *unmapped*: it counts as an error of its true class.

    The means of `scores` are taken over the classes in the reference, so that two maps with the
    same reference are always averaged over the same classes:

    - A class in neither the reference nor the prediction is *absent*: its scores are None.
    - A class in the prediction but not in the reference is *stray*: its IoU, F1 and precision are
      0, but not part of the means, since its pixels already count as errors of their true classes.
      `miou_with_strays` includes these zeros, as torchmetrics and MMSegmentation do.

    Attributes:
        classes: The K classes of the indices.
        counts: (K, K + 1) pixels by true (row) and predicted (column) class; the last column is
            unmapped.
    """

    def __init__(self, classes: Sequence[Class], counts: NDArray[np.int64] | None = None) -> None:
        if not classes:
            raise ValueError("a confusion matrix needs classes")
        self.classes = tuple(classes)
        shape = (len(classes), len(classes) + 1)
        self.counts = np.zeros(shape, np.int64) if counts is None else counts
        if self.counts.shape != shape:
            raise ValueError(f"counts {self.counts.shape} do not fit {len(classes)} classes")

    def update(self, predicted: Indices, truth: Indices) -> None:
        """Add pixels.

        Args:
            predicted: Class indices, `IGNORE` for unmapped pixels.
            truth: Class indices of the same shape, `IGNORE` for unlabelled pixels.

        Raises:
            ValueError: The shapes differ, or an index is not a class.
        """
        if tuple(predicted.shape) != tuple(truth.shape):
            raise ValueError(f"shapes differ: {tuple(predicted.shape)}, {tuple(truth.shape)}")
        flat_predicted, flat_truth = predicted.reshape(-1), truth.reshape(-1)
        for start in range(0, len(flat_truth), _CHUNK):
            part = slice(start, start + _CHUNK)
            self.counts += self._count(flat_predicted[part], flat_truth[part])

    def _count(self, predicted: Indices, truth: Indices) -> NDArray[np.int64]:
        """Return the counts of flat indices, computed by numpy or by torch on its device."""
        code = _bytes("truth", truth) * 256 + _bytes("prediction", predicted)
        if isinstance(code, np.ndarray):
            flat = np.bincount(code, minlength=2**16)
        else:
            flat = code.bincount(minlength=2**16).cpu().numpy()
        pairs = flat.reshape(256, 256)[:IGNORE]  # drops the unlabelled pixels
        number = len(self.classes)
        for name, pixels in (("truth", pairs.sum(1)), ("prediction", pairs.sum(0)[:IGNORE])):
            if pixels[number:].any():
                invalid = number + np.flatnonzero(pixels[number:])
                raise ValueError(f"the {name} holds {invalid[:5]}, but there are {number} classes")
        counts: NDArray[np.int64] = pairs[:number, [*range(number), IGNORE]].astype(np.int64)
        return counts

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if self.classes != other.classes:
            raise ValueError("confusion matrices of different classes cannot be added")
        return ConfusionMatrix(self.classes, self.counts + other.counts)

    @property
    def pixels(self) -> int:
        """Number of pixels with a true class."""
        return int(self.counts.sum())

    def scores(self) -> Scores:
        """Compute the scores."""
        number = len(self.classes)
        hits = self.counts[:, :number].diagonal()
        true, predicted = self.counts.sum(1), self.counts[:, :number].sum(0)
        iou = ratios(hits, true + predicted - hits)
        f1 = ratios(2 * hits, true + predicted)
        precision, recall = ratios(hits, predicted), ratios(hits, true)
        rows = [
            ClassScore(
                id=cls.id,
                name=cls.name,
                color=cls.color,
                iou=iou[i],
                f1=f1[i],
                precision=precision[i],
                recall=recall[i],
                pixels=int(true[i]),
                predicted=int(predicted[i]),
                unmapped=int(self.counts[i, number]),
            )
            for i, cls in enumerate(self.classes)
        ]
        present = [row for row in rows if row.pixels]
        occurring = [row for row in rows if row.pixels or row.predicted]
        return Scores(
            miou=mean([row.iou for row in present]),
            macc=mean([row.recall for row in present]),
            accuracy=ratios(hits.sum()[None], true.sum()[None])[0],
            f1=mean([row.f1 for row in present]),
            miou_with_strays=mean([row.iou for row in occurring]) if present else None,
            classes=rows,
            confusion=self.counts[:, :number].tolist(),
        )


def _bytes(name: str, indices: Any) -> Any:
    """Return flat indices as int64; raise `ValueError` unless they are in 0..255."""
    wide = indices.astype(np.int64) if isinstance(indices, np.ndarray) else indices.long()
    if len(wide) and (int(wide.min()) < 0 or int(wide.max()) > IGNORE):
        values = f"{int(wide.min())}..{int(wide.max())}"
        raise ValueError(f"the {name} holds {values}, not class indices 0..{IGNORE}")
    return wide


def ratios(parts: NDArray[np.int64], wholes: NDArray[np.int64]) -> list[float | None]:
    """Return quotients of counts (K,); None for a divisor of 0."""
    return [int(a) / int(b) if b else None for a, b in zip(parts, wholes, strict=True)]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the defined values; None if all are undefined."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
