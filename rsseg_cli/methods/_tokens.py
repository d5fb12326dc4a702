"""Low-rank tokens that frozen features attend to: what Rein, DepthForge and SpectralMoE share.

A block has E experts of m tokens each, T_e = A_e B_e with A_e (m, r) and B_e (r, D). What a feature
x gets from an expert is, with T[0] left out after the softmax as in Rein (Wei et al. 2024,
arXiv 2312.04265),

    softmax(x T_e^T / sqrt D)[1:] (T_e[1:] W^T + b).

Neither T_e nor that sum is ever made. Every sum lies in the span of the E*r rows B_e W^T and of b,
so that it is kept as its coefficients there: E*r + 1 numbers in place of D, and the attention
between two such maps (SpectralMoE's fusion) needs no more than their Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

BLOCK = 64
"""Rows that one small matrix product of the sparse form takes at once."""


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

    def __init__(self, *, experts: int, tokens: int, dim: int, rank: int) -> None:
        super().__init__()
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
        """Find what features (B, N, D) get, as coefficients (B, N, E*r + 1 + spare) of `span`.

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
        taken, kept = _attend(places.flatten(0, 1).transpose(0, 1), self.rows)
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
        taken, kept = _attend(grouped.view(len(owner), BLOCK, rank), self.rows[owner])
        some, left = taken.flatten(0, 1)[at], kept.flatten()[at]
        return (
            some.new_zeros(places.shape).scatter(2, wide, some.view(wide.shape)),
            left.new_zeros(places.shape[:-1]).scatter(2, chosen, left.view(chosen.shape)),
        )


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


def _attend(places: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to tokens given by `rows` (G, m, r), from `places` (G, n, r), both in B's basis.

    Returns:
        What is taken of each row of B (G, n, r), and of the bias (G, n).
    """
    weights = (places @ rows.mT).softmax(-1, dtype=torch.float32)[..., 1:]
    return weights.to(places.dtype) @ rows[:, 1:].to(places.dtype), weights.sum(-1)


class QueryLink(nn.Module):
    """Turns the tokens of all blocks into the queries of a mask head."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.merge = nn.Linear(3 * width, width)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """Merge tokens, each (m, D), into queries (m, width): their largest, mean and last."""
        queries = torch.stack([self.project(one) for one in tokens])
        merged: Tensor = self.merge(torch.cat([queries.amax(0), queries.mean(0), queries[-1]], -1))
        return merged


class TokenAdapter(nn.Module):
    """The tokens of every block, and what all blocks share.

    Args:
        depth: Number of blocks L.
        dim: Width D.
        experts: Sets of tokens per block E.
        tokens: Tokens per set m; with a query link also the number of queries.
        rank: Rank r of a set.
        query_width: Width of the queries for the head; None makes none.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        *,
        experts: int,
        tokens: int,
        rank: int,
        query_width: int | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TokenExperts(experts=experts, tokens=tokens, dim=dim, rank=rank) for _ in range(depth)
        )
        self.value = nn.Linear(dim, dim)  # W, b
        self.mlp = nn.Linear(dim, dim)
        self.scale = Parameter(torch.tensor(1e-3))
        self.link = None if query_width is None else QueryLink(dim, query_width)

    def block(self, index: int) -> TokenExperts:
        """Give the tokens of a block."""
        return cast(TokenExperts, self.blocks[index])

    def _all(self) -> list[TokenExperts]:
        return [self.block(index) for index in range(len(self.blocks))]

    def spread_evenly(self, patch: int) -> None:
        """Draw all tokens from Rein's U(-v, v) with v = sqrt(6 / (3 patch^2 + sqrt(D r)))."""
        for block in self._all():
            dim, rank = block.basis.shape[2], block.basis.shape[1]
            bound = (6 / (3 * patch**2 + (dim * rank) ** 0.5)) ** 0.5
            nn.init.uniform_(block.rows, -bound, bound)
            nn.init.uniform_(block.basis, -bound, bound)

    def start_from_zero(self) -> None:
        """Start all tokens at 0 as SpectralMoE does: A random as in LoRA, B zero."""
        for block in self._all():
            bound = block.rows.shape[-1] ** -0.5
            nn.init.uniform_(block.rows, -bound, bound)
            nn.init.zeros_(block.basis)

    def queries(self) -> Tensor | None:
        """Make the queries for the head (m, query_width), None without a link."""
        if self.link is None:
            return None
        queries: Tensor = self.link([block.mean() for block in self._all()])
        return queries

    def refine(self, prefix: Tensor, patches: Tensor, adjustment: Tensor) -> Tensor:
        """Add scale * mlp(patches + adjustment) to the patches, and put the prefix before them."""
        refined = patches + self.scale * self.mlp(patches + adjustment)
        return torch.cat([prefix, refined], 1)

    def undecayed(self) -> list[Parameter]:
        """List the tokens: they do not decay."""
        return [parameter for block in self._all() for parameter in block.parameters()]
