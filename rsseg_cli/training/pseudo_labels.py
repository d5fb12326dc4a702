"""Pseudo-labels of a teacher and their confidence masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import batch_shard

THINNED = 4
"""Quantiles of the entropy are taken from every 4th row and column."""


@dataclass(frozen=True)
class PseudoLabels:
    """Labels predicted by a teacher.

    Attributes:
        label: (B, H, W) class indices, `IGNORE` where there is no image.
        confidence: (B, H, W) the highest class probability.
        valid: (B, H, W) where there is an image.
        sure: (B, H, W) pixels to learn from.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor
    sure: Tensor

    @property
    def coverage(self) -> Tensor:
        """(B) fraction of each tile's valid pixels that are sure; 0 without any."""
        return self.sure.sum((1, 2)) / self.valid.sum((1, 2)).clamp(min=1)

    def sure_only(self) -> Tensor:
        """Return the labels (B, H, W) with `IGNORE` where the teacher is not sure."""
        return self.label.masked_fill(~self.sure, IGNORE)


def by_confidence(probabilities: Tensor, valid: Tensor, threshold: float) -> PseudoLabels:
    """Select pixels whose highest probability reaches a threshold.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        valid: (B, H, W) where there is an image.
        threshold: 0..1.
    """
    confidence, label = probabilities.max(1)
    sure = (confidence >= threshold) & valid
    return PseudoLabels(label.masked_fill(~valid, IGNORE), confidence, valid, sure)


def by_entropy(probabilities: Tensor, valid: Tensor, keep: float) -> PseudoLabels:
    """Select the pixels with the lowest entropy, the same fraction of every class.

    A common bound would select easy classes only, and a rare class would die out.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        valid: (B, H, W) where there is an image.
        keep: Fraction of the pixels of each predicted class, 0..1.
    """
    confidence, label = probabilities.max(1)
    entropy = normalised_entropy(probabilities)
    few = (slice(None), slice(None, None, THINNED), slice(None, None, THINNED))
    labels, values = label[few].masked_fill(~valid[few], IGNORE), entropy[few]
    if batch_shard.is_sharded():
        labels, values = distributed.all_gather_cat(labels), distributed.all_gather_cat(values)
    bounds = []
    for index in range(probabilities.shape[1]):
        of_class = values.masked_fill(labels != index, torch.nan).flatten()
        bounds.append(torch.nanquantile(of_class, keep))
    # A class seen on none of these pixels has no bound (NaN): none of its pixels is sure.
    sure = (entropy <= torch.stack(bounds)[label]) & valid
    return PseudoLabels(label.masked_fill(~valid, IGNORE), confidence, valid, sure)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (B, H, W) of class probabilities (B, K, H, W) as a fraction of log K."""
    classes = probabilities.shape[1]
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy / math.log(max(2, classes))
