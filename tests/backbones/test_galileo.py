"""Galileo: equal to its authors' outputs, band groups by wavelength, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from paths import SHARED
from torch import Tensor

from rsseg_cli.backbones._galileo_bands import CHANNELS, PUBLISHED
from rsseg_cli.backbones.galileo import Galileo
from rsseg_cli.contract import Bands, Grid, Method, Role, fingerprint

WEIGHTS = SHARED / "data" / "weights" / "galileo-nano"
real = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason=f"SKIPPED: Galileo's published weights are not in {WEIGHTS}"
)

LANDSAT = {
    "blue": 485.0, "green": 560.0, "red": 660.0, "nir": 835.0, "swir16": 1650.0, "swir22": 2220.0,
}  # fmt: skip
SENTINEL = {
    "B2": 490.0, "B3": 560.0, "B4": 665.0, "B5": 705.0, "B6": 740.0, "B7": 783.0, "B8": 842.0,
    "B8A": 865.0, "B11": 1610.0, "B12": 2190.0,
}  # fmt: skip


def bands(centres: dict[str, float], **changes: Any) -> Bands:
    settings: dict[str, Any] = {
        "names": tuple(centres),
        "wavelengths_nm": tuple(centres.values()),
        "mean": tuple(900.0 + 100 * index for index in range(len(centres))),
        "std": tuple(300.0 + 10 * index for index in range(len(centres))),
        "dtype": "uint16",
        "scale": 1e-4,
        "gsd_m": 10.0,
    }
    return Bands(**settings | changes)


def random(centres: dict[str, float] | Bands, **settings: Any) -> Galileo:
    own = bands(centres) if isinstance(centres, dict) else centres
    return Galileo(Galileo.Config(name="galileo_nano", pretrained=False, **settings), own)


def walk(backbone: Galileo, image: Tensor) -> tuple[list[Tensor], Grid]:
    """The raw tokens after each block."""
    with torch.no_grad():
        tokens, grid = backbone.embed(image)
        after = []
        for index in range(backbone.depth):
            tokens = backbone.run(index, tokens, grid)
            after.append(tokens)
    return after, grid


# --- the authors' outputs -------------------------------------------------------------------------


@real
@pytest.mark.parametrize("stored", [1.0, 1e-4, 0.5])
@pytest.mark.parametrize("patch", [8, 4])
@pytest.mark.parametrize(("groups", "count"), [("rgb_nir_swir_ndvi", 6), ("rgb", 3)])
@pytest.mark.parametrize("sensor", ["sentinel2", "landsat7"])
def test_equal_to_the_authors_outputs(
    sensor: str, groups: str, count: int, patch: int, stored: float
) -> None:
    """Whatever unit the values are stored in, and however they were standardised."""
    with np.load(WEIGHTS / "reference.npz") as reference:
        reflectance = reference[f"{sensor}_reflectance"][..., :count]
        expected = reference[f"{sensor}_patch{patch}_{groups}_tokens"]
        key = f"{sensor}_patch{patch}_{groups}_block1_raw"
        raw = reference.get(key)
    image = torch.from_numpy(reflectance / stored).permute(2, 0, 1)[None].double()
    mean, std = image.mean((0, 2, 3)), image.std((0, 2, 3))
    own = bands(
        dict(list(LANDSAT.items())[:count]),
        mean=tuple(mean.tolist()), std=tuple(std.tolist()), scale=stored,
    )  # fmt: skip
    backbone = Galileo(
        Galileo.Config(name="galileo_nano", weights=WEIGHTS, patch=patch, month=6), own
    )
    standardised = (image - mean[:, None, None]) / std[:, None, None]
    after, grid = walk(backbone, standardised.float())
    side = 64 // patch
    assert grid == Grid(side, side, 4 if count == 6 else 1)
    found = backbone.norm(after[-1]).detach().reshape(expected.shape)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert (raw is not None) == (patch == 8)
    if raw is not None:
        np.testing.assert_allclose(after[1][0].numpy(), raw, atol=1e-4)


@real
def test_built_in_statistics_are_the_published_ones() -> None:
    published = json.loads((WEIGHTS / "normalization.json").read_text())["13"]
    for ours, theirs in zip(PUBLISHED, (published["mean"], published["std"]), strict=True):
        assert len(ours) == len(CHANNELS)
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


@real
def test_a_part_of_a_wide_image_is_that_part() -> None:
    """Grids that are not square: places count from the corner, row and column each their own."""
    backbone = Galileo(Galileo.Config(name="galileo_nano", weights=WEIGHTS), bands(LANDSAT))
    wide, tall = backbone.encodings(Grid(2, 5, 4)), backbone.encodings(Grid(5, 2, 4))
    square = backbone.encodings(Grid(5, 5, 4))
    assert wide.shape == (2, 5, 4, 128)
    torch.testing.assert_close(wide, square[:2])
    torch.testing.assert_close(tall, square[:, :2])
    assert not torch.allclose(wide[:, :2], tall[:2].transpose(0, 1))


@real
def test_the_tuned_tensors_are_the_files() -> None:
    backbone = Galileo(Galileo.Config(name="galileo_nano", weights=WEIGHTS), bands(SENTINEL))
    stored = torch.load(WEIGHTS / "encoder.pt", weights_only=True, map_location="cpu")
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    whole_file = Galileo.Config(name="galileo_nano", weights=WEIGHTS / "encoder.pt")
    assert fingerprint(Galileo(whole_file, bands(SENTINEL))) == fingerprint(backbone)


# --- the contract ---------------------------------------------------------------------------------


class Untouched(Method[Any]):
    """Does nothing at all."""


@pytest.mark.parametrize("patch", range(1, 9))
def test_every_patch_on_a_grid_that_is_not_square(patch: int) -> None:
    backbone = random(LANDSAT, patch=patch)
    image = torch.randn(2, 6, 2 * patch, 3 * patch)
    features = backbone(image, Untouched(Method.Config(), backbone))
    assert [map_.shape for map_ in features.maps] == [(2, 128, 2, 3)] * 4
    after, grid = walk(backbone, image)
    assert grid == Grid(2, 3, 4)
    by_hand = after[2].reshape(2, 2, 3, 4, 128).mean(3).permute(0, 3, 1, 2)
    torch.testing.assert_close(features.maps[2], by_hand)


def test_normed_taps() -> None:
    image = torch.randn(1, 6, 16, 16)
    plain, normed = random(LANDSAT), random(LANDSAT, norm_taps=True)
    torch.nn.init.constant_(normed.norm.bias, 3.0)
    after, grid = walk(plain, image)
    found = normed(image, Untouched(Method.Config(), normed)).maps[1]
    torch.testing.assert_close(found, plain.to_map(normed.norm(after[1]), grid))


@pytest.mark.parametrize("role", ["q", "k", "v", "fc1", "fc2"])
def test_a_branch_equals_changing_the_weight(role: Role) -> None:
    branched, changed = random(LANDSAT), random(LANDSAT)
    image = torch.randn(1, 6, 16, 24)
    (ours,), (theirs,) = branched.projections(1, role), changed.projections(1, role)
    delta = torch.randn_like(ours.module.weight) * 0.2
    ours.add_branch(partial(torch.nn.functional.linear, weight=delta))
    with torch.no_grad():
        theirs.module.weight += delta
    found, expected = walk(branched, image)[0], walk(changed, image)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[1], walk(random(LANDSAT), image)[0][1], atol=1e-3)


def test_extra_tokens_and_branches_beside_the_mlp() -> None:
    backbone = random(LANDSAT)
    tokens, grid = backbone.embed(torch.randn(1, 6, 16, 24))
    prompts = torch.randn(1, 3, 128)
    with torch.no_grad():
        ahead = backbone.run(0, torch.cat([prompts, tokens], 1), grid, extra=3)
        behind = backbone.run(0, torch.cat([tokens, prompts], 1), grid, extra=3)
        torch.testing.assert_close(ahead[:, 3:], behind[:, :-3])
        before = backbone.run(1, tokens, grid)
        backbone.add_parallel_branch(1, partial(torch.full_like, fill_value=2.0))
        torch.testing.assert_close(backbone.run(1, tokens, grid), before + 2)


def test_month_and_pixel_size_matter() -> None:
    image = torch.randn(1, 6, 16, 16)
    july = walk(random(LANDSAT), image)[0][0]
    assert not torch.allclose(walk(random(LANDSAT, month=0), image)[0][0], july)
    coarse = walk(random(bands(LANDSAT, gsd_m=30.0)), image)[0][0]
    assert not torch.allclose(coarse, july)
    assert torch.equal(walk(random(LANDSAT, gsd_m=30.0), image)[0][0], coarse)
    assert torch.equal(walk(random(bands(LANDSAT, gsd_m=None)), image)[0][0], july)


def test_random_numbers_on_the_meta_device_too() -> None:
    assert fingerprint(random(LANDSAT)) == fingerprint(random(LANDSAT))
    assert fingerprint(random(LANDSAT, seed=1)) != fingerprint(random(LANDSAT))
    config = Galileo.Config(name="galileo_base", pretrained=False)
    with torch.device("meta"):
        base = Galileo(config, bands(SENTINEL))
    assert (base.dim, base.depth, base.out_indices) == (768, 12, (2, 5, 8, 11))
    assert all(parameter.is_meta for parameter in base.parameters())
