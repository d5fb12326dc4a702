"""Tokens of all blocks with their shared layers, and the link to a head's queries."""

from __future__ import annotations

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Method, QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._token.tokens import REIN, AttentionWeights, TokenExperts, token_set

START_SCALE = 1e-3
"""Initial value of the learnable factor of the added features, in Rein and its successors."""
TOKENS = 100
"""Tokens per block if the head does not take them as queries, as in Rein."""


class TokenSettings(Method.Config):
    """Settings of methods with low-rank tokens in every block."""

    tokens: int | None = Field(None, ge=2)
    """Tokens per block and expert; null: the number of queries that the head takes, else 100."""
    rank: int = Field(16, ge=1)


def count_tokens(tokens: int | None, queries: QueryShape | None) -> int:
    """Return the number of tokens per block.

    Raises:
        RssegError: It differs from the number of queries that the head takes.
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
    """Layer that merges the tokens of all blocks into the queries of a mask head."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.merge = nn.Linear(3 * width, width)

    def forward(self, blocks: list[Tensor]) -> Tensor:
        """Merge tokens, each (..., m, D), into queries (..., m, width): largest, mean and last."""
        queries = torch.stack([self.project(tokens) for tokens in blocks])
        pooled = torch.cat([queries.amax(0), queries.mean(0), queries[-1]], -1)
        return cast(Tensor, self.merge(pooled))


class TokenBranch(nn.Module):
    """Tokens of every block, and the layers that all blocks share.

    Args:
        backbone: Backbone of L blocks of width D.
        tokens: Tokens m per block and expert.
        rank: Rank of an expert's tokens; None: full rank, for one expert.
        experts: Experts per block.
        queries: Shape of the queries that the head takes; None makes none.
        attention: Attention weights of features over the tokens.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokens: int,
        rank: int | None,
        experts: int = 1,
        queries: QueryShape | None = None,
        attention: AttentionWeights = REIN,
    ) -> None:
        super().__init__()
        dim = backbone.dim
        self.blocks = nn.ModuleList(
            token_set(dim, experts=experts, tokens=tokens, rank=rank, attention=attention)
            for _ in range(backbone.depth)
        )
        self.value = nn.Linear(dim, dim)  # W, b
        self.mlp = nn.Linear(dim, dim)
        self.link = None if queries is None else QueryLink(dim, queries.width)

    def block(self, index: int) -> TokenExperts:
        """Return the tokens of a block; `FullTokens` do not support routes."""
        return cast(TokenExperts, self.blocks[index])

    def init_uniform(self, patch: int) -> None:
        """Draw all tokens as Rein does."""
        for index in range(len(self.blocks)):
            self.block(index).init_uniform(patch)

    def adjustment(self, index: int, features: Tensor) -> Tensor:
        """Compute the attention of features (B, N, D) to the tokens of a block: (B, N, D)."""
        block = self.block(index)
        return block.coefficients(features) @ block.span(self.value)

    def transform(self, index: int, features: Tensor, attending: Tensor | None = None) -> Tensor:
        """Map features (B, N, D) plus their adjustment, or that of `attending` in their place."""
        adjustment = self.adjustment(index, features if attending is None else attending)
        return cast(Tensor, self.mlp(features + adjustment))

    def queries(self) -> Tensor | None:
        """Return the queries for the head (m, width), None without a link."""
        if self.link is None:
            return None
        means = [self.block(index).mean() for index in range(len(self.blocks))]
        return cast(Tensor, self.link(means))

    def no_weight_decay(self) -> list[Parameter]:
        """Return the tokens."""
        return list(self.blocks.parameters())


class TokenAdapter(TokenBranch):
    """Token branch with a learnable scale, which refines features."""

    def __init__(
        self,
        backbone: Backbone,
        config: TokenSettings,
        queries: QueryShape | None,
        *,
        experts: int = 1,
    ) -> None:
        tokens = count_tokens(config.tokens, queries)
        super().__init__(
            backbone, tokens=tokens, rank=config.rank, experts=experts, queries=queries
        )
        self.scale = Parameter(torch.tensor(START_SCALE))

    def refine(self, prefix: Tensor, patches: Tensor, adjustment: Tensor) -> Tensor:
        """Add scale * mlp(patches + adjustment) to the patches, and prepend the prefix."""
        refined = patches + self.scale * self.mlp(patches + adjustment)
        return torch.cat([prefix, refined], 1)
