"""Rein against its equation written out, its counts and its start."""

from __future__ import annotations

import pytest
import torch
from fakes import RGB, at_vit_large, tiny_vit
from pydantic import ValidationError

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import State
from rsseg_cli.errors import RssegError
from rsseg_cli.grid import Grid
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods.rein import Rein
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.optimizer import Optimization, build


def tiny(**settings: object) -> tuple[Vit, Rein]:
    torch.manual_seed(0)
    backbone = tiny_vit()
    config = Rein.Config.model_validate({"tokens": 10, "rank": 4} | settings)
    return backbone, Rein(config, backbone)


def test_a_block_equals_the_equation() -> None:
    backbone, rein = tiny()
    for parameter in rein.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    adapter, block = rein.adapter, rein.adapter.block(1)
    tokens = torch.randn(2, backbone.prefix + 6, 64)
    x, own = tokens[:, backbone.prefix :], block.rows[0] @ block.basis[0]
    attention = (x @ own.T / 8).softmax(-1)[..., 1:]
    delta = attention @ (own[1:] @ adapter.value.weight.T + adapter.value.bias)
    expected = x + adapter.scale * adapter.mlp(x + delta)
    out = rein.after_block(1, tokens, State(Grid(2, 3)))
    assert torch.equal(out[:, : backbone.prefix], tokens[:, : backbone.prefix])
    assert torch.allclose(out[:, backbone.prefix :], expected, atol=1e-5)


def test_starts_near_the_frozen_backbone_from_reins_law() -> None:
    rein = tiny()[1]
    assert rein.adapter.scale.item() == pytest.approx(1e-3)
    bound = (6 / (3 * 8**2 + (64 * 4) ** 0.5)) ** 0.5
    for parameter in rein.undecayed():
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    with torch.no_grad():
        rein.adapter.scale.zero_()
    tokens = torch.randn(1, 7, 64)
    assert torch.equal(rein.after_block(0, tokens, State(Grid(2, 3))), tokens)


def test_counts_and_law_at_vit_large() -> None:
    backbone, rein = at_vit_large(Rein)
    assert sum(p.numel() for _, p in rein.tuned(backbone)) == 2_990_081


def test_tokens_and_scale_do_not_decay() -> None:
    backbone, rein = tiny()
    head = Mask2Former(Mask2Former.Config(width=32, queries=10), dim=64, maps=4, classes=2)
    adam = build(Optimization(), Segmenter(backbone, rein, head, RGB))
    still = {id(p) for g in adam.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {id(p) for p in rein.undecayed()} | {id(rein.adapter.scale)} <= still
    assert id(rein.adapter.mlp.weight) not in still


def test_the_head_must_wait_for_the_queries() -> None:
    backbone, rein = tiny(query_width=32)
    for settings, message in (
        ({"query_position": "learned", "queries": 10}, "learns its own"),
        ({"query_position": "method", "queries": 12}, "has 10 queries"),
    ):
        config = Mask2Former.Config.model_validate(settings | {"width": 32})
        model = Segmenter(backbone, rein, Mask2Former(config, dim=64, maps=4, classes=2), RGB)
        with pytest.raises(RssegError, match=message):
            model.eval().probabilities(torch.randn(1, 3, 64, 64))


def test_one_token_is_too_few() -> None:
    with pytest.raises(ValidationError, match="tokens"):
        Rein.Config(tokens=1)
