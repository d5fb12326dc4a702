"""Random augmentation of training tiles, for any number of bands."""

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
"""Range of the standard deviation of the Gaussian in pixels."""


class Augment:
    """Resizes, flips and rotates tiles, and changes their radiometry.

    The magnification follows from the size of the windows, which `TileStream(scale=...)` draws.
    Everything else is drawn per tile from its own generator, so that the result does not depend on
    the batch a tile is in. There are no GPU syncs.

    Args:
        config: Strength of each change.
        tile: Side of the output in pixels.
    """

    class Config(Strict):
        """Settings; radiometric ones in standard deviations of a band."""

        scale: tuple[float, float] = (0.5, 2.0)
        """Range of the magnification, drawn log-uniformly."""
        flip: bool = True
        """Mirror left to right and top to bottom, each with probability 1/2."""
        rot90: bool = True
        """Rotate by a multiple of 90 degrees (with `flip`: all eight symmetries of a square)."""
        gain: Strength = 0.1
        """Multiply all bands by a common factor of 1 +- this."""
        offset: Strength = 0.1
        """Add a common offset of +- this to all bands."""
        band_gain: Strength = 0.05
        """Multiply each band by its own factor of 1 +- this."""
        band_offset: Strength = 0.05
        """Add an offset of +- this to each band."""
        noise: Strength = 0.0
        """Largest standard deviation of Gaussian noise."""
        blur: Strength = 0.0
        """Probability of a Gaussian blur."""

        @model_validator(mode="after")
        def _check_scale(self) -> Augment.Config:
            if not 0 < self.scale[0] <= self.scale[1]:
                raise ValueError("scale must be two positive numbers, the smaller one first")
            return self

    def __init__(self, config: Config, *, tile: int) -> None:
        self.config, self.tile = config, tile

    def __call__(
        self, image: Tensor, label: Tensor, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (B, C, h, w) standardised.
            label: (B, h, w) class indices, resampled with nearest neighbour.
            generators: Random generator of each tile, on the CPU or on the image's device.

        Returns:
            Image (B, C, tile, tile) and label (B, tile, tile).
        """
        image, label = resize(image, label, self.tile)
        image, label = self._flip(image, label, generators)
        return self._radiometry(image, generators), label

    def _flip(self, image: Tensor, label: Tensor, generators: Generators) -> tuple[Tensor, Tensor]:
        """Mirror at both axes and the diagonal; two mirrorings are a rotation."""
        config = self.config
        across, down, diagonal = (draw((3,), generators).to(image.device) < 0.5).unbind(1)
        if not config.flip:
            # Rotations only: an even number of mirrorings, both axes for 180 degrees.
            down = across ^ diagonal
        if not config.rot90:
            diagonal = torch.zeros_like(diagonal)
        if not config.flip and not config.rot90:
            return image, label
        for mask, axes in ((across, (-1,)), (down, (-2,))):
            image, label = _where(mask, image.flip(axes), label.flip(axes), image, label)
        return _where(diagonal, image.mT, label.mT, image, label)

    def _radiometry(self, image: Tensor, generators: Generators) -> Tensor:
        config, device, bands = self.config, image.device, image.shape[1]

        def uniform(strength: float, count: int) -> Tensor:
            return (2 * draw((count, 1, 1), generators).to(device) - 1) * strength

        gain = (1 + uniform(config.gain, 1)) * (1 + uniform(config.band_gain, bands))
        offset = uniform(config.offset, 1) + uniform(config.band_offset, bands)
        image = image * gain + offset
        if config.blur:
            image = _blur(image, config.blur, generators)
        if config.noise:
            level = draw((1, 1, 1), generators).to(device) * config.noise
            noise = draw(image.shape[1:], generators, torch.randn).to(device)
            image = image + level * noise
        return image


def resize(image: Tensor, label: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Resize a batch to `tile` pixels: images bilinear (antialiased), labels nearest neighbour."""
    height, width = image.shape[-2:]
    if (height, width) == (tile, tile):
        return image, label
    downsampled = height > tile or width > tile
    image = functional.interpolate(
        image, size=(tile, tile), mode="bilinear", align_corners=False, antialias=downsampled
    )
    centres = torch.arange(tile, device=label.device) + 0.5
    rows = (centres * height / tile).long()
    columns = (centres * width / tile).long()
    return image, label[:, rows][:, :, columns]


def tile_generators(seeds: Sequence[int], device: torch.device) -> list[torch.Generator]:
    """Build the generator of each tile (see `Batch.seeds`) on a device."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def draw(
    shape: Sequence[int], generators: Generators, kind: Callable[..., Tensor] = torch.rand
) -> Tensor:
    """Draw numbers (B, *shape) with the generator of each tile, on the generators' device."""
    return torch.stack([kind(tuple(shape), generator=g, device=g.device) for g in generators])


def _where(
    mask: Tensor, image: Tensor, label: Tensor, image_else: Tensor, label_else: Tensor
) -> tuple[Tensor, Tensor]:
    """Select tiles of the first image and label where `mask` (B) is True, else of the second."""
    return (
        torch.where(mask[:, None, None, None], image, image_else),
        torch.where(mask[:, None, None], label, label_else),
    )


def _blur(image: Tensor, chance: float, generators: Generators) -> Tensor:
    """Blur random tiles, each with a Gaussian of random width."""
    batch, bands = image.shape[:2]
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * draw((1,), generators).to(image.device)
    mask = draw((1, 1, 1), generators).to(image.device) < chance
    steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=image.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)
    flat = image.reshape(1, batch * bands, *image.shape[-2:])
    flat = functional.pad(flat, (BLUR_RADIUS,) * 4, mode="replicate")
    flat = functional.conv2d(flat, kernel[:, None, :, None].to(flat), groups=batch * bands)
    flat = functional.conv2d(flat, kernel[:, None, None, :].to(flat), groups=batch * bands)
    return torch.where(mask, flat.reshape(image.shape), image)
