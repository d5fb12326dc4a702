"""Rein against its equation written out, its counts and its start."""

from __future__ import annotations

import pytest
import torch
from fakes import RGB, at_vit_large, tiny_vit
from pydantic import ValidationError

from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Grid, QueryShape, State
from rsseg_cli.errors import RssegError
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods.lora import Lora
from rsseg_cli.methods.rein import Rein
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.optimizer import Optimization, build


def tiny(**settings: object) -> tuple[Vit, Rein]:
    torch.manual_seed(0)
    backbone = tiny_vit()
    config = Rein.Config.model_validate({"rank": 4} | settings)
    return backbone, Rein(config, backbone, QueryShape(10, 256))


def test_a_block_equals_the_equation() -> None:
    backbone, rein = tiny()
    for parameter in rein.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    adapter, block = rein.adapter, rein.adapter.block(1)
    tokens = torch.randn(2, backbone.num_prefix_tokens + 6, 64)
    x, own = tokens[:, backbone.num_prefix_tokens :], block.rows[0] @ block.basis[0]
    attention = (x @ own.T / 8).softmax(-1)[..., 1:]
    delta = attention @ (own[1:] @ adapter.value.weight.T + adapter.value.bias)
    expected = x + adapter.scale * adapter.mlp(x + delta)
    out = rein.after_block(1, tokens, State(Grid(2, 3)))
    assert torch.equal(
        out[:, : backbone.num_prefix_tokens], tokens[:, : backbone.num_prefix_tokens]
    )
    assert torch.allclose(out[:, backbone.num_prefix_tokens :], expected, atol=1e-5)


def test_starts_near_the_frozen_backbone_from_reins_law() -> None:
    rein = tiny()[1]
    assert rein.adapter.scale.item() == pytest.approx(1e-3)
    bound = (6 / (3 * 8**2 + (64 * 4) ** 0.5)) ** 0.5
    for parameter in rein.no_weight_decay():
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)
    with torch.no_grad():
        rein.adapter.scale.zero_()
    tokens = torch.randn(1, 7, 64)
    assert torch.equal(rein.after_block(0, tokens, State(Grid(2, 3))), tokens)


def test_counts_and_law_at_vit_large() -> None:
    backbone, rein = at_vit_large(Rein)
    assert sum(p.numel() for _, p in rein.trainable_parameters(backbone)) == 2_990_081


def test_tokens_and_scale_do_not_decay() -> None:
    backbone, rein = tiny()
    head = Mask2Former(Mask2Former.Config(width=32, queries=10), dim=64, maps=4, classes=2)
    adam = build(Optimization(), Segmenter(backbone, rein, head, RGB))
    still = {id(p) for g in adam.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert {id(p) for p in rein.no_weight_decay()} | {id(rein.adapter.scale)} <= still
    assert id(rein.adapter.mlp.weight) not in still


def test_there_are_as_many_tokens_as_the_head_takes_queries() -> None:
    config = Mask2Former.Config(query_position="method", queries=12, width=32)
    rein = Rein.build(Rein.Config(), tiny_vit(), config.queries_of_method)
    queries = rein.adapter.queries()
    assert queries is not None
    assert queries.shape == (12, 32)
    for tokens, count in ((10, 12), (None, 1)):
        with pytest.raises(RssegError, match=f"{count} queries") as caught:
            Rein(Rein.Config(tokens=tokens), tiny_vit(), QueryShape(count, 32))
        assert caught.value.fix
    assert Rein(Rein.Config(), tiny_vit()).adapter.queries() is None


def test_a_head_may_not_take_queries_of_a_method_without_any() -> None:
    with pytest.raises(RssegError, match="which has none") as caught:
        Lora.build(Lora.Config(), tiny_vit(), QueryShape(12, 32))
    assert caught.value.fix


def test_one_token_is_too_few() -> None:
    with pytest.raises(ValidationError, match="tokens"):
        Rein.Config(tokens=1)
