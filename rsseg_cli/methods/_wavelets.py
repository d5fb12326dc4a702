"""The orthonormal Haar transform of images, and convolutions that also act on its bands."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def analyse(images: Tensor) -> Tensor:
    """Split (B, C, h, w) with even h and w into the four Haar bands (B, 4C, h/2, w/2).

    All channels of a band follow each other: low, then the differences along the row, along the
    column and along both. The four outer products of [1, 1] / sqrt 2 and [1, -1] / sqrt 2 are
    written as sums and differences: there is no filter tensor that could train or drift.
    """
    top, bottom = images[:, :, ::2], images[:, :, 1::2]
    corners = (top[..., ::2], top[..., 1::2], bottom[..., ::2], bottom[..., 1::2])
    return torch.cat(_butterfly(*corners), dim=1)


def synthesise(bands: Tensor) -> Tensor:
    """Undo `analyse`: (B, 4C, h, w) to (B, C, 2h, 2w). The transform is its own inverse."""
    corners = [corner.permute(0, 2, 3, 1) for corner in _butterfly(*bands.chunk(4, dim=1))]
    rows = [torch.stack(pair, dim=3).flatten(2, 3) for pair in (corners[:2], corners[2:])]
    return torch.stack(rows, dim=2).flatten(1, 2).permute(0, 3, 1, 2)


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Transform four corners of cells to four bands, or back."""
    top, top_change, bottom, bottom_change = a + b, a - b, c + d, c - d
    bands = (top + bottom, top_change + bottom_change, top - bottom, top_change - bottom_change)
    return tuple(band / 2 for band in bands)


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
