"""Deformable attention against a slow one written out, and against that of transformers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr import modeling_deformable_detr as detr

from rsseg_cli.errors import RssegError
from rsseg_cli.methods._deformable import DeformableAttention, centres

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
    module: DeformableAttention, queries: Tensor, places: Tensor, values: Tensor
) -> Tensor:
    heads, points, levels = module.heads, module.points, module.levels
    batch, count, _ = queries.shape
    queries, values = module.query_norm(queries), module.value_norm(values)
    offsets = module.offsets(queries).view(batch, count, heads, levels, points, 2)
    weights = module.weights(queries).view(batch, count, heads, levels * points).softmax(-1)
    projected = module.value(values)
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
                        x, y = places[q].tolist()
                        found = bilinear(maps[number][own], x * columns + dx, y * rows + dy)
                        weight = weights[b, q, h, number * points + p]
                        results[b, q, own] += weight * found
    return module.out(results)


@torch.no_grad()
def test_deformable_attention_equals_a_slow_one() -> None:
    module = DeformableAttention(16, levels=3, heads=2, points=2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    module.offsets.weight *= 4  # far enough to leave the maps
    values = torch.randn(2, sum(h * w for h, w in SIZES), 16)
    queries, places = torch.randn(2, 15, 16), centres([(3, 5)], values.device)
    expected = attend_slowly(module, queries, places, values)
    assert torch.allclose(module(queries, places, values, SIZES), expected, atol=1e-5)


@torch.no_grad()
def test_deformable_attention_equals_that_of_transformers() -> None:
    config = DeformableDetrConfig(d_model=32, num_feature_levels=3)
    theirs = detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=4)
    ours = DeformableAttention(32, levels=3, heads=4, points=4, ratio=1.0)
    ours.query_norm = ours.value_norm = nn.Identity()  # type: ignore[assignment]
    pairs = (
        (theirs.sampling_offsets, ours.offsets),
        (theirs.attention_weights, ours.weights),
        (theirs.value_proj, ours.value),
        (theirs.output_proj, ours.out),
    )
    for their, our in pairs:
        nn.init.normal_(our.weight, std=0.3)
        their.load_state_dict(our.state_dict())
    values = torch.randn(2, sum(h * w for h, w in SIZES), 32)
    places = centres([(3, 5)], values.device)
    queries = torch.randn(2, 15, 32)
    expected, _ = theirs(
        queries,
        encoder_hidden_states=values,
        reference_points=places[None, :, None].expand(2, -1, 3, -1),
        spatial_shapes=torch.tensor(SIZES),
        spatial_shapes_list=SIZES,
        level_start_index=torch.tensor([0, 60, 75]),
    )
    assert torch.allclose(ours(queries, places, values, SIZES), expected, atol=1e-5)


@torch.no_grad()
def test_without_offsets_it_reads_the_place_itself() -> None:
    module = DeformableAttention(16, levels=1, heads=2, points=3, ratio=1.0)
    module.offsets.bias.zero_()
    values = torch.randn(1, 15, 16)
    found = module(torch.randn(1, 15, 16), centres([(3, 5)], values.device), values, [(3, 5)])
    assert torch.allclose(found, module.out(module.value(module.value_norm(values))), atol=1e-5)


def test_first_offsets_point_outwards() -> None:
    offsets = DeformableAttention(16, levels=2, heads=4, points=3).offsets.bias.view(4, 2, 3, 2)
    ahead = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        for level in range(2):
            assert torch.allclose(offsets[:, level, point], ahead * (point + 1), atol=1e-6)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RssegError, match="5 heads do not divide the 8 channels"):
        DeformableAttention(16, levels=1, heads=5)
