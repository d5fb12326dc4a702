"""The orthonormal Haar transform of images, and convolutions that also act on its bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Haar(nn.Module):
    """The transform of cells of 2x2 pixels to four bands, which is its own inverse.

    The bands of a channel follow each other: low, then the differences along the row, along the
    column and along both. The filters, outer products of [1, 1] / sqrt 2 and [1, -1] / sqrt 2, are
    constants: they neither train nor drift nor stand in a file. Maps lie in memory with channels
    last, so that both ways are one copy and one matrix product over pixels.
    """

    FILTERS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
    """Twice the share of the upper left, upper right, lower left and lower right pixel."""

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
        """Undo `analyse`: (B, 4C, h, w) to (B, C, 2h, 2w)."""
        batch, channels, height, width = bands.shape
        by_band = bands.permute(0, 2, 3, 1).reshape(batch, height, width, channels // 4, 4)
        cells = (by_band @ self.filters).reshape(batch, height, width, channels // 4, 2, 2)
        pixels = cells.permute(0, 1, 4, 2, 5, 3)
        images = pixels.reshape(batch, 2 * height, 2 * width, channels // 4)
        return images.permute(0, 3, 1, 2)


class WaveletConvolution(nn.Module):
    """Depthwise convolution of an image plus one of its Haar bands (Finder et al. 2024, WTConv).

    y = s0 * DW(z) + synthesise(s1 * DW'(analyse(z))), with "same" padding. On half the grid a
    kernel of side k reaches twice as far. An odd side is padded by one row or column of zeros,
    which is cut off again. The scales act on the kernels: the same numbers, less memory.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.haar = Haar()
        self.image = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels)
        self.bands = nn.Conv2d(
            4 * channels, 4 * channels, kernel, padding="same", groups=4 * channels, bias=False
        )
        self.image_scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.bands_scale = nn.Parameter(torch.full((4 * channels, 1, 1), 0.1))

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        height, width = z.shape[-2:]
        even = F.pad(z, (0, width % 2, 0, height % 2))
        bands = _scaled(self.bands, self.bands_scale, self.haar.analyse(even))
        detail = self.haar.synthesise(bands)[..., :height, :width]
        return _scaled(self.image, self.image_scale, z) + detail


def _scaled(convolution: nn.Conv2d, scale: Tensor, x: Tensor) -> Tensor:
    """Apply a depthwise convolution whose every output channel is multiplied by its scale."""
    bias = None if convolution.bias is None else convolution.bias * scale.flatten()
    weight = convolution.weight * scale[..., None]
    side = convolution.kernel_size[0]
    if side == 1:
        # A product: on one thread the grouped convolution would go group by group.
        product = x * weight.squeeze(1)
        return product if bias is None else product + bias[:, None, None]
    return F.conv2d(x, weight, bias, padding=side // 2, groups=convolution.groups)
