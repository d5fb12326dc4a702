"""Blended tiles equal the whole, and each pixel is made once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, pad

from rsseg_cli.predict import map_layers
from rsseg_cli.raster.blend import Product, RowBlender
from rsseg_cli.raster.grid import Axis, Window

CPU = torch.device("cpu")


def keep_scores(classes: int, into: Tensor, y: list[int]) -> Product:
    """A product that adds finished probabilities up in `into` (K, H, W), at rows y[0]...."""

    def write(shares: Tensor, rows: Tensor) -> None:
        rows.zero_()
        offset = rows.storage_offset() % rows.stride(1)
        place = into[:, y[0] : y[0] + shares.shape[1], offset : offset + shares.shape[2]]
        place += shares

    return Product(1, write)


def blend(scores: Tensor, across: Axis, down: Axis, region: Window) -> Tensor:
    """Cut scores (K, H, W) into tiles, blend them, give what comes out for the region."""
    result = torch.zeros(scores.shape[0], region.height, region.width)
    y = [0]
    blender = RowBlender(across, down, region, [keep_scores(len(scores), result, y)], CPU)
    halo = across.tile
    padded = pad(scores[None], (halo,) * 4, value=1e6)[0]  # what must never be seen
    seen = 0
    for row in blender.rows:
        for column in blender.columns:
            top, left = down.start(row) + halo, across.start(column) + halo
            tile = padded[:, top : top + down.tile, left : left + across.tile].clone()
            for start, (made,) in blender.feed(row, column, tile):
                assert start == region.y + seen
                seen += made.shape[1]
                y[0] = seen
    blender.finish()
    assert seen == region.height
    return result


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Axis, Axis, Window]:
    tile = draw(st.integers(1, 24))
    overlap = draw(st.integers(0, tile // 2))
    trim = draw(st.integers(0, overlap // 2))
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    region = Window(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    return Axis(width, tile, overlap, trim), Axis(height, tile, overlap, trim), region


@given(layouts())
def test_tiles_of_one_picture_blend_into_it(layout: tuple[Axis, Axis, Window]) -> None:
    across, down, region = layout
    scores = torch.rand(2, down.length, across.length, generator=torch.Generator().manual_seed(0))
    blended = blend(scores, across, down, region)
    expected = scores[:, region.y : region.bottom, region.x : region.right]
    torch.testing.assert_close(blended, expected)


def test_convolution_in_tiles_equals_the_whole() -> None:
    torch.manual_seed(0)
    image, kernel = torch.rand(1, 1, 61, 83), torch.rand(3, 1, 5, 5)
    whole = conv2d(image, kernel, padding=2)[0]
    across, down = Axis(83, 24, 10, 2), Axis(61, 24, 10, 2)
    result = torch.zeros(3, 61, 83)
    y = [0]
    region = Window(0, 0, 83, 61)
    blender = RowBlender(across, down, region, [keep_scores(3, result, y)], CPU)
    padded = pad(image, (24,) * 4)
    for row in blender.rows:
        for column in blender.columns:
            top, left = down.start(row) + 24, across.start(column) + 24
            tile = conv2d(padded[:, :, top : top + 24, left : left + 24], kernel, padding=2)[0]
            for start, (made,) in blender.feed(row, column, tile):
                y[0] = start + made.shape[1]
    torch.testing.assert_close(result, whole)


def test_tiles_left_out_are_nodata_and_leave_the_rest_alone() -> None:
    across = down = Axis(40, 16, 4)
    region = Window(0, 0, 40, 40)
    blender = RowBlender(across, down, region, [map_layers.class_map([3, 7])], CPU)
    tile = torch.tensor([0.2, 0.8])[:, None, None].expand(2, 16, 16)
    rows = []
    for row in blender.rows:
        for column in blender.columns:
            scores = None if (row, column) == (1, 1) else tile.clone()
            rows += [made for _, (made,) in blender.feed(row, column, scores)]
    made = torch.cat(rows, 1)[0]
    left, right = across.begin(1), across.begin(2)
    assert (made[left:right, left:right] == 255).all()
    assert (made[:left] == 7).all()
    assert (made[:, :left] == 7).all()


def test_tiles_out_of_turn_and_missing_tiles_are_found() -> None:
    across = down = Axis(20, 16, 4)
    blender = RowBlender(across, down, Window(0, 0, 20, 20), [map_layers.class_map([0])], CPU)
    list(blender.feed(0, 0, torch.ones(1, 16, 16)))
    with pytest.raises(ValueError, match=r"expected tile \(0, 1\)"):
        list(blender.feed(1, 0, None))
    with pytest.raises(ValueError, match="is missing"):
        blender.finish()


@given(st.integers(1, 30), st.integers(0, 1000))
def test_class_map_is_argmax_first_of_equals(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shares = torch.randint(0, 4, (classes, 5, 7), generator=generator) / 4  # many ties
    rows = torch.empty(1, 5, 7, dtype=torch.uint8)
    map_layers.class_map(range(10, 10 + classes)).write(shares, rows)
    assert torch.equal(rows[0], (shares.argmax(0) + 10).byte())


def test_reject_makes_nodata() -> None:
    shares = torch.tensor([[0.9, 0.4, 0.5], [0.1, 0.6, 0.5]])[:, None]
    rows = torch.empty(1, 1, 3, dtype=torch.uint8)
    map_layers.class_map([1, 2], reject=0.6).write(shares, rows)
    assert rows.flatten().tolist() == [1, 2, 255]


def test_confidence_by_its_definitions() -> None:
    shares = torch.tensor([[1.0, 0.5, 0.7], [0.0, 0.5, 0.3]])[:, None]
    rows = torch.empty(1, 1, 3, dtype=torch.uint8)
    entropy = [1, 0, 1 + (0.7 * torch.tensor(0.7).log2() + 0.3 * torch.tensor(0.3).log2()).item()]
    for kind, expected in {"max": [1, 0.5, 0.7], "margin": [1, 0, 0.4], "entropy": entropy}.items():
        map_layers.confidence(kind).write(shares, rows)  # type: ignore[arg-type]  # from a dict
        assert rows.flatten().tolist() == [round(value * 254) for value in expected]


def test_probabilities_are_steps_of_one_254th() -> None:
    shares = torch.rand(4, 3, 5).softmax(0)
    rows = torch.empty(4, 3, 5, dtype=torch.uint8)
    map_layers.probabilities(4).write(shares, rows)
    assert (rows / 254 - shares).abs().max() <= 0.5 / 254 + 1e-6
