"""DOFA (Xiong et al. 2024, arXiv 2403.15356): patch kernels generated from wavelengths.

Files are those of torchgeo 0.8 and later; older ones have another order of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rsseg_cli.backbones._dynamic_patch_embed import (
    NO_HEAD,
    WIDTH,
    DynamicPatchEmbed,
    require_known,
)
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.contract import Bands


def _size(model: str, file: str) -> ModelSize:
    source = WeightsSource(
        file,
        license="CC-BY-4.0",
        repository="torchgeo/dofa",
        revision="b8db318b64a90b9e085ec04ba8851233c5893666",
    )
    return ModelSize(model, patch=16, changes=NO_HEAD, source=source)


class Dofa(DynamicPatchEmbed):
    """Kernels from the centre wavelengths of the bands."""

    title = "DOFA"
    generator_prefix = "patch_embed."
    unused_prefixes = ("head.", "fc_norm.", "norm.")
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": _size("vit_base_patch16_224.mae", "dofa_base_patch16_224-a0275954.pth"),
        "large": _size("vit_large_patch16_224.mae", "dofa_large_patch16_224-0ff904d3.pth"),
    }

    def encode_bands(self, bands: Bands) -> Tensor:
        """Encode the centres in nanometres, which the authors compute from micrometres.

        Sines of hundreds of radians depend on the last bit of a float32.
        """
        centres = require_known(self.title, "wavelength", bands, bands.wavelengths_nm)
        return encode(torch.tensor([nm / 1000 for nm in centres], dtype=torch.float32) * 1000)


def encode(values: Tensor) -> Tensor:
    """Encode numbers (C,) by sines, then cosines, of 64 frequencies: (C, 128)."""
    half = WIDTH // 2
    powers = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values[:, None] * (1.0 / 10_000**powers)
    return torch.cat([angles.sin(), angles.cos()], 1)
