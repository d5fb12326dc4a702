"""FADA: tokens for the wavelet bands of every block's output (Bi et al., NeurIPS 2024).

The map of patch tokens is split into its four Haar bands. The low band attends to one set of
tokens, the three others to a second set with standardised similarities. The inverse transform of
both results is added to the features. All tokens are used, token 0 included; with a factor of 0 the
features are the frozen ones, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Features, Grid, Method, QueryShape, State
from rsseg_cli.layers.haar import Haar
from rsseg_cli.methods._token.adapter import START_SCALE, TokenBranch, TokenSettings, count_tokens
from rsseg_cli.methods._token.tokens import AttentionWeights


class Fada(Method[State]):
    """Refines the output of every block band by band."""

    class Config(TokenSettings):
        """Settings of FADA; the high bands have three times as many tokens."""

        scale: float = START_SCALE
        """Initial value of the learnable factor; 1 gives the paper's equations, which have none."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.haar = Haar()
        branch = partial(TokenBranch, backbone, rank=config.rank)
        tokens = count_tokens(config.tokens, queries)
        self.low = branch(tokens=tokens, queries=queries, attention=AttentionWeights(first=0))
        style_free = AttentionWeights(standardised=True, first=0)
        self.high = branch(tokens=3 * tokens, attention=style_free)
        self.scale = Parameter(torch.tensor(config.scale))
        self.low.init_uniform(backbone.patch)
        self.high.init_uniform(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return [*self.low.no_weight_decay(), *self.high.no_weight_decay()]

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        low, high = split(patches, state.grid, self.haar)
        bands = self.low.transform(index, low), self.high.transform(index, high)
        added = self.scale * join(*bands, state.grid, self.haar)
        return torch.cat([prefix, patches + added], 1)

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Return the maps, and queries from the tokens of the low band."""
        return Features(maps, self.low.queries())


def split(patches: Tensor, grid: Grid, haar: Haar) -> tuple[Tensor, Tensor]:
    """Split patch tokens (B, N, D) into their low Haar band and the three others.

    Every group of a location is its own image; an odd side is made even by repeating its last row.

    Returns:
        (B*groups, n, D) and (B*groups, 3n, D), with n the cells of half the grid.
    """
    images = grid.to_images(patches)
    even = F.pad(images, (0, grid.w % 2, 0, grid.h % 2), mode="replicate")
    bands = haar.analyse(even).reshape(*images.shape[:2], 4, -1)  # (B*G, D, 4, n)
    return bands[:, :, 0].mT, bands[:, :, 1:].permute(0, 2, 3, 1).flatten(1, 2)


def join(low: Tensor, high: Tensor, grid: Grid, haar: Haar) -> Tensor:
    """Invert `split`: (B, N, D)."""
    images, count, dim = low.shape
    bands = torch.cat([low, high], 1).reshape(images, 4, count, dim).permute(0, 3, 1, 2)
    half = bands.reshape(images, 4 * dim, (grid.h + 1) // 2, (grid.w + 1) // 2)
    return grid.to_tokens(haar.synthesise(half)[..., : grid.h, : grid.w])
