"""Copernicus-FM: its special parts written out band by band, its files, and bad input.

The trunk is timm's, which `test_backbones` holds; torchgeo's whole model agreed on random weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_dofa import encoder_layer, go_offline, random_trunk
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones._dynamic_patch_embed import WeightGenerator
from rsseg_cli.backbones.copernicus_fm import CopernicusFm, MetadataEncoder
from rsseg_cli.config import family
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.methods.frozen import Frozen

WAVES = (490.0, 665.0, 842.0, 5.0e7)
WIDTHS = (65.0, 30.0, 115.0, 1.0e9)


DIM = 48
PUBLISHED = CopernicusFm.sizes["base"]


class Small(CopernicusFm):
    """Narrow, else the same."""

    sizes = {  # noqa: RUF012 - overrides a ClassVar
        "base": replace(PUBLISHED, changes={**PUBLISHED.changes, "embed_dim": DIM, "num_heads": 4})
    }


def bands(
    waves: tuple[float | None, ...] = WAVES, widths: tuple[float | None, ...] = WIDTHS
) -> Bands:
    count = len(waves)
    return Bands(
        names=tuple(f"b{number}" for number in range(count)),
        wavelengths_nm=waves,
        mean=(100.0,) * count,
        std=(50.0,) * count,
        dtype="uint16",
        bandwidths_nm=widths,
    )


def code(value: float, low: float, high: float, width: int) -> Tensor:
    """Sines and cosines of periods at equal steps of their logarithm, in Python's own numbers."""
    half = width // 2
    numbers = []
    for wave in (math.sin, math.cos):
        for step in range(half):
            exponent = math.log10(low) + step / (half - 1) * math.log10(high / low)
            numbers.append(wave(2 * math.pi * value / 10**exponent))
    return torch.tensor(numbers)


