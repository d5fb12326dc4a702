"""Scores of probability maps of one kind of object, computed by PySODMetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from py_sod_metrics import (
    MAE,
    DICEHandler,
    Emeasure,
    FmeasureHandler,
    FmeasureV2,
    IOUHandler,
    Smeasure,
)

from rsseg_cli.classes import IGNORE
from rsseg_cli.metrics.scores import SALIENCY_NAMES


class Saliency:
    """Mean scores of soft maps over images (or tiles).

    S-measure (Fan et al. 2017), E-measure (Fan et al. 2018), F-measure with beta^2 = 0.3
    (Achanta et al. 2009) at the adaptive threshold min(2 * mean, 1) and over 256 thresholds, mean
    absolute error, foreground Dice and IoU at 0.5 and over 256 thresholds. They equal those of
    PySODMetrics, with two additions for satellite images:

    - F, Dice and IoU are 0/0 in an image without an object, which therefore counts for the other
      scores only. `empty` is the number of these images.
    - Unlabelled pixels are excluded. In the S-measure, which needs the whole image, they are
      background in both maps.

    Maps are not stretched to 0..1 as in benchmarks of salient objects, since that would amplify
    the noise of images without objects.
    """

    def __init__(self) -> None:
        self.images = self.empty = 0
        self._structure, self._enhanced, self._error = Smeasure(), Emeasure(), MAE()
        self._overlap = FmeasureV2(
            {
                "f": FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
                "dice": DICEHandler(with_dynamic=True, with_adaptive=False, with_binary=True),
                "iou": IOUHandler(with_dynamic=True, with_adaptive=False, with_binary=True),
            }
        )

    def update(self, soft: NDArray[Any], truth: NDArray[Any]) -> None:
        """Add one image; an image without labels is skipped.

        Args:
            soft: (h, w) probability of the object, floats 0..1 or uint8 0..255.
            truth: (h, w) 1 for object, 0 for background, `IGNORE` for unlabelled pixels.

        Raises:
            ValueError: The shapes differ, or a value is out of range.
        """
        probability = _probability(soft, truth)
        known = truth != IGNORE
        if not known.any():
            return
        probability = np.where(known, probability, 0.0)
        objects = truth == 1
        self.images += 1
        self._structure.step(probability, objects, normalize=False)
        pixels, mask = probability[known][None], objects[known][None]
        self._enhanced.step(pixels, mask, normalize=False)
        self._error.step(pixels, mask, normalize=False)
        if mask.any():
            self._overlap.step(pixels, mask, normalize=False)
        else:
            self.empty += 1

    def scores(self) -> dict[str, Any]:
        """Return the means over the images; None for a score that is undefined in all of them."""
        scores: dict[str, Any] = dict.fromkeys(SALIENCY_NAMES)
        if self.images:
            enhanced = self._enhanced.get_results()["em"]
            scores |= {
                "s_measure": float(self._structure.get_results()["sm"]),
                "e_measure": float(enhanced["curve"].mean()),
                "e_adaptive": float(enhanced["adp"]),
                "e_max": float(enhanced["curve"].max()),
                "mae": float(self._error.get_results()["mae"]),
            }
        if self.images > self.empty:
            overlap = self._overlap.get_results()
            scores |= {
                "f_adaptive": float(overlap["f"]["adaptive"]),
                "f_mean": float(overlap["f"]["dynamic"].mean()),
                "f_max": float(overlap["f"]["dynamic"].max()),
                "mdice": float(overlap["dice"]["dynamic"].mean()),
                "dice_05": float(overlap["dice"]["binary"]),
                "miou_05": float(overlap["iou"]["binary"]),
                "miou_mean": float(overlap["iou"]["dynamic"].mean()),
            }
        return scores | {"images": self.images, "empty": self.empty}


def _probability(soft: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Check a soft map and its reference, and return probabilities 0..1."""
    if soft.shape != truth.shape or soft.ndim != 2:
        raise ValueError(f"shapes differ: {soft.shape}, {truth.shape}")
    if not np.isin(truth, (0, 1, IGNORE)).all():
        raise ValueError(f"the truth must be 0, 1 or {IGNORE}, not {np.unique(truth)[:5]}")
    if soft.dtype == np.uint8:
        return soft / 255.0
    if soft.dtype.kind != "f" or not (soft.min() >= 0 and soft.max() <= 1):
        raise ValueError(f"a soft map must hold floats 0..1 or uint8, not {soft.dtype}")
    return soft.astype(np.float64)
