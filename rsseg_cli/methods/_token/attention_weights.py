"""How features turn their similarities to tokens into weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to variances of logits, as in instance norms: features of 0, such as the differences along
a repeated row, are equally similar to all tokens."""


@dataclass(frozen=True)
class Weighing:
    """How features attend to tokens."""

    normalised: bool = False
    """Give the similarities to the m tokens mean 0 and variance 1, which removes the style."""
    first: int = 1
    """Tokens from this one on are taken: 1 leaves token 0 out after the softmax."""

    def __call__(self, similarities: Tensor, dim: int) -> Tensor:
        """Turn similarities x T^T / sqrt D (..., m) into weights (..., m - first) in float32."""
        if self.normalised:
            similarities = similarities.float()
            variance, mean = torch.var_mean(similarities, -1, correction=0, keepdim=True)
            similarities = (similarities - mean) * (variance + EPSILON / dim).rsqrt()
        return similarities.softmax(-1, dtype=torch.float32)[..., self.first :]


REIN = Weighing()
"""Rein's way."""
