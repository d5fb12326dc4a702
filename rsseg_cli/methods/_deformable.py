"""Multi-scale deformable attention in plain PyTorch (Zhu et al. 2021, arXiv 2010.04159)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.errors import RssegError
from rsseg_cli.methods._weft.cascade import recomputed


def centres(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """List the centres of the cells of several grids, row by row.

    Returns:
        (sum of h * w, 2): x and y as shares of the image, in (0, 1).
    """
    grids = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grids.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
    return torch.cat(grids)


class DeformableAttention(nn.Module):
    """Each query looks at a few points near its place in every level, and says itself where.

    Queries and values pass a layer norm of their own first.

    Args:
        dim: Width D of queries, values and result.
        levels: Number of maps that are looked at.
        heads: Attention heads.
        points: Points per head and level.
        ratio: Width inside over D.
    """

    def __init__(
        self, dim: int, *, levels: int, heads: int = 16, points: int = 4, ratio: float = 0.5
    ) -> None:
        super().__init__()
        inner = int(dim * ratio)
        if inner % heads or not inner:
            raise RssegError(
                f"{heads} heads do not divide the {inner} channels of the attention",
                where="method.heads",
                fix=f"a divisor of {inner}" if inner else "a backbone with wider tokens",
            )
        self.levels, self.heads, self.points = levels, heads, points
        self.query_norm, self.value_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.value = nn.Linear(dim, inner)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.out = nn.Linear(inner, dim)
        self._initialise()

    def _initialise(self) -> None:
        """Start uniform: each head looks along its own direction, point after point outwards."""
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        start = (directions[:, None, None] * steps[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())

    def forward(
        self, queries: Tensor, places: Tensor, values: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, D).
            places: (Q, 2), x and y of each query as shares of the image.
            values: (B, sum of h * w, D), the levels one after the other.
            sizes: (h, w) of each level.

        Returns:
            (B, Q, D).
        """
        batch, count, _ = queries.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        asking = self.query_norm(queries)
        # Places need more digits than bf16 has.
        offsets = self.offsets(asking).float().view(*shape, 2)
        weights = self.weights(asking).view(batch, count, self.heads, -1).softmax(-1).view(shape)
        projected = recomputed(self._projected, values)
        result: Tensor = self.out(recomputed(sample, projected, sizes, places, offsets, weights))
        return result

    def _projected(self, values: Tensor) -> Tensor:
        projected: Tensor = self.value(self.value_norm(values))
        return projected


def sample(
    values: Tensor,
    sizes: Sequence[tuple[int, int]],
    places: Tensor,
    offsets: Tensor,
    weights: Tensor,
) -> Tensor:
    """Read values bilinearly near the queries' places and add what is found.

    Args:
        values: (B, sum of h * w, D), the levels one after the other.
        sizes: (h, w) of each level.
        places: (Q, 2), x and y as shares of the image.
        offsets: (B, Q, heads, levels, points, 2) in cells of the level; outside there are zeros.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, D), head after head.
    """
    batch, count, heads = weights.shape[:3]
    parts = []
    levels = torch.split(values, [height * width for height, width in sizes], dim=1)
    for number, (level, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        at = places[:, None, None] + offsets[:, :, :, number] / offsets.new_tensor((width, height))
        seen = F.grid_sample(  # (B * heads, D / heads, Q, points)
            level.mT.reshape(batch * heads, -1, height, width),
            (2 * at - 1).transpose(1, 2).flatten(0, 1),
            align_corners=False,
        )
        share = weights[:, :, :, number].transpose(1, 2).flatten(0, 1)
        parts.append((seen * share[:, None]).sum(-1))
    return torch.stack(parts).sum(0).view(batch, -1, count).mT
