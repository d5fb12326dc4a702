"""LoRA: identity at the start, the update written out, counts."""

from __future__ import annotations

import pytest
import torch
from fakes import at_vit_large
from test_contract import BANDS, make

from rsseg_cli.methods.lora import Lora, LowRank


def test_starts_as_the_frozen_backbone_bit_for_bit() -> None:
    image = torch.randn(2, 4, 40, 64)
    plain, tuned = make("frozen").eval(), make("lora").eval()
    frozen_maps = plain.backbone(image, plain.method).maps
    lora_maps = tuned.backbone(image, tuned.method).maps
    assert all(torch.equal(a, b) for a, b in zip(frozen_maps, lora_maps, strict=True))


def test_adds_the_low_rank_product_to_q_and_v_only() -> None:
    model = make("lora").eval()
    method = model.method
    assert isinstance(method, Lora)
    qkv = model.backbone.projections(1, "q")[0].module
    x = torch.randn(3, 7, model.backbone.dim)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
        weight = qkv.weight.clone()
        dim, (query, value) = model.backbone.dim, list(method.updates)[2:4]
        scale = 16.0 / 4
        weight[:dim] += scale * (query.down @ query.up).T  # type: ignore[operator, union-attr]
        weight[2 * dim :] += scale * (value.down @ value.up).T  # type: ignore[operator, union-attr]
        expected = torch.nn.functional.linear(x, weight, qkv.bias)
        assert torch.allclose(qkv(x), expected, atol=1e-4)


@pytest.mark.parametrize(("rank", "count"), [(64, 6_291_456), (16, 1_572_864)])
def test_counts_at_vit_large(rank: int, count: int) -> None:
    backbone, method = at_vit_large(Lora, rank=rank)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


@pytest.mark.parametrize(("inputs", "rank"), [(1024, 16), (1024, 64), (128, 8)])
def test_a_starts_as_the_linear_layer_of_loralib_and_peft(inputs: int, rank: int) -> None:
    """There A is the weight (r, d_in) of a linear layer, by Kaiming's rule with a = sqrt(5)."""
    published = torch.empty(rank, inputs)
    torch.nn.init.kaiming_uniform_(published, a=5**0.5)
    update = LowRank(inputs, inputs, rank=rank, alpha=16.0)
    assert update.down.abs().max() <= inputs**-0.5
    assert update.down.std().item() == pytest.approx(published.std().item(), rel=0.05)
    assert not update.up.any()


def test_a_closure_is_refused() -> None:
    model = make("frozen")
    with pytest.raises(TypeError, match="partial"):
        model.backbone.add_parallel_branch(0, lambda tokens: tokens)  # type: ignore[arg-type]
    assert BANDS.rgb() == (2, 1, 0)
