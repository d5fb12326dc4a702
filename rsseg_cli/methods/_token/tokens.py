"""Low-rank tokens that frozen features attend to, as in Rein and its successors.

A block has E experts of m tokens each, T_e = A_e B_e with A_e (m, r) and B_e (r, D). An expert adds
to a feature x, with T[0] left out after the softmax as in Rein (Wei et al. 2024, arXiv 2312.04265),

    softmax(x T_e^T / sqrt D)[1:] (T_e[1:] W^T + b).

Neither T_e nor that sum is computed. Every sum lies in the span of the E*r rows B_e W^T and of b;
its coefficients there are E*r + 1 numbers in place of D. The attention between two such maps
(SpectralMoE's fusion) requires only their Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

BLOCK = 64
"""Rows per small matrix product of the sparse form."""
EPSILON = 1e-5
"""Added to variances of logits, as in instance norms: features of 0, such as the differences along
a repeated row, are equally similar to all tokens."""


@dataclass(frozen=True)
class AttentionWeights:
    """Attention weights from the similarities of features and tokens."""

    standardised: bool = False
    """Scale the similarities to the m tokens to mean 0 and variance 1, which removes the style."""
    first: int = 1
    """First token that is used: 1 leaves token 0 out after the softmax."""

    def __call__(self, similarities: Tensor, dim: int) -> Tensor:
        """Map similarities x T^T / sqrt D (..., m) to weights (..., m - first) in float32."""
        if self.standardised:
            similarities = similarities.float()
            variance, mean = torch.var_mean(similarities, -1, correction=0, keepdim=True)
            similarities = (similarities - mean) * (variance + EPSILON / dim).rsqrt()
        return similarities.softmax(-1, dtype=torch.float32)[..., self.first :]


REIN = AttentionWeights()
"""Attention weights of Rein."""


def init_uniform(tokens: Iterable[Parameter], patch: int, width: float) -> None:
    """Draw tokens from U(-v, v) with v = sqrt(6 / (3 patch^2 + width)), as VPT and Rein do."""
    bound = (6 / (3 * patch**2 + width)) ** 0.5
    for parameter in tokens:
        nn.init.uniform_(parameter, -bound, bound)


class FullTokens(nn.Module):
    """Tokens (m, D) of a block at full rank, with the interface of `TokenExperts`."""

    def __init__(self, *, tokens: int, dim: int, attention: AttentionWeights) -> None:
        super().__init__()
        self.attention = attention
        self.rows = Parameter(torch.empty(tokens, dim))

    def span(self, value: nn.Linear) -> Tensor:
        """Map the tokens that are used: (m - first, D)."""
        return cast(Tensor, value(self.rows[self.attention.first :]))

    def coefficients(self, features: Tensor) -> Tensor:
        """Compute coefficients (B, N, m - first) of `span` for features (B, N, D)."""
        dim = features.shape[-1]
        similarities = features @ self.rows.mT * dim**-0.5
        return self.attention(similarities, dim).to(similarities.dtype)

    def mean(self) -> Tensor:
        """Return the tokens (m, D)."""
        return self.rows

    def init_uniform(self, patch: int) -> None:
        """Draw the tokens as VPT does."""
        init_uniform([self.rows], patch, self.rows.shape[1])


@dataclass(frozen=True)
class Routes:
    """Experts of every token."""

    chosen: Tensor
    """(B, N, k), expert indices."""
    weights: Tensor
    """(B, N, E), non-negative, 0 where not chosen, summing to 1."""
    load: Tensor | None = None
    """(E,), the expected number of tokens under the gate's noise; None without noise."""


