"""Calibration: whether a model that says 80 % is right in 80 % of the cases (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Pixels whose highest probability lies in one range.

    Attributes:
        confidence: Mean of their highest probability.
        accuracy: Share of them that is right.
        pixels: How many.
    """

    confidence: float
    accuracy: float
    pixels: int


@dataclass(frozen=True)
class Reliability:
    """The calibration curve.

    Attributes:
        bins: Ranges of equal width that hold any pixel, from unsure to sure.
        ece: Expected calibration error: mean distance of confidence and accuracy over pixels.
    """

    bins: Sequence[Bin]
    ece: float

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Reliability:
        """Read what `asdict` gave."""
        return cls([Bin(**one) for one in found["bins"]], found["ece"])


class Calibration:
    """Sums what the curve needs; tiles, scenes and processes add.

    Attributes:
        sums: (3, BINS): pixels, right pixels, sum of confidences.
    """

    def __init__(self) -> None:
        self.sums = np.zeros((3, BINS))

    def update(self, confidence: NDArray[Any], right: NDArray[np.bool_]) -> None:
        """Count pixels with truth.

        Args:
            confidence: (N,) highest probability, 0..1.
            right: (N,) whether its class is the true one.
        """
        sure = confidence.astype(np.float64)
        # Ranges are open below and closed above, as in the paper.
        place = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.sums[0] += np.bincount(place, minlength=BINS)
        self.sums[1] += np.bincount(place, weights=right, minlength=BINS)
        self.sums[2] += np.bincount(place, weights=sure, minlength=BINS)

    def reliability(self) -> Reliability | None:
        """Give the curve; None when nothing was counted."""
        pixels, right, sure = self.sums
        if not pixels.any():
            return None
        full = pixels > 0
        bins = [
            Bin(float(s / n), float(r / n), int(n))
            for n, r, s in zip(pixels[full], right[full], sure[full], strict=True)
        ]
        return Reliability(bins, float(np.abs(right - sure).sum() / pixels.sum()))
