"""Window arithmetic: every pixel has its tiles, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenes import windows

from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Axis, Window, blocks


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    tile = draw(st.integers(1, 70))
    overlap = draw(st.integers(0, tile // 2))
    return Axis(draw(st.integers(1, 400)), tile, overlap, draw(st.integers(0, overlap // 2)))


@given(axes())
def test_tiles_cover_an_axis_with_the_fewest(axis: Axis) -> None:
    covered = np.zeros(axis.length, int)
    for index in range(axis.count):
        assert axis.start(index) > -axis.tile
        covered[max(0, axis.start(index)) : axis.start(index) + axis.tile] += 1
    assert covered.min() >= 1
    fewer = (axis.count - 2) * axis.stride + axis.tile
    assert axis.count == 1 or fewer < axis.length
    left, right = -axis.start(0), axis.start(axis.count - 1) + axis.tile - axis.length
    assert 0 <= right - left <= 1  # what hangs over is shared by both ends


@given(axes())
def test_says_of_neighbours_meet_in_ramps(axis: Axis) -> None:
    says = np.zeros(axis.length, int)
    for index in range(axis.count):
        assert axis.start(index) <= axis.begin(index) < axis.end(index)
        assert axis.end(index) <= axis.start(index) + axis.tile
        says[axis.begin(index) : axis.end(index)] += 1
    assert set(says) <= {1, 2}
    assert (says == 2).sum() == axis.ramp * (axis.count - 1)
    assert axis.begin(0) == 0
    assert axis.begin(axis.count) == axis.end(axis.count - 1) == axis.length


@given(axes(), st.data())
def test_touching_finds_all_that_have_a_say(axis: Axis, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    found = axis.touching(start, stop)
    for index in range(axis.count):
        says = axis.begin(index) < stop and axis.end(index) > start
        assert (index in found) == says


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_windows_without_overlap_cover_every_pixel_once(width: int, height: int, tile: int) -> None:
    seen = np.zeros((height, width), int)
    for window in windows(width, height, tile):
        inside = window.intersect(Window(0, 0, width, height))
        assert inside is not None
        seen[inside.y : inside.bottom, inside.x : inside.right] += 1
    assert (seen == 1).all()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40))
def test_blocks_cover_every_pixel_once(width: int, height: int, high: int, wide: int) -> None:
    seen = np.zeros((height, width), int)
    for block in blocks(width, height, (high, wide)):
        assert block.x % wide == 0
        assert block.y % high == 0
        seen[block.y : block.bottom, block.x : block.right] += 1
    assert (seen == 1).all()


def test_windows_that_do_not_meet_have_no_intersection() -> None:
    assert Window(0, 0, 4, 4).intersect(Window(4, 0, 4, 4)) is None
    assert Window(0, 0, 4, 4).intersect(Window(3, 2, 4, 4)) == Window(3, 2, 1, 2)
    assert Window(1, 2, 3, 4).shift(-1, 5) == Window(0, 7, 3, 4)


def test_tiles_that_overlap_by_more_than_half_are_refused() -> None:
    with pytest.raises(RssegError, match="cannot overlap by 40"):
        Axis(100, 64, 40)
