"""1x1 convolutions as what they are: a matrix product over pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to (B, C, h, w).

    With channels last in memory, as the tokens of a transformer lie, the pixels are rows of a
    matrix: no library needs to bring them into another order first, as some do.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        result: Tensor = convolution(x)
        return result
    pixels = F.linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
    return pixels.permute(0, 3, 1, 2)
