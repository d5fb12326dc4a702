"""WEFT's edge-aware optimiser of injected tokens in subspaces (ESTO)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.contract import batch_shard

Similarity = Literal["head", "token"]
VarianceStatistics = Literal["image", "batch"]


class TokenOptimizer(nn.Module):
    """Self-attention among tokens, with larger weights at boundaries.

    With tokens A: R^h = softmax(similarity within head h) A^h; M = sigmoid of the standardised
    variance of a token over its channels, high at boundaries; R <- (1 + M/2) R; the result is
    A + g R with one gate g = sigmoid(w * mean A + b) per image.

    Args:
        dim: Width D of a token.
        heads: Subspaces that D is split into.
        similarity: "head": cosine within each subspace over a learned temperature that starts
            at 0.1. "token": unit tokens are split and divided by sqrt(D / heads), as released;
            those logits stay within 1/sqrt(D / heads), so that R is nearly the mean token.
        statistics: The variance is standardised over the "image", or over the "batch" as
            released, which makes results depend on the other images of the batch.
    """

    def __init__(
        self, dim: int, *, heads: int, similarity: Similarity, statistics: VarianceStatistics
    ) -> None:
        super().__init__()
        self.heads, self.similarity, self.statistics = heads, similarity, statistics
        self.width = dim // heads
        self.gate = nn.Linear(1, 1)
        nn.init.trunc_normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)
        if similarity == "head":
            self.log_temperature = nn.Parameter(torch.full((heads,), math.log(0.1)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Refine tokens (B, N, D)."""
        refined = (1 + 0.5 * self.boundaries(tokens)) * self._attend(tokens)
        gate: Tensor = self.gate(tokens.mean((1, 2))[:, None]).sigmoid()
        return tokens + gate[..., None] * refined

    def boundaries(self, tokens: Tensor) -> Tensor:
        """Compute the boundary mask of tokens: (B, N, 1) in (0, 1), without gradient."""
        variance = tokens.detach().float().var(dim=2, keepdim=True)
        if self.statistics == "image":
            std, mean = torch.std_mean(variance, dim=1, keepdim=True)
        else:
            mean = batch_shard.mean(variance.mean())
            unbiased = 1 - 1 / batch_shard.global_count(variance.numel())
            std = (batch_shard.mean((variance - mean).square().mean()) / unbiased).sqrt()
        return ((variance - mean) / (std + 1e-6)).sigmoid().to(tokens.dtype)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Average similar tokens (B, N, D), separately in each subspace."""
        value = self._split(tokens)
        if self.similarity == "head":
            key = F.normalize(value, dim=-1)
            query = key * torch.exp(-self.log_temperature)[:, None, None].to(key.dtype)
            scale = 1.0
        else:
            query = key = self._split(F.normalize(tokens, dim=-1))
            scale = 1 / math.sqrt(self.width)
        averaged = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return averaged.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        """Split (B, N, D) into subspaces (B, heads, N, D / heads)."""
        return tokens.view(*tokens.shape[:2], self.heads, self.width).transpose(1, 2)
