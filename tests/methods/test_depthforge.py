"""DepthForge: its attention and its refinement written out, and what remains without depth."""

from __future__ import annotations

from typing import Any

import torch
from fakes import at_vit_large, tiny_vit
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Grid, QueryShape
from rsseg_cli.methods._token.depth_encoder import DepthState
from rsseg_cli.methods.depthforge import DepthForge
from rsseg_cli.methods.rein import Rein

EIGHT = QueryShape(8, 256)


def build(backbone: Vit, **settings: Any) -> Any:
    torch.manual_seed(0)
    small = {"tokens": 8, "rank": 4, "depth": "random"}
    return DepthForge(DepthForge.Config.model_validate(small | settings), backbone, EIGHT)


def test_depth_changes_the_attention_and_nothing_else() -> None:
    backbone = tiny_vit()
    method = build(backbone)
    for parameter in method.adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens, depth = torch.randn(2, backbone.num_prefix_tokens + 6, 64), torch.randn(2, 6, 64)
    method.depth_branch.advance = lambda index, state: depth
    adapter, block = method.adapter, method.adapter.block(3)
    x, own = tokens[:, backbone.num_prefix_tokens :], block.rows[0] @ block.basis[0]
    attention = ((x @ own.T + depth @ own.T) / 8).softmax(-1)[..., 1:]
    expected = x + adapter.scale * adapter.mlp(x + attention @ adapter.value(own[1:]))
    out = method.after_block(3, tokens, DepthState(Grid(2, 3)))
    assert torch.allclose(out[:, backbone.num_prefix_tokens :], expected, atol=1e-5)


def test_without_depth_and_refinement_it_is_rein() -> None:
    backbone = tiny_vit()
    method = build(backbone, depth="off", refine=False)
    rein = Rein(Rein.Config(rank=4), backbone, EIGHT)
    rein.load_state_dict(method.state_dict())
    image = torch.randn(2, 3, 40, 56)
    ours, theirs = backbone(image, method), backbone(image, rein)
    assert all(torch.equal(a, b) for a, b in zip(ours.maps, theirs.maps, strict=True))
    assert torch.equal(ours.queries, theirs.queries)


def refined(method: Any, maps: list[Tensor]) -> Tensor:
    """The refinement written out."""
    squeeze, _, widen, _ = method.refinement.channels
    place, merge = method.refinement.places[0], method.refinement.merge
    gated = []
    for x in maps:
        hidden = F.conv2d(x, squeeze.weight, squeeze.bias).relu()
        y = x * F.conv2d(hidden, widen.weight, widen.bias).sigmoid()
        gated.append(y * F.conv2d(y, place.weight, place.bias, padding=1).sigmoid())
    return maps[0] + F.conv2d(torch.cat(gated, 1), merge.weight, merge.bias)


def test_refinement() -> None:
    method = build(tiny_vit())
    maps = [torch.randn(2, 64, 3, 5) for _ in range(4)]
    torch.nn.init.normal_(method.refinement.merge.weight)
    out = method.finish(maps, DepthState(Grid(3, 5))).maps
    assert torch.allclose(out[0], refined(method, maps), atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(out[1:], maps[1:], strict=True))
    untouched = build(tiny_vit()).finish(maps, DepthState(Grid(3, 5))).maps
    assert torch.equal(untouched[0], maps[0])


def test_counts_at_vit_large() -> None:
    backbone, method = at_vit_large(DepthForge, depth="random")
    assert method.refinement is not None
    refinement = sum(p.numel() for p in method.refinement.parameters())
    assert refinement == 4_336_705
    assert (
        sum(p.numel() for _, p in method.trainable_parameters(backbone)) - refinement == 2_990_081
    )
