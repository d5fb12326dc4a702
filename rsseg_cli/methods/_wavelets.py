"""The orthonormal Haar transform of images, and convolutions that also act on its bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def analyse(images: Tensor) -> Tensor:
    """Split (B, C, h, w) with even h and w into the four Haar bands (B, 4C, h/2, w/2).

    The bands of a channel follow each other: low, then the differences along the row, along the
    column and along both. The four outer products of [1, 1] / sqrt 2 and [1, -1] / sqrt 2 are
    written as sums and differences: there is no filter tensor that could train or drift.
    """
    batch, channels, height, width = images.shape
    # Spelled out: torch's own shuffles leave a batch without images as it is.
    cells = images.reshape(batch, channels, height // 2, 2, width // 2, 2)
    quads = cells.permute(0, 1, 3, 5, 2, 4)
    return _butterfly(quads.reshape(batch, 4 * channels, height // 2, width // 2))


def synthesise(bands: Tensor) -> Tensor:
    """Undo `analyse`: (B, 4C, h, w) to (B, C, 2h, 2w). The transform is its own inverse."""
    batch, channels, height, width = bands.shape
    quads = _butterfly(bands).reshape(batch, channels // 4, 2, 2, height, width)
    return quads.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


def _butterfly(quads: Tensor) -> Tensor:
    batch, channels, height, width = quads.shape
    a, b, c, d = quads.reshape(batch, channels // 4, 4, height, width).unbind(2)
    top, top_change, bottom, bottom_change = a + b, a - b, c + d, c - d
    bands = (top + bottom, top_change + bottom_change, top - bottom, top_change - bottom_change)
    return torch.stack(bands, dim=2).reshape(quads.shape) / 2


class WaveletConvolution(nn.Module):
    """Depthwise convolution of an image plus one of its Haar bands (Finder et al. 2024, WTConv).

    y = s0 * DW(z) + synthesise(s1 * DW'(analyse(z))), with "same" padding. On half the grid a
    kernel of side k reaches twice as far. An odd side is padded by one row or column of zeros,
    which is cut off again. The scales act on the kernels: the same numbers, less memory.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
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
        bands = _scaled(self.bands, self.bands_scale, analyse(even))
        return _scaled(self.image, self.image_scale, z) + synthesise(bands)[..., :height, :width]


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
