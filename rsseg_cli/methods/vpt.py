"""Visual prompt tuning: learned tokens as block inputs (Jia et al. 2022, arXiv 2203.12119)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Method, State
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._token.tokens import init_uniform


class Vpt(Method[State]):
    """Inserts prompts between prefix and patches, without position embeddings."""

    class Config(Method.Config):
        """Settings of prompt tuning."""

        prompts: int = Field(150, ge=1)
        """Prompts p per block: 24 * 150 * 1024 are the 3.69M of the tables at ViT-L."""
        deep: bool = True
        """Replace the prompts before every block; false: insert them once, before the first."""
        dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout of the prompts."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if not backbone.takes_prompts:
            raise RssegError(
                "this backbone uses windowed attention and does not support prompt tokens",
                where="method.name",
                fix="another --method, or another --backbone",
            )
        self.config, self.num_prefix_tokens = config, backbone.num_prefix_tokens
        blocks = backbone.depth if config.deep else 1
        self.prompts = Parameter(torch.empty(blocks, config.prompts, backbone.dim))
        init_uniform([self.prompts], backbone.patch, backbone.dim)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the prompts, as Rein does with its tokens."""
        return (self.prompts,)

    def before_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Insert a block's prompts in place of those of the block before."""
        if index >= len(self.prompts):
            return tokens
        ends = [self.num_prefix_tokens, self.num_prefix_tokens + state.extra]
        prefix, _, patches = tokens.tensor_split(ends, 1)
        state.extra = self.config.prompts
        prompts = F.dropout(self.prompts[index], self.config.dropout, self.training)
        prompts = prompts.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([prefix, prompts, patches], 1)
