"""Domain-related Fisher information: Fisher information plus its change under a domain shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SelectionScores:
    """Scores of all candidate elements."""

    values: list[Tensor]
    """Non-negative float32 numbers, shaped like the weights."""
    domain: list[Tensor] | None = None
    """Part of the values that is the change between domains; None if it is not used."""


def change(clean: Tensor, shifted: Tensor, damping: float) -> None:
    """Write |F - F'| / (min(F, F') + damping) into `shifted`, which holds F'.

    With the damping kappa = gamma/tau^2 this is the ratio of equation 15; with 1e-8 equation 5.
    """
    smaller = torch.minimum(clean, shifted).add_(damping)
    shifted.sub_(clean).abs_().div_(smaller)


def combine(clean: Sequence[Tensor], changed: Sequence[Tensor], factor: float) -> None:
    """Compute F + factor * change in place, both divided by their mean over all elements.

    Equation 7 adds them without a common scale (loss^2 / weight^2 and a ratio), so that the ratio
    alone would decide.

    Args:
        clean: F as vectors; overwritten with the scores.
        changed: Changes as vectors; overwritten with their part of the scores.
        factor: Weight of the change.
    """
    _divide_by_mean(clean)
    _divide_by_mean(changed)
    for fisher, ratio in zip(clean, changed, strict=True):
        ratio.mul_(factor)
        fisher.add_(ratio)


def _divide_by_mean(vectors: Sequence[Tensor]) -> None:
    """Divide by the mean over all elements; zeros stay."""
    total = sum(vector.sum(dtype=torch.float64).item() for vector in vectors)
    if total > 0:
        mean = total / sum(vector.numel() for vector in vectors)
        for vector in vectors:
            vector.div_(mean)
