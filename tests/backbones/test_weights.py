"""Weights files: read as timm reads them, refused if another model's, named by content."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from rsseg_cli.backbones._timm import ModelSize, TimmBackbone
from rsseg_cli.backbones.dinov2 import Dinov2
from rsseg_cli.backbones.dinov3 import Dinov3
from rsseg_cli.backbones.eva02 import Eva02
from rsseg_cli.backbones.sam import Sam
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands, fingerprint
from rsseg_cli.errors import RssegError, UnreadableError

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
WINDOWS = {**SMALL, "window_size": 3, "global_attn_indexes": (1,)}
FAMILIES: dict[str, tuple[type[TimmBackbone], ModelSize]] = {
    "vit": (Vit, ModelSize("vit_small_patch16_224.augreg_in21k", 16, SMALL)),
    "dinov2": (Dinov2, ModelSize("vit_small_patch14_dinov2.lvd142m", 14, SMALL)),
    "dinov2_reg": (Dinov2, ModelSize("vit_small_patch14_reg4_dinov2.lvd142m", 14, SMALL)),
    "dinov3": (Dinov3, ModelSize("vit_small_patch16_dinov3.lvd1689m", 16, SMALL)),
    "eva02": (Eva02, ModelSize("eva02_base_patch14_224.mim_in22k", 14, SMALL)),
    "sam": (Sam, ModelSize("samvit_base_patch16.sa1b", 16, WINDOWS)),
}
RGB = Bands(
    names=("red", "green", "blue"),
    wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(120.0, 110.0, 100.0),
    std=(40.0, 30.0, 20.0),
    dtype="uint8",
)


def published(case: str) -> dict[str, Tensor]:
    """Return random tensors with the names of the family's file, classifier or neck included."""
    size = FAMILIES[case][1]
    torch.manual_seed(3)
    model = timm.create_model(size.model, **size.changes)
    return {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}


def load(case: str, path: Path, bands: Bands = RGB, **settings: Any) -> TimmBackbone:
    family, size = FAMILIES[case]
    kind = type("Small", (family,), {"sizes": {"test": size}})
    backbone: TimmBackbone = kind(family.Config(name="small_test", weights=path, **settings), bands)
    return backbone


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    save_file(published("vit"), path)
    return path


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FAMILIES)
def test_the_published_tensors_arrive_unchanged(case: str, tmp_path: Path) -> None:
    tensors = published(case)
    torch.save(tensors, tmp_path / "weights.pth")
    save_file(tensors, tmp_path / "weights.safetensors")
    pth, safe = (load(case, tmp_path / f"weights.{kind}") for kind in ("pth", "safetensors"))
    for name, tensor in safe.model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
        assert torch.equal(tensor, pth.model.state_dict()[name])
    assert fingerprint(pth) == fingerprint(safe)
    assert safe.weights_are_public


@pytest.mark.parametrize("case", ["vit", "dinov2", "dinov2_reg", "dinov3", "eva02"])
def test_another_patch_is_resampled_as_timm_does(case: str, tmp_path: Path) -> None:
    path, size = tmp_path / "weights.safetensors", FAMILIES[case][1]
    save_file(published(case), path)
    backbone = load(case, path, patch=12)
    side = 12 * backbone.model.patch_embed.grid_size[0]
    expected = timm.create_model(
        size.model, pretrained=True, pretrained_cfg_overlay={"file": str(path)},
        patch_size=12, img_size=side, num_classes=0, **size.changes,
    )  # fmt: skip
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, backbone.model.state_dict()[name]), name


def test_sam_takes_another_patch_too(tmp_path: Path) -> None:
    save_file(published("sam"), tmp_path / "weights.safetensors")
    backbone = load("sam", tmp_path / "weights.safetensors", patch=8)
    assert backbone.model.patch_embed.proj.weight.shape == (32, 3, 8, 8)


