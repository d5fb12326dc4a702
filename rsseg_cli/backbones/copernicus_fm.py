"""Copernicus-FM (Wang et al. 2025, arXiv 2503.11849): kernels from centre and width of each band.

DOFA's successor. Files are torchgeo's or the authors'. What a model may also be told, place, day
and size of a patch, is added to all tokens alike; where nothing is known a learnt token stands in.
Place and day differ between the scenes that a model meets, so that they always count as unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from rsseg_cli.backbones._dynamic_patch_embed import (
    PLAIN,
    WIDTH,
    DynamicPatchEmbed,
    below,
    load_part,
    require,
)
from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones._weights import WeightsSource
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted
from rsseg_cli.settings import Json

CENTRES_NM = (1e2, 1e9)
"""Range of wavelengths, ultraviolet to radio."""
WIDTHS_NM = (1.0, 1e9)
"""Range of bandwidths."""
AREAS_KM2 = (1e-3, 5.1e8)
"""Range of a patch's area, up to that of the earth."""
METADATA = ("coord", "scale", "time")
"""Kinds of metadata: location, area of a patch, day."""


class CopernicusFm(DynamicPatchEmbed):
    """A band is its centre and its width, both in nanometres; radar has some too.

    The full model encodes non-optical products (elevation, air pollution) by name. That needs a
    language model, so that they are refused here.
    """

    class Config(TimmBackbone.Config):
        """What is known of bands and imagery."""

        bandwidths_nm: tuple[float, ...] | None = None
        """Width of each band; None takes what the dataset says."""
        gsd_m: float | None = Field(default=None, gt=0)
        """Size of a pixel on the ground, which makes the area of a patch; None: unknown."""

    name_words = 2
    title = "Copernicus-FM"
    stem = "patch_embed_spectral."
    left_out = (
        "patch_embed_variable.", "head.", "fc_norm.", "norm.",
        *(f"{what}_{part}" for what in METADATA for part in ("fc.", "token")),
    )  # fmt: skip
    sizes: ClassVar[Mapping[str, ModelSize]] = {
        "base": ModelSize(
            "vit_base_patch16_224.mae",
            patch=16,
            changes=PLAIN,
            home=WeightsSource(
                page="https://huggingface.co/torchgeo/copernicus-fm",
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
        widths: list[Json] = [*self.widths]
        self.origin = {**self.origin, "bandwidths_nm": widths, "gsd_m": config.gsd_m}

    def coding(self, bands: Bands) -> Tensor:
        """Sum the codes of centre and width."""
        centres = require(self.title, "wavelength", bands, bands.wavelengths_nm)
        _check("wavelength", centres, CENTRES_NM, bands)
        _check("bandwidth", self.widths, WIDTHS_NM, bands)
        return fourier(centres, CENTRES_NM, WIDTH) + fourier(self.widths, WIDTHS_NM, WIDTH)

    def translate(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add to the positions what is the same for all tokens: resizing leaves it as it is."""
        told = MetadataEncoder(self.maker.dim)
        load_part(told, {k: t for what in METADATA for k, t in _named(what, tensors).items()})
        translated = super().translate(tensors)
        translated["pos_embed"] = translated["pos_embed"] + told(self.area)
        return translated

    def default_out_indices(self) -> tuple[int, ...]:
        """Return the blocks of the authors' segmentation model."""
        return 3, 5, 7, 11


class MetadataEncoder(nn.Module):
    """Encodes metadata (location, scale, time) as an additive embedding; named as in the files."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        for what in METADATA:
            self.add_module(f"{what}_fc", nn.Linear(dim, dim))
            self.register_parameter(f"{what}_token", nn.Parameter(torch.zeros(1, 1, dim)))

    @torch.no_grad()
    def forward(self, area: float | None) -> Tensor:
        """Compute the embedding (1, 1, D) from the area of a patch in square kilometres."""
        total: Any = 0.0
        for what in METADATA:
            code: Tensor = self.get_parameter(f"{what}_token")
            if what == "scale" and area is not None:
                code = fourier([area], AREAS_KM2, code.shape[-1])[None]
            total = total + self.get_submodule(f"{what}_fc")(code)
        summand: Tensor = total
        return summand


def _named(what: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one kind of metadata."""
    return {f"{what}_{name}": t for name, t in below(f"{what}_", tensors).items()}


def fourier(values: list[float], span: tuple[float, float], width: int) -> Tensor:
    """Encode numbers (C,) by sines, then cosines, of periods from `span`: (C, width).

    In double precision: the longest period is ten million times the shortest.
    """
    low, high = (math.log10(end) for end in span)
    periods = 10.0 ** torch.linspace(low, high, width // 2, dtype=torch.float64)
    angles = torch.tensor(values, dtype=torch.float64)[:, None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def _widths(wanted: tuple[float, ...] | None, bands: Bands) -> list[float]:
    if wanted is None:
        known = bands.bandwidths_nm or (None,) * len(bands)
        return require(CopernicusFm.title, "bandwidth", bands, known)
    if len(wanted) != len(bands):
        raise RssegError(
            f"{counted(len(wanted), 'bandwidth')} for {counted(len(bands), 'band')} "
            f"({' '.join(bands.names)})",
            where="backbone.bandwidths_nm",
            fix="one for each band",
        )
    return list(wanted)


def _check(what: str, values: list[float], span: tuple[float, float], bands: Bands) -> None:
    low, high = span
    for name, value in zip(bands.names, values, strict=True):
        if not low <= value <= high:
            raise RssegError(
                f"the {what} of {name} is {value:g} nm, outside {low:g}..{high:g}",
                where=f"bands of the dataset ({what}_nm)",
                fix="nanometres",
            )


def _area_km2(gsd_m: float | None, patch: int) -> float | None:
    if gsd_m is None:
        return None
    area = (gsd_m * patch / 1000) ** 2
    if not AREAS_KM2[0] <= area <= AREAS_KM2[1]:
        raise RssegError(
            f"a patch of {gsd_m * patch:g} m is smaller or larger than Copernicus-FM has seen",
            where="backbone.gsd_m",
            fix="leave it out: the area then counts as unknown",
        )
    return area
