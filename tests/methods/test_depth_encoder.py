"""The depth encoder: its files, what it is shown, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_vit
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands, Grid
from rsseg_cli.errors import RssegError
from rsseg_cli.methods._token import depth_encoder
from rsseg_cli.methods._token.depth_encoder import DepthBranch, DepthEncoder, DepthState
from rsseg_cli.methods.depthforge import DepthForge
from rsseg_cli.methods.spectralmoe import SpectralMoe

BANDS = Bands(
    names=("nir", "red", "green", "blue"),
    wavelengths_nm=(830.0, 665.0, 560.0, 490.0),
    mean=(110.0, 85.0, 88.0, 82.0),
    std=(72.0, 65.0, 63.0, 61.0),
    dtype="uint8",
)


def tiny(bands: Bands = BANDS) -> Vit:
    return tiny_vit(bands)


@pytest.fixture(scope="module")
def depth_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small Depth Anything of transformers with random weights, and its file."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518,
        patch_size=14, out_indices=[3, 6, 9, 12], reshape_hidden_states=False,
    )  # fmt: skip
    settings = {"reassemble_hidden_size": 384, "neck_hidden_sizes": [8, 8, 8, 8]}
    torch.manual_seed(0)
    network = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(backbone_config=backbone, fusion_hidden_size=8, **settings)
    ).eval()
    with torch.no_grad():
        for parameter in network.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    folder = tmp_path_factory.mktemp("depth")
    network.save_pretrained(folder)
    return network, folder / "model.safetensors"


def blocks_of(encoder: DepthEncoder, image: Tensor) -> list[Tensor]:
    tokens, grid = encoder.embed(image)
    outputs = []
    for index in range(encoder.depth):
        tokens = encoder.run(index, tokens, grid)
        outputs.append(tokens)
    return outputs


def load(path: Path) -> DepthEncoder:
    config = DepthEncoder.Config(name="dinov2_small", weights=path, stats="data")
    return DepthEncoder(config, depth_encoder.RGB)


def test_equals_the_encoder_in_transformers(depth_network: tuple[Any, Path]) -> None:
    network, path = depth_network
    image = torch.randn(1, 3, 518, 518)  # the size of its positions: nothing is resampled
    with torch.no_grad():
        expected = network.backbone(image, output_hidden_states=True).hidden_states[1:]
        found = blocks_of(load(path), image)
    assert len(found) == len(expected) == 12
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("prefix", ["pretrained.", "pipeline.pretrained."])
def test_reads_the_authors_files(
    prefix: str, depth_network: tuple[Any, Path], tmp_path: Path
) -> None:
    encoder = load(depth_network[1])
    tensors = {f"{prefix}{n}": t.contiguous() for n, t in encoder.model.state_dict().items()}
    tensors[f"{prefix}mask_token"] = torch.zeros(1, 384)
    tensors[f"{prefix.removesuffix('pretrained.')}depth_head.weight"] = torch.zeros(3)
    path = tmp_path / "depth.safetensors"
    save_file(tensors, path)
    image = torch.randn(1, 3, 28, 42)
    for ours, theirs in zip(blocks_of(load(path), image), blocks_of(encoder, image), strict=True):
        assert torch.equal(ours, theirs)


def test_a_file_without_an_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"depth_head.weight": torch.zeros(3)}, path)
    with pytest.raises(RssegError, match="not for dinov2_small"):
        load(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_sees_the_named_bands_as_the_network_was_trained(dtype: str) -> None:
    view = DepthBranch("random", None, tiny(BANDS.model_copy(update={"dtype": dtype})))
    raw = torch.rand(2, 4, 24, 40) * 255
    standard = (raw - torch.tensor(BANDS.mean)[:, None, None]) / torch.tensor(BANDS.std)[
        :, None, None
    ]
    rgb = standard[:, [1, 2, 3]] / 4 + 0.5 if dtype == "uint16" else raw[:, [1, 2, 3]] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (rgb.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]
    normal = F.interpolate(normal, (3 * 14, 5 * 14), mode="bilinear", antialias=True)
    state = DepthState(Grid(3, 5))
    view.begin(standard, state)
    expected, grid = view.encoder.embed(normal)
    assert (grid.h, grid.w) == (3, 5)
    assert state.depth_tokens is not None
    assert torch.allclose(state.depth_tokens, expected, atol=1e-4)


def test_one_forward_per_image_and_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny()
    method = SpectralMoe(SpectralMoe.Config(depth="random", tokens=8, rank=2), backbone)
    assert method.depth_branch is not None
    encoder, ran = method.depth_branch.encoder, []
    run = encoder.run
    monkeypatch.setattr(encoder, "run", lambda index, *rest: ran.append(index) or run(index, *rest))
    state = method.begin(torch.randn(2, 4, 16, 16), Grid(2, 2))
    tokens = torch.randn(2, 5, 64, requires_grad=True)
    for index in range(backbone.depth):
        tokens = method.after_block(index, tokens, state)
        assert state.depth_tokens is not None
        assert not state.depth_tokens.requires_grad
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [SpectralMoe, DepthForge])
def test_no_red_green_blue_is_refused(kind: Any) -> None:
    for waves in ((830.0, 1600.0, 2200.0, 12_000.0), (None,) * 4):
        bands = BANDS.model_copy(update={"wavelengths_nm": waves})
        with pytest.raises(RssegError, match="red, green and blue") as caught:
            kind(kind.Config(depth="random"), tiny(bands))
        assert "method.depth=off" in caught.value.fix
        kind(kind.Config(depth="off"), tiny(bands))


def test_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, file: str) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(depth_encoder, "hf_hub_download", offline)
    with pytest.raises(RssegError, match=r"prompt_depth_anything_large.*no network") as caught:
        SpectralMoe(SpectralMoe.Config(), tiny())
    assert "depth-anything/prompt-depth-anything-vitl-hf" in caught.value.where
    assert "method.depth=off" in caught.value.fix
    assert "method.depth_weights" in caught.value.fix


def test_an_encoder_of_another_size_is_refused(depth_network: tuple[Any, Path]) -> None:
    config = SpectralMoe.Config(depth="depth_anything_v2_small", depth_weights=depth_network[1])
    with pytest.raises(RssegError, match=r"12 blocks of width 384.*4 of width 64"):
        SpectralMoe(config, tiny())


def test_a_model_knows_its_depth_weights() -> None:
    backbone = tiny()
    method = SpectralMoe(SpectralMoe.Config(depth="random", tokens=8, rank=2), backbone)
    packed = method.adapter_state(backbone)
    method.load_adapter_state(packed, backbone)
    assert method.depth_branch is not None
    method.depth_branch.encoder.origin = {**method.depth_branch.encoder.origin, "sha256": "another"}
    with pytest.raises(RssegError, match="not those that the model was trained with"):
        method.load_adapter_state(packed, backbone)
