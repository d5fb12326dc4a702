"""Low-rank tokens that frozen features attend to: what Rein and its relatives share.

A block has E experts of m tokens each, T_e = A_e B_e with A_e (m, r) and B_e (r, D). What a feature
x gets from an expert is, with T[0] left out after the softmax as in Rein (Wei et al. 2024,
arXiv 2312.04265),

    softmax(x T_e^T / sqrt D)[1:] (T_e[1:] W^T + b).

Neither T_e nor that sum is ever made. Every sum lies in the span of the E*r rows B_e W^T and of b,
so that it is kept as its coefficients there: E*r + 1 numbers in place of D, and the attention
between two such maps (SpectralMoE's fusion) needs no more than their Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.methods._token.attention_weights import REIN, Weighing

BLOCK = 64
"""Rows that one small matrix product of the sparse form takes at once."""


def spread(tokens: Iterable[Parameter], patch: int, width: float) -> None:
    """Draw tokens from U(-v, v) with v = sqrt(6 / (3 patch^2 + width)), as VPT and Rein do."""
    bound = (6 / (3 * patch**2 + width)) ** 0.5
    for one in tokens:
        nn.init.uniform_(one, -bound, bound)


class FullTokens(nn.Module):
    """The tokens (m, D) of one block with every number free, asked as `TokenExperts` are."""

    def __init__(self, *, tokens: int, dim: int, weighing: Weighing) -> None:
        super().__init__()
        self.weighing = weighing
        self.rows = Parameter(torch.empty(tokens, dim))

    def span(self, value: nn.Linear) -> Tensor:
        """Map the tokens that are taken: (m - first, D)."""
        mapped: Tensor = value(self.rows[self.weighing.first :])
        return mapped

    def coefficients(self, features: Tensor) -> Tensor:
        """Return what features (B, N, D) get, as coefficients (B, N, m - first) of `span`."""
        dim = features.shape[-1]
        similarities = features @ self.rows.mT * dim**-0.5
        return self.weighing(similarities, dim).to(similarities.dtype)

    def mean(self) -> Tensor:
        """Return the tokens (m, D): there is one set."""
        return self.rows

    def spread_evenly(self, patch: int) -> None:
        """Draw the tokens from VPT's law."""
        spread([self.rows], patch, self.rows.shape[1])


@dataclass(frozen=True)
class Routes:
    """Which experts every token goes to."""

    chosen: Tensor
    """(B, N, k), expert numbers."""
    shares: Tensor
    """(B, N, E), non-negative, 0 where not chosen, summing to 1."""
    load: Tensor | None = None
    """(E,), the expected number of tokens under the gate's noise; None without noise."""


class TokenExperts(nn.Module):
    """The tokens of one block: E experts that all modalities share."""

    def __init__(
        self, *, experts: int, tokens: int, dim: int, rank: int, weighing: Weighing = REIN
    ) -> None:
        super().__init__()
        self.weighing = weighing
        self.rows = Parameter(torch.empty(experts, tokens, rank))  # A
        self.basis = Parameter(torch.empty(experts, rank, dim))  # B
        self.spare = -(experts * rank + 1) % 8  # fused attention wants widths that 8 divides

    def mean(self) -> Tensor:
        """Average the tokens over the experts: (m, D)."""
        return torch.einsum("emr,erd->md", self.rows, self.basis) / len(self.rows)

    def span(self, value: nn.Linear) -> Tensor:
        """Map the directions that coefficients count: (E*r + 1 + spare, D), the last rows 0."""
        directions = F.linear(self.basis.flatten(0, 1), value.weight)
        return F.pad(torch.cat([directions, value.bias[None]]), (0, 0, 0, self.spare))

    def coefficients(self, features: Tensor, routes: Routes | None = None) -> Tensor:
        """Return what features (B, N, D) get, as coefficients (B, N, E*r + 1 + spare) of `span`.

        Args:
            features: What attends to the tokens.
            routes: The experts of every feature; None gives all experts an equal share.
        """
        experts, _, rank = self.rows.shape
        scale = features.shape[-1] ** -0.5
        places = features @ self.basis.flatten(0, 1).mT * scale
        places = places.reshape(*features.shape[:2], experts, rank)
        if routes is None or routes.chosen.shape[-1] == experts:
            taken, kept = self._dense(places)
            shares = kept.new_full((experts,), 1 / experts) if routes is None else routes.shares
        else:
            taken, kept = self._sparse(places, routes.chosen)
            shares = routes.shares
        total = (kept * shares).sum(-1, keepdim=True)
        mixed = (taken * shares[..., None]).flatten(-2)
        return F.pad(torch.cat([mixed, total], -1), (0, self.spare))

    def _dense(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Ask every expert about every token (B, N, E, r): (B, N, E, r) and (B, N, E)."""
        taken, kept = self._attend(places.flatten(0, 1).transpose(0, 1), self.rows)
        return (
            taken.transpose(0, 1).reshape(places.shape),
            kept.transpose(0, 1).reshape(places.shape[:-1]),
        )

    def _sparse(self, places: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the chosen experts only; the others answer 0. Same shapes as `_dense`.

        Work grows with k, not with E. All sizes are known beforehand: the host never waits.
        """
        experts, _, rank = self.rows.shape
        wide = chosen[..., None].expand(-1, -1, -1, rank)
        picked = places.gather(2, wide).flatten(0, 2)  # (B*N*k, r)
        at, owner = dispatch(chosen.flatten(), experts)
        grouped = picked.new_zeros(len(owner) * BLOCK, rank).index_copy(0, at, picked)
        taken, kept = self._attend(grouped.view(len(owner), BLOCK, rank), self.rows[owner])
        some, left = taken.flatten(0, 1)[at], kept.flatten()[at]
        return (
            some.new_zeros(places.shape).scatter(2, wide, some.view(wide.shape)),
            left.new_zeros(places.shape[:-1]).scatter(2, chosen, left.view(chosen.shape)),
        )

    def _attend(self, places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to tokens given by `rows` (G, m, r), from `places` (G, n, r), both in B's basis.

        Returns:
            What is taken of each row of B (G, n, r), and of the bias (G, n).
        """
        weights = self.weighing(places @ rows.mT, self.basis.shape[-1])
        taken = rows[:, self.weighing.first :].to(places.dtype)
        return weights.to(places.dtype) @ taken, weights.sum(-1)

    def spread_evenly(self, patch: int) -> None:
        """Draw both factors from Rein's law: VPT's, with the width sqrt(D r)."""
        rank, dim = self.basis.shape[1:]
        spread(self.parameters(), patch, (dim * rank) ** 0.5)

    def start_from_zero(self) -> None:
        """Start at 0 as SpectralMoE does: A random as in LoRA, B zero."""
        bound = self.rows.shape[-1] ** -0.5
        nn.init.uniform_(self.rows, -bound, bound)
        nn.init.zeros_(self.basis)


def dispatch(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """Group rows by expert, every group padded to whole blocks.

    Args:
        chosen: (R,), the expert of every row.
        experts: Number of experts E.

    Returns:
        The place (R,) of every row in the grouped layout, and the expert of every block; there are
        ceil(R / BLOCK) + E blocks however the rows are spread.
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
    dim: int,
    *,
    experts: int = 1,
    tokens: int,
    rank: int | None,
    weighing: Weighing = REIN,
) -> TokenExperts | FullTokens:
    """Build the tokens of a block; without a rank there are no experts."""
    if rank is None:
        return FullTokens(tokens=tokens, dim=dim, weighing=weighing)
    return TokenExperts(experts=experts, tokens=tokens, dim=dim, rank=rank, weighing=weighing)
