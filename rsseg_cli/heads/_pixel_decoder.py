"""Turns four maps into mask features: the pixel decoder of Mask2Former (arXiv 2112.01527).

The modules, hence the names and shapes of the parameters, are those of transformers; they have not
changed since its first release with Mask2Former, as published checkpoints depend on them. How
they are called is written out here, for three reasons: the 1x1 projections act before the maps
are resized, which is the same and costs a fraction; nothing waits for the device or breaks a
compiled graph; and the initial values do not depend on the release.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from rsseg_cli.pointwise import pointwise

STRIDES = (4, 8, 16, 32)
"""Pixels of the image per cell of the four levels."""


def positions(cells: Tensor) -> Tensor:
    """Give the sine embeddings of the cells of a map (B, C, h, w): (h*w, C), float32.

    The first half of the channels tells the row, the second the column, both scaled to 0..2 pi.
    """
    _, channels, height, width = cells.shape
    half = channels // 2
    order = torch.arange(half, device=cells.device, dtype=torch.float32)
    period = 10_000 ** (2 * (order // 2) / half)

    def encode(count: int) -> Tensor:
        place = torch.arange(1, count + 1, device=cells.device, dtype=torch.float32)
        angle = place[:, None] * (2 * math.pi / (count + 1e-6)) / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)

    rows, columns = encode(height), encode(width)
    return torch.cat(
        (
            rows[:, None].expand(height, width, half),
            columns[None].expand(height, width, half),
        ),
        -1,
    ).flatten(0, 1)


def build(config: Mask2FormerConfig, dim: int) -> Any:
    """Make transformers' pixel decoder for four maps of width `dim`."""
    with warnings.catch_warnings():
        # Widths per head that are no power of two are slow in a CUDA extension not used here.
        warnings.filterwarnings("ignore", message="You'd better set embed_dim")
        return Mask2FormerPixelDecoder(config, feature_channels=[dim] * len(STRIDES))


class PixelDecoder(nn.Module):
    """Mixes the three coarser levels by deformable attention and adds the finest one.

    Args:
        config: transformers' settings.
        dim: Width D of the maps.
    """

    def __init__(self, config: Mask2FormerConfig, dim: int) -> None:
        super().__init__()
        self.parts: Any = build(config, dim)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Set the initial values that Mask2Former was published with."""
        nn.init.normal_(self.parts.level_embed)
        for projection in self.parts.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        for conv in (self.parts.adapter_1[0], self.parts.layer_1[0], self.parts.mask_projection):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.parts.mask_projection.bias)
        for layer in self.parts.encoder.layers:
            for linear in (layer.fc1, layer.fc2):
                nn.init.xavier_uniform_(linear.weight)
            _initialise_attention(layer.self_attn)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Decode four maps (B, D, h, w), finest first, of an image of `size` = (H, W).

        Returns:
            The three coarser levels (B, C, H/s, W/s), coarsest first, s = 32, 16, 8; and the
            pixel embeddings (B, C, H/4, W/4).
        """
        levels = []
        coarse_first = zip(reversed(maps[1:]), reversed(STRIDES[1:]), strict=True)
        for (conv, norm), (cells, stride) in zip(
            self.parts.input_projections, coarse_first, strict=True
        ):
            levels.append(norm(_resize(pointwise(conv, cells), _grid(size, stride))))
        levels = self._encode(levels)
        conv, norm = self.parts.adapter_1
        fine = norm(_resize(pointwise(conv, maps[0]), _grid(size, STRIDES[0])))
        fine = fine + _resize(levels[-1], _grid(size, STRIDES[0]))
        return levels, self.parts.mask_projection(self.parts.layer_1(fine))

    def _encode(self, levels: list[Tensor]) -> list[Tensor]:
        """Let every cell of the levels attend to a few places on all of them."""
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        place = torch.cat(
            [positions(level) + self.parts.level_embed[i] for i, level in enumerate(levels)]
        )
        centres = torch.cat([_centres(shape, tokens.device) for shape in shapes])
        for layer in self.parts.encoder.layers:
            mixed = deformable_attention(layer.self_attn, tokens + place, tokens, centres, shapes)
            tokens = layer.self_attn_layer_norm(tokens + mixed)
            tokens = layer.final_layer_norm(tokens + layer.fc2(layer.fc1(tokens).relu()))
        sizes = [height * width for height, width in shapes]
        parts = zip(torch.split(tokens, sizes, 1), shapes, strict=True)
        return [torch.unflatten(part.transpose(1, 2), 2, shape) for part, shape in parts]


