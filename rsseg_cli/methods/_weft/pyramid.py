"""WEFT's extractor: a small convolutional pyramid with wavelet experts routed per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.contract import batch_shard
from rsseg_cli.layers.pointwise import pointwise
from rsseg_cli.methods._weft.cascade import BatchNorm, Cascade, RunningStatistics, initialise
from rsseg_cli.methods._weft.wavelets import WaveletConvolution

ExpertShares = Literal["proportional", "softmax"]
TrainedExperts = Literal["chosen", "all"]
StemNorm = Literal["batch", "image"]

LEVELS = 4
"""Maps of the pyramid: 4, 2, 1 and 1/2 times the grid of patches."""
CELL = 16
"""Pixels per patch of the resized image."""


class Router(nn.Module):
    """Gate that selects experts for each image and their weights, from the mean of its features.

    Args:
        channels: Width of the features.
        experts: Number of experts E.
        active: Number of experts per image.
        shares: "proportional": the gate's probabilities over their sum. "softmax": a second
            softmax over the probabilities, which keeps four weights within [0.175, 0.475].
            With one active expert both give 1, and the gate does not learn.
    """

    def __init__(self, channels: int, experts: int, *, active: int, shares: ExpertShares) -> None:
        super().__init__()
        self.active, self.shares = active, shares
        self.gate = nn.Linear(channels, experts)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Route images by their features (B, C, h, w).

        Returns:
            Weights (B, E), 0 for experts not chosen, which sum to 1; and the chosen experts (B, E).
        """
        probabilities = self.gate(features.mean((2, 3))).float().softmax(1)
        top, index = probabilities.topk(self.active, dim=1)
        top = top.softmax(1) if self.shares == "softmax" else top / top.sum(1, keepdim=True)
        chosen = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, index, True)
        return torch.zeros_like(probabilities).scatter(1, index, top), chosen


class Experts(nn.Module):
    """Sum of wavelet cascades with different kernels, weighted per image by the router.

    An expert that no image chose, in any process, is not computed, unless `trained` is "all" in
    training. Backward recomputes the experts' activations, but not the routing.
    """

    def __init__(
        self,
        channels: int,
        kernels: Sequence[int],
        *,
        active: int,
        shares: ExpertShares,
        trained: TrainedExperts,
        running: RunningStatistics,
    ) -> None:
        super().__init__()
        self.trained = trained
        self.router = Router(channels, len(kernels), active=active, shares=shares)
        self.experts = nn.ModuleList(
            Cascade(
                channels,
                WaveletConvolution(channels // Cascade.GROUPS, kernel),
                levels=LEVELS,
                running=running,
            )
            for kernel in kernels
        )

    def forward(self, features: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Add the experts' outputs to features (B, C, h, w); also return the chosen (B, E)."""
        weights, chosen = self.router(features)
        computed = torch.ones_like(chosen) if self.training and self.trained == "all" else chosen
        in_any_process = batch_shard.mean(computed.float().mean(0)) > 0
        *here, used = torch.cat((computed, in_any_process[None])).cpu()
        total = features
        for number, expert in enumerate(self.experts):
            if used[number]:
                images = torch.stack(here)[:, number].nonzero().flatten().to(features.device)
                inputs = features if len(images) == len(features) else features[images]
                total = _add(total, expert(inputs, level), images, weights[:, number])
        return total, chosen


def _add(total: Tensor, output: Tensor, images: Tensor, weights: Tensor) -> Tensor:
    """Add an expert's weighted output for some of the images to the sum for all."""
    weighted = (weights[images, None, None, None] * output).to(total.dtype)
    if len(images) == len(total):
        return total + weighted
    # Channels last: the memory layout of the maps, which index_add preserves.
    pixels, added = total.permute(0, 2, 3, 1), weighted.permute(0, 2, 3, 1)
    return pixels.index_add(0, images, added).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Four narrow maps of an image, and their projections to the width of the tokens.

    Stem, halving convolution, experts and the last 1x1 are each one module for all levels.

    Args:
        bands: Bands of the image.
        dim: Width D of the tokens.
        channels: Width of the narrow maps, a multiple of 4.
        experts: Refine each level; None gives a plain convolutional pyramid.
        running: See `BatchNorm`.
        stem_norm: "batch": as published. "image": over each channel of an image, which removes
            differences in light and contrast (IBN-Net, Pan et al. 2018).
    """

    def __init__(
        self,
        bands: int,
        dim: int,
        *,
        channels: int,
        experts: Experts | None,
        running: RunningStatistics,
        stem_norm: StemNorm = "batch",
    ) -> None:
        super().__init__()
        by_image = stem_norm == "image"
        norm = nn.InstanceNorm2d(channels, affine=True) if by_image else BatchNorm(channels)
        self.stem = nn.Sequential(
            nn.Conv2d(bands, channels, 3, stride=2, padding=1),
            norm,
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.halve = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.halve_norm = BatchNorm(channels, LEVELS - 1, running)
        self.experts = experts
        self.widen = nn.Conv2d(channels, dim, 1)
        self.usage: Tensor
        count = 0 if experts is None else len(experts.experts)
        self.register_buffer("usage", torch.zeros(count), persistent=False)
        self.apply(initialise)

    def forward(self, image: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Build the pyramid.

        The image is first resized to 16 pixels per patch, so that the levels have the same relation
        to the grid with any patch size; with patches of 16 pixels it keeps its size.

        Args:
            image: (B, C, H, W), standardised.
            size: Rows h and columns w of the grid of patches.

        Returns:
            Maps (B, channels, ., .) of 4h x 4w, 2h x 2w, h x w and ceil(h/2) x ceil(w/2).
        """
        resized = (CELL * size[0], CELL * size[1])
        if image.shape[-2:] != resized:
            image = F.interpolate(image, resized, mode="bilinear", antialias=True)
        # The memory layout of tokens, which the maps become; small convolutions are faster, too.
        level: Tensor = self.stem(image.contiguous(memory_format=torch.channels_last))
        maps, choices = [], []
        for number in range(LEVELS):
            if number:
                level = F.relu(self.halve_norm(self.halve(level), number - 1))
            if self.experts is not None:
                level, chosen = self.experts(level, number)
                choices.append(chosen)
            maps.append(level)
        if self.training and choices:
            self.usage = batch_shard.mean(torch.stack(choices).float().mean((0, 1)))
        return maps

    def wide(self, level: Tensor) -> Tensor:
        """Map a level (B, channels, h, w) to (B, D, h, w)."""
        return pointwise(self.widen, level)
