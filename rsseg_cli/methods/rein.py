"""Rein: features attend to learned tokens after every block (Wei et al. 2024, arXiv 2312.04265)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from torch import Tensor
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Features, Method, QueryShape, State
from rsseg_cli.methods._token.adapter import TokenAdapter, TokenSettings


class Rein(Method[State]):
    """Refines the output of every block by one set of low-rank tokens."""

    class Config(TokenSettings):
        """Settings of Rein."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.adapter = TokenAdapter(backbone, config, queries)
        self.adapter.init_uniform(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return self.adapter.no_weight_decay()

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        return self.adapter.refine(prefix, patches, self.adapter.adjustment(index, patches))

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Return the maps and the queries."""
        return Features(maps, self.adapter.queries())
