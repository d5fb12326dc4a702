"""The part that SET and FADA share: a small learnable factor of what they add to each block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import build, sample
from torch import Tensor

from rsseg_cli.contract import QueryShape
from rsseg_cli.methods.fada import Fada
from rsseg_cli.methods.set import Set

CASES: list[Any] = [("set", {}), ("set", {"amplitude_tokens": "full"}), ("fada", {})]
EVERY = pytest.mark.parametrize(("name", "settings"), CASES)


def made(name: str, settings: dict[str, Any], scale: float) -> tuple[Any, Any]:
    model = build(name, queries=QueryShape(6, 12), **({"rank": 4} | settings)).eval()
    method = model.method
    assert isinstance(method, (Set, Fada))
    assert method.scale.item() == pytest.approx(1e-3)
    with torch.no_grad():
        method.scale.fill_(scale)
    return model.backbone, method


def plain(image: Tensor) -> list[Tensor]:
    frozen = build("frozen")
    maps: list[Tensor] = frozen.backbone(image, frozen.method).maps
    return maps


@EVERY
def test_starts_near_the_frozen_backbone_and_is_it_without_the_factor(
    name: str, settings: dict[str, Any]
) -> None:
    image = sample(1, 2, side=40)[0][..., :32]
    for scale in (1e-3, 0.0):
        backbone, method = made(name, settings, scale)
        features = backbone(image, method)
        for found, frozen in zip(features.maps, plain(image), strict=True):
            if scale:
                assert 0 < (found - frozen).norm() < 0.02 * frozen.norm()
            else:
                assert torch.equal(found, frozen)
        assert features.queries.shape == (6, 12)


@EVERY
def test_images_of_a_batch_do_not_mix(name: str, settings: dict[str, Any]) -> None:
    backbone, method = made(name, settings, 0.5)
    image = sample(1, 2)[0]
    other = image.clone()
    other[1] += 1
    first, second = backbone(image, method).maps, backbone(other, method).maps
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0][1], second[0][1])


@EVERY
def test_gradients_are_finite_and_reach_all_of_it(name: str, settings: dict[str, Any]) -> None:
    backbone, method = made(name, settings, 1e-3)
    features = backbone(sample(1, 2, side=40)[0], method)
    total = sum(one.square().mean() for one in features.maps) + features.queries.square().sum()
    torch.autograd.backward(total)
    for own, parameter in method.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0, own