def deformable_attention(
    attention: Any, queries: Tensor, values: Tensor, centres: Tensor, shapes: list[tuple[int, int]]
) -> Tensor:
    """Average values at learned places around each query's centre, on every level.

    Args:
        attention: transformers' module; each head reads a few places per level.
        queries: (B, N, C).
        values: (B, M, C), the levels' cells one after the other, M = sum of h*w.
        centres: (N, 2) of the queries, x and y in -1..1.
        shapes: (h, w) of the levels.

    Returns:
        (B, N, C).
    """
    batch, count, _ = queries.shape
    heads, places = attention.n_heads, attention.n_points
    # (B*heads, C/heads, M); in float32, since a place needs more than the 8 bits of bfloat16
    value = (
        attention.value_proj(values)
        .float()
        .transpose(1, 2)
        .reshape(batch * heads, -1, values.shape[1])
    )
    by_head = (batch, count, heads, len(shapes), places)
    offsets = attention.sampling_offsets(queries).float().view(*by_head, 2)
    offsets = offsets.transpose(1, 2).flatten(0, 1)  # (B*heads, N, levels, places, 2)
    shares = attention.attention_weights(queries).float().view(*by_head[:3], -1).softmax(-1)
    shares = shares.view(by_head).transpose(1, 2).flatten(0, 1)[:, None]

    total = torch.zeros((), device=queries.device)
    parts = torch.split(value, [height * width for height, width in shapes], 2)
    for level, (part, (height, width)) in enumerate(zip(parts, shapes, strict=True)):
        x = centres[:, None, 0] + offsets[..., level, :, 0] * (2 / width)
        y = centres[:, None, 1] + offsets[..., level, :, 1] * (2 / height)
        read = F.grid_sample(
            torch.unflatten(part, 2, (height, width)), torch.stack((x, y), -1), align_corners=False
        )  # (B*heads, C/heads, N, places)
        total = total + (read * shares[:, :, :, level]).sum(-1)
    mixed: Tensor = attention.output_proj(total.view(batch, -1, count).transpose(1, 2))
    return mixed


@torch.no_grad()
def _initialise_attention(attention: Any) -> None:
    """Let each head look in its own direction, the i-th place at distance i, all alike."""
    heads = attention.n_heads
    angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    distance = torch.arange(1.0, attention.n_points + 1)[:, None]
    ring = direction[:, None, None] * distance.expand(attention.n_levels, -1, -1)
    attention.sampling_offsets.bias.copy_(ring.flatten())
    for zeroed in (attention.sampling_offsets.weight, *attention.attention_weights.parameters()):
        nn.init.zeros_(zeroed)
    for linear in (attention.value_proj, attention.output_proj):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)


def _centres(shape: tuple[int, int], device: torch.device) -> Tensor:
    """Give the centres of a map's cells, (h*w, 2), x and y in -1..1."""
    height, width = shape
    y = (torch.arange(height, device=device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=device) + 0.5) * (2 / width) - 1
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), -1).flatten(
        0, 1
    )


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _resize(cells: Tensor, size: tuple[int, int]) -> Tensor:
    if cells.shape[-2:] == size:
        return cells
    return F.interpolate(cells, size, mode="bilinear")
