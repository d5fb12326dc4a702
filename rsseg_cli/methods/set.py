"""SET: tokens for the phase and the amplitude of every block's output (Yi et al., ACM MM 2024).

A 2-D Fourier transform over the token grid splits the map of patch tokens into amplitude, which
contains most of the style, and phase. Each attends to its own tokens, the amplitude with
standardised similarities, which removes the style. The inverse transform of both results is added.
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
from rsseg_cli.methods._token.tokens import AttentionWeights

FLOOR = 1e-6
"""Amplitudes below it get phase 0, as the gradient of their phase would be unbounded."""


class Set(Method[State]):
    """Refines the output of every block by phase and amplitude."""

    class Config(TokenSettings):
        """Settings of SET."""

        amplitude_tokens: Literal["lowrank", "full"] = "lowrank"
        """`full`: the amplitude's tokens have full rank, as released."""

    makes_queries: ClassVar[bool] = True

    def __init__(
        self, config: Config, backbone: Backbone, queries: QueryShape | None = None
    ) -> None:
        super().__init__(config, backbone)
        self.num_prefix_tokens = backbone.num_prefix_tokens
        tokens = count_tokens(config.tokens, queries)
        branch = partial(TokenBranch, backbone, tokens=tokens)
        self.phase = branch(rank=config.rank, queries=queries)
        rank = config.rank if config.amplitude_tokens == "lowrank" else None
        self.amplitude = branch(rank=rank, attention=AttentionWeights(standardised=True))
        self.scale = Parameter(torch.tensor(START_SCALE))
        self.phase.init_uniform(backbone.patch)
        self.amplitude.init_uniform(backbone.patch)

    def no_weight_decay(self) -> Collection[Parameter]:
        """Return the tokens."""
        return [*self.phase.no_weight_decay(), *self.amplitude.no_weight_decay()]

    def after_block(self, index: int, tokens: Tensor, state: State) -> Tensor:
        """Refine the patch tokens."""
        prefix, patches = tokens.tensor_split([self.num_prefix_tokens], 1)
        amplitude, phase = split(patches, state.grid)
        # The logarithm: the mean over the grid is far larger than all other amplitudes.
        amplitude = self.amplitude.transform(index, amplitude, amplitude.log1p())
        added = join(amplitude, self.phase.transform(index, phase), state.grid)
        return torch.cat([prefix, patches + self.scale * added.to(patches.dtype)], 1)

    def finish(self, maps: list[Tensor], state: State) -> Features:
        """Return the maps, and queries from the tokens of the phase."""
        return Features(maps, self.phase.queries())


def split(patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Split patch tokens (B, N, D) into amplitude and phase, each (B*groups, h*(w//2+1), D).

    Half the spectrum determines a real image, and any change of that half gives the spectrum of a
    real image. Every group of a location is its own image; in float32.
    """
    spectrum = torch.fft.rfft2(grid.to_images(patches).float(), norm="ortho").flatten(2).mT
    real, imaginary = spectrum.real, spectrum.imag
    squared = real.square() + imaginary.square()
    small = squared < FLOOR**2
    phase = torch.atan2(imaginary.masked_fill(small, 0), real.masked_fill(small, 1))
    return squared.clamp(min=FLOOR**2).sqrt(), phase


def join(amplitude: Tensor, phase: Tensor, grid: Grid) -> Tensor:
    """Invert `split`: (B, N, D) in float32. An amplitude may be negative."""
    images, _, dim = amplitude.shape
    amplitude, phase = amplitude.float(), phase.float()
    rows = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
    spectrum = rows.mT.reshape(images, dim, grid.h, grid.w // 2 + 1)
    return grid.to_tokens(torch.fft.irfft2(spectrum, s=(grid.h, grid.w), norm="ortho"))
