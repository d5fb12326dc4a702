"""Scores of soft maps of one kind of object, by PySODMetrics."""

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
from rsseg_cli.metrics.saliency_names import NAMES


class Saliency:
    """Scores soft maps image by image (or tile by tile) and averages over the images.

    S-measure (Fan et al. 2017), E-measure (Fan et al. 2018), F-measure with beta^2 = 0.3
    (Achanta et al. 2009) at the adaptive threshold min(2 * mean, 1) and over 256 thresholds, mean
    absolute error, foreground Dice and IoU at 0.5 and over 256 thresholds. Equal to PySODMetrics,
    with two additions for maps of the ground:

    - F, Dice and IoU are 0/0 in an image without any object: it enters the other scores only.
      `empty` counts these images.
    - Pixels without truth are left out; in the S-measure, which needs the whole image, they are
      background in both maps.

    Args:
        stretch: Stretch each map to 0..1 first, as the benchmarks of salient objects do. Leave it
            off to score probabilities as they are: an image without objects has noise to stretch.
    """

    def __init__(self, *, stretch: bool = True) -> None:
        self.stretch = stretch
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
        """Score one image; one without any truth is passed over.

        Args:
            soft: (h, w) share of object, floats 0..1 or uint8 0..255.
            truth: (h, w) 1 object, 0 none, `IGNORE` no truth.

        Raises:
            ValueError: Shapes differ, or values are out of range.
        """
        share = _shares(soft, truth)
        known = truth != IGNORE
        if not known.any():
            return
        if self.stretch:
            low, high = share[known].min(), share[known].max()
            share = (share - low) / (high - low) if high > low else share
        share = np.where(known, share, 0.0)
        objects = truth == 1
        self.images += 1
        self._structure.step(share, objects, normalize=False)
        pixels, marked = share[known][None], objects[known][None]
        self._enhanced.step(pixels, marked, normalize=False)
        self._error.step(pixels, marked, normalize=False)
        if marked.any():
            self._overlap.step(pixels, marked, normalize=False)
        else:
            self.empty += 1

    def scores(self) -> dict[str, Any]:
        """Average over the images; None where no image defines a score."""
        found: dict[str, Any] = dict.fromkeys(NAMES)
        if self.images:
            enhanced = self._enhanced.get_results()["em"]
            found |= {
                "s_measure": float(self._structure.get_results()["sm"]),
                "e_measure": float(enhanced["curve"].mean()),
                "e_adaptive": float(enhanced["adp"]),
                "e_max": float(enhanced["curve"].max()),
                "mae": float(self._error.get_results()["mae"]),
            }
        if self.images > self.empty:
            overlap = self._overlap.get_results()
            found |= {
                "f_adaptive": float(overlap["f"]["adaptive"]),
                "f_mean": float(overlap["f"]["dynamic"].mean()),
                "f_max": float(overlap["f"]["dynamic"].max()),
                "mdice": float(overlap["dice"]["dynamic"].mean()),
                "dice_05": float(overlap["dice"]["binary"]),
                "miou_05": float(overlap["iou"]["binary"]),
                "miou_mean": float(overlap["iou"]["dynamic"].mean()),
            }
        return found | {"images": self.images, "empty": self.empty, "stretch": self.stretch}


def _shares(soft: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Check a soft map against its truth and turn it into shares 0..1."""
    if soft.shape != truth.shape or soft.ndim != 2:
        raise ValueError(f"shapes differ: {soft.shape}, {truth.shape}")
    if not np.isin(truth, (0, 1, IGNORE)).all():
        raise ValueError(f"the truth is 0, 1 or {IGNORE}, not {np.unique(truth)[:5]}")
    if soft.dtype == np.uint8:
        return soft / 255.0
    if soft.dtype.kind != "f" or not (soft.min() >= 0 and soft.max() <= 1):
        raise ValueError(f"a soft map holds shares 0..1 or uint8, not {soft.dtype}")
    return soft.astype(np.float64)
