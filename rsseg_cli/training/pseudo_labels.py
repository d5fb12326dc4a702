"""What a teacher says about tiles without labels, and how far it is to be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli import distributed, share
from rsseg_cli.classes import IGNORE

THINNED = 4
"""Quantiles of the entropy are taken from every 4th row and column."""


@dataclass(frozen=True)
class PseudoLabels:
    """Labels that nobody has drawn.

    Attributes:
        label: (B, H, W) class indices, `IGNORE` where there is no image.
        confidence: (B, H, W) the highest class probability.
        there: (B, H, W) where there is an image.
        sure: (B, H, W) where the teacher is to be believed.
    """

    label: Tensor
    confidence: Tensor
    there: Tensor
    sure: Tensor

    @property
    def coverage(self) -> Tensor:
        """(B) share of each tile's image that is sure; 0 without any image."""
        return self.sure.sum((1, 2)) / self.there.sum((1, 2)).clamp(min=1)

    def sure_only(self) -> Tensor:
        """Labels (B, H, W) with `IGNORE` where the teacher is not sure."""
        return self.label.masked_fill(~self.sure, IGNORE)


def by_confidence(probabilities: Tensor, there: Tensor, threshold: float) -> PseudoLabels:
    """Believe pixels whose highest probability reaches a threshold.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        there: (B, H, W) where there is an image.
        threshold: 0..1.
    """
    confidence, label = probabilities.max(1)
    sure = (confidence >= threshold) & there
    return PseudoLabels(label.masked_fill(~there, IGNORE), confidence, there, sure)


def by_entropy(probabilities: Tensor, there: Tensor, keep: float) -> PseudoLabels:
    """Believe, of every class alike, the pixels with the lowest entropy.

    A common bound would let through what is easy only, and a rare class would die out.

    Args:
        probabilities: (B, K, H, W), summing to 1 over K.
        there: (B, H, W) where there is an image.
        keep: Share of the pixels of each predicted class, 0..1.
    """
    confidence, label = probabilities.max(1)
    entropy = normalised_entropy(probabilities)
    few = (slice(None), slice(None, None, THINNED), slice(None, None, THINNED))
    labels, values = label[few].masked_fill(~there[few], IGNORE), entropy[few]
    if share.together():
        labels, values = distributed.all_gather_cat(labels), distributed.all_gather_cat(values)
    bounds = []
    for index in range(probabilities.shape[1]):
        of_class = values.masked_fill(labels != index, torch.nan).flatten()
        bounds.append(torch.nanquantile(of_class, keep))
    # A class seen on none of these pixels has no bound (NaN): none of its pixels is sure.
    sure = (entropy <= torch.stack(bounds)[label]) & there
    return PseudoLabels(label.masked_fill(~there, IGNORE), confidence, there, sure)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Give the entropy (B, H, W) of class probabilities (B, K, H, W) as a share of log K."""
    classes = probabilities.shape[1]
    entropy: Tensor = torch.special.entr(probabilities).sum(1)
    return entropy / math.log(max(2, classes))
