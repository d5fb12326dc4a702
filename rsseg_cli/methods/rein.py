"""Rein: tokens after every block that features attend to (Wei et al. 2024, arXiv 2312.04265)."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Features, Method, State
from rsseg_cli.methods._tokens import TokenAdapter


class Rein(Method[State]):
    """Refines the output of every block by one set of low-rank tokens."""

    class Config(Method.Config):
        """Settings of Rein."""

        tokens: int = Field(100, ge=2)
        """Tokens per block; with the query link also the number of the head's queries."""
        rank: int = Field(16, ge=1)
        query_link: bool = True
        """Make the queries of a mask head from the tokens."""
        query_width: int = Field(256, ge=1)
        """Width of these queries: the head's."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.prefix = backbone.prefix
        self.adapter = TokenAdapter(
            backbone.depth,
            backbone.dim,
            experts=1,
            tokens=config.tokens,
            rank=config.rank,
            query_width=config.query_width if config.query_link else None,
        )
        self.adapter.spread_evenly(backbone.patch)

    def undecayed(self) -> Collection[Parameter]:
        """Name the tokens."""
        return self.adapter.undecayed()

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.prefix], 1)
        block = self.adapter.block(index)
        adjustment = block.coefficients(patches) @ block.span(self.adapter.value)
        return self.adapter.refine(prefix, patches, adjustment)

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Hand the queries over with the maps."""
        return Features(maps, self.adapter.queries())
