"""Pastes half the classes of a labelled tile onto another tile (ClassMix, Olsson et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from rsseg_cli import share
from rsseg_cli.classes import IGNORE


def pasted(label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Choose what is pasted: all pixels of ceil(n / 2) of the n classes in each tile.

    Nothing waits for the device. Ignored pixels are never pasted.

    Args:
        label: (B, H, W) class indices, `IGNORE` where there is none.
        classes: Number of classes K.
        generator: On the device of the label.

    Returns:
        (B, H, W) bool.
    """
    flat = label.long().flatten(1)
    present = torch.zeros(len(label), IGNORE + 1, device=label.device)
    present = present.scatter_(1, flat, 1.0)[:, :classes] > 0
    drawn = share.own(
        lambda tiles: torch.rand(tiles, classes, generator=generator, device=generator.device),
        len(label),
    )
    ranks = drawn.masked_fill(~present, 2.0).argsort(1).argsort(1)
    half = (present.sum(1, keepdim=True) + 1) // 2
    chosen = torch.zeros(len(label), IGNORE + 1, dtype=torch.bool, device=label.device)
    chosen[:, :classes] = ranks < half
    return chosen.gather(1, flat).view_as(label)


def paste(
    mask: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Take image (B, C, H, W) and label (B, H, W) of the source where `mask`, else the target's."""
    image = torch.where(mask[:, None], source[0], target[0])
    return image, torch.where(mask, source[1].long(), target[1].long())
