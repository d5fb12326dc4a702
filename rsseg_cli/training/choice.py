"""Chooses a model without labels of the target, and sees when self-training goes astray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rsseg_cli.settings import Json

TOLERATED = 0.03
"""Loss of mIoU on the source, from the start, that costs nothing in the choice."""
LOOKS = 3
"""Validations whose ratings are averaged: one lucky look among noisy ones chooses nothing."""
ALIKE = 0.02
"""Differences of merit that say nothing: of models so close the one that adapted longest counts."""


@dataclass(frozen=True)
class Look:
    """What a model says about held-out tiles of the target.

    Attributes:
        shares: (K) share of the pixels that it gives to each class.
        mean: (K) mean probability of each class.
        entropy: Mean entropy of its pixels as a share of log K.
        confidence: Mean highest probability.
    """

    shares: list[float]
    mean: list[float]
    entropy: float
    confidence: float

    @property
    def information(self) -> float:
        """What a pixel tells about the class, 0..1: entropy of the mean less mean of the entropies.

        It is high for a model that is sure of every pixel and uses its classes evenly; a model
        that calls everything the same is sure, and has none.
        """
        among = math.log(max(2, len(self.mean)))
        spread = -sum(p * math.log(p) for p in self.mean if p > 0) / among
        return spread - self.entropy

    def to_json(self) -> dict[str, Json]:
        """Give what a line of the metrics holds."""
        return {
            "shares": [*self.shares],
            "confidence": self.confidence,
            "entropy": self.entropy,
            "information": self.information,
        }


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Tell how far two lists of shares are apart: the part that would have to move, 0..1."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / 2


def rating(information: float, miou: float | None, miou_at_start: float | None) -> float:
    """Rate a model: information on the target, less what was lost on the source beyond 3 points."""
    if miou is None or miou_at_start is None:
        return information
    return information - max(0.0, miou_at_start - miou - TOLERATED)


def merit(ratings: Sequence[float], best: float | None = None) -> float:
    """Say what a model is chosen by: the mean of its rating and the ones just before.

    Args:
        ratings: Of all models so far, this one's last.
        best: Highest merit so far. What is hardly below it counts as much.
    """
    mean = fmean(ratings[-LOOKS:])
    return best if best is not None and best - ALIKE <= mean < best else mean


def collapsed(
    shares: Sequence[float],
    at_start: Sequence[float],
    source: Sequence[float] | None,
    limit: float,
) -> bool:
    """Tell whether class shares have run away from the start's, and from the source's if known."""
    away = [distance(shares, at_start) > limit]
    if source is not None:
        away.append(distance(shares, source) > limit)
    return all(away)
