"""Pixel decoder of Mask2Former: pixel embeddings and three mixed levels from four maps.

Written from the paper (arXiv 2112.01527). Parameters have the names and shapes of
`Mask2FormerPixelDecoder` in transformers, so that published checkpoints can be loaded. Maps are
resized after their 1x1 projections: the result is the same as before them and costs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.layers.deformable_attention import DeformableAttention, cell_centres
from rsseg_cli.layers.pointwise import pointwise

STRIDES = (4, 8, 16, 32)
"""Pixels of the image per cell of the four levels."""
NORM_GROUPS = 32
"""Groups of the group norms."""


def sine_positions(cells: Tensor) -> Tensor:
    """Return sine position embeddings of the cells of a map (B, C, h, w): (h*w, C), float32.

    The first half of the channels encodes the row, the second the column, both scaled to 0..2 pi.
    """
    _, channels, height, width = cells.shape
    half = channels // 2
    order = torch.arange(half, device=cells.device, dtype=torch.float32)
    period = 10_000 ** (2 * (order // 2) / half)

    def encode(count: int) -> Tensor:
        index = torch.arange(1, count + 1, device=cells.device, dtype=torch.float32)
        angle = index[:, None] * (2 * math.pi / (count + 1e-6)) / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)

    rows, columns = encode(height), encode(width)
    shape = (height, width, half)
    return torch.cat((rows[:, None].expand(shape), columns.expand(shape)), -1).flatten(0, 1)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all levels and an MLP; both are residual, with a post-norm."""

    def __init__(self, width: int, *, levels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, inner=width, levels=levels, heads=heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, positions: Tensor, centres: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Map the cells (B, N, C) of all levels to the same shape.

        `positions` are (N, C), `centres` (N, 2) in -1..1, and `sizes` the (h, w) of each level.
        """
        attended = self.self_attn(tokens + positions, centres, tokens, sizes)
        tokens = self.self_attn_layer_norm(tokens + attended)
        result: Tensor = self.final_layer_norm(tokens + self.fc2(self.fc1(tokens).relu()))
        return result


class DeformableEncoder(nn.Module):
    """Encoder layers that mix maps of several sizes."""

    def __init__(self, width: int, *, levels: int, layers: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(width, levels=levels, heads=heads, ffn=ffn)
            for _ in range(layers)
        )

    def initialise(self) -> None:
        """Set the published initial values."""
        for layer in self.modules():
            if isinstance(layer, DeformableEncoderLayer):
                nn.init.xavier_uniform_(layer.fc1.weight)
                nn.init.xavier_uniform_(layer.fc2.weight)
                layer.self_attn.initialise()

    def forward(self, levels: list[Tensor], level_embed: Tensor) -> list[Tensor]:
        """Map levels (B, C, h, w) and their embeddings (levels, C) to maps of the same shapes."""
        sizes = [(level.shape[2], level.shape[3]) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        embedded = zip(levels, level_embed, strict=True)
        positions = torch.cat([sine_positions(level) + embed for level, embed in embedded])
        centres = cell_centres(sizes, tokens.device)
        for layer in self.layers:
            tokens = layer(tokens, positions, centres, sizes)
        by_level = torch.split(tokens, [height * width for height, width in sizes], 1)
        return [
            torch.unflatten(cells.transpose(1, 2), 2, size)
            for cells, size in zip(by_level, sizes, strict=True)
        ]


class PixelDecoder(nn.Module):
    """Deformable encoder on the three coarser levels, and an FPN step to the finest one.

    Arguments are the width D of the maps and settings of `Mask2Former.Config`.
    """

    def __init__(self, dim: int, width: int, *, layers: int, heads: int, ffn: int) -> None:
        super().__init__()
        coarse = len(STRIDES) - 1
        self.level_embed = nn.Parameter(torch.empty(coarse, width))
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, width, 1), nn.GroupNorm(NORM_GROUPS, width))
            for _ in range(coarse)
        )
        self.encoder = DeformableEncoder(width, levels=coarse, layers=layers, heads=heads, ffn=ffn)
        self.mask_projection = nn.Conv2d(width, width, 1)
        self.adapter_1 = nn.Sequential(
            nn.Conv2d(dim, width, 1, bias=False), nn.GroupNorm(NORM_GROUPS, width)
        )
        self.layer_1 = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(NORM_GROUPS, width),
            nn.ReLU(),
        )
        self.initialise()

    def initialise(self) -> None:
        """Set the published initial values."""
        nn.init.normal_(self.level_embed)
        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection.get_parameter("0.weight"))
            nn.init.zeros_(projection.get_parameter("0.bias"))
        for name in ("adapter_1.0.weight", "layer_1.0.weight", "mask_projection.weight"):
            nn.init.kaiming_uniform_(self.get_parameter(name), a=1)
        nn.init.zeros_(self.get_parameter("mask_projection.bias"))
        self.encoder.initialise()

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Decode four maps (B, D, h, w), finest first, of an image of `size` = (H, W).

        Returns:
            The three coarser levels (B, C, H/s, W/s), coarsest first, s = 32, 16, 8; and the
            pixel embeddings (B, C, H/4, W/4).
        """
        levels = [
            _project(projection, cells, size, stride)
            for projection, cells, stride in zip(
                self.input_projections, maps[:0:-1], STRIDES[:0:-1], strict=True
            )
        ]
        levels = self.encoder(levels, self.level_embed)
        fine = _project(self.adapter_1, maps[0], size, STRIDES[0])
        fine = fine + _resize(levels[-1], fine.shape[-2:])
        return levels, self.mask_projection(self.layer_1(fine))


def _project(projection: nn.Module, cells: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Apply a 1x1 convolution, resize to `stride` pixels per cell, and apply a group norm."""
    convolution, norm = projection.children()
    grid = (-(-size[0] // stride), -(-size[1] // stride))
    normal: Tensor = norm(_resize(pointwise(cast(nn.Conv2d, convolution), cells), grid))
    return normal


def _resize(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    if cells.shape[-2:] == size:
        return cells
    return F.interpolate(cells, size, mode="bilinear")
