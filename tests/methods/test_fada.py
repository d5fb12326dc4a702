"""FADA against its equations written out with Haar filters, and what its switches mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import at_vit_large, tiny_vit
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Grid, QueryShape, State
from rsseg_cli.layers.haar import Haar
from rsseg_cli.methods.fada import Fada, join, split


def tiny(**settings: Any) -> tuple[Vit, Fada]:
    torch.manual_seed(0)
    backbone = tiny_vit().requires_grad_(False)
    config = Fada.Config.model_validate({"tokens": 6, "rank": 4} | settings)
    return backbone, Fada(config, backbone, QueryShape(6, 12))


def haar(dim: int) -> Tensor:
    """Four kernels (4 * dim, 1, 2, 2), a channel's behind each other: [-1, 1] is turned round."""
    low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
    outer = [torch.outer(a, b) for a, b in ((low, low), (low, high), (high, low), (high, high))]
    return torch.stack(outer)[:, None].repeat(dim, 1, 1, 1)


def look(x: Tensor, own: Tensor, branch: Any, *, normalised: bool) -> Tensor:
    """One branch, as printed but for where the attention is normalised."""
    logits = x @ own.T
    if normalised:
        mean, variance = logits.mean(-1, keepdim=True), logits.var(-1, False, keepdim=True)
        logits = (logits - mean) / (variance + 1e-5).sqrt()
    else:
        logits = logits / 8
    return branch.mlp(logits.softmax(-1) @ branch.value(own) + x)


def test_a_block_equals_the_equations() -> None:
    backbone, method = tiny()
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    grid = Grid(4, 6)
    tokens = torch.randn(2, backbone.num_prefix_tokens + 24, 64)
    f = tokens[:, backbone.num_prefix_tokens :].mT.reshape(2, 64, 4, 6)
    bands = F.conv2d(f, haar(64), stride=2, groups=64).view(2, 64, 4, 6)  # (B, D, band, n)
    low_band, high_bands = bands[:, :, 0].mT, bands[:, :, 1:].flatten(2).mT
    own_low, own_high = (branch.block(2).mean() for branch in (method.low, method.high))
    assert own_high.shape == (3 * 6, 64)
    answers = torch.cat(
        [
            look(low_band, own_low, method.low, normalised=False),
            look(high_bands, own_high, method.high, normalised=True),
        ],
        1,
    )
    changed = answers.mT.reshape(2, 64 * 4, 2, 3)
    added = F.conv_transpose2d(changed, haar(64), stride=2, groups=64)
    expected = f + method.scale * added
    out = method.after_block(2, tokens, State(grid))
    assert torch.equal(
        out[:, : backbone.num_prefix_tokens], tokens[:, : backbone.num_prefix_tokens]
    )
    found = out[:, backbone.num_prefix_tokens :].mT.reshape(2, 64, 4, 6)
    assert torch.allclose(found, expected, atol=1e-4)


def test_all_tokens_have_weights() -> None:
    weights = tiny()[1].high.block(0).attention(torch.randn(4, 18), 64)
    assert weights.shape == (4, 18)
    assert torch.allclose(weights.sum(-1), torch.ones(4))


@pytest.mark.parametrize("grid", [Grid(4, 6), Grid(3, 5), Grid(1, 1), Grid(3, 4, groups=3)])
def test_split_and_join(grid: Grid) -> None:
    patches = torch.randn(2, grid.tokens, 8)
    low, high = split(patches, grid, Haar())
    cells = (grid.h + 1) // 2 * ((grid.w + 1) // 2)
    assert low.shape == (2 * grid.groups, cells, 8)
    assert high.shape == (2 * grid.groups, 3 * cells, 8)
    assert torch.allclose(join(low, high, grid, Haar()), patches, atol=1e-5)
    if grid.h % 2 == grid.w % 2 == 0:  # orthonormal
        energy = low.square().sum() + high.square().sum()
        assert energy.item() == pytest.approx(patches.square().sum().item(), rel=1e-5)


def test_groups_do_not_mix() -> None:
    _, method = tiny()
    with torch.no_grad():
        method.scale.fill_(1.0)
    grid = Grid(4, 4, groups=2)
    method.num_prefix_tokens = 0
    tokens = torch.randn(1, 32, 64)
    changed = tokens.clone()
    changed[:, 1::2] += 1  # the second group
    found, other = (method.after_block(0, one, State(grid)) for one in (tokens, changed))
    assert torch.equal(found[:, ::2], other[:, ::2])
    assert not torch.allclose(found[:, 1::2] + 1, other[:, 1::2], atol=1e-2)


def test_counts_at_vit_large() -> None:
    backbone, method = at_vit_large(Fada)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == 5_597_697


def test_bad_settings() -> None:
    for settings in ({"tokens": 1}, {"rank": 0}, {"norm": "logits"}):
        with pytest.raises(ValidationError):
            Fada.Config.model_validate(settings)
