"""Galileo's inputs: bands of an image, weight files, and errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_galileo import LANDSAT, SENTINEL, bands, random, walk
from torch import Tensor

from rsseg_cli.backbones._galileo_bands import PUBLISHED, assign_groups
from rsseg_cli.backbones.galileo import Galileo
from rsseg_cli.contract import fingerprint
from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError


@pytest.mark.parametrize(
    ("centres", "groups"),
    [
        (SENTINEL, ["S2_RGB", "S2_Red_Edge", "S2_NIR_10m", "S2_NIR_20m", "S2_SWIR", "NDVI"]),
        (LANDSAT, ["S2_RGB", "S2_NIR_10m", "S2_SWIR", "NDVI"]),
        ({"n": 810.0, "r": 640.0, "g": 560.0, "b": 480.0}, ["S2_RGB", "S2_NIR_10m", "NDVI"]),
        ({"n": 842.0}, ["S2_NIR_10m"]),
        ({"s": 2200.0, "t": 1600.0}, ["S2_SWIR"]),
    ],
)
def test_groups_by_wavelength_whatever_the_order(
    centres: dict[str, float], groups: Sequence[str]
) -> None:
    turned = dict(reversed(centres.items()))
    for order in (centres, turned):
        assignment = assign_groups(bands(order))
        assert assignment.names == groups
        for slots in assignment.groups.values():
            for slot, index in slots.items():
                assert abs(list(order.values())[index] - SENTINEL[slot]) <= 60


def test_the_order_of_the_bands_does_not_matter() -> None:
    image = torch.randn(1, 6, 16, 16)
    names = list(LANDSAT)
    turned = [names.index(name) for name in sorted(names)]
    own = bands(LANDSAT)
    sorted_bands = bands(
        {name: LANDSAT[name] for name in sorted(names)},
        mean=tuple(own.mean[index] for index in turned),
        std=tuple(own.std[index] for index in turned),
    )
    found, expected = walk(random(sorted_bands), image[:, turned])[0], walk(random(own), image)[0]
    torch.testing.assert_close(found, expected)


def test_an_index_of_empty_pixels_is_0() -> None:
    empty = bands(LANDSAT, mean=(0.0,) * 6)
    inputs = dict(random(empty).inputs(torch.zeros(1, 6, 8, 8)))
    assert torch.equal(inputs["NDVI"], torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("centres", "unused"),
    [
        ({"nir": 842.0, "red": 665.0, "green": 560.0}, "green"),
        ({**LANDSAT, "pan": 590.0}, "pan"),
        ({"b": 490.0, "g": 560.0, "r": 665.0, "edge": 705.0}, "edge"),
    ],
)
def test_a_band_without_use_is_said(centres: dict[str, float], unused: str) -> None:
    with pytest.warns(RssegWarning, match=f"no use for {unused}:"):
        assign_groups(bands(centres))


@pytest.mark.parametrize(
    ("wavelengths", "problem"),
    [
        ((485.0, None, 660.0), "band b has no wavelength"),
        ((485.0, 560.0, 11450.0), "band c at 11450 nm lies outside every band group"),
        ((443.0, 945.0, 1375.0), "band a at 443 nm lies outside"),
        ((490.0, 495.0, 560.0), "complete no group"),
    ],
)
def test_bands_that_galileo_cannot_place(
    wavelengths: tuple[float | None, ...], problem: str
) -> None:
    own = bands({"a": 1.0, "b": 2.0, "c": 3.0}, wavelengths_nm=wavelengths)
    with pytest.raises(RssegError, match=problem) as caught:
        assign_groups(own)
    assert "dataset.yaml" in caught.value.where


def test_values_of_unknown_scale() -> None:
    with pytest.raises(RssegError, match="reflectance") as caught:
        random(bands(LANDSAT, scale=None))
    assert "scale: 1.0e-4" in caught.value.fix


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [0, 9, -1])
def test_a_patch_outside_1_to_8(patch: int) -> None:
    with pytest.raises(RssegError, match=f"patch {patch}") as caught:
        random(LANDSAT, patch=patch)
    assert caught.value.fix == "1..8"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published folder with random numbers in it."""
    own = random(SENTINEL)
    tensors = {**own.state_dict(), "space_embed.SRTM.proj.weight": torch.zeros(128, 2, 8, 8)}
    tensors["space_time_embed.S1.proj.weight"] = torch.zeros(128, 2, 8, 8)
    torch.save(tensors, tmp_path / "encoder.pt")
    encoder = {"embedding_size": 128, "depth": 4, "num_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps({"model": {"encoder": encoder}}))
    statistics = dict(zip(("mean", "std"), PUBLISHED, strict=True))
    (tmp_path / "normalization.json").write_text(json.dumps({"13": statistics}))
    return tmp_path


def load(folder: Path, **settings: Any) -> Galileo:
    settings = {"name": "galileo_nano", "weights": folder} | settings
    return Galileo(Galileo.Config(**settings), bands(LANDSAT))


def test_a_folder_and_its_file(folder: Path) -> None:
    first = load(folder)
    assert fingerprint(load(folder / "encoder.pt")) == fingerprint(first)
    assert fingerprint(load(folder, patch=4)) != fingerprint(first)
    (folder / "normalization.json").unlink()
    image = torch.randn(1, 6, 16, 16)
    torch.testing.assert_close(walk(load(folder), image), walk(first, image))


def change(folder: Path, name: str, content: Tensor | None) -> None:
    tensors = torch.load(folder / "encoder.pt", weights_only=True)
    if content is None:
        del tensors[name]
    else:
        tensors[name] = content
    torch.save(tensors, folder / "encoder.pt")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("norm.bias", None, r"1 missing \(norm.bias\)"),
        ("extra.bias", torch.zeros(2), r"1 unknown \(extra.bias\)"),
        ("blocks.0.attn.q.bias", torch.zeros(2), "of another shape"),
        ("space_time_embed.S2_RGB.proj.weight", torch.zeros(128, 4, 8, 8), "of another shape"),
    ],
)
def test_a_file_of_another_model(
    folder: Path, name: str, content: Tensor | None, problem: str
) -> None:
    change(folder, name, content)
    for patch in (8, 3):
        with pytest.raises(RssegError, match=problem) as caught:
            load(folder, patch=patch)
        assert caught.value.where == str(folder / "encoder.pt")


def test_another_size_than_the_name_says(folder: Path) -> None:
    with pytest.raises(RssegError, match="not for galileo_tiny"):
        load(folder, name="galileo_tiny")
    with pytest.raises(RssegError, match="galileo_nan is not a known backbone"):
        load(folder, name="galileo_nan")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", "[1]"),
        ("encoder.pt", None),
        ("encoder.pt", "not a pickle"),
        ("normalization.json", "{}"),
        ("normalization.json", '{"13": {"mean": [1], "std": [1]}}'),
        ("normalization.json", "nonsense"),
    ],
)
def test_files_that_are_missing_or_broken(folder: Path, name: str, content: str | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UnreadableError) as caught:
        load(folder)
    assert caught.value.where == str(folder / name)


def test_no_network_and_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RssegError, match="nasaharvest/galileo") as caught:
        Galileo(Galileo.Config(name="galileo_nano"), bands(LANDSAT))
    assert "--weights FILE" in caught.value.fix


def test_weights_and_no_weights_at_once(folder: Path) -> None:
    with pytest.raises(RssegError, match="at once"):
        load(folder, pretrained=False)
