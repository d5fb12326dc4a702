"""Visual query tuning: maps that stay bit for bit, and queries made of what they attend to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fakes import RGB, at_vit_large, tiny_vit
from matrix import FAMILIES
from matrix import backbone as backbone_of
from pydantic import ValidationError
from test_contract import BANDS, batch, make
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.backbones.sam import Sam
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.methods.frozen import Frozen
from rsseg_cli.methods.vpt import Vpt
from rsseg_cli.methods.vqt import Vqt


def tiny() -> Vit:
    return tiny_vit().requires_grad_(False)


QUERIES = QueryShape(5, 12)


def build(backbone: Any, queries: QueryShape | None = QUERIES, **settings: Any) -> Vqt:
    torch.manual_seed(0)
    return Vqt(Vqt.Config.model_validate(settings), backbone, queries)


def tokens_of(method: Vqt, index: int) -> Tensor:
    block: Any = method.blocks[str(index)]
    found: Tensor = block.mean()
    return found


@pytest.mark.parametrize("rank", [None, 3])
def test_maps_are_those_of_the_frozen_backbone_bit_for_bit(rank: int | None) -> None:
    backbone, image = tiny(), torch.randn(2, 3, 40, 56)
    method = build(backbone, rank=rank)
    frozen = Frozen(Frozen.Config(), backbone)
    expected = backbone(image, frozen).maps
    features = backbone(image, method)
    assert all(torch.equal(a, b) for a, b in zip(features.maps, expected, strict=True))
    assert not any(one.requires_grad for one in features.maps)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    again = backbone(image, method)
    assert all(torch.equal(a, b) for a, b in zip(again.maps, expected, strict=True))
    assert not torch.allclose(again.queries, features.queries, atol=1e-2)


def test_queries_equal_the_equations() -> None:
    """Jia's joining with Tu's change: keys and values of the features alone."""
    backbone, image = tiny(), torch.randn(2, 3, 40, 56)
    method = build(backbone)
    tokens, _ = backbone.embed(image)
    projected = []
    assert method.link is not None
    for index, block in enumerate(backbone.model.blocks):
        own = tokens_of(method, index).expand(2, -1, -1)
        joined = torch.cat([own, tokens], 1)
        mask = torch.arange(joined.shape[1]) >= 5
        out = block(joined, attn_mask=mask.expand(joined.shape[1], -1))
        heard, tokens = out[:, :5], out[:, 5:]
        mean = heard.mean(-1, keepdim=True)
        deviation = heard.var(-1, keepdim=True, correction=0).add(1e-5).sqrt()
        projected.append(method.link.project((heard - mean) / deviation))
    stacked = torch.stack(projected)
    merged = torch.cat([stacked.max(0).values, stacked.mean(0), stacked[-1]], -1)
    queries = backbone(image, method).queries
    assert queries.shape == (2, 5, 12)
    assert torch.allclose(queries, method.link.merge(merged), atol=1e-4)


def test_what_was_heard_depends_on_a_blocks_own_tokens_alone() -> None:
    backbone, image = tiny(), torch.randn(2, 3, 40, 56)
    method = build(backbone)
    tokens, grid = backbone.embed(image)
    state = method.begin(image, grid)
    for index in range(backbone.depth):
        tokens = backbone.run(index, method.before_block(index, tokens, state), grid)
    own = list(method.blocks.parameters())
    for index in range(backbone.depth):
        weight = torch.randn_like(state.summaries[index])  # else a normalised row has no gradient
        gradients = torch.autograd.grad(
            (state.summaries[index] * weight).sum(), own, allow_unused=True, retain_graph=True
        )
        assert [one is not None and bool(one.any()) for one in gradients] == [
            other == index for other in range(backbone.depth)
        ]


def test_maps_may_attend_to_what_was_heard() -> None:
    backbone, image = tiny(), torch.randn(2, 3, 40, 56)
    method = build(backbone, queries=None)
    plain = backbone(image, Frozen(Frozen.Config(), backbone)).maps
    assert method.scale is not None
    assert method.scale.item() == pytest.approx(1e-3)
    with torch.no_grad():
        method.scale.zero_()
    same = backbone(image, method)
    assert same.queries is None
    assert all(torch.equal(a, b) for a, b in zip(same.maps, plain, strict=True))
    with torch.no_grad():
        method.scale.fill_(0.5)
    tokens, grid = backbone.embed(image)
    for index, (found, frozen) in enumerate(zip(backbone(image, method).maps, plain, strict=True)):
        own = tokens_of(method, index).expand(2, -1, -1)
        heard = F.layer_norm(backbone.cross_attend(index, own, tokens, grid), (64,))
        tokens = backbone.run(index, tokens, grid)
        cells = frozen.flatten(2).mT
        added = (cells @ heard.mT / 8).softmax(-1) @ heard
        expected = (cells + 0.5 * added).mT.reshape(frozen.shape)
        assert torch.allclose(found, expected, atol=1e-4)


def test_only_tapped_blocks_are_asked_for_the_maps() -> None:
    backbone = Vit(Vit.Config(name="vit_tiny", out_indices=(1, 3)), RGB)
    assert list(build(backbone, queries=None).blocks) == ["1", "3"]
    assert list(build(backbone).blocks) == ["0", "1", "2", "3"]


def test_queries_train_all_of_it_and_nothing_else() -> None:
    backbone = tiny()
    method = build(backbone)
    queries = backbone(torch.randn(2, 3, 32, 32), method).queries
    torch.autograd.backward((queries * torch.randn_like(queries)).sum())
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "sam"])
@torch.no_grad()
def test_a_row_that_is_a_token_hears_what_the_token_hears(family: str) -> None:
    one: Any = backbone_of(family)
    tokens, grid = one.embed(batch(32, 40)[0])
    placeless = one.num_prefix_tokens if hasattr(one, "rotation") else tokens.shape[1]
    found = one.cross_attend(1, tokens[:, :placeless], tokens, grid)
    expected = one.run(1, tokens, grid)[:, :placeless]
    assert torch.allclose(found, expected, atol=1e-5)


def kept(backbone: Vit, method: Any) -> int:
    """Count the numbers that a pass over 16 x 16 tokens keeps for its gradients."""
    sizes: dict[int, int] = {}
    frozen = {parameter.data_ptr() for parameter in backbone.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in frozen:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = backbone(torch.randn(1, 3, 128, 128), method)
        assert features.maps
    return sum(sizes.values())


def test_keeps_little_more_than_keys_and_values_for_its_gradients() -> None:
    backbone = tiny()
    ours = kept(backbone, build(backbone))
    prompts = Vpt(Vpt.Config(prompts=5), backbone)
    keys_and_values = 4 * 2 * 257 * 64
    assert keys_and_values < ours < 2 * keys_and_values
    assert ours < kept(backbone, prompts) / 4


def test_a_copy_asks_its_own_backbone() -> None:
    model = make("vqt")
    other = copy.deepcopy(model)
    assert other.method.cross_attend.__self__ is other.backbone
    assert model.method.cross_attend.__self__ is model.backbone
    assert not any(name.startswith("method.cross_attend") for name in model.state_dict())


def test_start_and_dropout() -> None:
    backbone = tiny()
    method = build(backbone, QueryShape(50, 12), dropout=0.5)
    bound = (6 / (3 * 8**2 + 64)) ** 0.5
    own = torch.stack(list(method.no_weight_decay()))
    assert own.shape == (4, 50, 64)
    assert own.abs().max() <= bound
    assert own.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    image = torch.randn(1, 3, 16, 16)
    for training in (True, False):
        method.train(training)
        first, second = (backbone(image, method).queries for _ in range(2))
        assert torch.equal(first, second) == (not training)


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 2_916_864), ({"rank": 16}, 890_880), ({"queries": None}, 4 * 100 * 1024 + 1)],
)
def test_counts_at_vit_large(settings: dict[str, Any], count: int) -> None:
    backbone, method = at_vit_large(Vqt, **settings)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


def test_what_cannot_work_is_refused() -> None:
    with torch.device("meta"):
        backbone = Sam(Sam.Config(name="sam_base", pretrained=False), BANDS)
    with pytest.raises(RssegError, match="does not support VQT"):
        build(backbone)
    for settings in ({"tokens": 1}, {"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(ValidationError):
            Vqt.Config.model_validate(settings)
