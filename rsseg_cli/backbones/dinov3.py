"""DINOv3 (Siméoni et al., 2025), trained on web images or, `sat_`, on satellite images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from rsseg_cli.backbones._eva import EvaBackbone
from rsseg_cli.backbones._timm import ModelSize


class Dinov3(EvaBackbone):
    """Blocks with rotary positions and four registers; the weights have the dinov3-license."""

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "small": ModelSize("vit_small_patch16_dinov3.lvd1689m", patch=16),
        "small_plus": ModelSize("vit_small_plus_patch16_dinov3.lvd1689m", patch=16),
        "base": ModelSize("vit_base_patch16_dinov3.lvd1689m", patch=16),
        "large": ModelSize("vit_large_patch16_dinov3.lvd1689m", patch=16),
        "huge_plus": ModelSize("vit_huge_plus_patch16_dinov3.lvd1689m", patch=16),
        "7b": ModelSize("vit_7b_patch16_dinov3.lvd1689m", patch=16),
        "sat_large": ModelSize("vit_large_patch16_dinov3.sat493m", patch=16),
        "sat_7b": ModelSize("vit_7b_patch16_dinov3.sat493m", patch=16),
    }

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename published tensors of timm or of the authors.

        The authors' files have biases of queries and values, which timm's model lacks: they must be
        0.
        """
        for name, bias in tensors.items():
            if name.endswith("attn.qkv.bias"):
                queries, _, values = bias.chunk(3)
                if queries.any() or values.any():
                    raise ValueError(f"{name} is not 0, but this size has no such bias")
        return super().translate(tensors)
