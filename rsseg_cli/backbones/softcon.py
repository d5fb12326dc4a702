"""SoftCon (Wang et al. 2024, arXiv 2405.20462): DINOv2 further trained on Sentinel-2 or Sentinel-1.

Kernels are for the 13 bands of Sentinel-2 (L1C, with B10) or, in `sar_` sizes, the two of
Sentinel-1. Files are those of the authors, which torchgeo uses too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from rsseg_cli.backbones._resize import PositionRule
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError

OPTICAL_NM: Mapping[str, float] = {
    "B1": 440.0, "B2": 490.0, "B3": 560.0, "B4": 665.0, "B5": 705.0, "B6": 740.0, "B7": 783.0,
    "B8": 842.0, "B8A": 860.0, "B9": 940.0, "B10": 1370.0, "B11": 1610.0, "B12": 2190.0,
}  # fmt: skip
"""Bands of Sentinel-2 in the order of the kernel, with their centres."""
RADAR = ("vv", "vh")
"""Bands of Sentinel-1 in the order of the kernel."""
SPREAD = 2.0
"""The range of mean -+ 2 standard deviations is scaled to 0..1 and clipped, as in pretraining."""


def _size(model: str, file: str, channels: int) -> ModelSize:
    source = WeightsSource(
        file,
        license="CC-BY-4.0",
        repository="wangyi111/softcon",
        revision="bae909781911f8ec034b4b959992fae17b973c0c",
    )
    return ModelSize(
        f"vit_{model}_patch14_dinov2.lvd142m", 14, source=source, side=16, channels=channels
    )


class Softcon(Vit):
    """DINOv2's blocks behind a kernel for many bands; the setting `adapt` has no effect.

    Each band uses the slice of the kernel nearest in wavelength, or for radar that of its name.
    """

    has_native_statistics: ClassVar[bool] = False

    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "small": _size("small", "B13_vits14_softcon_enc.pth", len(OPTICAL_NM)),
        "base": _size("base", "B13_vitb14_softcon_enc.pth", len(OPTICAL_NM)),
        "sar_small": _size("small", "B2_vits14_softcon_enc.pth", len(RADAR)),
        "sar_base": _size("base", "B2_vitb14_softcon_enc.pth", len(RADAR)),
    }

    def __init__(self, config: TimmBackbone.Config, bands: Bands) -> None:
        radar = config.name.startswith("softcon_sar_")
        self.slices = by_name(bands) if radar else by_wavelength(bands)
        super().__init__(config, bands)

    def adapt_patch_embed(self, mix: Tensor) -> None:
        """Select the bands' slices of the kernel, scaled by 13 / C or, for radar, 2 / C."""
        patches: nn.Conv2d = self.model.patch_embed.proj
        kernel = patches.weight.detach()
        selected = kernel[:, self.slices] * (kernel.shape[1] / len(self.slices))
        patches.weight = nn.Parameter(selected)
        patches.in_channels = len(self.slices)

    def renormalise(self, image: Tensor) -> Tensor:
        """Scale and clip a standardised image (B, C, H, W) to 0..1, as in pretraining."""
        return torch.clamp((image + SPREAD) / (2 * SPREAD), 0.0, 1.0)

    def authors_resize(self) -> PositionRule:
        """Return the rule of DINOv2's code, which the authors use."""
        return PositionRule(antialias=False, offset=0.1)

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the blocks of Copernicus-FM, which has the same authors."""
        return 3, 5, 7, 11


def by_wavelength(bands: Bands) -> list[int]:
    """Return for each band the index of the nearest Sentinel-2 band.

    Raises:
        RssegError: A band has no wavelength.
    """
    indices = []
    for name, centre in zip(bands.names, bands.wavelengths_nm, strict=True):
        if centre is None:
            raise RssegError(
                f"SoftCon needs the wavelength of every band, and {name} has none",
                where="bands of the dataset (wavelength_nm)",
                fix="wavelength_nm in the dataset's YAML, or another --backbone",
            )
        distances = [abs(centre - nominal) for nominal in OPTICAL_NM.values()]
        indices.append(distances.index(min(distances)))
    return indices


def by_name(bands: Bands) -> list[int]:
    """Return for each radar band the index of its name.

    Raises:
        RssegError: A band is not VV or VH.
    """
    lower = [name.lower() for name in bands.names]
    for name in lower:
        if name not in RADAR:
            raise RssegError(
                f"SoftCon's radar weights are for the bands vv and vh, not {name}",
                where="bands of the dataset",
                fix="name the bands vv and vh, or backbone softcon_small or softcon_base",
            )
    return [RADAR.index(name) for name in lower]
