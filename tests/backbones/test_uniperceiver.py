"""Uni-Perceiver's encoder against one written with torch's own layers, from a file like theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import UNIT_RGB as BANDS
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg_cli.backbones import uniperceiver
from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.uniperceiver import Uniperceiver
from rsseg_cli.errors import RssegError

DIM, DEPTH, HEADS = 32, 3, 4
LARGE = Uniperceiver.sizes["large"]


class Small(Uniperceiver):
    """Narrow and short, else the same."""

    sizes = {  # noqa: RUF012 - overrides a ClassVar
        "test": ModelSize(
            LARGE.model,
            LARGE.patch,
            {**LARGE.changes, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS},
            source=LARGE.source,
        )
    }


def published(*, scales: bool = True) -> dict[str, Tensor]:
    """Tensors with the names and shapes of the published file, all of them random."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual_embed.patch_embed.proj.weight": (DIM, 3, 16, 16),
        "visual_embed.patch_embed.proj.bias": (DIM,),
        "visual_embed.patch_embed.spatial_pos_embed.weight": (196, DIM),
        "visual_embed.patch_embed.temporal_pos_embed.weight": (8, DIM),
        "visual_embed.embeddings_norm.weight": (DIM,),
        "visual_embed.embeddings_norm.bias": (DIM,),
        "token_embed.embeddings.weight": (50, DIM),
    }
    for block in range(DEPTH):
        inside: dict[str, tuple[int, ...]] = {
            "self_attn.in_proj.weight": (3 * DIM, DIM),
            "self_attn.in_proj.bias": (3 * DIM,),
            "self_attn.out_proj.weight": (DIM, DIM),
            "self_attn.out_proj.bias": (DIM,),
            "linear1.weight": (4 * DIM, DIM),
            "linear1.bias": (4 * DIM,),
            "linear2.weight": (DIM, 4 * DIM),
            "linear2.bias": (DIM,),
            "norm1.weight": (DIM,),
            "norm1.bias": (DIM,),
            "norm2.weight": (DIM,),
            "norm2.bias": (DIM,),
        }
        if scales:
            inside |= {"gamma_1": (DIM,), "gamma_2": (DIM,)}
        shapes |= {f"layers.{block}.{name}": shape for name, shape in inside.items()}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(s, generator=generator) * 0.2 for name, s in shapes.items()}


def layer(tensors: dict[str, Tensor], prefix: str, module: nn.Module) -> Any:
    """Load the tensors below a prefix into one of torch's layers."""
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    module.load_state_dict({name.replace("in_proj.", "in_proj_"): t for name, t in own.items()})
    return module.eval()


def encode(tensors: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """Return the tokens after the embedding and after each block, by the model's definition."""
    table = "visual_embed.patch_embed."
    patches = F.conv2d(
        image, tensors[f"{table}proj.weight"], tensors[f"{table}proj.bias"], stride=16
    )
    places = tensors[f"{table}spatial_pos_embed.weight"].T.reshape(1, DIM, 14, 14)
    places = F.interpolate(places, patches.shape[2:], mode="bicubic", align_corners=False)
    first = tensors[f"{table}temporal_pos_embed.weight"][0]
    tokens = (patches + places).flatten(2).transpose(1, 2) + first
    stream = [layer(tensors, "visual_embed.embeddings_norm.", nn.LayerNorm(DIM))(tokens)]
    one = torch.ones(DIM)
    for block in range(DEPTH):
        own = f"layers.{block}."
        attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        attention = layer(tensors, f"{own}self_attn.", attention)
        x = layer(tensors, f"{own}norm1.", nn.LayerNorm(DIM))(stream[-1])
        between = stream[-1] + tensors.get(f"{own}gamma_1", one) * attention(x, x, x)[0]
        x = layer(tensors, f"{own}norm2.", nn.LayerNorm(DIM))(between)
        x = F.gelu(layer(tensors, f"{own}linear1.", nn.Linear(DIM, 4 * DIM))(x))
        x = layer(tensors, f"{own}linear2.", nn.Linear(4 * DIM, DIM))(x)
        stream.append(between + tensors.get(f"{own}gamma_2", one) * x)
    return stream


def load(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Small:
    save_file(tensors, path / "file.safetensors")
    config = Small.Config(name="small_test", weights=path / "file.safetensors", **settings)
    return Small(config, BANDS)


@torch.no_grad()
@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("size", [(224, 224), (32, 48), (256, 240)])
def test_it_is_the_published_encoder(tmp_path: Path, scales: bool, size: tuple[int, int]) -> None:
    tensors = published(scales=scales)
    backbone = load(tmp_path, tensors, stats="data")
    image = torch.randn(1, 3, *size)
    tokens, grid = backbone.embed(image)
    assert (grid.h, grid.w, backbone.num_prefix_tokens) == (size[0] // 16, size[1] // 16, 0)
    expected = encode(tensors, image)
    assert torch.allclose(tokens, expected[0], atol=1e-4)
    for block in range(DEPTH):
        before, tokens = tokens, backbone.run(block, tokens, grid)
        assert torch.allclose(tokens, expected[block + 1], atol=1e-4)
        assert not torch.allclose(tokens, before, atol=0.05)  # no identity, with or without scales


def test_the_weights_want_the_statistics_of_imagenet(tmp_path: Path) -> None:
    bands = BANDS.model_copy(update={"mean": (90.0, 100.0, 95.0), "std": (50.0, 40.0, 45.0)})
    save_file(published(), tmp_path / "file.safetensors")
    config = Small.Config(name="small_test", weights=tmp_path / "file.safetensors")
    backbone = Small(config, bands)
    stored = torch.rand(1, 3, 16, 16) * 255
    standard = (stored - torch.tensor(bands.mean).view(3, 1, 1)) / torch.tensor(bands.std).view(
        3, 1, 1
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(backbone.renormalise(standard), (stored / 255 - mean) / std, atol=1e-4)


@pytest.mark.parametrize("case", ["other", "missing", "surplus", "shape"])
def test_wrong_files_are_refused(tmp_path: Path, case: str) -> None:
    tensors = published()
    if case == "other":
        tensors = {"patch_embed.proj.weight": torch.zeros(DIM, 3, 16, 16)}
    elif case == "missing":
        del tensors["layers.1.linear1.weight"]
    elif case == "surplus":
        tensors["layers.1.linear3.weight"] = torch.zeros(1)
    else:
        tensors["layers.1.linear1.weight"] = torch.zeros(2, 2)
    with pytest.raises(RssegError, match="these weights are not for small_test"):
        load(tmp_path, tensors)


def test_without_a_file_it_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def download(url: str, path: str, progress: bool) -> None:
        asked.append(url)
        torch.save(published(), path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first = Small(Small.Config(name="small_test"), BANDS)
    again = Small(Small.Config(name="small_test"), BANDS)
    assert asked == [uniperceiver.URL]
    assert first.weights_are_public
    assert first.origin == again.origin
    assert first.origin["source"] == uniperceiver.FILE


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(RssegError) as caught:
        Small(Small.Config(name="small_test"), BANDS)
    text = str(caught.value)
    assert "uni-perceiver-large" in text
    assert "--weights FILE" in text
    assert "Apache-2.0" in text
    assert "Name or service not known" in text


def test_random_numbers_on_purpose() -> None:
    backbone = Small(Small.Config(name="small_test", pretrained=False), BANDS)
    image = torch.randn(1, 3, 32, 32)
    tokens, grid = backbone.embed(image)
    assert not torch.allclose(backbone.run(0, tokens, grid), tokens, atol=0.01)
    assert not backbone.weights_are_public
