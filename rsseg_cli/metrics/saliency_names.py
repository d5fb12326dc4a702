"""Names of the scores of soft maps, apart from `saliency` since PySODMetrics is slow to import."""

from __future__ import annotations

NAMES = {
    "s_measure": "S-measure",
    "f_adaptive": "F, adaptive threshold",
    "f_mean": "F, mean",
    "f_max": "F, max",
    "e_measure": "E-measure, mean",
    "e_adaptive": "E-measure, adaptive",
    "e_max": "E-measure, max",
    "mae": "Mean absolute error",
    "mdice": "Dice, mean over thresholds",
    "dice_05": "Dice at 0.5",
    "miou_05": "IoU at 0.5",
    "miou_mean": "IoU, mean over thresholds",
}
