"""Calibration of class probabilities (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class CalibrationBin:
    """Pixels whose confidence, the highest class probability, is in one range.

    Attributes:
        confidence: Mean confidence.
        accuracy: Correct fraction of the pixels.
        pixels: Number of pixels.
    """

    confidence: float
    accuracy: float
    pixels: int


@dataclass(frozen=True)
class Reliability:
    """Calibration curve.

    Attributes:
        bins: Ranges of equal width with at least one pixel, by increasing confidence.
        ece: Expected calibration error: pixel-weighted mean of |accuracy - confidence| of the bins.
    """

    bins: Sequence[CalibrationBin]
    ece: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reliability:
        """Build a curve from the output of `asdict`."""
        return cls([CalibrationBin(**row) for row in document["bins"]], document["ece"])


class Calibration:
    """Sums per range of confidence, which can be added over tiles and scenes.

    Attributes:
        sums: (3, BINS) pixels, correct pixels, sum of confidences.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((3, BINS))

    def update(self, confidence: NDArray[Any], correct: NDArray[np.bool_]) -> None:
        """Add N labelled pixels: their confidence 0..1, and whether their class is correct."""
        values = confidence.astype(np.float64)
        # Bins exclude their lower end and include their upper end, as in the paper.
        bins = np.clip(np.ceil(values * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.sums[0] += np.bincount(bins, minlength=BINS)
        self.sums[1] += np.bincount(bins, weights=correct, minlength=BINS)
        self.sums[2] += np.bincount(bins, weights=values, minlength=BINS)

    def reliability(self) -> Reliability | None:
        """Return the calibration curve; None without pixels."""
        pixels, correct, confidence = self.sums
        if not pixels.any():
            return None
        bins = [
            CalibrationBin(float(s / n), float(c / n), int(n))
            for n, c, s in zip(pixels, correct, confidence, strict=True)
            if n
        ]
        return Reliability(bins, float(np.abs(correct - confidence).sum() / pixels.sum()))
