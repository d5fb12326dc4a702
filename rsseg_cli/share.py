"""Which part of a step's images passes the model now, and what must be known of all of them.

The images of a step are cut into equal shares: by process, by pass (`training.accumulate`), and
again where memory is short. Every share begins with the same random numbers, draws for all images
and takes its own: so nobody's numbers depend on how the images were cut. Sums over images that
a loss is divided by, and statistics of a batch, are averaged over the processes; passes one after
the other have sums and statistics of their own, as the labels of later ones are not known yet.

Alone, with the whole batch, all of this is the plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli import distributed


@dataclass(frozen=True, eq=False)
class Share:
    """One of `count` equal parts of the images of a step; `together`: processes hold one each."""

    number: Tensor = field(default_factory=lambda: torch.tensor(0))
    """(), on the CPU: as a plain number it would make a compiled graph of its own per part."""
    count: int = 1
    together: bool = False


_share = Share()
# Not a context variable: recomputed blocks run in the threads of backward.


@contextmanager
def taking(share: Share) -> Iterator[None]:
    """Pass this share through the model, forward and backward."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


@contextmanager
def apart() -> Iterator[None]:
    """Look at images that stand for themselves: what they sum to is no part of a larger sum."""
    with taking(replace(_share, together=False)):
        yield


def together() -> bool:
    """Say whether other processes pass other images of the same batch through the model."""
    return _share.together


def of_all(count: int) -> int:
    """Count what all processes hold of a batch, each as much as this one."""
    return count * distributed.world_size() if _share.together else count


def own(draw: Callable[[int], Tensor], images: int, dim: int = 0) -> Tensor:
    """Draw random numbers for the images of a step, and take those of this share.

    Args:
        draw: Draws for a number of images.
        images: Images B of this share.
        dim: The axis of the images in what is drawn.
    """
    if _share.count == 1:
        return draw(images)
    drawn = draw(images * _share.count)
    rows = torch.arange(images, device=drawn.device) + _share.number * images
    return drawn.index_select(dim, rows)


def dropped(
    x: Tensor, drop: Callable[[Tensor], Tensor], shape: torch.Size | tuple[int, ...]
) -> Tensor:
    """Apply a kind of dropout to (B, ...).

    Args:
        x: Numbers of B images.
        drop: Sets some numbers to 0 and makes the others larger.
        shape: What of an image is dropped on its own: all of it, (C, 1, 1) for channels.
    """
    if _share.count == 1:
        return drop(x)
    return x * own(lambda images: drop(x.new_ones(images, *shape)), len(x))


def dropout(x: Tensor, chance: float, *, training: bool) -> Tensor:
    """Drop numbers of (B, ...), in training."""
    if not training or chance == 0.0:
        return x
    return dropped(x, lambda numbers: F.dropout(numbers, chance), x.shape[1:])


class Dropout2d(nn.Dropout2d):
    """Drops whole channels of (B, C, h, w), in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        if not self.training or self.p == 0.0:
            return x
        return dropped(x, super().forward, (x.shape[1], 1, 1))


def mean(tensor: Tensor) -> Tensor:
    """Average a tensor over the processes that hold parts of a batch, also for gradients."""
    if not _share.together:
        return tensor
    averaged: Tensor = _mean(tensor)
    return averaged


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own lacks types
def _mean(tensor: Tensor) -> Tensor:
    averaged: Tensor = _Mean.apply(tensor)
    return averaged


class _Mean(torch.autograd.Function):
    """The mean over processes; so is its gradient, as the loss is the mean of their losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.average(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.average(gradients[0].clone(memory_format=torch.contiguous_format))
