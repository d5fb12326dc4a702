"""Pseudo-labels and their confidence masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import batch_shard

STRIDE = 4
"""Quantiles of the entropy use every 4th row and column."""


@dataclass(frozen=True)
class PseudoLabels:
    """Labels predicted by a teacher.

    Attributes:
        label: (B, H, W) class indices, `IGNORE` for nodata pixels.
        confidence: (B, H, W) highest class probability.
        valid: (B, H, W) False for nodata pixels.
        sure: (B, H, W) True for pixels whose label is used for training.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor
    sure: Tensor

    @property
    def coverage(self) -> Tensor:
        """(B) fraction of sure pixels among each tile's valid ones; 0 without valid pixels."""
        return self.sure.sum((1, 2)) / self.valid.sum((1, 2)).clamp(min=1)

    def sure_only(self) -> Tensor:
        """Return the labels (B, H, W) with `IGNORE` for pixels that are not sure."""
        return self.label.masked_fill(~self.sure, IGNORE)


def by_confidence(probabilities: Tensor, valid: Tensor, threshold: float) -> PseudoLabels:
    """Select pixels whose highest probability reaches a threshold.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        valid: (B, H, W) False for nodata pixels.
        threshold: 0..1.
    """
    confidence, label = probabilities.max(1)
    sure = (confidence >= threshold) & valid
    return PseudoLabels(label.masked_fill(~valid, IGNORE), confidence, valid, sure)


def by_entropy(probabilities: Tensor, valid: Tensor, keep: float) -> PseudoLabels:
    """Select the pixels with the lowest entropy, the same fraction of every class.

    A single bound would select easy classes only, and the model would forget rare ones.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        valid: (B, H, W) False for nodata pixels.
        keep: Fraction of the pixels of each predicted class, 0..1.
    """
    confidence, label = probabilities.max(1)
    entropy = normalised_entropy(probabilities)
    some = (slice(None), slice(None, None, STRIDE), slice(None, None, STRIDE))
    labels, values = label[some].masked_fill(~valid[some], IGNORE), entropy[some]
    if batch_shard.is_sharded():
        labels, values = distributed.all_gather_cat(labels), distributed.all_gather_cat(values)
    bounds = []
    for index in range(probabilities.shape[1]):
        of_class = values.masked_fill(labels != index, torch.nan).flatten()
        bounds.append(torch.nanquantile(of_class, keep))
    # The bound of a class without any of these pixels is NaN: none of its pixels is sure.
    sure = (entropy <= torch.stack(bounds)[label]) & valid
    return PseudoLabels(label.masked_fill(~valid, IGNORE), confidence, valid, sure)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (B, H, W) of class probabilities (B, K, H, W) as a fraction of log K."""
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy / math.log(max(2, probabilities.shape[1]))
