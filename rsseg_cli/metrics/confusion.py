"""Counts what was predicted where, and turns the counts into scores."""

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
"""Class indices of any shape and integer type, `IGNORE` where there is none."""

_CHUNK = 2**20
"""Pixels counted at a time: bincount takes 8 bytes per pixel."""


class ConfusionMatrix:
    """Pixels by true and by predicted class. Sums, so tiles, scenes and processes add.

    A pixel without a class in the truth is outside every count. A pixel that has one, but none in
    the prediction (nodata of the map), is a miss: it counts in the truth of its class, in no
    prediction, and is shown as *unmapped*.

    The means of `scores` run over the classes that occur in the truth, so that two maps of the
    same ground are always averaged over the same classes:

    - a class in neither truth nor prediction is *absent*: it has no scores (None, shown as "-");
    - a class that is predicted but not in the truth is *stray*: its IoU, F1 and precision are 0
      and shown, but stay out of the means. Its pixels already count as errors of the classes they
      truly are. Where there are strays, `miou_with_strays` also gives the mean that counts them
      as 0, which is what torchmetrics and MMSegmentation report.

    Attributes:
        classes: What the indices mean.
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
        """Count pixels.

        Args:
            predicted: Class indices; `IGNORE` where the map says nothing.
            truth: Class indices of the same shape; `IGNORE` where there is no truth.

        Raises:
            ValueError: The shapes differ, or an index is no class.
        """
        if tuple(predicted.shape) != tuple(truth.shape):
            raise ValueError(f"shapes differ: {tuple(predicted.shape)}, {tuple(truth.shape)}")
        flat_predicted, flat_truth = predicted.reshape(-1), truth.reshape(-1)
        for start in range(0, len(flat_truth), _CHUNK):
            part = slice(start, start + _CHUNK)
            self.counts += self._count(flat_predicted[part], flat_truth[part])

    def _count(self, predicted: Indices, truth: Indices) -> NDArray[np.int64]:
        """Count flat indices where they lie (numpy, or torch on its device)."""
        code = _bytes("truth", truth) * 256 + _bytes("prediction", predicted)
        if isinstance(code, np.ndarray):
            flat = np.bincount(code, minlength=2**16)
        else:
            flat = code.bincount(minlength=2**16).cpu().numpy()
        pairs = flat.reshape(256, 256)[:IGNORE]  # what has no truth ends here
        number = len(self.classes)
        for name, seen in (("truth", pairs.sum(1)), ("prediction", pairs.sum(0)[:IGNORE])):
            if seen[number:].any():
                odd = number + np.flatnonzero(seen[number:])
                raise ValueError(f"the {name} holds {odd[:5]}, but there are {number} classes")
        found: NDArray[np.int64] = pairs[:number, [*range(number), IGNORE]].astype(np.int64)
        return found

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if self.classes != other.classes:
            raise ValueError("confusion matrices of different classes do not add")
        return ConfusionMatrix(self.classes, self.counts + other.counts)

    @property
    def pixels(self) -> int:
        """Number of pixels with a true class."""
        return int(self.counts.sum())

    def scores(self) -> Scores:
        """Give the scores of all that was counted."""
        number = len(self.classes)
        hits = self.counts[:, :number].diagonal()
        true, predicted = self.counts.sum(1), self.counts[:, :number].sum(0)
        iou = _ratio(hits, true + predicted - hits)
        f1 = _ratio(2 * hits, true + predicted)
        precision, recall = _ratio(hits, predicted), _ratio(hits, true)
        rows = [
            ClassScore(
                id=one.id,
                name=one.name,
                color=one.color,
                iou=iou[i],
                f1=f1[i],
                precision=precision[i],
                recall=recall[i],
                pixels=int(true[i]),
                predicted=int(predicted[i]),
                unmapped=int(self.counts[i, number]),
            )
            for i, one in enumerate(self.classes)
        ]
        present = [row for row in rows if row.pixels]
        seen = [row for row in rows if row.pixels or row.predicted]
        return Scores(
            miou=_mean([row.iou for row in present]),
            macc=_mean([row.recall for row in present]),
            accuracy=_ratio(hits.sum()[None], true.sum()[None])[0],
            f1=_mean([row.f1 for row in present]),
            miou_with_strays=_mean([row.iou for row in seen]) if present else None,
            classes=rows,
            confusion=self.counts[:, :number].tolist(),
        )


def _bytes(name: str, indices: Any) -> Any:
    """Widen flat indices so that pairs of them can be coded; refuse what is no byte."""
    wide = indices.astype(np.int64) if isinstance(indices, np.ndarray) else indices.long()
    if len(wide) and (int(wide.min()) < 0 or int(wide.max()) > IGNORE):
        raise ValueError(f"the {name} holds {int(wide.min())}..{int(wide.max())}, no class indices")
    return wide


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> list[float | None]:
    """Divide counts; None where there is nothing to divide by."""
    return [int(a) / int(b) if b else None for a, b in zip(part, whole, strict=True)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