def test_dinov2_under_its_authors_names(tmp_path: Path) -> None:
    """The original file has a mask token and keeps the class token's position with the others."""
    tensors = published("dinov2_reg")
    position = torch.randn(1, 1, 32)
    original = {name: t for name, t in tensors.items() if not name.startswith("head.")}
    original["register_tokens"] = original.pop("reg_token")
    original["pos_embed"] = torch.cat([position, tensors["pos_embed"]], 1)
    original["mask_token"] = torch.zeros(1, 32)
    torch.save(original, tmp_path / "dinov2.pth")
    model = load("dinov2_reg", tmp_path / "dinov2.pth").model
    torch.testing.assert_close(model.cls_token, tensors["cls_token"] + position)
    torch.testing.assert_close(model.pos_embed.data, tensors["pos_embed"])
    torch.testing.assert_close(model.reg_token.data, tensors["reg_token"])


def test_dinov3_under_its_authors_names(tmp_path: Path) -> None:
    """The original file has biases that are 0 where they count, and a mask that is not needed."""
    tensors = published("dinov3")
    original = {
        name.replace("reg_token", "storage_tokens")
        .replace("gamma_1", "ls1.gamma")
        .replace("gamma_2", "ls2.gamma"): tensor
        for name, tensor in tensors.items()
    }
    bias = torch.zeros(96)
    bias[32:64] = 7.0  # of keys: masked in the original
    original |= {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.zeros(4)}
    original |= {f"blocks.{index}.attn.qkv.bias": bias.clone() for index in range(2)}
    torch.save(original, tmp_path / "dinov3.pth")
    model = load("dinov3", tmp_path / "dinov3.pth").model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    original["blocks.1.attn.qkv.bias"][0] = 1.0
    torch.save(original, tmp_path / "biased.pth")
    assert "blocks.1.attn.qkv.bias is not 0" in refused("dinov3", tmp_path / "biased.pth").what


def test_the_kernel_is_fitted_to_the_bands(vit_file: Path) -> None:
    bands = Bands(
        names=("nir", "red", "green", "blue"), wavelengths_nm=(830.0, 660.0, 560.0, 485.0),
        mean=(0.0,) * 4, std=(1.0,) * 4, dtype="uint8",
    )  # fmt: skip
    kernel = load("vit", vit_file, bands).model.patch_embed.proj.weight
    expected = published("vit")["patch_embed.proj.weight"]
    torch.testing.assert_close(kernel[:, 1:], expected * 0.75)
    torch.testing.assert_close(kernel[:, 0], expected.mean(1) * 0.75)
    assert load("vit", vit_file, bands).embed(torch.zeros(1, 4, 32, 48))[0].shape == (1, 7, 32)


def test_native_statistics_reach_the_patches(vit_file: Path) -> None:
    """An image of 8-bit value 128 looks to the weights as it did in their own training."""
    backbone = load("vit", vit_file)
    mean, std = torch.tensor(RGB.mean), torch.tensor(RGB.std)
    image = ((128 - mean) / std)[None, :, None, None].expand(1, 3, 16, 16)
    own = (128 / 255 - 0.5) / 0.5  # this family was trained with mean and std of 0.5
    torch.testing.assert_close(backbone.renormalise(image), torch.full((1, 3, 16, 16), own))
    assert backbone.origin["stats"] == "native"
    data = load("vit", vit_file, stats="data")
    assert torch.equal(data.renormalise(image), image)
    seen, expected = backbone.embed(image)[0], data.embed(torch.full_like(image, own))[0]
    torch.testing.assert_close(seen, expected)


# --- refusing -------------------------------------------------------------------------------------


def refused(case: str, path: Path, **settings: Any) -> RssegError:
    with pytest.raises(RssegError) as caught:
        load(case, path, **settings)
    assert str(path) in caught.value.where
    assert caught.value.fix
    return caught.value


def test_a_file_of_another_model(tmp_path: Path) -> None:
    tensors = published("vit")
    del tensors["blocks.1.norm1.weight"]
    tensors["blocks.1.gamma"] = torch.zeros(3)
    tensors["blocks.0.mlp.fc1.bias"] = torch.zeros(7)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    what = refused("vit", path).what
    assert "1 missing (blocks.1.norm1.weight)" in what
    assert "1 unknown (blocks.1.gamma)" in what
    assert "1 of another shape (blocks.0.mlp.fc1.bias 7 instead of 128)" in what


