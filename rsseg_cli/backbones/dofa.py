"""DOFA (Xiong et al. 2024, arXiv 2403.15356): patch kernels made from the bands' wavelengths.

Files are those of torchgeo 0.8 and later; older ones order kernels otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from rsseg_cli.backbones._dynamic_patch_embed import PLAIN, WIDTH, DynamicPatchEmbed, require
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.contract import Bands


def _home(file: str) -> WeightsSource:
    return WeightsSource(
        page="https://huggingface.co/torchgeo/dofa",
        file=file,
        license="CC-BY-4.0",
        repository="torchgeo/dofa",
        revision="b8db318b64a90b9e085ec04ba8851233c5893666",
    )


class Dofa(DynamicPatchEmbed):
    """A band is its centre wavelength."""

    title = "DOFA"
    stem = "patch_embed."
    left_out = ("head.", "fc_norm.", "norm.")
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize(
            "vit_base_patch16_224.mae",
            patch=16,
            changes=PLAIN,
            home=_home("dofa_base_patch16_224-a0275954.pth"),
        ),
        "large": ModelSize(
            "vit_large_patch16_224.mae",
            patch=16,
            changes=PLAIN,
            home=_home("dofa_large_patch16_224-0ff904d3.pth"),
        ),
    }

    def coding(self, bands: Bands) -> Tensor:
        """Encode the centres in nanometres, by way of micrometres as the authors give them.

        Sines of hundreds of radians feel the last bit of a float32.
        """
        centres = require(self.title, "wavelength", bands, bands.wavelengths_nm)
        return encode(torch.tensor([nm / 1000 for nm in centres], dtype=torch.float32) * 1000)


def encode(waves: Tensor) -> Tensor:
    """Encode numbers (C,) by sines, then cosines, of 64 frequencies: (C, 128)."""
    half = WIDTH // 2
    powers = torch.arange(half, dtype=torch.float32, device=waves.device) / half
    angles = waves[:, None] * (1.0 / 10_000**powers)
    return torch.cat([angles.sin(), angles.cos()], 1)
