"""Test-time augmentation: the mean over mirrored and rotated tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli.choices import TTA


@dataclass(frozen=True)
class TestTimeAugmentation:
    """A model (`pipeline.Infer`) that returns the mean of its scores over several views."""

    infer: Callable[[Tensor], Tensor]
    views: TTA

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T); return (B, K, T, T)."""
        total: Tensor | None = None
        flips: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))
        transposes = (False,) if self.views == "flips" else (False, True)
        views = [(flip, transpose) for transpose in transposes for flip in flips]
        for flip, transpose in views:
            scores = self.infer(_view(tiles, flip, transpose))
            scores = scores.flip(flip) if flip else scores
            scores = scores.transpose(2, 3) if transpose else scores
            total = scores.clone() if total is None else total.add_(scores)
        assert total is not None
        return total.div_(len(views))


def _view(tiles: Tensor, flip: tuple[int, ...], transpose: bool) -> Tensor:
    """Transpose tiles, then flip them."""
    view = as_signed(tiles)
    view = view.transpose(2, 3) if transpose else view
    view = view.flip(flip) if flip else view
    return view.contiguous().view(tiles.dtype)


def as_signed(tiles: Tensor) -> Tensor:
    """View unsigned integers as signed ones: some devices lack kernels for unsigned types."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    dtype = signed.get(tiles.dtype)
    return tiles if dtype is None else tiles.view(dtype)
