"""The tokens of all blocks, what the blocks share, and the link from them to a head's queries."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Method
from rsseg_cli.methods._tokens import TokenExperts, token_set
from rsseg_cli.methods._weighing import REIN, Weighing

START_SCALE = 1e-3
"""What the learnable factor of the added features starts from, in Rein and all its relatives."""


class LinkSettings(Method.Config):
    """Settings of methods whose tokens can become the head's queries."""

    tokens: int = Field(100, ge=2)
    """Tokens per block; with the query link also the number of the head's queries."""
    query_link: bool = True
    """Make the queries of a mask head from the tokens."""
    query_width: int = Field(256, ge=1)
    """Width of these queries: the head's."""

    @property
    def linked(self) -> int | None:
        """Width of the queries to make, None for none."""
        return self.query_width if self.query_link else None


class TokenSettings(LinkSettings):
    """Settings of methods with one set of low-rank tokens per block."""

    rank: int = Field(16, ge=1)


class QueryLink(nn.Module):
    """Turns the tokens of all blocks into the queries of a mask head."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.merge = nn.Linear(3 * width, width)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """Merge tokens, each (..., m, D), into queries (..., m, width): largest, mean and last."""
        queries = torch.stack([self.project(one) for one in tokens])
        merged: Tensor = self.merge(torch.cat([queries.amax(0), queries.mean(0), queries[-1]], -1))
        return merged


class TokenBranch(nn.Module):
    """The tokens of every block, and what all blocks share.

    Args:
        depth: Number of blocks L.
        dim: Width D.
        experts: Sets of tokens per block E.
        tokens: Tokens per set m; with a query link also the number of queries.
        rank: Rank r of a set; None gives one set per block with every number free.
        query_width: Width of the queries for the head; None makes none.
        weighing: How features attend to the tokens.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        *,
        experts: int = 1,
        tokens: int,
        rank: int | None,
        query_width: int | None = None,
        weighing: Weighing = REIN,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            token_set(dim, experts=experts, tokens=tokens, rank=rank, weighing=weighing)
            for _ in range(depth)
        )
        self.value = nn.Linear(dim, dim)  # W, b
        self.mlp = nn.Linear(dim, dim)
        self.link = None if query_width is None else QueryLink(dim, query_width)

    def block(self, index: int) -> TokenExperts:
        """Give the tokens of a block; those of full rank know no routes and no mean."""
        return cast(TokenExperts, self.blocks[index])

    def _all(self) -> list[TokenExperts]:
        return [self.block(index) for index in range(len(self.blocks))]

    def spread_evenly(self, patch: int) -> None:
        """Draw all tokens as Rein does."""
        for block in self._all():
            block.spread_evenly(patch)

    def start_from_zero(self) -> None:
        """Start all tokens at 0 as SpectralMoE does."""
        for block in self._all():
            block.start_from_zero()

    def adjustment(self, index: int, features: Tensor) -> Tensor:
        """Find what features (B, N, D) get from the tokens of a block: (B, N, D)."""
        block = self.block(index)
        return block.coefficients(features) @ block.span(self.value)

    def answer(self, index: int, features: Tensor, asking: Tensor | None = None) -> Tensor:
        """Map features (B, N, D) and what they get, or what `asking` gets in their place."""
        found = self.adjustment(index, features if asking is None else asking)
        answer: Tensor = self.mlp(features + found)
        return answer

    def queries(self) -> Tensor | None:
        """Make the queries for the head (m, query_width), None without a link."""
        if self.link is None:
            return None
        queries: Tensor = self.link([block.mean() for block in self._all()])
        return queries

    def undecayed(self) -> list[Parameter]:
        """List the tokens: they do not decay."""
        return list(self.blocks.parameters())


class TokenAdapter(TokenBranch):
    """A branch that refines features, with its scale."""

    def __init__(
        self, depth: int, dim: int, *, experts: int, tokens: int, rank: int, query_width: int | None
    ) -> None:
        super().__init__(
            depth, dim, experts=experts, tokens=tokens, rank=rank, query_width=query_width
        )
        self.scale = Parameter(torch.tensor(START_SCALE))

    def refine(self, prefix: Tensor, patches: Tensor, adjustment: Tensor) -> Tensor:
        """Add scale * mlp(patches + adjustment) to the patches, and put the prefix before them."""
        refined = patches + self.scale * self.mlp(patches + adjustment)
        return torch.cat([prefix, refined], 1)
