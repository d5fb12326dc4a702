"""Wavelet convolutions of WEFT's experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.layers.haar import Haar


class WaveletConvolution(nn.Module):
    """Depthwise convolution of an image plus one of its Haar bands (Finder et al. 2024, WTConv).

    y = s0 * DW(z) + synthesise(s1 * DW'(analyse(z))), with "same" padding. On half the grid a
    kernel of side k has twice the receptive field. An odd side is padded by a row or column of
    zeros, which is removed from the result. The kernels are scaled, not the maps, to save memory.
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
    """Apply a depthwise convolution and multiply each output channel by its scale."""
    bias = None if convolution.bias is None else convolution.bias * scale.flatten()
    weight = convolution.weight * scale[..., None]
    side = convolution.kernel_size[0]
    if side == 1:
        # As a product: on one thread the grouped convolution would process group by group.
        product = x * weight.squeeze(1)
        return product if bias is None else product + bias[:, None, None]
    return F.conv2d(x, weight, bias, padding=side // 2, groups=convolution.groups)
