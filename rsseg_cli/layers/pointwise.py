"""1x1 convolution, computed as a matrix product over pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a 1x1 convolution to (B, C, h, w).

    In channels-last memory, the layout of a transformer's tokens, the pixels are the rows of a
    matrix. The matrix product then avoids the copy that some convolution libraries make.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        result: Tensor = convolution(x)
        return result
    pixels = F.linear(x.permute(0, 2, 3, 1), convolution.weight.flatten(1), convolution.bias)
    return pixels.permute(0, 3, 1, 2)
