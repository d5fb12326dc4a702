"""SET: tokens for the phase and the amplitude of every block's output (Yi et al., ACM MM 2024).

A 2-D Fourier transform over the token grid splits the map of patch tokens into amplitude, which
holds most of the style, and phase. Each attends to tokens of its own, the amplitude in a way that
is freed of style; what both make of it is transformed back and added.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from rsseg_cli.contract import Backbone, Features, Grid, Method, QueryShape, State
from rsseg_cli.methods._token.adapter import START_SCALE, TokenBranch, TokenSettings, count_tokens
from rsseg_cli.methods._token.attention_weights import Weighing

FLOOR = 1e-6
"""Amplitudes below have no phase: its gradient would grow as they shrink."""


class Set(Method[State]):
    """Refines the output of every block by phase and amplitude."""

    class Config(TokenSettings):
        """Settings of SET."""

        amplitude_tokens: Literal["lowrank", "full"] = "lowrank"
        """`full` as released: every number of the amplitude's tokens is free."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        tokens = count_tokens(config.tokens, queries)
        branch = partial(TokenBranch, backbone.depth, backbone.dim, tokens=tokens)
        self.phase = branch(rank=config.rank, queries=queries)
        self.amplitude = branch(
            rank=config.rank if config.amplitude_tokens == "lowrank" else None,
            weighing=Weighing(normalised=True),
        )
        self.scale = Parameter(torch.tensor(START_SCALE))
        for one in (self.phase, self.amplitude):
            one.spread_evenly(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return [*self.phase.no_weight_decay(), *self.amplitude.no_weight_decay()]

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        amplitude, phase = split(patches, state.grid)
        # Its mean over the grid would drown all else: as many times larger as there are rows.
        louder = self.amplitude.answer(index, amplitude, amplitude.log1p())
        added = join(louder, self.phase.answer(index, phase), state.grid)
        return torch.cat([prefix, patches + self.scale * added.to(patches.dtype)], 1)

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Return the maps, and queries of the phase's tokens."""
        return Features(maps, self.phase.queries())


def split(patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Split patch tokens (B, N, D) into amplitude and phase, each (B*groups, h*(w//2+1), D).

    Half the spectrum of a real image holds all of it, and whatever becomes of that half is the
    spectrum of a real image. Every group of a location is its own image; in float32.
    """
    spectrum = torch.fft.rfft2(grid.to_images(patches).float(), norm="ortho").flatten(2).mT
    real, imaginary = spectrum.real, spectrum.imag
    squared = real.square() + imaginary.square()
    silent = squared < FLOOR**2
    phase = torch.atan2(imaginary.masked_fill(silent, 0), real.masked_fill(silent, 1))
    return squared.clamp(min=FLOOR**2).sqrt(), phase


def join(amplitude: Tensor, phase: Tensor, grid: Grid) -> Tensor:
    """Undo `split`: (B, N, D) in float32. An amplitude may be negative."""
    images, _, dim = amplitude.shape
    spectrum = _complex(amplitude, phase).mT.reshape(images, dim, grid.h, grid.w // 2 + 1)
    return grid.to_tokens(torch.fft.irfft2(spectrum, s=(grid.h, grid.w), norm="ortho"))


def _complex(amplitude: Tensor, phase: Tensor) -> Tensor:
    amplitude, phase = amplitude.float(), phase.float()
    return torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
