"""AdaptFormer: identity at the start, the branch written out, counts."""

from __future__ import annotations

import torch
from fakes import at_vit_large, build
from test_contract import BANDS
from timm.layers.layer_scale import LayerScale
from torch.nn import functional as F

from rsseg_cli.contract import Grid
from rsseg_cli.methods.adaptformer import AdaptFormer


def test_starts_as_the_frozen_backbone_bit_for_bit() -> None:
    image = torch.randn(2, 4, 40, 64)
    plain, tuned = build("frozen"), build("adaptformer").eval()
    before = plain.backbone(image, plain.method).maps
    after = tuned.backbone(image, tuned.method).maps
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_branch_reads_the_stream_and_joins_after_the_layer_scale() -> None:
    model = build("adaptformer", bottleneck=8, scale=0.7).eval()
    block = model.backbone.model.blocks[1]  # type: ignore[union-attr, index]
    block.ls1, block.ls2 = LayerScale(64, 0.3), LayerScale(64, 0.05)
    adapter = model.method.blocks[1].branch  # type: ignore[union-attr, index]
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 13, 64)
    with torch.no_grad():
        between = x + 0.3 * block.attn(block.norm1(x))
        hidden = (between @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
        expected = between + 0.05 * block.mlp(block.norm2(between))
        expected = expected + 0.7 * (hidden @ adapter.up.weight.T + adapter.up.bias)
        assert torch.allclose(model.backbone.run(1, x, Grid(3, 4)), expected, atol=1e-4)


def test_gelu_instead_of_relu() -> None:
    adapter = build("adaptformer", activation="gelu", scale=1.0).eval().method.blocks[0]  # type: ignore[union-attr, index]
    branch = adapter.branch
    torch.nn.init.normal_(branch.up.weight)
    x = torch.randn(3, 64)
    expected = F.gelu(x @ branch.down.weight.T) @ branch.up.weight.T
    assert torch.allclose(adapter(x), expected, atol=1e-5)


def test_units_are_dropped_in_training_only() -> None:
    model = build("adaptformer", dropout=0.5)
    adapter, x = model.method.blocks[0], torch.randn(4, 64)  # type: ignore[union-attr, index]
    torch.nn.init.normal_(adapter.branch.up.weight)
    model.eval()
    assert torch.equal(adapter(x), adapter(x))
    model.train()
    assert not torch.equal(adapter(x), adapter(x))


def test_counts_at_vit_large() -> None:
    backbone, method = at_vit_large(AdaptFormer, BANDS)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == 3_171_840
    assert sum(p.numel() for p in method.blocks[0].parameters()) == 132_160
