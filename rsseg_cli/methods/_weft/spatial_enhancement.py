"""WEFT's spatial-aware enhancement (SEE) of the tokens beside the backbone."""

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

    The maps are views, channels last in memory: so are tokens.
    """
    parts = torch.split(tokens, [height * width for height, width in sizes], dim=1)
    return [
        part.reshape(len(part), height, width, -1).permute(0, 3, 1, 2)
        for part, (height, width) in zip(parts, sizes, strict=True)
    ]


def join(maps: Sequence[Tensor]) -> Tensor:
    """Undo `split`: maps (B, D, h, w) to tokens (B, sum of h * w, D)."""
    return torch.cat([image.permute(0, 2, 3, 1).flatten(1, 2) for image in maps], dim=1)


class Edges(nn.Module):
    """A depthwise 3x3 second derivative.

    Args:
        channels: Channels of the map.
        kind: "directional": each channel mixes the four fixed derivatives with weights of its
            own, hence always answers 0 to a flat or an evenly rising map. "free": as released,
            a trained kernel whose three rows start as [1, -2, 1]: one direction at the start,
            and nothing that keeps it a derivative.
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
        # A side of one cell has nothing to reflect.
        mode = "reflect" if min(z.shape[-2:]) > 1 else "replicate"
        return F.conv2d(F.pad(z, (1, 1, 1, 1), mode=mode), kernel, groups=z.shape[1])


class SpatialExpert(nn.Module):
    """Edges, coarse maxima and wide surroundings of a map, added in learned shares.

    z~ = GELU(z + a Edges(z) + b Pool(z) + c sum over k of Cascade_k(z)); (a, b, c) is the softmax
    of three numbers of each level, everything else is one for all levels.

    Args:
        channels: Channels of the maps.
        levels: Number of levels.
        laplacian: See `Edges`.
        pool: "adaptive": maxima over cells of about 4 x 4, brought back bilinearly. "identity":
            the map itself, which is what the released pooling without a size does.
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
        self.cascades = nn.ModuleList(
            Cascade(
                channels,
                _depthwise(channels // Cascade.GROUPS, kernel),
                levels=levels,
                running=running,
            )
            for kernel in self.KERNELS
        )
        self.apply(initialise)
        self.edges = Edges(channels, laplacian)
        self.shares = nn.Parameter(torch.zeros(levels, 3))

    def forward(self, z: Tensor, level: int) -> Tensor:
        """Enhance the map (B, C, h, w) of one level; activations are not kept."""
        enhanced, statistics = recomputed(self._enhance, z, level)
        for cascade, found in zip(self._cascades(), statistics, strict=True):
            cascade.follow(found, level)
        return cast(Tensor, enhanced)

    def _enhance(self, z: Tensor, level: int) -> tuple[Tensor, list[BatchStatistics]]:
        edges, coarse, wide = self.shares[level].softmax(0).to(z.dtype)
        sums = z + edges * self.edges(z) + coarse * self._maxima(z)
        statistics = []
        for cascade in self._cascades():
            surroundings, found = cascade.filtered(z, level)
            sums = sums + wide * surroundings
            statistics.append(found)
        return F.gelu(sums), statistics

    def _cascades(self) -> Iterable[Cascade]:
        return cast(Iterable[Cascade], self.cascades)

    def _maxima(self, z: Tensor) -> Tensor:
        if self.pool == "identity":
            return z
        height, width = z.shape[-2:]
        maxima = F.adaptive_max_pool2d(z, (-(-height // 4), -(-width // 4)))
        return F.interpolate(maxima, (height, width), mode="bilinear", align_corners=False)


def _depthwise(channels: int, kernel: int) -> nn.Module:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


class Enhancer(nn.Module):
    """A narrow feed-forward block with the spatial expert in its middle.

    c <- c + DropPath(W2 GELU(SEE(W1 LN(c)))). With attention, each token of c first looks at the
    backbone's tokens: c <- c + MSDA(LN(c), LN(x)), which the released model left out.
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
        self, tokens: Tensor, sizes: Sizes, seen: Tensor, seen_size: tuple[int, int]
    ) -> Tensor:
        """Enhance tokens.

        Args:
            tokens: (B, sum of h * w, D), of all levels.
            sizes: (h, w) of each level.
            seen: The backbone's tokens (B, N, D).
            seen_size: Their (h, w).
        """
        if self.attention is not None:
            centres = cell_centres(sizes, tokens.device)
            tokens = tokens + self.attention(tokens, centres, seen, [seen_size])
        # Of the norm's and GELU's results, as wide as their inputs, nothing is kept either.
        maps = split(recomputed(self._narrowed, tokens), sizes)
        enhanced = join([self.expert(z, level) for level, z in enumerate(maps)])
        added: Tensor = recomputed(self._widened, enhanced)
        if not self.training or self.drop_path == 0.0:
            return tokens + added
        # What stays of each image's addition, as a factor: one pass over the tokens.
        kept = drop_path(added.new_ones(len(added), 1, 1), self.drop_path, training=True)
        return torch.addcmul(tokens, added, kept)

    def _narrowed(self, tokens: Tensor) -> Tensor:
        narrow: Tensor = self.narrow(self.norm(tokens))
        return narrow

    def _widened(self, enhanced: Tensor) -> Tensor:
        wide: Tensor = self.widen(F.gelu(enhanced))
        return wide
