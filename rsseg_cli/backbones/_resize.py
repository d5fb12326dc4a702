"""Resizes patch kernels and absolute position embeddings, by one of three rules.

The three rules differ in numbers that weights have learnt to expect: a kernel of 14 pixels that is
made one of 16 by `plain` answers 1.3 times as strongly to an even patch, and `plain` positions of
32 x 32 places differ from timm's by a fifth. What was fitted with one rule is only right with it:
`Backbone.origin` names the rule, so that model files remember it.
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
`authors`: positions as in the code that the weights were trained with, where it resizes any.
`plain`: kernels and positions bicubic as they are, as the published rows of Rein and its kin."""


@dataclass(frozen=True)
class Positions:
    """How a table of positions becomes one for another grid: bicubic, aligned at the edges."""

    antialias: bool
    offset: float = 0.0
    """Added to the number of places per side before the scale is computed from it."""


TIMM = Positions(antialias=True)
BARE = Positions(antialias=False)


def resize_kernel(kernel: Tensor, patch: int, resize: Resize) -> Tensor:
    """Turn a patch kernel (D, C, p, p) into one (D, C, patch, patch)."""
    if kernel.shape[-1] == patch:
        return kernel
    if resize == "plain":
        return F.interpolate(kernel.float(), (patch, patch), mode="bicubic").to(kernel.dtype)
    resized: Tensor = resample_patch_embed(kernel, [patch, patch])
    return resized


def resize_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], rule: Positions
) -> Tensor:
    """Turn positions (1, N, D) of a grid `old` = (h, w) into those of a grid `new`."""
    if old == new:
        return table
    places = table.float().mT.reshape(1, -1, *old)
    if rule.offset:
        scale = [(wanted + rule.offset) / had for wanted, had in zip(new, old, strict=True)]
        places = F.interpolate(places, scale_factor=scale, mode="bicubic", antialias=rule.antialias)
    else:
        places = F.interpolate(places, size=new, mode="bicubic", antialias=rule.antialias)
    return places.flatten(2).mT.to(table.dtype)


def place(model: Any, patches: Tensor, rule: Positions) -> Tensor:
    """Add positions to patches (B, h, w, D) and put class and register tokens in front.

    Args:
        model: timm's `VisionTransformer` or `Eva`; its table may begin with rows for the prefix.
        patches: What its `patch_embed` put out.
        rule: How its positions are resized to this grid.

    Returns:
        (B, P+N, D).
    """
    first = [token for token in (model.cls_token, model.reg_token) if token is not None]
    front = [token.expand(len(patches), -1, -1) for token in first]
    tokens = patches.flatten(1, 2)
    if model.pos_embed is None:
        return torch.cat([*front, tokens], 1)
    rows = 0 if model.no_embed_class else model.num_prefix_tokens
    of_prefix, table = model.pos_embed[:, :rows], model.pos_embed[:, rows:]
    size = (patches.shape[1], patches.shape[2])
    tokens = tokens + resize_positions(table, model.patch_embed.grid_size, size, rule)
    prefix = torch.cat([*front, tokens[:, :0]], 1)
    return torch.cat([prefix + of_prefix if rows else prefix, tokens], 1)
