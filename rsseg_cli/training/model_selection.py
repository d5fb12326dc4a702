"""Model selection without target labels, and detection of collapsed self-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rsseg_cli.settings import Json

TOLERATED = 0.03
"""Decrease of the mIoU on the source since the start that is not penalised."""
AVERAGED = 3
"""Number of validations whose ratings are averaged, against noise."""
TIE = 0.02
"""Models whose merits differ by less than this count as equal; the last one is chosen."""


@dataclass(frozen=True)
class TargetStatistics:
    """Statistics of a model's predictions on held-out tiles of the target.

    Attributes:
        shares: (K) fraction of the pixels that are predicted as each class.
        mean: (K) mean probability of each class.
        entropy: Mean entropy of the pixels as a fraction of log K.
        confidence: Mean of the highest probability.
    """

    shares: list[float]
    mean: list[float]
    entropy: float
    confidence: float

    @property
    def information(self) -> float:
        """Mutual information of pixel and class, 0..1: entropy of the mean minus mean entropy.

        It is high for a model with confident predictions of all classes in equal numbers, and 0
        for a model that predicts one class everywhere.
        """
        entropy = -sum(p * math.log(p) for p in self.mean if p > 0)
        return entropy / math.log(max(2, len(self.mean))) - self.entropy

    def to_json(self) -> dict[str, Json]:
        """Return the values for `metrics.jsonl`."""
        return {
            "shares": [*self.shares],
            "confidence": self.confidence,
            "entropy": self.entropy,
            "information": self.information,
        }


def distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the total variation distance, 0..1, of two class distributions (K)."""
    return sum(abs(a - b) for a, b in zip(first, second, strict=True)) / 2


def rating(information: float, miou: float | None, miou_at_start: float | None) -> float:
    """Return the information, minus the decrease of the source's mIoU beyond `TOLERATED`."""
    if miou is None or miou_at_start is None:
        return information
    return information - max(0.0, miou_at_start - miou - TOLERATED)


def merit(ratings: Sequence[float], best: float | None = None) -> float:
    """Return the merit of a model: the mean of its rating and the previous ones.

    Args:
        ratings: Ratings of all models so far, in order.
        best: Highest merit so far; a merit just below it (`TIE`) is raised to it.
    """
    mean = fmean(ratings[-AVERAGED:])
    return best if best is not None and best - TIE <= mean < best else mean


def collapsed(
    shares: Sequence[float],
    at_start: Sequence[float],
    source: Sequence[float] | None,
    limit: float,
) -> bool:
    """Return True if the class distribution is far from the start's, and the source's if given."""
    references = [at_start] if source is None else [at_start, source]
    return all(distance(shares, reference) > limit for reference in references)
