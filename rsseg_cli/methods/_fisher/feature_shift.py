"""Simulated unseen domains: the statistics of feature maps are shifted (DSU, Li et al. 2022).

For patch tokens z with mean mu and deviation s over the locations of an image,
z' = s' (z - mu)/s + mu' with mu' = mu + e_mu S_mu and s' = s + e_s S_s. The e are standard normal
per image and channel, S_mu and S_s are the deviations of mu and s over images. DSU takes them
from the batch at hand, which needs a large one; here they are measured once, over many images.
Each token group of a location has statistics of its own. All statistics are detached, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from rsseg_cli.contract import Grid

EMBEDDING = -1
"""The site before the first block; sites 0..L-1 lie after the blocks."""
EPSILON = 1e-6
"""Added to variances [DSU]."""
NARROWEST = 0.1
"""Least part of its deviation that a channel keeps: a negative one would invert its contrast."""


class FeatureHook(Protocol):
    """Sees the tokens of a site, and may change them."""

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Return tokens (B, P+N, D) for those of a site."""


def statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (B, 1, G, D) over the locations of patches (B, h*w, G, D)."""
    patches = patches.detach()
    spread = patches.var(1, keepdim=True, correction=min(1, patches.shape[1] - 1))
    return patches.mean(1, keepdim=True), (spread + EPSILON).sqrt()


def _patches(tokens: Tensor, grid: Grid) -> Tensor:
    """Reshape the last N tokens of (B, P+N, D) to float32 (B, h*w, G, D)."""
    batch, _, dim = tokens.shape
    return tokens[:, -grid.tokens :].float().reshape(batch, -1, grid.groups, dim)


class FeatureStatistics:
    """Measures S_mu and S_s at every site; changes nothing."""

    def __init__(self) -> None:
        self._moments: dict[int, Tensor] = {}
        self._images: dict[int, int] = {}

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Add the statistics of the images of a batch."""
        found = torch.cat(statistics(_patches(tokens, grid)), 1).double()  # (B, 2, G, D)
        moments = torch.stack([found.sum(0), found.square().sum(0)])
        self._moments[site] = self._moments.get(site, 0) + moments
        self._images[site] = self._images.get(site, 0) + len(tokens)
        return tokens

    def spreads(self, average: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
        """Return S_mu and S_s (2, G, D) of each site, over the images of all processes."""
        found = {}
        for site, moments in self._moments.items():
            images = average(torch.tensor(float(self._images[site]), device=moments.device))
            mean, square = average(moments) / images
            variance = (square - mean.square()).clamp(min=0)
            found[site] = (variance + EPSILON).sqrt().float()
        return found


class FeatureShift:
    """Shifts the statistics at every site by random amounts.

    Args:
        spreads: S_mu and S_s (2, G, D) of each site.
        amplitude: Least and largest factor of all e of one pass.
    """

    def __init__(self, spreads: Mapping[int, Tensor], *, amplitude: tuple[float, float]) -> None:
        self.spreads, self.amplitude = spreads, amplitude
        self._generator = torch.Generator()
        self._factor = 1.0
        self._weights: list[Tensor] = []

    def start(self, seed: int, device: torch.device) -> None:
        """Begin a pass; the same seed shifts the same way."""
        self._generator = torch.Generator(device).manual_seed(seed)
        chance = torch.rand((), generator=self._generator, device=device).item()
        low, high = self.amplitude
        self._factor = low + (high - low) * chance
        self._weights = []

    def __call__(self, site: int, tokens: Tensor, grid: Grid) -> Tensor:
        """Shift the patch tokens; prefix tokens stay, and without noise every bit stays."""
        patches = _patches(tokens, grid)
        mean, deviation = statistics(patches)
        size = (2, len(tokens), 1, *patches.shape[2:])
        noise = torch.randn(size, generator=self._generator, device=tokens.device) * self._factor
        self._weights.append((-noise.square().mean((1, 2, 3, 4)).sqrt().sum()).exp())
        spread = self.spreads[site][:, None, None]  # (2, 1, 1, G, D)
        offset, widening = noise * spread
        gain = (widening / deviation + 1).clamp(min=NARROWEST) - 1
        shifted = patches + (patches - mean) * gain + offset
        prefix = tokens[:, : -grid.tokens]
        return torch.cat([prefix, shifted.flatten(1, 2).to(tokens.dtype)], 1)

    def weight(self) -> float:
        """Return the weight of the pass, averaged over the sites.

        It falls with the size of the shift: exp of minus the root mean squares of e_mu and e_s.
        Equation 7 takes their signed values, so that chance decides.
        """
        return torch.stack(self._weights).mean().item()
