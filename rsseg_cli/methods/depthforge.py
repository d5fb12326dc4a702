"""DepthForge: Rein's tokens attended to by features and depth together (Chen et al., ICCV 2025)."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, QueryShape
from rsseg_cli.methods._token.adapter import TokenAdapter, TokenSettings, count_tokens
from rsseg_cli.methods._token.depth_encoder import (
    DepthMethod,
    DepthName,
    DepthSettings,
    DepthState,
    DepthView,
)


class DepthForge(DepthMethod[DepthState]):
    """Refines every block's output as Rein does; depth changes where the attention goes."""

    class Config(DepthSettings, TokenSettings):
        """Settings of DepthForge."""

        depth: DepthName = "depth_anything_v2_large"
        """The depth encoder; with `off` and without refinement it is Rein."""
        refine: bool = True
        """Refine the finest map by all maps, as the authors' head does before its pixel decoder."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        off = config.depth == "off"
        self.view = None if off else DepthView(config.depth, config.depth_weights, backbone)
        self.adapter = TokenAdapter(
            backbone.depth,
            backbone.dim,
            experts=1,
            tokens=count_tokens(config.tokens, queries),
            rank=config.rank,
            queries=queries,
        )
        self.adapter.spread_evenly(backbone.patch)
        self.refinement: Refinement | None = None
        if config.refine:
            self.refinement = Refinement(backbone.dim, len(backbone.out_indices))

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return self.adapter.no_weight_decay()

    def begin(self, image: Tensor, grid: Grid) -> DepthState:
        """Embed the image in the depth encoder."""
        state = DepthState(grid)
        if self.view is not None:
            self.view.begin(image, state)
        return state

    def after_block(self, index: int, tokens: Tensor, state: DepthState) -> Tensor:
        """Refine the patch tokens: logits are those of the features plus those of depth."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        asking = patches
        if self.view is not None:
            asking = asking + self.view.advance(index, state)
        return self.adapter.refine(prefix, patches, self.adapter.adjustment(index, asking))

    def finish(self, maps: list[Tensor], state: DepthState) -> Features:
        """Return the maps, the finest one refined, and the queries."""
        if self.refinement is not None:
            maps = [self.refinement(maps), *maps[1:]]
        return Features(maps, self.adapter.queries())


class Refinement(nn.Module):
    """Adds to the finest map what one gate, shared by all maps, lets through of each.

    G(x) = y * sigmoid(Conv3x3(y)) with y = x * sigmoid(W2 relu(W1 x)); both gates act per pixel.
    On the tokens' grid, while the authors' code works on one four times as fine; the last
    convolution starts at 0, so that the map starts as it is.
    """

    def __init__(self, dim: int, maps: int) -> None:
        super().__init__()
        narrow = max(1, dim // 16)
        self.channels = nn.Sequential(
            nn.Conv2d(dim, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, dim, 1), nn.Sigmoid()
        )
        self.places = nn.Sequential(nn.Conv2d(dim, 1, 3, padding=1), nn.Sigmoid())
        self.merge = nn.Conv2d(maps * dim, dim, 1)
        for parameter in self.merge.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Refine the first of the maps (B, D, h, w)."""
        size = maps[0].shape[-2:]
        fitted = [F.interpolate(level, size, mode="bilinear") for level in maps]
        gated = [self._gate(one) for one in fitted]
        refined: Tensor = fitted[0] + self.merge(torch.cat(gated, 1))
        return refined

    def _gate(self, features: Tensor) -> Tensor:
        chosen = features * self.channels(features)
        gated: Tensor = chosen * self.places(chosen)
        return gated
