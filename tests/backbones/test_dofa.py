"""DOFA: kernels against the authors' recipe written out, files, positions, and bad input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones import _weights
from rsseg_cli.backbones._dynamic_patch_embed import WeightGenerator
from rsseg_cli.backbones._timm import TimmBackbone
from rsseg_cli.backbones.dofa import Dofa
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.methods.frozen import Frozen

WAVES = (830.0, 665.0, 560.0, 490.0)


def bands(waves: tuple[float | None, ...] = WAVES) -> Bands:
    count = len(waves)
    return Bands(
        names=tuple(f"b{number}" for number in range(count)),
        wavelengths_nm=waves,
        mean=(100.0,) * count,
        std=(50.0,) * count,
        dtype="uint8",
    )


def encoder_layer(parts: dict[str, Tensor], x: Tensor) -> Tensor:
    """A post-norm transformer layer with 4 heads, written out."""
    stem = "weight_generator.transformer_encoder.layers.0."
    part = {name.removeprefix(stem): t for name, t in parts.items() if name.startswith(stem)}
    q, k, v = F.linear(x, part["self_attn.in_proj_weight"], part["self_attn.in_proj_bias"]).chunk(
        3, -1
    )
    heads = []
    for head in range(4):
        own = slice(32 * head, 32 * (head + 1))
        heads.append((q[:, own] @ k[:, own].T / math.sqrt(32)).softmax(-1) @ v[:, own])
    attended = F.linear(
        torch.cat(heads, -1), part["self_attn.out_proj.weight"], part["self_attn.out_proj.bias"]
    )
    x = F.layer_norm(x + attended, (128,), part["norm1.weight"], part["norm1.bias"])
    hidden = F.gelu(F.linear(x, part["linear1.weight"], part["linear1.bias"]))
    answer = F.linear(hidden, part["linear2.weight"], part["linear2.bias"])
    return F.layer_norm(x + answer, (128,), part["norm2.weight"], part["norm2.bias"])


def kernels(parts: dict[str, Tensor], waves: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The recipe of the paper, band by band."""
    angles = torch.stack([waves * 10_000 ** (-i / 64) for i in range(64)], 1)
    place = torch.cat([angles.sin(), angles.cos()], 1)
    hidden = F.relu(F.linear(place, parts["fclayer.w1.weight"], parts["fclayer.w1.bias"]))
    place = place + F.relu(F.linear(hidden, parts["fclayer.w2.weight"], parts["fclayer.w2.bias"]))
    tokens = [parts["weight_generator.weight_tokens"], place, parts["weight_generator.bias_token"]]
    out = encoder_layer(parts, torch.cat(tokens))
    weight = torch.empty(dim, len(waves), 16, 16)
    for band in range(len(waves)):
        numbers = F.linear(
            out[128 + band] + place[band],
            parts["weight_generator.fc_weight.weight"],
            parts["weight_generator.fc_weight.bias"],
        )
        weight[:, band] = numbers.reshape(16, 16, dim).permute(2, 0, 1) * 0.01
    stem = "weight_generator.fc_bias."
    return weight, F.linear(out[-1], parts[f"{stem}weight"], parts[f"{stem}bias"]) * 0.01


