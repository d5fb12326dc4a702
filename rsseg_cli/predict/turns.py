"""Averages a model over mirrored and turned tiles (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli.choices import Turns


@dataclass(frozen=True)
class Turned:
    """A model that sees each tile several times and says the mean.

    Attributes:
        infer: The model; see `pipeline.Infer`.
        turns: How tiles are shown.
    """

    infer: Callable[[Tensor], Tensor]
    turns: Turns

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T): (B, K, T, T)."""
        total: Tensor | None = None
        ways = [(flip, turn) for turn in self._quarters() for flip in ((), (2,), (3,), (2, 3))]
        for flip, turn in ways:
            scores = self.infer(_show(tiles, flip, turn))
            back = scores.flip(flip) if flip else scores
            back = back.transpose(2, 3) if turn else back
            total = back.clone() if total is None else total.add_(back)
        assert total is not None
        return total.div_(len(ways))

    def _quarters(self) -> tuple[bool, ...]:
        return (False,) if self.turns == "flips" else (False, True)


def _show(tiles: Tensor, flip: tuple[int, ...], turn: bool) -> Tensor:
    """Turn tiles by a transpose, then mirror them."""
    shown = as_signed(tiles)
    shown = shown.transpose(2, 3) if turn else shown
    shown = shown.flip(flip) if flip else shown
    return shown.contiguous().view(tiles.dtype)


def as_signed(tiles: Tensor) -> Tensor:
    """View unsigned integers as signed ones of the same bits: some devices lack their kernels."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    plain = signed.get(tiles.dtype)
    return tiles if plain is None else tiles.view(plain)
