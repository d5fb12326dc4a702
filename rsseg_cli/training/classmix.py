"""ClassMix: pastes half the classes of one tile onto another (Olsson et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Generators, draw


def class_mask(label: Tensor, classes: int, generators: Generators) -> Tensor:
    """Draw ceil(n / 2) of the n classes in each tile; return the mask (B, H, W) of their pixels.

    Ignored pixels are never in the mask. The host does not wait for the device.

    Args:
        label: (B, H, W) class indices, or `IGNORE`.
        classes: Number of classes K.
        generators: One per tile, on the device of the label.
    """
    flat = label.long().flatten(1)
    present = torch.zeros(len(label), IGNORE + 1, device=label.device)
    present = present.scatter_(1, flat, 1.0)[:, :classes] > 0
    ranks = draw((classes,), generators).masked_fill(~present, 2.0).argsort(1).argsort(1)
    half = (present.sum(1, keepdim=True) + 1) // 2
    chosen = torch.zeros(len(label), IGNORE + 1, dtype=torch.bool, device=label.device)
    chosen[:, :classes] = ranks < half
    return chosen.gather(1, flat).view_as(label)


def paste(
    mask: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return image (B, C, H, W) and label (B, H, W): the source in the mask, else the target."""
    image = torch.where(mask[:, None], source[0], target[0])
    return image, torch.where(mask, source[1].long(), target[1].long())
