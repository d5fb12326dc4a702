"""WEFT's spatial-aware enhancement (SEE) of the pyramid's tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from timm.layers.drop import drop_path
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.layers.deformable_attention import cell_centres
from rsseg_cli.layers.recompute import recomputed
from rsseg_cli.methods._weft.attention import NormedDeformableAttention
from rsseg_cli.methods._weft.cascade import BatchStatistics, Cascade, RunningStatistics, initialise

Laplacian = Literal["directional", "free"]
Pooling = Literal["adaptive", "identity"]
Sizes = Sequence[tuple[int, int]]

SECOND_DERIVATIVES = (
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((1, 0, 0), (0, -2, 0), (0, 0, 1)),
    ((0, 0, 1), (0, -2, 0), (1, 0, 0)),
)
"""Along the row, the column and the two diagonals."""


def split(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Split tokens (B, sum of h * w, D) of several grids into maps (B, D, h, w).

    The maps are views, with channels last in memory as in tokens.
    """
    levels = torch.split(tokens, [height * width for height, width in sizes], dim=1)
    return [
        level.reshape(len(level), *size, -1).permute(0, 3, 1, 2)
        for level, size in zip(levels, sizes, strict=True)
    ]


def join(maps: Sequence[Tensor]) -> Tensor:
    """Invert `split`: maps (B, D, h, w) to tokens (B, sum of h * w, D)."""
    return torch.cat([image.permute(0, 2, 3, 1).flatten(1, 2) for image in maps], dim=1)


class Edges(nn.Module):
    """A depthwise 3x3 second derivative.

    Args:
        channels: Channels of the map.
        kind: "directional": a weighted sum of the four fixed derivatives per channel, which is
            always 0 on a constant or linear map. "free": as released, a trained kernel whose three
            rows start as [1, -2, 1]: one direction at first, and no derivative after training.
    """

    def __init__(self, channels: int, kind: Laplacian) -> None:
        super().__init__()
        self.kind = kind
        self.directions: Tensor
        if kind == "directional":
            directions = torch.tensor(SECOND_DERIVATIVES, dtype=torch.float32)
            self.register_buffer("directions", directions, persistent=False)
            self.weight = nn.Parameter(torch.full((channels, len(directions)), 0.25))
        else:
            row = torch.tensor([1.0, -2.0, 1.0])
            self.weight = nn.Parameter(row.expand(channels, 1, 3, 3).clone())

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        kernel: Tensor = self.weight
        if self.kind == "directional":
            kernel = torch.einsum("cd,dyx->cyx", self.weight, self.directions)[:, None]
        # Reflection requires at least two cells.
        mode = "reflect" if min(z.shape[-2:]) > 1 else "replicate"
        return F.conv2d(F.pad(z, (1, 1, 1, 1), mode=mode), kernel, groups=z.shape[1])


class SpatialExpert(nn.Module):
    """Weighted sum of edges, coarse maxima and wide surroundings of a map.

    z~ = GELU(z + a Edges(z) + b Pool(z) + c sum over k of Cascade_k(z)); (a, b, c) is the softmax
    of three numbers per level, all other parameters are shared by the levels.

    Args:
        channels: Channels of the maps.
        levels: Number of levels.
        laplacian: See `Edges`.
        pool: "adaptive": maxima over cells of about 4 x 4, upsampled bilinearly. "identity": the
            map itself, which equals the released pooling without a size.
        running: See `BatchNorm`.
    """

    KERNELS = (3, 5, 7)

    def __init__(
        self,
        channels: int,
        *,
        levels: int,
        laplacian: Laplacian,
        pool: Pooling,
        running: RunningStatistics,
    ) -> None:
        super().__init__()
        self.pool = pool
        group = channels // Cascade.GROUPS
        filters = (nn.Conv2d(group, group, k, padding=k // 2, groups=group) for k in self.KERNELS)
        self.cascades = nn.ModuleList(
            Cascade(channels, filter, levels=levels, running=running) for filter in filters
        )
        self.apply(initialise)
        self.edges = Edges(channels, laplacian)
        self.shares = nn.Parameter(torch.zeros(levels, 3))

    def forward(self, z: Tensor, level: int) -> Tensor:
        """Enhance the map (B, C, h, w) of a level; backward recomputes the activations."""
        enhanced, statistics = recomputed(self._enhance, z, level)
        for cascade, batch in zip(self._cascades(), statistics, strict=True):
            cascade.update(batch, level)
        return cast(Tensor, enhanced)

    def _enhance(self, z: Tensor, level: int) -> tuple[Tensor, list[BatchStatistics]]:
        edges, coarse, wide = self.shares[level].softmax(0).to(z.dtype)
        sums = z + edges * self.edges(z) + coarse * self._maxima(z)
        statistics = []
        for cascade in self._cascades():
            surroundings, batch = cascade.filtered(z, level)
            sums = sums + wide * surroundings
            statistics.append(batch)
        return F.gelu(sums), statistics

    def _cascades(self) -> Iterable[Cascade]:
        return cast(Iterable[Cascade], self.cascades)

    def _maxima(self, z: Tensor) -> Tensor:
        if self.pool == "identity":
            return z
        height, width = z.shape[-2:]
        maxima = F.adaptive_max_pool2d(z, (-(-height // 4), -(-width // 4)))
        return F.interpolate(maxima, (height, width), mode="bilinear", align_corners=False)


class Enhancer(nn.Module):
    """Narrow feed-forward block around a spatial expert.

    c <- c + DropPath(W2 GELU(SEE(W1 LN(c)))). With attention, each token of c first attends to the
    backbone's tokens: c <- c + MSDA(LN(c), LN(x)), which the released model omits.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        expert: SpatialExpert,
        *,
        drop_path: float,
        attention: NormedDeformableAttention | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.narrow = nn.Linear(dim, hidden)
        self.expert = expert
        self.widen = nn.Linear(hidden, dim)
        self.drop_path = drop_path
        self.narrow.apply(initialise)
        self.widen.apply(initialise)
        self.attention = attention

    def forward(
        self, tokens: Tensor, sizes: Sizes, backbone: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Enhance tokens.

        Args:
            tokens: The pyramid's (B, sum of h * w, D), of all levels.
            sizes: (h, w) of each level.
            backbone: The backbone's tokens (B, N, D).
            size: Their (h, w).
        """
        if self.attention is not None:
            centres = cell_centres(sizes, tokens.device)
            tokens = tokens + self.attention(tokens, centres, backbone, [size])
        # The results of norm and GELU, as wide as their inputs, are recomputed as well.
        maps = split(recomputed(lambda x: self.narrow(self.norm(x)), tokens), sizes)
        enhanced = join([self.expert(z, level) for level, z in enumerate(maps)])
        added: Tensor = recomputed(lambda x: self.widen(F.gelu(x)), enhanced)
        if not self.training or self.drop_path == 0.0:
            return tokens + added
        # The factor per image saves a pass over the tokens.
        factor = drop_path(added.new_ones(len(added), 1, 1), self.drop_path, training=True)
        return torch.addcmul(tokens, added, factor)
