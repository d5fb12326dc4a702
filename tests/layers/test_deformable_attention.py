"""Deformable attention against a slow one written out, and against that of transformers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr import modeling_deformable_detr as detr

from rsseg_cli.layers.deformable_attention import DeformableAttention, cell_centres
from rsseg_cli.methods._weft.attention import NormedDeformableAttention

SIZES = [(6, 10), (3, 5), (2, 3)]


def bilinear(level: Tensor, x: float, y: float) -> Tensor:
    """Read a map (D, h, w) at x, y in cells from the upper left corner; outside there are zeros."""
    _, height, width = level.shape
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    total = torch.zeros(level.shape[0])
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
            total += share * level[:, row, column]
    return total


def attend_slowly(
    module: DeformableAttention, queries: Tensor, reference: Tensor, values: Tensor
) -> Tensor:
    heads, points, levels = module.heads, module.points, module.levels
    batch, count, _ = queries.shape
    offsets = module.sampling_offsets(queries).view(batch, count, heads, levels, points, 2)
    weights = module.attention_weights(queries).view(batch, count, heads, -1).softmax(-1)
    projected = module.value_proj(values)
    results = torch.zeros(batch, count, projected.shape[-1])
    width = projected.shape[-1] // heads
    starts = [0]
    for rows, columns in SIZES:
        starts.append(starts[-1] + rows * columns)
    for b in range(batch):
        maps = [
            projected[b, start:stop].T.reshape(-1, *size)
            for (start, stop), size in zip(pairwise(starts), SIZES, strict=True)
        ]
        for q in range(count):
            for h in range(heads):
                own = slice(h * width, (h + 1) * width)
                for number, (rows, columns) in enumerate(SIZES):
                    for p in range(points):
                        dx, dy = offsets[b, q, h, number, p].tolist()
                        x, y = ((reference[q] + 1) / 2).tolist()
                        found = bilinear(maps[number][own], x * columns + dx, y * rows + dy)
                        weight = weights[b, q, h, number * points + p]
                        results[b, q, own] += weight * found
    return module.output_proj(results)


def scrambled(dim: int, *, inner: int, levels: int, heads: int, points: int) -> DeformableAttention:
    module = DeformableAttention(dim, inner=inner, levels=levels, heads=heads, points=points)
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


@torch.no_grad()
def test_deformable_attention_equals_a_slow_one() -> None:
    module = scrambled(16, inner=8, levels=3, heads=2, points=2)
    module.sampling_offsets.weight *= 4  # far enough to leave the maps
    values = torch.randn(2, sum(h * w for h, w in SIZES), 16)
    queries, centres = torch.randn(2, 15, 16), cell_centres([(3, 5)], values.device)
    expected = attend_slowly(module, queries, centres, values)
    assert torch.allclose(module(queries, centres, values, SIZES), expected, atol=1e-5)


@torch.no_grad()
def test_deformable_attention_equals_that_of_transformers() -> None:
    config = DeformableDetrConfig(d_model=32, num_feature_levels=3)
    theirs = detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=4)
    ours = scrambled(32, inner=32, levels=3, heads=4, points=4)
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(2, sum(h * w for h, w in SIZES), 32)
    centres = cell_centres([(3, 5)], values.device)
    queries = torch.randn(2, 15, 32)
    expected, _ = theirs(
        queries,
        encoder_hidden_states=values,
        reference_points=((centres + 1) / 2)[None, :, None].expand(2, -1, 3, -1),
        spatial_shapes=torch.tensor(SIZES),
        spatial_shapes_list=SIZES,
        level_start_index=torch.tensor([0, 60, 75]),
    )
    assert torch.allclose(ours(queries, centres, values, SIZES), expected, atol=1e-5)


@torch.no_grad()
def test_without_offsets_it_reads_the_reference_point_itself() -> None:
    module = scrambled(16, inner=16, levels=1, heads=2, points=3)
    for parameter in module.sampling_offsets.parameters():
        parameter.zero_()
    values = torch.randn(1, 15, 16)
    result = module(torch.randn(1, 15, 16), cell_centres([(3, 5)], values.device), values, [(3, 5)])
    assert torch.allclose(result, module.output_proj(module.value_proj(values)), atol=1e-5)


def test_first_offsets_point_outwards() -> None:
    module = DeformableAttention(16, inner=16, levels=2, heads=4, points=3)
    module.initialise()
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        for level in range(2):
            assert torch.allclose(offsets[:, level, point], directions * (point + 1), atol=1e-6)


def test_the_normed_attention_normalises_and_recomputes() -> None:
    module = NormedDeformableAttention(16, inner=8, levels=3, heads=2, points=2)
    plain = DeformableAttention(16, inner=8, levels=3, heads=2, points=2)
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(module.state_dict(), strict=False)
    values = torch.randn(2, sum(h * w for h, w in SIZES), 16)
    queries, centres = torch.randn(2, 15, 16), cell_centres([(3, 5)], values.device)
    expected = plain(module.query_norm(queries), centres, module.value_norm(values), SIZES)
    stored = []

    def store(tensor: Tensor) -> Tensor:
        stored.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        result = module(queries, centres, values, SIZES)
    torch.testing.assert_close(result, expected)
    assert stored == [queries.shape, values.shape]
    torch.autograd.backward(result.sum())
    torch.autograd.backward(expected.sum())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(module.get_parameter(name).grad, parameter.grad)