@pytest.mark.parametrize("case", ["dinov2", "dinov3", "eva02", "sam"])
def test_a_plain_vit_is_nothing_else(case: str, vit_file: Path) -> None:
    assert "these weights are not for" in refused(case, vit_file).what


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def test_a_pickle_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "more": Harmful()}, tmp_path / "harmful.pth")
    assert isinstance(refused("vit", tmp_path / "harmful.pth"), UnreadableError)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors here", pickle.dumps([1, 2])])
def test_a_file_that_holds_no_tensors(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert isinstance(refused("vit", tmp_path / name), UnreadableError)


@pytest.mark.parametrize("saved", [{}, [1, 2], {"state_dict": {}}, {"epoch": 3, "name": "x"}])
def test_a_pth_without_named_tensors(saved: Any, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "odd.pth")
    refused("vit", tmp_path / "odd.pth")


def test_a_truncated_file(vit_file: Path, tmp_path: Path) -> None:
    for name in ("half.safetensors", "half.pth"):
        (tmp_path / name).write_bytes(vit_file.read_bytes()[:1000])
        assert isinstance(refused("vit", tmp_path / name), UnreadableError)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "not there" in refused("vit", tmp_path / "no.safetensors").what
    assert "not there" in refused("vit", tmp_path).what


def test_weights_and_no_weights_at_once(vit_file: Path) -> None:
    with pytest.raises(RssegError, match="at once"):
        load("vit", vit_file, pretrained=False)


@pytest.mark.parametrize(
    ("family", "name", "licence"),
    [(Dinov3, "dinov3_sat_large", "dinov3-license"), (Dinov2, "dinov2_small", "apache-2.0")],
)
def test_no_network_and_no_cache(
    family: type[TimmBackbone], name: str, licence: str, tmp_path: Path, offline: None
) -> None:
    with pytest.raises(RssegError) as caught, torch.device("meta"):
        family(family.Config(name=name), RGB)
    repository = f"timm/{family.sizes[name.partition('_')[2]].model}"
    assert repository in caught.value.what
    assert f"huggingface.co/{repository}" in caught.value.where
    assert licence in caught.value.where
    assert "--weights FILE" in caught.value.fix


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


# --- fingerprints ---------------------------------------------------------------------------------


def test_a_fingerprint_names_content_and_fitting(vit_file: Path, tmp_path: Path) -> None:
    first = fingerprint(load("vit", vit_file))
    moved = vit_file.rename(tmp_path / "moved.safetensors")
    assert fingerprint(load("vit", moved)) == first
    tensors = published("vit")
    tensors["cls_token"][0, 0, 0] += 1e-6
    save_file(tensors, tmp_path / "nearly.safetensors")
    others = [
        fingerprint(load("vit", tmp_path / "nearly.safetensors")),
        fingerprint(load("vit", moved, patch=8)),
        fingerprint(load("vit", moved, adapt="mean")),
        fingerprint(load("vit", moved, stats="data")),
    ]
    assert len({first, *others}) == 5


def test_training_does_not_change_a_fingerprint(vit_file: Path) -> None:
    backbone = load("vit", vit_file)
    before = fingerprint(backbone)
    torch.nn.init.zeros_(backbone.model.cls_token)
    assert fingerprint(backbone) == before


TINY = """
from rsseg_cli.contract import fingerprint
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Bands
bands = Bands(names=("x",), wavelengths_nm=(None,), mean=(0.0,), std=(1.0,), dtype="uint8")
print(fingerprint(Vit(Vit.Config(name="vit_tiny", seed=4), bands)))
"""


def test_random_weights_have_one_fingerprint_on_every_processor() -> None:
    """Without vector units the last bits of random numbers differ."""
    plain = subprocess.run(
        [sys.executable, "-c", TINY],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
    ).stdout.strip()
    bands = RGB.model_copy(update={"names": ("x",), "wavelengths_nm": (None,)})
    here, other = (Vit(Vit.Config(name="vit_tiny", seed=seed), bands) for seed in (4, 5))
    assert fingerprint(here) == plain
    assert fingerprint(other) != plain
    assert not here.weights_are_public
