"""Model selection without labels of the target, and detection of collapsed self-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rsseg_cli.settings import Json

TOLERATED = 0.03
"""Loss of mIoU on the source, since the start, that is not penalised."""
AVERAGED = 3
"""Validations whose ratings are averaged, so that a single noisy one does not decide."""
ALIKE = 0.02
"""Smallest difference of merit that counts: of models closer than this the last is chosen."""


@dataclass(frozen=True)
class TargetStatistics:
    """Statistics of a model's predictions on held-out tiles of the target.

    Attributes:
        shares: (K) fraction of the pixels that are predicted as each class.
        mean: (K) mean probability of each class.
        entropy: Mean entropy of the pixels as a fraction of log K.
        confidence: Mean highest probability.
    """

    shares: list[float]
    mean: list[float]
    entropy: float
    confidence: float

    @property
    def information(self) -> float:
        """Mutual information of pixel and class, 0..1: entropy of the mean less mean entropy.

        It is high for a model that is sure of every pixel and uses its classes evenly; for a
        model that predicts one class everywhere it is 0.
        """
        among = math.log(max(2, len(self.mean)))
        spread = -sum(p * math.log(p) for p in self.mean if p > 0) / among
        return spread - self.entropy

    def to_json(self) -> dict[str, Json]:
        """Return what a line of the metrics holds."""
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
    """Return the information on the target, less what the source lost beyond `TOLERATED`."""
    if miou is None or miou_at_start is None:
        return information
    return information - max(0.0, miou_at_start - miou - TOLERATED)


def merit(ratings: Sequence[float], best: float | None = None) -> float:
    """Return what a model is chosen by: the mean of its rating and the ones just before.

    Args:
        ratings: Of all models so far, this one's last.
        best: Highest merit so far. What is hardly below it counts as much.
    """
    mean = fmean(ratings[-AVERAGED:])
    return best if best is not None and best - ALIKE <= mean < best else mean


def collapsed(
    shares: Sequence[float],
    at_start: Sequence[float],
    source: Sequence[float] | None,
    limit: float,
) -> bool:
    """Return True if the class distribution is far from the start's, and the source's if known."""
    away = [distance(shares, at_start) > limit]
    if source is not None:
        away.append(distance(shares, source) > limit)
    return all(away)
