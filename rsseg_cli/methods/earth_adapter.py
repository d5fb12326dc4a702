"""Earth-Adapter: experts on low and high spatial frequencies (Hu et al. 2025, arXiv 2504.06220).

After a block the patch tokens X of an image are split by a 2-D Fourier transform over the token
grid into X = X_low + X_high. Three bottlenecks map X, X_low and X_high; a router weights their
outputs per token; the sum times a learnable factor is added to X. Class and register tokens stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.contract import Backbone, Grid, Method, State
from rsseg_cli.errors import RssegError
from rsseg_cli.layers.bottleneck import Bottleneck

FrequencyBox = Literal["paper", "symmetric"]
ExpertStart = Literal["identity", "random"]
START_SCALE = 0.1
"""Initial value of the learnable factor."""


def low_pass(
    h: int, w: int, *, rho: float, box: FrequencyBox, device: torch.device | None = None
) -> Tensor:
    """Compute the low-pass filter of a real (h, w) image.

    The box keeps row and column frequencies up to c = floor(min(h, w) * rho / 2), at least 1. The
    published box is -c..c-1, so that the real part of the result contains half of the frequencies
    along two edges; the symmetric box is -c..c.

    Returns:
        (h, w // 2 + 1) in [0, 1], laid out as `torch.fft.rfft2` does.
    """
    cut = max(1, int(min(h, w) * rho / 2))

    def signed(frequency: Tensor, size: int) -> Tensor:
        return (frequency + size // 2) % size - size // 2

    def inside(frequency: Tensor, size: int) -> Tensor:
        frequency = signed(frequency, size)
        return (frequency >= -cut) & (frequency < cut + (box == "symmetric"))

    rows, columns = torch.arange(h, device=device), torch.arange(w // 2 + 1, device=device)
    kept = inside(rows, h)[:, None] & inside(columns, w)
    # The real part mixes each frequency with its negative.
    mirrored = inside(-rows, h)[:, None] & inside(-columns, w)
    return (kept.float() + mirrored.float()) / 2


def smooth(tokens: Tensor, grid: Grid, gain: Tensor) -> Tensor:
    """Return the low frequencies of patch tokens (B, N, ...), each group an image, in float32."""
    spectrum = torch.fft.rfft2(grid.to_images(tokens).float()) * gain
    return grid.to_tokens(torch.fft.irfft2(spectrum, s=(grid.h, grid.w)))


class FrequencyExperts(nn.Module):
    """Three bottlenecks and their router as two matrices.

    The split acts on rows and columns, the first layers on channels: they commute, so that the
    transform runs on the 2 * hidden inputs of two experts instead of D channels. Columns of `down`
    are the experts' hidden units and the router's logits; rows of `up` are the experts' output
    weights and, last, their three output biases.

    Args:
        dim: Width D.
        hidden: Width of each expert.
        start: `identity` adds exactly 0 at the start; `random` is as published.
    """

    def __init__(self, dim: int, hidden: int, *, start: ExpertStart) -> None:
        super().__init__()
        self.hidden = hidden
        self.down = nn.Linear(dim, 3 * hidden + 3)
        self.up = nn.Linear(3 * hidden + 3, dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(START_SCALE))
        if start == "identity":
            nn.init.zeros_(self.up.weight)
        else:
            bound = 1 / math.sqrt(hidden)
            nn.init.uniform_(self.up.weight, -bound, bound)

    def forward(self, tokens: Tensor, state: Spectrum, skip: int) -> Tensor:
        """Return the addend of tokens (B, T, D), 0 for the first `skip` of them."""
        h = self.hidden
        # The bias is added later: an offset has no high frequencies.
        raw = F.linear(tokens, self.down.weight)[:, skip:]
        full, split, logits = torch.split(raw, [h, 2 * h, 3], dim=-1)
        low = smooth(split, state.grid, state.gain)
        inputs = torch.cat((full, low[..., :h], split[..., h:] - low[..., h:], logits), dim=-1)
        units, logits = torch.split(inputs + self.down.bias, [3 * h, 3], dim=-1)
        weights = state.weights = logits.softmax(-1)
        weighted = F.relu(units) * weights.repeat_interleave(h, dim=-1)
        inner = F.pad(torch.cat((weighted, weights), dim=-1), (0, 0, skip, 0))
        return cast(Tensor, self.scale * self.up(inner))


class SingleExpert(nn.Module):
    """First expert alone with its factor, for blocks outside `split_blocks`."""

    def __init__(self, dim: int, hidden: int, *, start: ExpertStart) -> None:
        super().__init__()
        self.expert = Bottleneck(dim, hidden)
        self.scale = nn.Parameter(torch.tensor(START_SCALE))
        if start == "random":
            self.expert.down.reset_parameters()
            self.expert.up.reset_parameters()

    def forward(self, tokens: Tensor, state: Spectrum, skip: int) -> Tensor:
        """Return the addend of tokens (B, T, D), 0 for the first `skip` of them."""
        patches = tokens[:, skip:]
        state.weights = patches.new_tensor((1.0, 0.0, 0.0)).expand(*patches.shape[:2], 3)
        return F.pad(self.scale * self.expert(patches), (0, 0, skip, 0))


@dataclass
class Spectrum(State):
    """Low-pass filter of the grid, shared by all blocks, and the last block's routing."""

    gain: Tensor = field(kw_only=True)
    """(h, w // 2 + 1), see `low_pass`."""
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    """(B, N, 3), the router's weights of the experts."""


class EarthAdapter(Method[Spectrum]):
    """Trains frequency experts at the output of every block."""

    class Config(Method.Config):
        """Settings of Earth-Adapter."""

        bottleneck: int = Field(64, ge=1)
        """Width of each expert; published: 16 to 64, by task."""
        split_blocks: tuple[int, ...] | None = None
        """Blocks, from 0, with three experts; the others have only the first. null: all."""
        rho: float = Field(0.3, gt=0, le=1)
        """Fraction of the spectrum's rows and columns that is low; published: 0.2 or 0.3."""
        box: FrequencyBox = "paper"
        start: ExpertStart = "identity"
        """`identity` starts at the frozen backbone, `random` as published."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.rho, self.box = config.rho, config.box
        self.num_prefix_tokens = backbone.num_prefix_tokens
        split = _split_blocks(config.split_blocks, backbone.depth)
        self.blocks = nn.ModuleList(
            (FrequencyExperts if index in split else SingleExpert)(
                backbone.dim, config.bottleneck, start=config.start
            )
            for index in range(backbone.depth)
        )

    def begin(self, image: Tensor, grid: Grid) -> Spectrum:
        """Build the low-pass filter of the grid."""
        gain = low_pass(grid.h, grid.w, rho=self.rho, box=self.box, device=image.device)
        return Spectrum(grid, gain=gain)

    def after_block(self, index: int, tokens: Tensor, state: Spectrum) -> Tensor:
        """Add the output of this block's experts to its patch tokens."""
        skip = self.num_prefix_tokens + state.extra
        return cast(Tensor, tokens + self.blocks[index](tokens, state, skip))

    def explanations(self) -> Mapping[str, tuple[str, ...]]:
        """Return the map of the router's weights."""
        return {"routing": ("all frequencies", "low frequencies", "high frequencies")}

    def explain(self, name: str, state: Spectrum) -> Tensor:
        """Return the experts' weights; a single expert has weight 1."""
        return state.grid.mean_over_groups(state.weights)


def _split_blocks(indices: tuple[int, ...] | None, depth: int) -> set[int]:
    if indices is None:
        return set(range(depth))
    if not all(0 <= index < depth for index in indices):
        raise RssegError(
            f"split_blocks {list(indices)} are not all blocks of the backbone",
            where="method.split_blocks",
            fix=f"numbers in 0..{depth - 1}, or null for all",
        )
    return set(indices)
