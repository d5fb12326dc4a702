"""Multi-scale deformable attention in plain PyTorch (Zhu et al. 2021, arXiv 2010.04159)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def cell_centres(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the cell centres of grids with the given (h, w), row by row.

    Returns:
        (sum of h * w, 2): x and y in -1..1, as `grid_sample` takes them.
    """
    grids = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
        x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(grids)


class DeformableAttention(nn.Module):
    """Attention of each query to a few learned points around its reference point on every level.

    Parameters have the names and shapes of Deformable DETR in transformers; `initialise` sets their
    initial values. Queries, values and result have `dim` channels, the projected values `inner`, a
    multiple of `heads`. There are `points` points per head and level.
    """

    def __init__(self, dim: int, *, inner: int, levels: int, heads: int, points: int = 4) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)

    @torch.no_grad()
    def initialise(self) -> None:
        """Set the published initial values.

        All points have the same weight. Those of a head lie in one direction, different for each
        head, at 1, 2, ... cells from the reference point.
        """
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for parameter in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(parameter)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1)[:, None]
        offsets = (directions[:, None, None] * distances).expand(-1, self.levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        queries: Tensor,
        reference: Tensor,
        values: Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Compute the attention without device synchronisation or graph breaks.

        Args:
            queries: (B, Q, D).
            reference: (Q, 2), x and y of each query's reference point in -1..1.
            values: (B, sum of h * w, D), one level after the other.
            sizes: (h, w) of each level.

        Returns:
            (B, Q, D).
        """
        batch, count, _ = queries.shape
        # Coordinates need more than the 8 bits of bfloat16, and grid_sample takes one precision.
        value = self.value_proj(values).float().transpose(1, 2)
        value = value.reshape(batch * self.heads, -1, values.shape[1])
        by_head = (batch, count, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(queries).float().view(*by_head, 2)
        offsets = offsets.transpose(1, 2).flatten(0, 1)  # (B*heads, Q, levels, points, 2)
        weights = self.attention_weights(queries).float().view(*by_head[:3], -1).softmax(-1)
        weights = weights.view(by_head).transpose(1, 2).flatten(0, 1)[:, None]

        total = torch.zeros((), device=queries.device)
        maps = torch.split(value, [height * width for height, width in sizes], dim=2)
        for level, (cells, (height, width)) in enumerate(zip(maps, sizes, strict=True)):
            x = reference[:, None, 0] + offsets[..., level, :, 0] * (2 / width)
            y = reference[:, None, 1] + offsets[..., level, :, 1] * (2 / height)
            samples = F.grid_sample(  # (B*heads, inner/heads, Q, points)
                torch.unflatten(cells, 2, (height, width)),
                torch.stack((x, y), dim=-1),
                align_corners=False,
            )
            total = total + (samples * weights[:, :, :, level]).sum(-1)
        result: Tensor = self.output_proj(total.view(batch, -1, count).transpose(1, 2))
        return result
