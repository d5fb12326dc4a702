"""DepthForge: Rein's tokens attended to by features and depth together (Chen et al., ICCV 2025)."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, QueryShape
from rsseg_cli.methods._token.adapter import TokenAdapter, TokenSettings
from rsseg_cli.methods._token.depth_encoder import DepthMethod, DepthName, DepthSettings, DepthState


class DepthForge(DepthMethod[DepthState]):
    """Refines every block's output as Rein does, with depth features added to the queries."""

    class Config(DepthSettings, TokenSettings):
        """Settings of DepthForge."""

        depth: DepthName = "depth_anything_v2_large"
        """The depth encoder; with `off` and without refinement the method is Rein."""
        refine: bool = True
        """Refine the finest map by all maps, as the authors' head does before its pixel decoder."""

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.adapter = TokenAdapter(backbone, config, queries)
        self.adapter.init_uniform(backbone.patch)
        self.refinement: Refinement | None = None
        if config.refine:
            self.refinement = Refinement(backbone.dim, len(backbone.out_indices))

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return self.adapter.no_weight_decay()

    def begin(self, image: Tensor, grid: Grid) -> DepthState:
        """Embed the image in the depth encoder."""
        state = DepthState(grid)
        if self.depth_branch is not None:
            self.depth_branch.begin(image, state)
        return state

    def after_block(self, index: int, tokens: Tensor, state: DepthState) -> Tensor:
        """Refine the patch tokens; logits are those of the features plus those of depth."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        attending = patches
        if self.depth_branch is not None:
            attending = attending + self.depth_branch.advance(index, state)
        return self.adapter.refine(prefix, patches, self.adapter.adjustment(index, attending))

    def finish(self, maps: list[Tensor], state: DepthState) -> Features:
        """Return the maps, the finest one refined, and the queries."""
        if self.refinement is not None:
            maps = [self.refinement(maps), *maps[1:]]
        return Features(maps, self.adapter.queries())


class Refinement(nn.Module):
    """Residual refinement of the finest map by all maps, each gated by the same layers.

    G(x) = y * sigmoid(Conv3x3(y)) with y = x * sigmoid(W2 relu(W1 x)); both gates act per pixel.
    It works on the tokens' grid (the authors' code: on a grid four times as fine). The last
    convolution starts at 0 (theirs: at random weights), so that the map is unchanged at first.
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
        gated = torch.cat([self._gate(level) for level in fitted], 1)
        return cast(Tensor, fitted[0] + self.merge(gated))

    def _gate(self, features: Tensor) -> Tensor:
        weighted = features * self.channels(features)
        return cast(Tensor, weighted * self.places(weighted))
