"""Changes training tiles at random, on the device and whatever their bands are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from rsseg_cli.settings import Strict

Strength = Annotated[float, Field(ge=0.0, le=1.0)]
Generators: TypeAlias = Sequence[torch.Generator]

BLUR_RADIUS = 3
BLUR_SIGMA = (0.3, 1.5)
"""Range of the Gaussian's standard deviation in pixels."""


class Augment:
    """Resizes, flips and rotates tiles, and changes their radiometry.

    The magnification is drawn with the windows (`TileStream(scale=...)`): here they come to one
    size. All else is drawn per tile from its own generator, so that a tile is changed in the same
    way whatever batch it is in. Nothing waits for the device.

    Args:
        config: What happens how strongly.
        tile: Side in pixels of what comes out.
    """

    class Config(Strict):
        """Settings; radiometric ones are in standard deviations of a band."""

        scale: tuple[float, float] = (0.5, 2.0)
        """Range of magnification, drawn evenly in its logarithm."""
        flip: bool = True
        """Mirror left to right and top to bottom, each with chance 1/2."""
        rot90: bool = True
        """Rotate by a multiple of 90 degrees (with `flip`: all eight symmetries of a square)."""
        gain: Strength = 0.1
        """Multiply all bands by 1 +- this."""
        offset: Strength = 0.1
        """Add +- this to all bands."""
        band_gain: Strength = 0.05
        """Multiply each band on its own by 1 +- this."""
        band_offset: Strength = 0.05
        """Add +- this to each band on its own."""
        noise: Strength = 0.0
        """Largest standard deviation of Gaussian noise."""
        blur: Strength = 0.0
        """Chance of a Gaussian blur."""

        @model_validator(mode="after")
        def _rises(self) -> Augment.Config:
            if not 0 < self.scale[0] <= self.scale[1]:
                raise ValueError("scale must be two positive numbers, the smaller one first")
            return self

    def __init__(self, config: Config, *, tile: int) -> None:
        self.config, self.tile = config, tile

    def __call__(
        self, image: Tensor, label: Tensor, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """Change a batch.

        Args:
            image: (B, C, h, w) standardised.
            label: (B, h, w) class indices; they are never mixed, only moved.
            generators: Of the random numbers of each tile, on the CPU or on the image's device.

        Returns:
            Image (B, C, tile, tile) and label (B, tile, tile).
        """
        image, label = resize(image, label, self.tile)
        image, label = self._move(image, label, generators)
        return self._radiometry(image, generators), label

    def _move(self, image: Tensor, label: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """Mirror at the axes and the diagonal; two of these make a rotation."""
        config = self.config
        across, down, diagonal = (draw((3,), generators).to(image.device) < 0.5).unbind(1)
        if not config.flip:
            # Rotations alone: an even number of mirrorings. By 180 degrees it is both axes.
            down = across ^ diagonal
        if not config.rot90:
            diagonal = torch.zeros_like(diagonal)
        if not config.flip and not config.rot90:
            return image, label
        for chosen, axes in ((across, (-1,)), (down, (-2,))):
            image, label = _where(chosen, image.flip(axes), label.flip(axes), image, label)
        return _where(diagonal, image.mT, label.mT, image, label)

    def _radiometry(self, image: Tensor, generators: Generators) -> Tensor:
        config, device, bands = self.config, image.device, image.shape[1]

        def spread(strength: float, count: int) -> Tensor:
            drawn = draw((count, 1, 1), generators).to(device)
            return (2 * drawn - 1) * strength

        gain = (1 + spread(config.gain, 1)) * (1 + spread(config.band_gain, bands))
        offset = spread(config.offset, 1) + spread(config.band_offset, bands)
        image = image * gain + offset
        if config.blur:
            image = _blur(image, config.blur, generators)
        if config.noise:
            level = draw((1, 1, 1), generators).to(device) * config.noise
            noise = draw(image.shape[1:], generators, torch.randn).to(device)
            image = image + level * noise
        return image


def resize(image: Tensor, label: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Bring a batch to `tile` pixels: the image bilinear, low-pass when it shrinks."""
    height, width = image.shape[-2:]
    if (height, width) == (tile, tile):
        return image, label
    shrinks = height > tile or width > tile
    image = functional.interpolate(
        image, size=(tile, tile), mode="bilinear", align_corners=False, antialias=shrinks
    )
    centres = torch.arange(tile, device=label.device) + 0.5
    rows = (centres * height / tile).long()
    columns = (centres * width / tile).long()
    return image, label[:, rows][:, :, columns]


def tile_generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """Build a generator for each tile (see `Batch.seeds`) on a device."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def draw(
    shape: Sequence[int], generators: Generators, kind: Callable[..., Tensor] = torch.rand
) -> Tensor:
    """Draw numbers (B, *shape), of each tile by its generator, on the generators' device."""
    return torch.stack([kind(tuple(shape), generator=g, device=g.device) for g in generators])


def _where(
    chosen: Tensor, image: Tensor, label: Tensor, image_else: Tensor, label_else: Tensor
) -> tuple[Tensor, Tensor]:
    """Take tiles of the first pair where `chosen` (B), else of the second."""
    return (
        torch.where(chosen[:, None, None, None], image, image_else),
        torch.where(chosen[:, None, None], label, label_else),
    )


def _blur(image: Tensor, chance: float, generators: Generators) -> Tensor:
    """Blur some tiles, each with a Gaussian of its own."""
    batch, bands = image.shape[:2]
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * draw((1,), generators).to(image.device)
    chosen = draw((1, 1, 1), generators).to(image.device) < chance
    steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=image.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)
    flat = image.reshape(1, batch * bands, *image.shape[-2:])
    flat = functional.pad(flat, (BLUR_RADIUS,) * 4, mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, :, None].to(flat), groups=batch * bands)
    flat = functional.conv2d(flat, kernel[:, None, None, :].to(flat), groups=batch * bands)
    return torch.where(chosen, flat.reshape(image.shape), image)
