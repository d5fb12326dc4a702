"""Simulated domain shifts: random changes of feature statistics (DSU, Li et al. 2022).

For patch tokens z with mean mu and standard deviation s over the locations of an image,
z' = s' (z - mu)/s + mu' with mu' = mu + e_mu S_mu and s' = s + e_s S_s. The e are standard normal
per image and channel; S_mu and S_s are the standard deviations of mu and s over images. DSU
computes them on the current batch, which must then be large; here they are measured once, over
many images. Each token group of a location has its own statistics. All statistics are detached, in
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from rsseg_cli.contract import Grid

EMBEDDING = -1
"""Site before the first block; sites 0..L-1 lie after the blocks."""
EPSILON = 1e-6
"""Added to variances [DSU]."""
MIN_GAIN = 0.1
"""Least fraction of its deviation that a channel keeps; a negative one would invert contrast."""


class FeatureHook(Protocol):
    """Function applied to the tokens of a site."""

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Return tokens (B, P+N, D) in place of those of the site."""


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation (B, 1, G, D) over the locations of patches (B, h*w, G, D)."""
    patches = patches.detach()
    variance = patches.var(1, keepdim=True, correction=min(1, patches.shape[1] - 1))
    return patches.mean(1, keepdim=True), (variance + EPSILON).sqrt()


def _patches(tokens: Tensor, grid: Grid) -> Tensor:
    """Reshape the last N tokens of (B, P+N, D) to float32 (B, h*w, G, D)."""
    batch, _, dim = tokens.shape
    return tokens[:, -grid.tokens :].float().reshape(batch, -1, grid.groups, dim)


class FeatureStatistics:
    """Hook that measures S_mu and S_s at every site and changes nothing."""

    def __init__(self) -> None:
        self._moments: dict[int, Tensor] = {}
        self._images: dict[int, int] = {}

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Add the statistics of the images of a batch."""
        values = torch.cat(statistics(_patches(tokens, grid)), 1).double()  # (B, 2, G, D)
        moments = torch.stack([values.sum(0), values.square().sum(0)])
        self._moments[site] = self._moments.get(site, 0) + moments
        self._images[site] = self._images.get(site, 0) + len(tokens)
        return tokens

    def spreads(self, average: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
        """Return S_mu and S_s (2, G, D) of each site, over the images of all processes."""
        spreads = {}
        for site, moments in self._moments.items():
            images = average(torch.tensor(float(self._images[site]), device=moments.device))
            mean, square = average(moments) / images
            variance = (square - mean.square()).clamp(min=0)
            spreads[site] = (variance + EPSILON).sqrt().float()
        return spreads


class FeatureShift:
    """Hook that shifts the statistics at every site by random amounts.

    Args:
        spreads: S_mu and S_s (2, G, D) of each site.
        amplitude: Smallest and largest factor of all e of a pass.
    """

    def __init__(self, spreads: Mapping[int, Tensor], *, amplitude: tuple[float, float]) -> None:
        self.spreads, self.amplitude = spreads, amplitude
        self._generator = torch.Generator()
        self._factor = 1.0
        self._weights: list[Tensor] = []

    def start(self, seed: int, device: torch.device) -> None:
        """Begin a pass; equal seeds give equal shifts."""
        self._generator = torch.Generator(device).manual_seed(seed)
        uniform = torch.rand((), generator=self._generator, device=device).item()
        low, high = self.amplitude
        self._factor = low + (high - low) * uniform
        self._weights = []

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Shift the patch tokens and keep prefix tokens; zero noise changes no bit."""
        patches = _patches(tokens, grid)
        mean, deviation = statistics(patches)
        size = (2, len(tokens), 1, *patches.shape[2:])
        noise = torch.randn(size, generator=self._generator, device=tokens.device) * self._factor
        self._weights.append((-noise.square().mean((1, 2, 3, 4)).sqrt().sum()).exp())
        mean_shift, deviation_shift = noise * self.spreads[site][:, None, None]  # (2, 1, 1, G, D)
        gain = (deviation_shift / deviation + 1).clamp(min=MIN_GAIN) - 1
        shifted = patches + (patches - mean) * gain + mean_shift
        prefix = tokens[:, : -grid.tokens]
        return torch.cat([prefix, shifted.flatten(1, 2).to(tokens.dtype)], 1)

    def weight(self) -> float:
        """Return the weight of the pass, averaged over the sites.

        It decreases with the shift: exp of minus the root mean squares of e_mu and e_s. Equation 7
        uses their signed values, which makes the weight random.
        """
        return torch.stack(self._weights).mean().item()