def kernel_and_bias(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The recipe of the paper, one band after the other."""
    rows = [
        code(wave, 1e2, 1e9, 128) + code(width, 1.0, 1e9, 128)
        for wave, width in zip(WAVES, WIDTHS, strict=True)
    ]
    place = torch.stack(rows)
    hidden = F.relu(F.linear(place, parts["fclayer.w1.weight"], parts["fclayer.w1.bias"]))
    place = place + F.relu(F.linear(hidden, parts["fclayer.w2.weight"], parts["fclayer.w2.bias"]))
    stem = "weight_generator."
    tokens = torch.cat([parts[f"{stem}weight_tokens"], place, parts[f"{stem}bias_token"]])
    out = encoder_layer(parts, tokens)
    kernels = [
        F.linear(
            out[128 + band] + place[band],
            parts[f"{stem}fc_weight.weight"],
            parts[f"{stem}fc_weight.bias"],
        ).reshape(16, 16, DIM)
        for band in range(4)
    ]
    weight = torch.stack(kernels).permute(3, 0, 1, 2) * 0.01
    bias = F.linear(out[-1], parts[f"{stem}fc_bias.weight"], parts[f"{stem}fc_bias.bias"]) * 0.01
    return weight, bias


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """Tensors as in the published file, with random numbers, as the authors save them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        trunk = Small(Small.Config(name="copernicus_fm_base", pretrained=False), bands())
    tensors = random_trunk(trunk)
    for name, tensor in WeightGenerator(DIM, 16).state_dict().items():
        tensors[f"patch_embed_spectral.{name}"] = tensor + torch.randn_like(tensor) * 0.02
    for name, tensor in MetadataEncoder(DIM).state_dict().items():
        tensors[name] = torch.randn_like(tensor) * 0.1
    tensors["patch_embed_variable.language_proj.weight"] = torch.zeros(128, 2048)
    path = tmp_path_factory.mktemp("copernicus") / "CopernicusFM_ViT_base.pth"
    torch.save({"model": tensors}, path)
    return tensors, path


def load(path: Path, known: Bands | None = None, **settings: Any) -> CopernicusFm:
    config = Small.Config(name="copernicus_fm_base", weights=path, **settings)
    return Small(config, known or bands())


@pytest.mark.parametrize("gsd_m", [None, 10.0])
def test_embeds_as_the_recipe_says(
    published: tuple[dict[str, Tensor], Path], gsd_m: float | None
) -> None:
    tensors, path = published
    backbone, image = load(path, gsd_m=gsd_m), torch.randn(2, 4, 224, 224)
    stem = "patch_embed_spectral."
    parts = {name.removeprefix(stem): t for name, t in tensors.items() if name.startswith(stem)}
    weight, bias = kernel_and_bias(parts)
    patches = F.conv2d(image, weight, bias, stride=16, padding=1).flatten(2).mT
    places = tensors["pos_embed"]
    for what in ("coord", "scale", "time"):
        told = tensors[f"{what}_token"]
        if what == "scale" and gsd_m is not None:
            told = code((16 * gsd_m / 1000) ** 2, 1e-3, 5.1e8, DIM)
        places = places + F.linear(told, tensors[f"{what}_fc.weight"], tensors[f"{what}_fc.bias"])
    cls = (tensors["cls_token"] + places[:, :1]).expand(2, -1, -1)
    expected = torch.cat([cls, patches + places[:, 1:]], 1)
    tokens, grid = backbone.embed(image)
    assert (grid.h, grid.w, backbone.num_prefix_tokens) == (14, 14, 1)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    assert not hasattr(backbone, "maker")


def test_any_size_and_patch(published: tuple[dict[str, Tensor], Path]) -> None:
    backbone = load(published[1], patch=8, out_indices=(0,))
    backbone.depth = 1
    maps = backbone(torch.randn(1, 4, 24, 40), Frozen(Frozen.Config(), backbone)).maps
    assert maps[0].shape == (1, DIM, 3, 5)


def test_a_band_is_known_by_centre_and_width(published: tuple[dict[str, Tensor], Path]) -> None:
    image, order = torch.randn(1, 4, 32, 64), [2, 0, 3, 1]
    plain = load(published[1])
    turned = bands(tuple(WAVES[i] for i in order), tuple(WIDTHS[i] for i in order))
    found = load(published[1], turned).embed(image[:, order])[0]
    torch.testing.assert_close(found, plain.embed(image)[0], rtol=1e-4, atol=1e-4)
    wider = load(published[1], bandwidths_nm=(60.0, 30.0, 115.0, 1.0e9))
    assert not torch.allclose(wider.embed(image)[0], plain.embed(image)[0], atol=1e-4)
    assert wider.origin["bandwidths_nm"] == [60.0, 30.0, 115.0, 1.0e9]
    assert plain.origin["sha256"] == wider.origin["sha256"]


def test_facts(published: tuple[dict[str, Tensor], Path]) -> None:
    """The parts that are here and those that are not make the 139,452,544 of torchgeo's model."""
    with torch.device("meta"):
        parts = [WeightGenerator(768, 16), WeightGenerator(768, 16), MetadataEncoder(768)]
        trunk = CopernicusFm(
            CopernicusFm.Config(name="copernicus_fm_base", pretrained=False), bands()
        ).model
    counts = [sum(p.numel() for p in part.parameters()) for part in (*parts, trunk)]
    made = trunk.patch_embed.proj
    language, pooled = 2048 * 128 + 128, 2 * 768
    assert sum(counts) - made.weight.numel() - made.bias.numel() + language + pooled == 139_452_544
    backbone = load(published[1])
    assert backbone.out_indices == (3, 5, 7, 11)
    assert family("copernicus_fm_base") == "copernicus_fm"
    assert {block.norm1.eps for block in backbone.model.blocks} == {1e-6}


@pytest.mark.parametrize(
    ("settings", "known", "message"),
    [
        ({}, bands((490.0, None), (65.0, 30.0)), "wavelength of every band, and b1 have none"),
        ({}, bands((490.0, 560.0), (65.0, None)), "bandwidth of every band, and b1 have none"),
        ({}, bands((490.0, 560.0), ()), "bandwidth of every band, and b0, b1 have none"),
        ({}, bands((0.49, 560.0), (65.0, 35.0)), "wavelength of b0 is 0.49 nm, outside"),
        ({}, bands((490.0, 560.0), (65.0, 0.1)), "bandwidth of b1 is 0.1 nm, outside"),
        ({"bandwidths_nm": (65.0,)}, bands(), "1 bandwidth for 4 bands"),
        ({"gsd_m": 0.3}, bands(), "a patch of 4.8 m is smaller"),
        ({"stats": "native"}, bands(), "no native ones"),
        ({"patch": 2}, bands(), "at least 3 pixels"),
    ],
)
def test_bad_input(settings: dict[str, Any], known: Bands, message: str) -> None:
    with pytest.raises(RssegError, match=message):
        CopernicusFm(
            CopernicusFm.Config(name="copernicus_fm_base", pretrained=False, **settings), known
        )


def test_wrong_and_missing_files(
    published: tuple[dict[str, Tensor], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, _ = published
    for part in ("fclayer", "coord_fc", "blocks.3.mlp"):
        wrong = tmp_path / "wrong.pth"
        torch.save({n: t for n, t in tensors.items() if part not in n}, wrong)
        with pytest.raises(RssegError, match=rf"not for copernicus_fm_base: .*{part}"):
            load(wrong)
    with pytest.raises(UnreadableError):
        load(tmp_path / "absent.pth")
    go_offline(monkeypatch)
    with pytest.raises(RssegError, match=r"CopernicusFM_ViT_base.*no network") as caught:
        CopernicusFm(CopernicusFm.Config(name="copernicus_fm_base"), bands())
    assert "CC-BY-4.0" in caught.value.where


def test_unknown_size_names_the_known_one() -> None:
    with pytest.raises(RssegError) as caught:
        CopernicusFm(CopernicusFm.Config(name="copernicus_fm_large"), bands())
    assert "copernicus_fm_base" in caught.value.fix