class TokenExperts(nn.Module):
    """Low-rank tokens of a block: E experts, shared by all modalities."""

    def __init__(
        self, *, experts: int, tokens: int, dim: int, rank: int, attention: AttentionWeights = REIN
    ) -> None:
        super().__init__()
        self.attention = attention
        self.rows = Parameter(torch.empty(experts, tokens, rank))  # A
        self.basis = Parameter(torch.empty(experts, rank, dim))  # B
        self.padding = -(experts * rank + 1) % 8  # fused attention requires multiples of 8

    def mean(self) -> Tensor:
        """Average the tokens over the experts: (m, D)."""
        return torch.einsum("emr,erd->md", self.rows, self.basis) / len(self.rows)

    def span(self, value: nn.Linear) -> Tensor:
        """Map the basis of the coefficients: (E*r + 1 + padding, D), the last rows 0."""
        directions = F.linear(self.basis.flatten(0, 1), value.weight)
        return F.pad(torch.cat([directions, value.bias[None]]), (0, 0, 0, self.padding))

    def coefficients(self, features: Tensor, routes: Routes | None = None) -> Tensor:
        """Compute coefficients (B, N, E*r + 1 + padding) of `span` for features (B, N, D).

        Args:
            features: Queries of the attention to the tokens.
            routes: Experts of every feature; None averages all experts.
        """
        experts, _, rank = self.rows.shape
        scale = features.shape[-1] ** -0.5
        coordinates = features @ self.basis.flatten(0, 1).mT * scale
        coordinates = coordinates.reshape(*features.shape[:2], experts, rank)
        if routes is None or routes.chosen.shape[-1] == experts:
            sums, totals = self._dense(coordinates)
            weights = totals.new_full((experts,), 1 / experts) if routes is None else routes.weights
        else:
            sums, totals = self._sparse(coordinates, routes.chosen)
            weights = routes.weights
        bias = (totals * weights).sum(-1, keepdim=True)
        mixed = (sums * weights[..., None]).flatten(-2)
        return F.pad(torch.cat([mixed, bias], -1), (0, self.padding))

    def _dense(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Apply every expert to coordinates (B, N, E, r): (B, N, E, r) and (B, N, E)."""
        sums, totals = self._attend(coordinates.flatten(0, 1).transpose(0, 1), self.rows)
        return (
            sums.transpose(0, 1).reshape(coordinates.shape),
            totals.transpose(0, 1).reshape(coordinates.shape[:-1]),
        )

    def _sparse(self, coordinates: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the chosen experts only; the others give 0. Same shapes as `_dense`.

        The cost grows with k, not with E. All sizes are static: the host never waits.
        """
        experts, _, rank = self.rows.shape
        wide = chosen[..., None].expand(-1, -1, -1, rank)
        routed = coordinates.gather(2, wide).flatten(0, 2)  # (B*N*k, r)
        at, owner = dispatch(chosen.flatten(), experts)
        grouped = routed.new_zeros(len(owner) * BLOCK, rank).index_copy(0, at, routed)
        sums, totals = self._attend(grouped.view(len(owner), BLOCK, rank), self.rows[owner])
        sums, totals = sums.flatten(0, 1)[at], totals.flatten()[at]
        return (
            sums.new_zeros(coordinates.shape).scatter(2, wide, sums.view(wide.shape)),
            totals.new_zeros(coordinates.shape[:-1]).scatter(2, chosen, totals.view(chosen.shape)),
        )

    def _attend(self, coordinates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Attend from `coordinates` (G, n, r) to tokens `rows` (G, m, r), both in B's basis.

        Returns:
            Weighted sums of rows (G, n, r), and the sums of weights (G, n), which scale the bias.
        """
        weights = self.attention(coordinates @ rows.mT, self.basis.shape[-1])
        values = rows[:, self.attention.first :].to(coordinates.dtype)
        return weights.to(coordinates.dtype) @ values, weights.sum(-1)

    def init_uniform(self, patch: int) -> None:
        """Draw both factors as Rein does: as VPT, with the width sqrt(D r)."""
        rank, dim = self.basis.shape[1:]
        init_uniform(self.parameters(), patch, (dim * rank) ** 0.5)

    def init_zero(self) -> None:
        """Initialise to tokens of 0 as SpectralMoE does: A random as in LoRA, B zero."""
        bound = self.rows.shape[-1] ** -0.5
        nn.init.uniform_(self.rows, -bound, bound)
        nn.init.zeros_(self.basis)


def dispatch(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Group rows by expert, every group padded to whole blocks.

    Args:
        chosen: (R,), the expert of every row.
        experts: Number of experts E.

    Returns:
        The index (R,) of every row in the grouped layout, and the expert of every block. There are
        always ceil(R / BLOCK) + E blocks.
    """
    numbers = torch.arange(experts, device=chosen.device)
    running = (chosen[:, None] == numbers).cumsum(0)  # rows of each expert up to here
    blocks = (running[-1] + BLOCK - 1) // BLOCK
    ends = blocks.cumsum(0)
    within = running.gather(1, chosen[:, None])[:, 0] - 1
    at = (ends - blocks)[chosen] * BLOCK + within
    count = -(-len(chosen) // BLOCK) + experts
    owner = torch.searchsorted(ends, torch.arange(count, device=chosen.device), right=True)
    return at, owner.clamp(max=experts - 1)


def token_set(
    dim: int, *, experts: int = 1, tokens: int, rank: int | None, attention: AttentionWeights = REIN
) -> TokenExperts | FullTokens:
    """Build the tokens of a block; a rank of None gives full rank, for one expert."""
    if rank is None:
        return FullTokens(tokens=tokens, dim=dim, attention=attention)
    return TokenExperts(experts=experts, tokens=tokens, dim=dim, rank=rank, attention=attention)
