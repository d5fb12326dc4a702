"""Boundary IoU: how well the outlines of classes agree (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.metrics.scores import Scores


def outline_px(width: int, height: int) -> int:
    """Give the outline width of the paper for an image: 2 % of its diagonal, at least 1 pixel."""
    return max(1, round(0.02 * math.hypot(width, height)))


class BoundaryIoU:
    """Intersection over union of outlines, per class. Sums, so tiles, scenes and processes add.

    The outline of a class are its pixels nearer than `distance` pixels (Chebyshev) to anything
    that is not the class; as in the paper, the border of what is given counts as such. IoU of a
    class is |outline of truth and outline of prediction| / |either|.

    Pixels without truth belong to no class in either map, so that both have an outline there.

    Args:
        classes: What the indices mean.
        distance: Width of the outline in pixels; the paper's is `outline_px`.
    """

    def __init__(self, classes: Sequence[Class], *, distance: int) -> None:
        if distance < 1:
            raise ValueError(f"an outline is at least 1 pixel wide, not {distance}")
        self.classes, self.distance = tuple(classes), distance
        # Rows: pixels in both outlines, in the true one, in the predicted one.
        self.counts = np.zeros((3, len(self.classes)), np.int64)

    def update(
        self,
        predicted: NDArray[Any],
        truth: NDArray[Any],
        inside: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> None:
        """Count the outlines of a tile, or of a window of a scene.

        Args:
            predicted: (h, w) class indices, `IGNORE` where the map says nothing.
            truth: (h, w) class indices, `IGNORE` where there is no truth.
            inside: The part that is counted. Around a window of a scene give `distance` pixels
                more on every side that has neighbours, and cut them off here: then windows sum
                to exactly what the whole scene gives.
        """
        if predicted.shape != truth.shape or truth.ndim != 2:
            raise ValueError(f"shapes differ: {predicted.shape}, {truth.shape}")
        there = truth != IGNORE
        true = np.where(there, truth, IGNORE).astype(np.uint8)
        guess = np.where(there, predicted, IGNORE).astype(np.uint8)
        of_truth = outline(true, self.distance)[inside]
        of_guess = outline(guess, self.distance)[inside]
        true, guess = true[inside], guess[inside]
        both = of_truth & of_guess & (true == guess)
        for row, labels in enumerate((true[both], true[of_truth], guess[of_guess])):
            known = labels[labels != IGNORE]
            self.counts[row] += np.bincount(known, minlength=len(self.classes))

    def __add__(self, other: BoundaryIoU) -> BoundaryIoU:
        if (self.classes, self.distance) != (other.classes, other.distance):
            raise ValueError("boundary scores of different classes or distances do not add")
        total = BoundaryIoU(self.classes, distance=self.distance)
        total.counts = self.counts + other.counts
        return total

    def iou(self) -> list[float | None]:
        """Give the boundary IoU per class, None for a class with no outline in either map."""
        both, true, guess = (row.tolist() for row in self.counts)
        either = [t + g - b for b, t, g in zip(both, true, guess, strict=True)]
        return [b / e if e else None for b, e in zip(both, either, strict=True)]

    def add_to(self, scores: Scores) -> Scores:
        """Put the boundary scores beside the others; the mean runs over the same classes."""
        rows = [
            replace(row, boundary_iou=value)
            for row, value in zip(scores.classes, self.iou(), strict=True)
        ]
        known = [r.boundary_iou for r in rows if r.pixels and r.boundary_iou is not None]
        mean = sum(known) / len(known) if known else None
        return replace(scores, classes=rows, boundary_miou=mean, boundary_px=self.distance)


def outline(labels: NDArray[np.uint8], distance: int) -> NDArray[np.bool_]:
    """Find the pixels (h, w) with another label, or the border, within `distance` pixels.

    All classes at once: a pixel is inside its class exactly where the smallest and the largest
    label in the square of side 2 * distance + 1 around it are the same.
    """
    padded = np.pad(labels, distance, constant_values=IGNORE)
    side = 2 * distance + 1
    found: NDArray[np.bool_] = _slide(padded, side, np.minimum) != _slide(padded, side, np.maximum)
    return found


def _slide(
    labels: NDArray[np.uint8], side: int, extreme: Callable[..., NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Take the extreme of every `side` x `side` square that fits, in O(log side) passes."""
    reach = 1
    while reach < side:
        step = min(reach, side - reach)
        labels = extreme(labels[:-step], labels[step:])
        labels = extreme(labels[:, :-step], labels[:, step:])
        reach += step
    return labels
