"""Resizing of patch kernels and absolute position embeddings, by one of three rules.

Adapters depend on the rule that they were trained with, so `Backbone.origin` records it. Two
examples of the difference: a kernel of 14 pixels resized to 16 by `plain` has 1.3 times the
response to a uniform patch, and 37 x 37 positions resized to 32 x 32 differ between `plain` and
`timm` by a fifth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor
from torch.nn import functional as F

Resize = Literal["timm", "authors", "plain"]
"""`timm`: antialiased positions, kernels by the pseudo-inverse of the resize (Beyer et al. 2023).
`authors`: positions as in the code of the pretraining, if it resizes any.
`plain`: kernels and positions bicubic without either, as in the published results of Rein."""


@dataclass(frozen=True)
class PositionRule:
    """Bicubic resizing of a table of positions to another grid, with aligned edges."""

    antialias: bool
    offset: float = 0.0
    """Added to the number of positions per side before the scale is computed from it."""


TIMM = PositionRule(antialias=True)
PLAIN = PositionRule(antialias=False)


def resize_kernel(kernel: Tensor, patch: int, resize: Resize) -> Tensor:
    """Resize a patch kernel (D, C, p, p) to (D, C, patch, patch)."""
    if kernel.shape[-1] == patch:
        return kernel
    if resize == "plain":
        return F.interpolate(kernel.float(), (patch, patch), mode="bicubic").to(kernel.dtype)
    resized: Tensor = resample_patch_embed(kernel, [patch, patch])
    return resized


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], rule: PositionRule
) -> Tensor:
    """Resize positions (1, N, D) of a grid `old` = (h, w) to a grid `new`."""
    if old == new:
        return table
    positions = table.float().mT.reshape(1, -1, *old)
    scale = [(n + rule.offset) / o for n, o in zip(new, old, strict=True)] if rule.offset else None
    size = None if scale else new
    positions = F.interpolate(positions, size, scale, mode="bicubic", antialias=rule.antialias)
    return positions.flatten(2).mT.to(table.dtype)


def add_positions(model: Any, patches: Tensor, rule: PositionRule) -> Tensor:
    """Add positions to patches (B, h, w, D), and prepend class and register tokens: (B, P+N, D).

    `model` is timm's `VisionTransformer` or `Eva`; its table may begin with rows for the prefix.
    """
    tokens = [token for token in (model.cls_token, model.reg_token) if token is not None]
    prefix = [token.expand(len(patches), -1, -1) for token in tokens]
    flat = patches.flatten(1, 2)
    if model.pos_embed is None:
        return torch.cat([*prefix, flat], 1)
    rows = 0 if model.no_embed_class else model.num_prefix_tokens
    of_prefix, table = model.pos_embed[:, :rows], model.pos_embed[:, rows:]
    size = (patches.shape[1], patches.shape[2])
    flat = flat + resize_positions(table, model.patch_embed.grid_size, size, rule)
    front = torch.cat([*prefix, flat[:, :0]], 1)
    return torch.cat([front + of_prefix if rows else front, flat], 1)
