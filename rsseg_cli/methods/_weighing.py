"""How features turn their similarities to tokens into weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["none", "logits", "released", "map"]
"""How similarities to the m tokens are freed of style: `logits` get mean 0 and variance 1 over the
tokens before the softmax; `released` divides these by sqrt D once more, which leaves all weights
nearly the same; `map` normalises the weights behind the softmax, which then sum to 0."""
EPSILON = 1e-5
"""Added to variances, as in instance norms: of logits, and of weights as multiples of their mean.
Features of 0, such as the differences along a repeated row, are alike to all tokens."""


@dataclass(frozen=True)
class Weighing:
    """How features attend to tokens."""

    norm: Norm = "none"
    first: int = 1
    """Tokens from this one on are taken: 1 leaves token 0 out after the softmax."""

    def __call__(self, similarities: Tensor, dim: int) -> Tensor:
        """Turn similarities x T^T / sqrt D (..., m) into weights (..., m - first) in float32."""
        if self.norm in ("logits", "released"):
            similarities = _normal(similarities.float(), EPSILON / dim)
        if self.norm == "released":
            similarities = similarities * dim**-0.5
        weights = similarities.softmax(-1, dtype=torch.float32)
        if self.norm == "map":
            weights = _normal(weights, EPSILON / weights.shape[-1] ** 2)
        return weights[..., self.first :]


REIN = Weighing()
"""Rein's way."""


def _normal(values: Tensor, epsilon: float) -> Tensor:
    """Give values (..., m) mean 0 and variance 1 over m."""
    variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
    return (values - mean) * (variance + epsilon).rsqrt()
