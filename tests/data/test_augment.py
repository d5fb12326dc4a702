"""Augmentation moves labels with their pixels and depends on its generators only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment, resize, tile_generators

STILL = {"gain": 0, "offset": 0, "band_gain": 0, "band_offset": 0}


def augment(tile: int = 16, **settings: Any) -> Augment:
    return Augment(Augment.Config(**settings), tile=tile)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(image: Tensor, seed: int = 0) -> list[torch.Generator]:
    return tile_generators(range(1000 * seed, 1000 * seed + len(image)), torch.device("cpu"))


def batch(size: int = 16, bands: int = 3, count: int = 64) -> tuple[Tensor, Tensor]:
    """Equal tiles, with a different label for each pixel row and column."""
    label = (torch.arange(size * size) % 251).to(torch.uint8).reshape(1, size, size)
    image = label.float()[:, None] + torch.arange(bands).float()[None, :, None, None]
    return image.repeat(count, 1, 1, 1), label.repeat(count, 1, 1)


@pytest.mark.parametrize(
    ("flip", "rot90", "positions"),
    [(True, True, 8), (True, False, 4), (False, True, 4), (False, False, 1)],
)
def test_squares_take_their_positions(flip: bool, rot90: bool, positions: int) -> None:
    image, label = batch(count=200)
    got, moved = augment(flip=flip, rot90=rot90, **STILL)(image, label, generators(image))
    assert torch.equal(got[:, 0], moved.float())
    seen = {tuple(tile.flatten().tolist()) for tile in moved}
    assert len(seen) == positions
    turned = {tuple(torch.rot90(label[0], k).flatten().tolist()) for k in range(4)}
    mirrored = {tuple(torch.rot90(label[0].flip(1), k).flatten().tolist()) for k in range(4)}
    assert seen <= turned | mirrored
    if not flip:
        assert seen <= turned


def test_results_depend_on_the_generator_only() -> None:
    image, label = batch()
    change = augment(noise=0.3, blur=0.5)
    one = change(image, label, generators(image, 1))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one, change(image, label, generators(image, 1)), strict=True)
    )
    assert not torch.equal(one[0], change(image, label, generators(image, 2))[0])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    change(image, label, generators(image, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_tile_does_not_depend_on_its_batch() -> None:
    image, label = batch(count=8)
    change, given = augment(noise=0.3, blur=0.5), generators(image)
    whole = change(image, label, given)
    again = generators(image)
    parts = [change(image[i : i + 2], label[i : i + 2], again[i : i + 2]) for i in (0, 2, 4, 6)]
    for one, other in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(other))


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_radiometry_is_linear_per_tile_and_band(bands: int) -> None:
    image = torch.randn(32, bands, 8, 8)
    label = torch.zeros(32, 8, 8, dtype=torch.uint8)
    settings = {"gain": 0.2, "offset": 0.3, "band_gain": 0.1, "band_offset": 0.2}
    got, _ = augment(8, flip=False, rot90=False, **settings)(image, label, generators(image))
    x, y = image.flatten(2), got.flatten(2)
    dx, dy = x - x.mean(2, keepdim=True), y - y.mean(2, keepdim=True)
    gain = (dx * dy).sum(2) / (dx * dx).sum(2)
    offset = y.mean(2) - gain * x.mean(2)
    torch.testing.assert_close(gain[..., None] * x + offset[..., None], y, atol=1e-5, rtol=1e-4)
    assert gain.min() >= 0.8 * 0.9 - 1e-4
    assert gain.max() <= 1.2 * 1.1 + 1e-4
    assert offset.abs().max() <= 0.5 + 1e-4
    assert gain.mean(1).std() > 0.05
    if bands > 1:
        assert gain.std(1).mean() > 0.02


def test_noise_and_blur() -> None:
    image, label = torch.zeros(64, 2, 32, 32), torch.zeros(64, 32, 32, dtype=torch.uint8)
    got, _ = augment(32, noise=0.4, **STILL)(image, label, generators(image))
    level = got.flatten(1).std(1)
    assert level.max() < 0.42
    assert level.min() < 0.1
    spike = torch.zeros(64, 2, 33, 33)
    spike[:, :, 16, 16] = 1
    got, _ = augment(33, blur=1.0, **STILL)(spike, label.new_zeros(64, 33, 33), generators(spike))
    torch.testing.assert_close(got.sum((2, 3)), torch.ones(64, 2))
    assert (got[:, :, 16, 16] < 0.99).all()
    torch.testing.assert_close(got, got.flip(2))
    half, _ = augment(33, blur=0.5, **STILL)(spike, label.new_zeros(64, 33, 33), generators(spike))
    share = (half[:, 0, 16, 16] == 1).float().mean()
    assert 0.25 < share < 0.75


@pytest.mark.parametrize("size", [9, 16, 23, 40])
def test_resizing_never_mixes_labels(size: int) -> None:
    label = torch.randint(0, 5, (2, size, size), generator=generator()).to(torch.uint8)
    label[:, : size // 2] = IGNORE
    image = torch.randn(2, 3, size, size, generator=generator())
    got, moved = resize(image, label, 16)
    assert got.shape == (2, 3, 16, 16)
    assert moved.dtype == torch.uint8
    reference = torch.nn.functional.interpolate(
        label[:, None].float(), (16, 16), mode="nearest-exact"
    )
    assert torch.equal(moved, reference[:, 0].to(torch.uint8))
    flat, _ = resize(torch.full((1, 1, size, size), 3.5), label[:1], 16)
    torch.testing.assert_close(flat, torch.full((1, 1, 16, 16), 3.5))


@pytest.mark.parametrize(
    "wrong", [{"scale": (2, 1)}, {"scale": (0, 1)}, {"gain": -1}, {"blur": 2}, {"flips": True}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augment.Config(**wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_equals_cpu() -> None:
    image, label = batch(24)
    change = augment(16, blur=0.5)
    here = change(image, label, generators(image, 3))
    there = change(image.cuda(), label.cuda(), generators(image, 3))
    torch.testing.assert_close(here[0], there[0].cpu(), atol=1e-4, rtol=1e-4)
    assert torch.equal(here[1], there[1].cpu())
