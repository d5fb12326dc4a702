"""Linear probe on the feature maps, or a light convolutional decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Features, Head, Output, batch_shard


@dataclass
class LinearOutput(Output):
    """Class logits on the grid of the finest map, or on a finer one."""

    logits: Tensor
    """(B, K, h, w)."""

    def at_image_size(self) -> Tensor:
        """Resize the logits to (B, K, H, W) in float32."""
        return F.interpolate(self.logits.float(), self.size, mode="bilinear")

    def probabilities(self) -> Tensor:
        """Compute the softmax (B, K, H, W) of the resized logits."""
        return self.at_image_size().softmax(1)


class Linear(Head[LinearOutput]):
    """Linear probe, or a convolutional decoder, on the sum of all projected maps.

    Each map passes a layer norm and a 1x1 convolution. With `width` 0 their sum is the class
    logits. Otherwise it has `width` channels, and the decoder applies a 3x3 convolution, learned 2x
    upsamplings and a 1x1 convolution to the logits. No layer mixes the images of a batch.
    """

    class Config(Head.Config):
        """Settings of the linear head."""

        width: int = Field(0, ge=0)
        """Channels of the decoder, usually 64 to 256; 0 for a linear probe."""
        upsamplings: int = Field(0, ge=0, le=4)
        """Number of 2x upsamplings of the grid in the decoder, before bilinear resizing.

        With patches of 16 pixels, 2 give cells of 4 x 4 pixels. Needs a `width`.
        """
        dropout: float = Field(0.0, ge=0, lt=1)
        """Fraction of channels dropped before the last layer in training."""

        @model_validator(mode="after")
        def _needs_width(self) -> Linear.Config:
            if self.upsamplings and not self.width:
                raise ValueError("upsamplings need a width, e.g. width: 128")
            return self

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__(config, dim=dim, maps=maps, classes=classes)
        # Outputs of transformer blocks differ in norm by orders of magnitude, between blocks and
        # between channels.
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(maps))
        self.projections = nn.ModuleList(
            nn.Conv2d(dim, config.width or classes, kernel_size=1) for _ in range(maps)
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = nn.Sequential(*_decoder(config, classes)) if config.width else nn.Identity()

    def forward(self, features: Features, size: tuple[int, int]) -> LinearOutput:
        """Compute the class logits of images of `size` = (H, W) from their maps."""
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
        """Compute the cross-entropy: the mean over labelled pixels, weighted by class."""
        labels = labels.long()
        weights = self.class_weights.float()
        with torch.autocast(labels.device.type, enabled=False):
            total = F.cross_entropy(
                output.at_image_size(), labels, weights, ignore_index=IGNORE, reduction="sum"
            )
            # Padded with zeros up to IGNORE, so that every label is a valid index.
            label_weights = F.pad(weights, (0, IGNORE + 1 - len(weights)))
            weight_sum = batch_shard.mean(label_weights[labels].sum())
            return {"cross_entropy": total / weight_sum.clamp(min=1.0e-6)}


def _decoder(config: Linear.Config, classes: int) -> Iterator[nn.Module]:
    width = config.width
    yield from (nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU())
    narrowest = min(width, 16)
    channels = [max(width >> step, narrowest) for step in range(config.upsamplings + 1)]
    for wide, narrow in pairwise(channels):
        yield nn.ConvTranspose2d(wide, narrow, kernel_size=2, stride=2)
        yield from (nn.GroupNorm(1, narrow), nn.GELU())
        yield from (nn.Conv2d(narrow, narrow, 3, padding=1), nn.GELU())
    yield nn.Dropout2d(config.dropout)
    yield nn.Conv2d(channels[-1], classes, kernel_size=1)
