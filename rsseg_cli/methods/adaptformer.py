"""AdaptFormer: a bottleneck beside every MLP (Chen et al. 2022, arXiv 2205.13535)."""

from __future__ import annotations

from functools import partial

from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.contract import Backbone, Method, State
from rsseg_cli.layers.bottleneck import Activation, Bottleneck


class BesideMlp(nn.Module):
    """A bottleneck times a fixed factor; reads the residual stream as it is, without a norm."""

    def __init__(self, dim: int, config: AdaptFormer.Config) -> None:
        super().__init__()
        self.scale = config.scale
        self.branch = Bottleneck(
            dim, config.bottleneck, activation=config.activation, dropout=config.dropout
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the stream between the two branches (B, T, D) to what is added after the MLP."""
        added: Tensor = self.scale * self.branch(tokens)
        return added


class AdaptFormer(Method[State]):
    """Trains a bottleneck beside the MLP of every block; everything else stays."""

    class Config(Method.Config):
        """Settings of AdaptFormer; defaults as in the authors' code."""

        bottleneck: int = Field(64, ge=1)
        scale: float = 0.1
        activation: Activation = "relu"
        dropout: float = Field(0.1, ge=0, lt=1)
        """Share of the bottleneck's units that is dropped in training."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.blocks = nn.ModuleList(BesideMlp(backbone.dim, config) for _ in range(backbone.depth))
        for index, block in enumerate(self.blocks):
            backbone.add_parallel_branch(index, partial(block))
