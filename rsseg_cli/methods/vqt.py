"""Visual query tuning: query tokens that attend to every block (Tu et al., CVPR 2023).

arXiv 2212.03220. The tokens attend to the frozen features, but the features do not attend to the
tokens: they stay those of the frozen backbone, bit for bit, and no gradient flows through them. The
results of the attention become the queries of a mask head.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, Method, QueryShape, State
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._token.adapter import START_SCALE, QueryLink, count_tokens
from rsseg_cli.methods._token.tokens import FullTokens, TokenExperts, token_set


@dataclass
class Summaries(State):
    """Results of the tokens' cross-attention, by block."""

    summaries: dict[int, Tensor] = field(default_factory=dict)
    """Each (B, Q, D), every row with mean 0 and variance 1, as raw ones grow with the depth."""


class Vqt(Method[Summaries]):
    """Trains tokens that attend to the features of every block and become the head's queries.

    The maps stay those of the frozen backbone. Without a head that takes queries, the tokens attend
    only to the blocks whose outputs become maps, and the maps, no longer frozen, attend to the
    results.
    """

    class Config(Method.Config):
        """Settings of visual query tuning."""

        tokens: int | None = Field(None, ge=2)
        """Tokens per block; null: the number of queries that the head takes, else 100."""
        rank: int | None = Field(None, ge=1)
        """Rank of a block's tokens; null: full rank, as published."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout of the tokens."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        if not backbone.supports_queries:
            raise RssegError(
                "this backbone does not support VQT (no cross-attention from extra query tokens)",
                where="method.name",
                fix="another --method, or another --backbone",
            )
        self.dropout, self.out_indices = config.dropout, backbone.out_indices
        self.cross_attend = backbone.cross_attend  # bound methods follow `deepcopy`
        tokens = count_tokens(config.tokens, queries)
        indices = backbone.out_indices if queries is None else range(backbone.depth)
        blocks = {str(i): token_set(backbone.dim, tokens=tokens, rank=config.rank) for i in indices}
        self.blocks = nn.ModuleDict(blocks)
        self.link = None if queries is None else QueryLink(backbone.dim, queries.width)
        self.scale = Parameter(torch.tensor(START_SCALE)) if queries is None else None
        for block in blocks.values():
            block.init_uniform(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return list(self.blocks.parameters())

    def begin(self, image: Tensor, grid: Grid) -> Summaries:
        """Return an empty state."""
        return Summaries(grid)

    def before_block(self, index: int, tokens: Tensor, state: Summaries) -> Tensor:
        """Run the tokens' cross-attention to the block's input, which stays unchanged."""
        if str(index) in self.blocks:
            queries = cast("TokenExperts | FullTokens", self.blocks[str(index)]).mean()
            queries = F.dropout(queries, self.dropout, self.training).to(tokens.dtype)
            queries = queries.expand(len(tokens), -1, -1)
            summary = self.cross_attend(index, queries, tokens, state.grid)
            state.summaries[index] = F.layer_norm(summary, summary.shape[-1:])
        return tokens

    def finish(self, maps: list[Tensor], state: Summaries) -> Features:
        """Return the maps and the queries."""
        queries = None if self.link is None else self.link(list(state.summaries.values()))
        if self.scale is not None:
            pairs = zip(maps, self.out_indices, strict=True)
            maps = [x + self.scale * attend(x, state.summaries[index]) for x, index in pairs]
        return Features(maps, queries)


def attend(features: Tensor, summaries: Tensor) -> Tensor:
    """Attend from a map f (B, D, h, w) to rows Z (B, Q, D): softmax(f Z^T / sqrt D) Z."""
    queries = features.flatten(2).mT[:, None]
    keys = summaries.to(queries.dtype)[:, None]
    attended = F.scaled_dot_product_attention(queries, keys, keys)[:, 0]
    return attended.mT.reshape(features.shape)
