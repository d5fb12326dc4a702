"""Scores every cell of the maps with a linear map, or with a few cheap convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli import batch_shard
from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Features, Head, Output


@dataclass
class LinearOutput(Output):
    """Scores on the grid of the finest map, or finer."""

    logits: Tensor
    """(B, K, h, w)."""

    def at_image_size(self) -> Tensor:
        """Resize the logits to (B, K, H, W), in float32."""
        return F.interpolate(self.logits.float(), self.size, mode="bilinear")

    def probabilities(self) -> Tensor:
        """Give the softmax (B, K, H, W) of the resized logits."""
        return self.at_image_size().softmax(1)


class Linear(Head[LinearOutput]):
    """Normalises each map over its channels, projects it with a 1x1 convolution, and adds up.

    With `width` 0 the projections give the classes: a linear probe. Otherwise they meet in
    `width` channels, a 3x3 convolution mixes neighbours, every doubling unfolds a cell into 2x2
    learned ones, and a last 1x1 convolution gives the classes. No layer depends on the rest of
    the batch.
    """

    class Config(Head.Config):
        """Settings of the linear head."""

        width: int = Field(0, ge=0)
        """Channels in which the maps meet; 0 leaves a linear probe. 64 to 256 are useful."""
        doublings: int = Field(0, ge=0, le=4)
        """How often the grid is doubled before it is resized to the image (needs a width).

        With patches of 16 pixels two doublings give a cell per 4 pixels.
        """
        dropout: float = Field(0.0, ge=0, lt=1)
        """Share of channels dropped before the last layer, in training."""

        @model_validator(mode="after")
        def _needs_width(self) -> Linear.Config:
            if self.doublings and not self.width:
                raise ValueError("doublings need a width, e.g. width: 128")
            return self

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__(config, dim=dim, maps=maps, classes=classes)
        # Raw taps of a transformer differ in norm by orders of magnitude, from block to block
        # and from channel to channel.
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(maps))
        self.projections = nn.ModuleList(
            nn.Conv2d(dim, config.width or classes, kernel_size=1) for _ in range(maps)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = nn.Sequential(*_decoder(config, classes)) if config.width else nn.Identity()

    def forward(self, features: Features, size: tuple[int, int]) -> LinearOutput:
        """Score an image of `size` = (H, W) from its maps."""
        finest = features.maps[0].shape[-2:]
        total: Tensor | float = 0.0
        for norm, projection, cells in zip(
            self.norms, self.projections, features.maps, strict=True
        ):
            normal = norm(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            projected = projection(self.dropout(normal))
            if projected.shape[-2:] != finest:
                projected = F.interpolate(projected, finest, mode="bilinear")
            total = total + projected
        return LinearOutput(size, self.decoder(total))

    def losses(self, output: LinearOutput, labels: Tensor) -> dict[str, Tensor]:
        """Name the one term: cross-entropy, averaged over labelled pixels by class weight."""
        labels = labels.long()
        weights = self.class_weights.float()
        with torch.autocast(labels.device.type, enabled=False):
            total = F.cross_entropy(
                output.at_image_size(), labels, weights, ignore_index=IGNORE, reduction="sum"
            )
            # IGNORE lies beyond the classes and finds the weight 0 there.
            of_label = F.pad(weights, (0, IGNORE + 1 - len(weights)))
            counted = batch_shard.mean(of_label[labels].sum())
            return {"cross_entropy": total / counted.clamp(min=1.0e-6)}


def _decoder(config: Linear.Config, classes: int) -> Iterator[nn.Module]:
    width = config.width
    yield from (nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU())
    narrowest = min(width, 16)
    channels = [max(width >> done, narrowest) for done in range(config.doublings + 1)]
    for before, after in pairwise(channels):
        yield nn.ConvTranspose2d(before, after, kernel_size=2, stride=2)
        yield from (nn.GroupNorm(1, after), nn.GELU())
        yield from (nn.Conv2d(after, after, 3, padding=1), nn.GELU())
    yield nn.Dropout2d(config.dropout)
    yield nn.Conv2d(channels[-1], classes, kernel_size=1)
