"""WEFT's injection of the pyramid beside the backbone into the backbone's tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseg_cli.contract import Grid
from rsseg_cli.layers.deformable_attention import cell_centres
from rsseg_cli.methods._weft.attention import NormedDeformableAttention
from rsseg_cli.methods._weft.spatial_enhancement import Sizes
from rsseg_cli.methods._weft.token_optimizer import TokenOptimizer


class Injector(nn.Module):
    """Adds to the backbone's tokens what they find in the pyramid: x + gamma * ESTO(MSDA(x, c)).

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
        """Compute what is added to patch tokens.

        The token groups of one place ask together, with their mean, and get the same answer.

        Args:
            tokens: (B, N, D), the backbone's.
            grid: Their layout.
            values: (B, N', D), the pyramid's.
            sizes: (rows, columns) of its levels.
        """
        per_place = mean_over_groups(tokens, grid)
        centres = cell_centres([(grid.h, grid.w)], tokens.device)
        found = self.attention(per_place, centres, values, sizes)
        if self.optimizer is not None:
            found = self.optimizer(found)
        answer: Tensor = self.gamma * found
        return answer.repeat_interleave(grid.groups, dim=1)


def mean_over_groups(tokens: Tensor, grid: Grid) -> Tensor:
    """Average the token groups of each place: (B, N, D) to (B, h * w, D)."""
    if grid.groups == 1:
        return tokens
    return tokens.reshape(len(tokens), grid.h * grid.w, grid.groups, -1).mean(2)
