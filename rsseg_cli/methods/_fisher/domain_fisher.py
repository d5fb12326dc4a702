"""Domain-related Fisher information: how much a weight matters, and how much shifts change that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SelectionScores:
    """What a selection goes by.

    Attributes:
        values: Non-negative float32 numbers, shaped like the weights.
        domain: How much of a value is the domain's change; None where that plays no part.
    """

    values: list[Tensor]
    domain: list[Tensor] | None = None


def change(clean: Tensor, shifted: Tensor, damping: float) -> None:
    """Put |F - F'| / (min(F, F') + damping) into `shifted`, which holds F'.

    With the damping kappa = gamma/tau^2 this is the ratio of equation 15; with 1e-8 equation 5.
    """
    least = torch.minimum(clean, shifted).add_(damping)
    shifted.sub_(clean).abs_().div_(least)


def combine(clean: Sequence[Tensor], changed: Sequence[Tensor], factor: float) -> None:
    """Compute F + factor * change in place, both divided by their mean over all elements.

    Equation 7 adds them as they are, loss^2 / weight^2 to a ratio, and the ratio decides alone.

    Args:
        clean: F as vectors; become the scores.
        changed: Changes as vectors; become the part of the scores that they are.
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
