"""Prompts: where they stand, which blocks own them, and that maps never see them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import RGB, at_vit_large, tiny_vit
from torch import Tensor

from rsseg_cli.backbones.dinov3 import Dinov3
from rsseg_cli.backbones.sam import Sam
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.errors import RssegError
from rsseg_cli.methods.vpt import Vpt


def build(backbone: Any, **settings: Any) -> Vpt:
    torch.manual_seed(0)
    return Vpt(Vpt.Config.model_validate({"prompts": 5} | settings), backbone)


def by_hand(backbone: Vit, prompts: Tensor, image: Tensor, *, deep: bool) -> list[Tensor]:
    """Jia et al.: join, apply the block, and either replace the prompts or keep them."""
    tokens, grid = backbone.embed(image)
    cls, patches = tokens[:, :1], tokens[:, 1:]
    current, maps = prompts[0].expand(len(image), -1, -1), []
    for index in range(backbone.depth):
        if deep:
            current = prompts[index].expand(len(image), -1, -1)
        joined = backbone.model.blocks[index](torch.cat([cls, current, patches], 1))
        cls, current, patches = joined[:, :1], joined[:, 1:6], joined[:, 6:]
        if index in backbone.out_indices:
            maps.append(patches.mT.reshape(len(image), -1, grid.h, grid.w))
    return maps


@pytest.mark.parametrize("deep", [True, False])
def test_equals_the_blocks_run_by_hand(deep: bool) -> None:
    backbone, image = tiny_vit(), torch.randn(2, 3, 40, 56)
    method = build(backbone, deep=deep).eval()
    torch.nn.init.normal_(method.prompts)
    found = backbone(image, method).maps
    expected = by_hand(backbone, method.prompts, image, deep=deep)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (2, 64, 5, 7)
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_every_block_trains_its_prompts_and_prompts_are_no_no_op() -> None:
    backbone, image = tiny_vit().requires_grad_(False), torch.randn(2, 3, 32, 32)
    method = build(backbone).train()
    maps = backbone(image, method).maps
    torch.autograd.backward(torch.stack([one.square().sum() for one in maps]).sum())
    assert method.prompts.grad is not None
    assert method.prompts.grad.flatten(1).any(1).all()
    with torch.no_grad():
        method.prompts.zero_()
    plain, _ = backbone.embed(image)
    for index in range(backbone.depth):
        plain = backbone.run(index, plain, backbone.embed(image)[1])
    zero = backbone(image, method).maps[-1].flatten(2).mT
    assert (zero - plain[:, 1:]).norm() > 1e-3 * plain.norm()


def test_rotary_positions_leave_prompts_alone() -> None:
    backbone = Dinov3(Dinov3.Config(name="dinov3_small", pretrained=False), RGB)
    method = build(backbone)
    state = method.begin(torch.empty(0), backbone.grid_of(torch.empty(1, 3, 32, 48)))
    tokens, grid = backbone.embed(torch.randn(1, 3, 32, 48))
    placed = method.before_block(0, tokens, state)
    out = backbone.run(0, placed, grid, state.extra)
    # A prompt's output does not depend on its number: it has no place.
    swapped = placed.clone()
    swapped[:, [5, 6]] = placed[:, [6, 5]]
    again = backbone.run(0, swapped, grid, state.extra)
    assert torch.allclose(out[:, [6, 5]], again[:, [5, 6]], atol=1e-5)
    assert torch.allclose(out[:, 10:], again[:, 10:], atol=1e-5)


def test_start_and_dropout() -> None:
    backbone = tiny_vit()
    method = build(backbone, prompts=50, dropout=0.5)
    bound = (6 / (3 * 8**2 + 64)) ** 0.5
    assert method.prompts.abs().max() <= bound
    assert method.prompts.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert list(method.no_weight_decay()) == [method.prompts]
    tokens, grid = backbone.embed(torch.randn(1, 3, 16, 16))
    for training in (True, False):
        placed = method.train(training).before_block(0, tokens, method.begin(tokens, grid))
        dropped = float((placed[:, 1:51] == 0).float().mean())
        assert dropped == pytest.approx(0.5 if training else 0.0, abs=0.05)
        assert torch.equal(placed[:, 51:], tokens[:, 1:])


@pytest.mark.parametrize(("deep", "count"), [(True, 3_686_400), (False, 153_600)])
def test_counts_at_vit_large(deep: bool, count: int) -> None:
    backbone, method = at_vit_large(Vpt, deep=deep)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


def test_windows_have_no_place_for_prompts() -> None:
    with torch.device("meta"):
        backbone = Sam(Sam.Config(name="sam_base", pretrained=False), RGB)
    with pytest.raises(RssegError, match="does not support prompt tokens"):
        build(backbone)
