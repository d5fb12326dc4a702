"""AdaptFormer: a bottleneck parallel to every MLP (Chen et al. 2022, arXiv 2205.13535)."""

from __future__ import annotations

from functools import partial
from typing import cast

from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.contract import Backbone, Method, State
from rsseg_cli.layers.bottleneck import Activation, Bottleneck


class ParallelBottleneck(nn.Module):
    """Bottleneck times a fixed factor, on the residual stream without a norm."""

    def __init__(self, dim: int, config: AdaptFormer.Config) -> None:
        super().__init__()
        self.scale = config.scale
        self.branch = Bottleneck(
            dim, config.bottleneck, activation=config.activation, dropout=config.dropout
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the input of the MLP's branch (B, T, D) to an addend of its output."""
        return cast(Tensor, self.scale * self.branch(tokens))


class AdaptFormer(Method[State]):
    """Trains a bottleneck parallel to the MLP of every block."""

    class Config(Method.Config):
        """Settings of AdaptFormer; defaults as in the authors' code."""

        bottleneck: int = Field(64, ge=1)
        scale: float = 0.1
        activation: Activation = "relu"
        dropout: float = Field(0.1, ge=0, lt=1)
        """Dropout of the bottleneck's units."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.blocks = nn.ModuleList(
            ParallelBottleneck(backbone.dim, config) for _ in range(backbone.depth)
        )
        for index, block in enumerate(self.blocks):
            backbone.add_parallel_branch(index, partial(block))
