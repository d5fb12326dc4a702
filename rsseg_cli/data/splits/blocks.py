"""Cuts the ground of many scenes into blocks and gives some of them away, for a spatial split.

Blocks are squares of ground, not of files: scenes that show the same ground agree on them, whatever
their grids. A pixel that two blocks share belongs to neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from rasterio import CRS
from rasterio.warp import transform as warp_points

from rsseg_cli.data.pair import SceneInfo
from rsseg_cli.raster.grid import Window

Block = tuple[int, int, int]
"""(world, column, row): scenes without a CRS are worlds of their own."""

CELLS = 8
"""Scenes that are turned, or in another CRS, are cut into this many cells per block side."""


@dataclass(frozen=True)
class BlockWindow:
    """A window of a scene and the blocks of ground that it touches."""

    scene: int
    window: Window
    blocks: frozenset[Block]


@dataclass(frozen=True)
class BlockGrid:
    """A plane with a lattice of blocks.

    Attributes:
        number: Which world.
        crs: Its CRS; None for the pixels of one scene.
        origin: (x, y) where the lattice starts.
        sides: (width, height) of a block in units of the CRS.
    """

    number: int
    crs: CRS | None
    origin: tuple[float, float]
    sides: tuple[float, float]


def cut(infos: Sequence[SceneInfo], side_px: int) -> list[BlockWindow]:
    """Cut scenes along blocks of about `side_px` pixels of the first scene of each world."""
    shared: BlockGrid | None = None
    patches: list[BlockWindow] = []
    for index, info in enumerate(infos):
        if info.crs is None:
            world = _world(info, side_px, number=index + 1)
        else:
            world = shared = shared or _world(info, side_px, number=0)
        patches += _cut_scene(index, info, world, side_px)
    return patches


def _world(info: SceneInfo, side_px: int, *, number: int) -> BlockGrid:
    """Return a lattice of blocks of whole pixels that fills a scene."""
    transform = info.transform
    corners = [transform @ (x, y) for x in (0, info.width) for y in (0, info.height)]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    across = max(1, round(info.width / side_px))
    down = max(1, round(info.height / side_px))
    sides = (
        (max(xs) - min(xs)) * ceil(info.width / across) / info.width,
        (max(ys) - min(ys)) * ceil(info.height / down) / info.height,
    )
    return BlockGrid(number, info.crs, (min(xs), min(ys)), sides)


def _cut_scene(index: int, info: SceneInfo, world: BlockGrid, side_px: int) -> list[BlockWindow]:
    straight = info.transform.b == 0 and info.transform.d == 0
    if straight and info.crs == world.crs:
        return _cut_straight(index, info, world)
    return _cut_cells(index, info, world, max(1, side_px // CELLS))


def _cut_straight(index: int, info: SceneInfo, world: BlockGrid) -> list[BlockWindow]:
    """Cut a scene along the lattice: every window lies in one block."""
    transform = info.transform
    columns = _spans(transform.c, transform.a, info.width, world.origin[0], world.sides[0])
    rows = _spans(transform.f, transform.e, info.height, world.origin[1], world.sides[1])
    return [
        BlockWindow(
            index,
            Window(left, top, right - left, bottom - top),
            frozenset({(world.number, column, row)}),
        )
        for row, top, bottom in rows
        for column, left, right in columns
    ]


def _spans(
    start: float, step: float, length: int, origin: float, side: float
) -> list[tuple[int, int, int]]:
    """List (block, first pixel, pixel after the last) of the blocks along one axis."""
    ends = ((start - origin) / side, (start + step * length - origin) / side)
    first, last = int(np.floor(min(ends) + 1e-9)), int(np.ceil(max(ends) - 1e-9))
    spans = []
    for block in range(first, last):
        edges = [(origin + edge * side - start) / step for edge in (block, block + 1)]
        low = max(0, int(np.ceil(min(edges) - 1e-6)))
        high = min(length, int(np.floor(max(edges) + 1e-6)))
        if high > low:
            spans.append((block, low, high))
    return spans


def _cut_cells(index: int, info: SceneInfo, world: BlockGrid, cell: int) -> list[BlockWindow]:
    """Cut a scene into small cells, each of which may touch several blocks."""
    windows = [
        Window(x, y, min(cell, info.width - x), min(cell, info.height - y))
        for y in range(0, info.height, cell)
        for x in range(0, info.width, cell)
    ]
    outline = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5)])
    corner = np.array([(window.x, window.y) for window in windows], np.float64)
    size = np.array([(window.width, window.height) for window in windows], np.float64)
    points = (corner[:, None] + size[:, None] * outline[None]).reshape(-1, 2)
    ground = _to_world(points, info, world).reshape(len(windows), len(outline), 2)
    lattice = (ground - np.array(world.origin)) / np.array(world.sides)
    low = np.floor(lattice.min(1) + 1e-9).astype(int)
    high = np.maximum(np.ceil(lattice.max(1) - 1e-9).astype(int), low + 1)
    return [
        BlockWindow(
            index,
            window,
            frozenset(
                (world.number, column, row)
                for column in range(low[i, 0], high[i, 0])
                for row in range(low[i, 1], high[i, 1])
            ),
        )
        for i, window in enumerate(windows)
    ]


def _to_world(
    points: NDArray[np.float64], info: SceneInfo, world: BlockGrid
) -> NDArray[np.float64]:
    """Map pixel positions (n, 2) into the CRS of a world."""
    transform = info.transform
    xs = transform.a * points[:, 0] + transform.b * points[:, 1] + transform.c
    ys = transform.d * points[:, 0] + transform.e * points[:, 1] + transform.f
    if info.crs is not None and info.crs != world.crs:
        xs, ys = (np.asarray(each) for each in warp_points(info.crs, world.crs, xs, ys))
    return np.stack([xs, ys], axis=1)


def draw(
    weights: dict[Block, NDArray[np.float64]],
    fraction: float,
    *,
    generator: np.random.Generator,
    together: bool,
) -> set[Block]:
    """Choose blocks that hold about a fraction of every class.

    Blocks are added one by one, each time the one that brings the shares of the classes nearest
    to `fraction`. At least half of every class stays behind.

    Args:
        weights: Labelled pixels per class (K) of each block.
        fraction: Wanted share, 0..1.
        generator: Breaks ties and starts the choice.
        together: Grow one connected area, so that the rest is not cut into small pieces.

    Returns:
        The chosen blocks; none when no block can be spared.
    """
    blocks = [block for block in sorted(weights) if weights[block].sum() > 0]
    if not blocks:
        return set()
    counts = np.stack([weights[block] for block in blocks])
    present = counts.sum(0) > 0
    shares = counts[:, present] / counts[:, present].sum(0)
    size = counts.sum(1) / counts.sum()
    left = [int(index) for index in generator.permutation(len(blocks))]
    chosen: list[int] = []
    have = np.zeros(shares.shape[1])
    while left and size[chosen].sum() < fraction * 0.95:
        near = [i for i in left if together and any(_beside(blocks[i], blocks[c]) for c in chosen)]
        pool = (near or left)[:64]
        fits = [i for i in pool if (have + shares[i] <= 0.5 + 1e-9).all()]
        fits = [i for i in fits if size[chosen].sum() + size[i] <= fraction * 1.5 or not chosen]
        if fits:
            best = min(fits, key=lambda i: float(np.abs(have + shares[i] - fraction).sum()))
            chosen.append(best)
            have = have + shares[best]
            pool = [best]
        left = [i for i in left if i not in pool]
    return {blocks[i] for i in chosen}


def _beside(one: Block, other: Block) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) + abs(one[2] - other[2]) == 1


def merge(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Join disjoint windows that share a whole edge, first along rows, then along columns."""
    rows: list[Window] = []
    for window in sorted(windows, key=lambda w: (w.y, w.height, w.x)):
        last = rows[-1] if rows else None
        if last and (last.y, last.height, last.right) == (window.y, window.height, window.x):
            rows[-1] = Window(last.x, last.y, last.width + window.width, last.height)
        else:
            rows.append(window)
    merged: list[Window] = []
    for window in sorted(rows, key=lambda w: (w.x, w.width, w.y)):
        last = merged[-1] if merged else None
        if last and (last.x, last.width, last.bottom) == (window.x, window.width, window.y):
            merged[-1] = Window(last.x, last.y, last.width, last.height + window.height)
        else:
            merged.append(window)
    return tuple(sorted(merged, key=lambda w: (w.y, w.x)))


def subtract(windows: Sequence[Window], hole: Window) -> tuple[Window, ...]:
    """Return disjoint windows without the pixels of `hole`."""
    left: list[Window] = []
    for window in windows:
        inner = window.intersect(hole)
        if inner is None:
            left.append(window)
            continue
        above, below = inner.y - window.y, window.bottom - inner.bottom
        before, after = inner.x - window.x, window.right - inner.right
        pieces = [
            Window(window.x, window.y, window.width, above),
            Window(window.x, inner.bottom, window.width, below),
            Window(window.x, inner.y, before, inner.height),
            Window(inner.right, inner.y, after, inner.height),
        ]
        left += [piece for piece in pieces if piece.width > 0 and piece.height > 0]
    return tuple(left)
