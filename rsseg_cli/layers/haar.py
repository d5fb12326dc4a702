"""Orthonormal Haar transform of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Haar(nn.Module):
    """Haar transform of 2x2 pixels into four bands, and its inverse.

    The four bands of a channel are adjacent: low pass, then the differences along the row, along
    the column and along both. The filters are outer products of [1, 1] / sqrt 2 and
    [1, -1] / sqrt 2. Results are in channels-last memory, so that each direction costs one copy and
    one matrix product over pixels.
    """

    FILTERS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
    """Twice the weights of the upper left, upper right, lower left and lower right pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.filters: Tensor
        self.register_buffer("filters", torch.tensor(self.FILTERS) / 2, persistent=False)

    def analyse(self, images: Tensor) -> Tensor:
        """Split (B, C, h, w) with even h and w into the bands (B, 4C, h/2, w/2)."""
        pixels = images.permute(0, 2, 3, 1)
        rows = (pixels[:, ::2], pixels[:, 1::2])
        corners = [row[:, :, start::2] for row in rows for start in (0, 1)]
        bands = torch.stack(corners, dim=-1) @ self.filters
        return bands.flatten(3).permute(0, 3, 1, 2)

    def synthesise(self, bands: Tensor) -> Tensor:
        """Compute the inverse of `analyse`: (B, 4C, h, w) to (B, C, 2h, 2w)."""
        batch, channels, height, width = bands.shape
        by_band = bands.permute(0, 2, 3, 1).reshape(batch, height, width, channels // 4, 4)
        cells = (by_band @ self.filters).reshape(batch, height, width, channels // 4, 2, 2)
        pixels = cells.permute(0, 1, 4, 2, 5, 3)
        images = pixels.reshape(batch, 2 * height, 2 * width, channels // 4)
        return images.permute(0, 3, 1, 2)
