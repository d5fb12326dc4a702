"""WEFT's injector: cross-attention from the backbone's tokens to the pyramid."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rsseg_cli.contract import Grid
from rsseg_cli.layers.deformable_attention import cell_centres
from rsseg_cli.methods._weft.attention import NormedDeformableAttention
from rsseg_cli.methods._weft.spatial_enhancement import Sizes
from rsseg_cli.methods._weft.token_optimizer import TokenOptimizer


class Injector(nn.Module):
    """Injector of the pyramid c into the backbone's tokens: x + gamma * ESTO(MSDA(x, c)).

    gamma starts at 0, so that a new model is the plain backbone.
    """

    def __init__(
        self, dim: int, attention: NormedDeformableAttention, optimizer: TokenOptimizer | None
    ) -> None:
        super().__init__()
        self.attention = attention
        self.optimizer = optimizer
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, grid: Grid, values: Tensor, sizes: Sizes) -> Tensor:
        """Return the addend of the patch tokens.

        The token groups of a location attend with their mean and get the same addend.

        Args:
            tokens: The backbone's (B, N, D).
            grid: Their layout.
            values: Tokens of the pyramid (B, N', D).
            sizes: (rows, columns) of its levels.
        """
        centres = cell_centres([(grid.h, grid.w)], tokens.device)
        attended = self.attention(mean_over_groups(tokens, grid), centres, values, sizes)
        if self.optimizer is not None:
            attended = self.optimizer(attended)
        return cast(Tensor, self.gamma * attended).repeat_interleave(grid.groups, dim=1)


def mean_over_groups(tokens: Tensor, grid: Grid) -> Tensor:
    """Average the token groups of each location: (B, N, D) to (B, h * w, D)."""
    if grid.groups == 1:
        return tokens
    return tokens.reshape(len(tokens), grid.h * grid.w, grid.groups, -1).mean(2)
