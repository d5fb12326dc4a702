"""FADA: tokens for the wavelet bands of every block's output (Bi et al., NeurIPS 2024).

The map of patch tokens is split into its four Haar bands. The low band attends to one set of
tokens, the three others to a second set with normalised similarities; what both make of
their bands is put together by the inverse transform and added. Nothing is left out of a band:
with a factor of 0 the features are the frozen ones, bit for bit.
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
from rsseg_cli.methods._token.attention_weights import Weighing


class Fada(Method[State]):
    """Refines the output of every block band by band."""

    class Config(TokenSettings):
        """Settings of FADA; the high bands have three times as many tokens."""

        scale: float = START_SCALE
        """Start of the learnable factor of what is added; the paper's equations have none: 1."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.haar = Haar()
        branch = partial(TokenBranch, backbone.depth, backbone.dim, rank=config.rank)
        tokens = count_tokens(config.tokens, queries)
        self.low = branch(tokens=tokens, queries=queries, weighing=Weighing(first=0))
        self.high = branch(tokens=3 * tokens, weighing=Weighing(normalised=True, first=0))
        self.scale = Parameter(torch.tensor(config.scale))
        for one in (self.low, self.high):
            one.spread_evenly(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return [*self.low.no_weight_decay(), *self.high.no_weight_decay()]

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        low, high = split(patches, state.grid, self.haar)
        answers = self.low.answer(index, low), self.high.answer(index, high)
        added = self.scale * join(*answers, state.grid, self.haar)
        return torch.cat([prefix, patches + added], 1)

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Return the maps, and queries of the low band's tokens."""
        return Features(maps, self.low.queries())


def split(patches: Tensor, grid: Grid, haar: Haar) -> tuple[Tensor, Tensor]:
    """Split patch tokens (B, N, D) into their low Haar band and the three others.

    Every group of a location is its own image; an odd side is made even by repeating its last row.

    Returns:
        (B*groups, n, D) and (B*groups, 3n, D), with n the cells of half the grid.
    """
    images = grid.to_images(patches)
    even = F.pad(images, (0, grid.w % 2, 0, grid.h % 2), mode="replicate")
    bands = (
        haar.analyse(even).reshape(*images.shape[:2], 4, -1).permute(0, 2, 3, 1)
    )  # (B*G, 4, n, D)
    return bands[:, 0], bands[:, 1:].flatten(1, 2)


def join(low: Tensor, high: Tensor, grid: Grid, haar: Haar) -> Tensor:
    """Undo `split`: (B, N, D)."""
    images, count, dim = low.shape
    bands = torch.cat([low, high], 1).reshape(images, 4, count, dim).permute(0, 3, 1, 2)
    half = bands.reshape(images, 4 * dim, (grid.h + 1) // 2, (grid.w + 1) // 2)
    return grid.to_tokens(haar.synthesise(half)[..., : grid.h, : grid.w])