def random_trunk(shaped: TimmBackbone) -> dict[str, Tensor]:
    """Random tensors of a network but for the embedding of its patches."""
    return {
        name: torch.randn(tensor.shape) * 0.02
        for name, tensor in shaped.model.state_dict().items()
        if not name.startswith("patch_embed.")
    }


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every download of weights fail."""

    def offline(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(_weights, "hf_hub_download", offline)


@pytest.fixture(scope="module", autouse=True)
def few_blocks() -> Iterator[None]:
    """Build the base size with 4 instead of 12 blocks: only its patch embedding is special."""
    base = Dofa.sizes["base"]
    small = replace(base, changes={**base.changes, "depth": 4})
    with patch.object(Dofa, "sizes", {**Dofa.sizes, "base": small}):
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    """Tensors as in the published file of the base size, with random numbers."""
    torch.manual_seed(0)
    with torch.device("meta"):
        trunk = Dofa(Dofa.Config(name="dofa_base", pretrained=False), bands())
    tensors = random_trunk(trunk)
    for name, tensor in WeightGenerator(768, 16).state_dict().items():
        tensors[f"patch_embed.{name}"] = tensor + torch.randn_like(tensor) * 0.02
    tensors["fc_norm.weight"] = torch.ones(768)
    path = tmp_path_factory.mktemp("dofa") / "dofa.pth"
    torch.save(tensors, path)
    return tensors, path


def load(path: Path, waves: tuple[float | None, ...] = WAVES, **settings: Any) -> Dofa:
    return Dofa(Dofa.Config(name="dofa_base", weights=path, **settings), bands(waves))


def test_embeds_as_the_recipe_says(published: tuple[dict[str, Tensor], Path]) -> None:
    tensors, path = published
    backbone, image = load(path), torch.randn(2, 4, 224, 224)
    parts = {
        name.removeprefix("patch_embed."): tensor
        for name, tensor in tensors.items()
        if name.startswith("patch_embed.")
    }
    weight, bias = kernels(parts, torch.tensor(WAVES), 768)
    patches = F.conv2d(image, weight, bias, stride=16, padding=1).flatten(2).mT
    places = tensors["pos_embed"]
    cls = (tensors["cls_token"] + places[:, :1]).expand(2, -1, -1)
    expected = torch.cat([cls, patches + places[:, 1:]], 1)
    tokens, grid = backbone.embed(image)
    assert (grid.h, grid.w, backbone.num_prefix_tokens) == (14, 14, 1)
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert not hasattr(backbone, "maker")


def test_a_band_is_known_by_its_wavelength_not_by_its_place(
    published: tuple[dict[str, Tensor], Path],
) -> None:
    image, order = torch.randn(1, 4, 32, 64), [2, 0, 3, 1]
    plain = load(published[1])
    other = load(published[1], tuple(WAVES[band] for band in order))
    found, expected = other.embed(image[:, order])[0], plain.embed(image)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert plain.origin["sha256"] == other.origin["sha256"]


def test_thirty_two_bands_and_any_size() -> None:
    waves = tuple(466.0 + 15 * number for number in range(32))
    backbone = Dofa(Dofa.Config(name="dofa_base", pretrained=False, out_indices=(0,)), bands(waves))
    backbone.depth = 1
    method = Frozen(Frozen.Config(), backbone)
    assert backbone(torch.randn(1, 32, 48, 80), method).maps[0].shape == (1, 768, 3, 5)


def test_another_patch_resamples_the_kernels(published: tuple[dict[str, Tensor], Path]) -> None:
    tokens, grid = load(published[1], patch=8).embed(torch.randn(1, 4, 32, 40))
    assert tokens.shape == (1, 1 + 20, 768)
    assert (grid.h, grid.w) == (4, 5)


def test_parameters_at_large() -> None:
    with torch.device("meta"):
        backbone = Dofa(Dofa.Config(name="dofa_large", pretrained=False), bands())
        maker = WeightGenerator(1024, 16)
    assert backbone.out_indices == (7, 11, 15, 23)
    assert sum(p.numel() for p in maker.parameters()) == 34_591_232
    assert backbone.model.patch_embed.proj.weight.shape == (1024, 4, 16, 16)


@pytest.mark.parametrize(
    ("settings", "waves", "message"),
    [
        ({}, (665.0, None, 490.0), "wavelength of every band, and b1 have none"),
        ({"stats": "native"}, WAVES, "no native ones"),
        ({"patch": 2}, WAVES, "at least 3 pixels"),
    ],
)
def test_bad_input(settings: dict[str, Any], waves: tuple[float | None, ...], message: str) -> None:
    with pytest.raises(RssegError, match=message):
        Dofa(Dofa.Config(name="dofa_base", pretrained=False, **settings), bands(waves))


def test_wrong_and_missing_files(
    published: tuple[dict[str, Tensor], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, _ = published
    wrong = tmp_path / "wrong.pth"
    torch.save({n: t for n, t in tensors.items() if "fclayer" not in n}, wrong)
    with pytest.raises(RssegError, match=r"not for dofa_base: .*fclayer"):
        load(wrong)
    with pytest.raises(UnreadableError):
        load(tmp_path / "absent.pth")
    go_offline(monkeypatch)
    with pytest.raises(RssegError, match=r"torchgeo/dofa/dofa_base_patch16_224.*no network"):
        Dofa(Dofa.Config(name="dofa_base"), bands())
