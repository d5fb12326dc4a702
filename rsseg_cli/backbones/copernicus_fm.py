"""Copernicus-FM (Wang et al. 2025, arXiv 2503.11849): kernels from centre and width of each band.

It succeeds DOFA. Files are those of torchgeo or of the authors. The full model adds embeddings of
location, time and patch area to all tokens, with learned tokens for unknown values. Location and
time differ between the scenes of a model and are always unknown here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.backbones._dynamic_patch_embed import (
    NO_HEAD,
    WIDTH,
    DynamicPatchEmbed,
    load_submodule,
    require_known,
)
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted

CENTRES_NM = (1e2, 1e9)
"""Range of wavelengths, from ultraviolet to radio."""
WIDTHS_NM = (1.0, 1e9)
"""Range of bandwidths."""
AREAS_KM2 = (1e-3, 5.1e8)
"""Range of patch areas, up to that of the earth."""
METADATA = ("coord", "scale", "time")
"""Kinds of metadata: location, area of a patch, time."""


class CopernicusFm(DynamicPatchEmbed):
    """Kernels from centres and widths of the bands in nanometres, radar included.

    Products without wavelengths (elevation, air pollution) are not supported: for these the full
    model encodes names with a language model.
    """

    class Config(TimmBackbone.Config):
        """Choice of the model, and metadata of bands and imagery."""

        bandwidths_nm: tuple[float, ...] | None = None
        """Width of each band; None uses those of the dataset."""
        gsd_m: float | None = Field(default=None, gt=0)
        """Ground sampling distance, for the area of a patch; None if unknown."""

    name_words = 2
    title = "Copernicus-FM"
    generator_prefix = "patch_embed_spectral."
    unused_prefixes = (
        "patch_embed_variable.", "head.", "fc_norm.", "norm.",
        *(f"{kind}_{suffix}" for kind in METADATA for suffix in ("fc.", "token")),
    )  # fmt: skip
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize(
            "vit_base_patch16_224.mae",
            patch=16,
            changes=NO_HEAD,
            source=WeightsSource(
                file="CopernicusFM_ViT_base_varlang-085350e4.pth",
                license="CC-BY-4.0",
                repository="torchgeo/copernicus-fm",
                revision="f395812cc990ba25a451dbb9c9e6d95c8482947e",
            ),
        ),
    }

    def __init__(self, config: Config, bands: Bands) -> None:
        self.widths = _widths(config.bandwidths_nm, bands)
        self.area = _area_km2(config.gsd_m, config.patch or self.sizes["base"].patch)
        super().__init__(config, bands)
        self.origin = {**self.origin, "bandwidths_nm": [*self.widths], "gsd_m": config.gsd_m}

    def encode_bands(self, bands: Bands) -> Tensor:
        """Compute the sum of the codes of centre and width: (C, 128)."""
        centres = require_known(self.title, "wavelength", bands, bands.wavelengths_nm)
        _check("wavelength", centres, CENTRES_NM, bands)
        _check("bandwidth", self.widths, WIDTHS_NM, bands)
        return fourier(centres, CENTRES_NM, WIDTH) + fourier(self.widths, WIDTHS_NM, WIDTH)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename published tensors, and add the metadata embedding to the positions."""
        encoder = MetadataEncoder(self.generator.dim)
        names = tuple(f"{kind}_" for kind in METADATA)
        load_submodule(encoder, {name: t for name, t in tensors.items() if name.startswith(names)})
        translated = super().translate(tensors)
        translated["pos_embed"] = translated["pos_embed"] + encoder(self.area)
        return translated

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the blocks of the authors' segmentation model."""
        return 3, 5, 7, 11


class MetadataEncoder(nn.Module):
    """Additive embedding of metadata; parameters are named as in the files."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for kind in METADATA:
            self.add_module(f"{kind}_fc", nn.Linear(dim, dim))
            self.register_parameter(f"{kind}_token", nn.Parameter(torch.zeros(1, 1, dim)))

    @torch.no_grad()
    def forward(self, area: float | None) -> Tensor:
        """Compute the embedding (1, 1, D) from the area of a patch in square kilometres."""
        codes = {kind: self.get_parameter(f"{kind}_token").detach() for kind in METADATA}
        if area is not None:
            codes["scale"] = fourier([area], AREAS_KM2, codes["scale"].shape[-1])[None]
        terms = [self.get_submodule(f"{kind}_fc")(code) for kind, code in codes.items()]
        embedding: Tensor = terms[0] + terms[1] + terms[2]
        return embedding


def fourier(values: list[float], span: tuple[float, float], width: int) -> Tensor:
    """Encode numbers (C,) by sines, then cosines, with periods in the range `span`: (C, width).

    Computed in double precision: the longest period is 10 million times the shortest.
    """
    low, high = (math.log10(end) for end in span)
    periods = 10.0 ** torch.linspace(low, high, width // 2, dtype=torch.float64)
    angles = torch.tensor(values, dtype=torch.float64)[:, None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def _widths(setting: tuple[float, ...] | None, bands: Bands) -> list[float]:
    if setting is None:
        known = bands.bandwidths_nm or (None,) * len(bands)
        return require_known(CopernicusFm.title, "bandwidth", bands, known)
    if len(setting) != len(bands):
        raise RssegError(
            f"{counted(len(setting), 'bandwidth')} for {counted(len(bands), 'band')} "
            f"({' '.join(bands.names)})",
            where="backbone.bandwidths_nm",
            fix="one for each band",
        )
    return list(setting)


def _check(quantity: str, values: list[float], span: tuple[float, float], bands: Bands) -> None:
    low, high = span
    for name, value in zip(bands.names, values, strict=True):
        if not low <= value <= high:
            raise RssegError(
                f"the {quantity} of {name} is {value:g} nm, outside {low:g}..{high:g}",
                where=f"bands of the dataset ({quantity}_nm)",
                fix="nanometres",
            )


def _area_km2(gsd_m: float | None, patch: int) -> float | None:
    if gsd_m is None:
        return None
    area = (gsd_m * patch / 1000) ** 2
    if not AREAS_KM2[0] <= area <= AREAS_KM2[1]:
        raise RssegError(
            f"a patch of {gsd_m * patch:g} m is smaller or larger than Copernicus-FM supports",
            where="backbone.gsd_m",
            fix="leave it out: the area is then unknown",
        )
    return area
