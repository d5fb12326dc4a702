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
    """Pixels whose highest probability lies in one range.

    Attributes:
        confidence: Mean of their highest probability.
        accuracy: Fraction of them that is right.
        pixels: Number of pixels.
    """

    confidence: float
    accuracy: float
    pixels: int


@dataclass(frozen=True)
class Reliability:
    """The calibration curve.

    Attributes:
        bins: Ranges of equal width with any pixel, by increasing confidence.
        ece: Expected calibration error: mean distance of confidence and accuracy over pixels.
    """

    bins: Sequence[CalibrationBin]
    ece: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Reliability:
        """Build a curve from the output of `asdict`."""
        return cls([CalibrationBin(**row) for row in document["bins"]], document["ece"])


class Calibration:
    """Sums per range of confidence, which add over tiles, scenes and processes.

    Attributes:
        sums: (3, BINS) pixels, right pixels, sum of confidences.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((3, BINS))

    def update(self, confidence: NDArray[Any], right: NDArray[np.bool_]) -> None:
        """Add labelled pixels.

        Args:
            confidence: (N,) highest probability, 0..1.
            right: (N,) True where its class is the true one.
        """
        values = confidence.astype(np.float64)
        # Ranges are open below and closed above, as in the paper.
        bins = np.clip(np.ceil(values * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.sums[0] += np.bincount(bins, minlength=BINS)
        self.sums[1] += np.bincount(bins, weights=right, minlength=BINS)
        self.sums[2] += np.bincount(bins, weights=values, minlength=BINS)

    def reliability(self) -> Reliability | None:
        """Return the curve; None without any pixel."""
        pixels, right, confidence = self.sums
        if not pixels.any():
            return None
        full = pixels > 0
        bins = [
            CalibrationBin(float(s / n), float(r / n), int(n))
            for n, r, s in zip(pixels[full], right[full], confidence[full], strict=True)
        ]
        return Reliability(bins, float(np.abs(right - confidence).sum() / pixels.sum()))
