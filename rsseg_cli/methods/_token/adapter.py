"""The tokens of all blocks, what the blocks share, and the link from them to a head's queries."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Method, QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._token.attention_weights import REIN, Weighing
from rsseg_cli.methods._token.tokens import TokenExperts, token_set

START_SCALE = 1e-3
"""What the learnable factor of the added features starts from, in Rein and all its relatives."""


TOKENS = 100
"""Tokens per block where no head takes them as queries, as in Rein."""


class TokenSettings(Method.Config):
    """Settings of methods with one set of low-rank tokens per block."""

    tokens: int | None = Field(None, ge=2)
    """Tokens per block; null: as many as the queries that the head takes, otherwise 100."""
    rank: int = Field(16, ge=1)


def count_tokens(tokens: int | None, queries: QueryShape | None) -> int:
    """Return the number of tokens per block.

    Raises:
        RssegError: The head takes another number of queries than there are tokens.
    """
    if tokens is None:
        tokens = TOKENS if queries is None else queries.count
    if queries is not None and (tokens != queries.count or tokens < 2):
        raise RssegError(
            f"the method has {tokens} tokens per block and the head takes {queries.count} queries: "
            "they must be equal, and two or more",
            where="method.tokens, head.queries",
            fix="method.tokens: null",
        )
    return tokens


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
        tokens: Tokens per set m.
        rank: Rank r of a set; None gives one set per block with every number free.
        queries: Shape of the queries that the head takes; None makes none.
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
        queries: QueryShape | None = None,
        weighing: Weighing = REIN,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            token_set(dim, experts=experts, tokens=tokens, rank=rank, weighing=weighing)
            for _ in range(depth)
        )
        self.value = nn.Linear(dim, dim)  # W, b
        self.mlp = nn.Linear(dim, dim)
        self.link = None if queries is None else QueryLink(dim, queries.width)

    def block(self, index: int) -> TokenExperts:
        """Return the tokens of a block; those of full rank know no routes and no mean."""
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
        """Return what features (B, N, D) get from the tokens of a block: (B, N, D)."""
        block = self.block(index)
        return block.coefficients(features) @ block.span(self.value)

    def answer(self, index: int, features: Tensor, asking: Tensor | None = None) -> Tensor:
        """Map features (B, N, D) and what they get, or what `asking` gets in their place."""
        found = self.adjustment(index, features if asking is None else asking)
        answer: Tensor = self.mlp(features + found)
        return answer

    def queries(self) -> Tensor | None:
        """Return the queries for the head (m, width), None without a link."""
        if self.link is None:
            return None
        queries: Tensor = self.link([block.mean() for block in self._all()])
        return queries

    def no_weight_decay(self) -> list[Parameter]:
        """List the tokens: they do not decay."""
        return list(self.blocks.parameters())


class TokenAdapter(TokenBranch):
    """A branch that refines features, with its scale."""

    def __init__(
        self,
        depth: int,
        dim: int,
        *,
        experts: int,
        tokens: int,
        rank: int,
        queries: QueryShape | None,
    ) -> None:
        super().__init__(depth, dim, experts=experts, tokens=tokens, rank=rank, queries=queries)
        self.scale = Parameter(torch.tensor(START_SCALE))

    def refine(self, prefix: Tensor, patches: Tensor, adjustment: Tensor) -> Tensor:
        """Add scale * mlp(patches + adjustment) to the patches, and put the prefix before them."""
        refined = patches + self.scale * self.mlp(patches + adjustment)
        return torch.cat([prefix, refined], 1)
