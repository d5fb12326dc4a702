"""Spatial blocks for splits: cutting scenes along a block grid, and drawing blocks.

The block grid is defined in map coordinates and is common to all scenes with a CRS, so that scenes
that overlap are divided in the same way. A pixel on the edge of two blocks belongs to neither.
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
from rsseg_cli.raster.grid import Window, blocks

Block = tuple[int, int, int]
"""(grid, column, row); each scene without a CRS has its own grid."""

CELLS = 8
"""Rotated scenes, and those in another CRS, are cut into this many cells per block side."""


@dataclass(frozen=True)
class BlockWindow:
    """A window of a scene and the blocks that it overlaps."""

    scene: int
    window: Window
    blocks: frozenset[Block]


@dataclass(frozen=True)
class BlockGrid:
    """A regular grid of blocks."""

    number: int
    """0 for the grid of all scenes with a CRS, else 1 + the index of the scene."""
    crs: CRS | None
    origin: tuple[float, float]
    """(x, y) of a corner of the grid."""
    sides: tuple[float, float]
    """(width, height) of a block in units of the CRS, or in pixels without one."""


def cut(infos: Sequence[SceneInfo], side_px: int) -> list[BlockWindow]:
    """Cut scenes along block grids of about `side_px` pixels of the first scene of each grid."""
    shared: BlockGrid | None = None
    windows: list[BlockWindow] = []
    for index, info in enumerate(infos):
        if info.crs is None:
            grid = _block_grid(info, side_px, number=index + 1)
        else:
            grid = shared = shared or _block_grid(info, side_px, number=0)
        north_up = info.transform.b == 0 and info.transform.d == 0
        if north_up and info.crs == grid.crs:
            windows += _cut_exactly(index, info, grid)
        else:
            windows += _cut_cells(index, info, grid, max(1, side_px // CELLS))
    return windows


def _block_grid(info: SceneInfo, side_px: int, *, number: int) -> BlockGrid:
    """Return a grid with blocks of whole pixels that fills a scene."""
    transform = info.transform
    corners = [transform @ (x, y) for x in (0, info.width) for y in (0, info.height)]
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    columns = max(1, round(info.width / side_px))
    rows = max(1, round(info.height / side_px))
    sides = (
        (max(xs) - min(xs)) * ceil(info.width / columns) / info.width,
        (max(ys) - min(ys)) * ceil(info.height / rows) / info.height,
    )
    return BlockGrid(number, info.crs, (min(xs), min(ys)), sides)


def _cut_exactly(index: int, info: SceneInfo, grid: BlockGrid) -> list[BlockWindow]:
    """Cut a scene along the grid: every window lies in one block."""
    transform = info.transform
    columns = _spans(transform.c, transform.a, info.width, grid.origin[0], grid.sides[0])
    rows = _spans(transform.f, transform.e, info.height, grid.origin[1], grid.sides[1])
    return [
        BlockWindow(
            index,
            Window(left, top, right - left, bottom - top),
            frozenset({(grid.number, column, row)}),
        )
        for row, top, bottom in rows
        for column, left, right in columns
    ]


def _spans(
    start: float, step: float, length: int, origin: float, side: float
) -> list[tuple[int, int, int]]:
    """Return (block, first pixel, pixel after the last) of the blocks along one axis."""
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


def _cut_cells(index: int, info: SceneInfo, grid: BlockGrid, cell: int) -> list[BlockWindow]:
    """Cut a scene into small cells, each of which may overlap several blocks."""
    windows = list(blocks(info.width, info.height, (cell, cell)))
    outline = np.array([(0, 0), (0.5, 0), (1, 0), (1, 0.5), (1, 1), (0.5, 1), (0, 1), (0, 0.5)])
    corner = np.array([(window.x, window.y) for window in windows], np.float64)
    size = np.array([(window.width, window.height) for window in windows], np.float64)
    points = (corner[:, None] + size[:, None] * outline[None]).reshape(-1, 2)
    position = _to_map(points, info, grid).reshape(len(windows), len(outline), 2)
    position = (position - np.array(grid.origin)) / np.array(grid.sides)
    low = np.floor(position.min(1) + 1e-9).astype(int)
    high = np.maximum(np.ceil(position.max(1) - 1e-9).astype(int), low + 1)
    return [
        BlockWindow(
            index,
            window,
            frozenset(
                (grid.number, column, row)
                for column in range(low[i, 0], high[i, 0])
                for row in range(low[i, 1], high[i, 1])
            ),
        )
        for i, window in enumerate(windows)
    ]


def _to_map(points: NDArray[np.float64], info: SceneInfo, grid: BlockGrid) -> NDArray[np.float64]:
    """Transform pixel positions (n, 2) to the CRS of a grid."""
    transform = info.transform
    xs = transform.a * points[:, 0] + transform.b * points[:, 1] + transform.c
    ys = transform.d * points[:, 0] + transform.e * points[:, 1] + transform.f
    if info.crs is not None and info.crs != grid.crs:
        xs, ys = (np.asarray(axis) for axis in warp_points(info.crs, grid.crs, xs, ys))
    return np.stack([xs, ys], axis=1)


def draw(
    weights: dict[Block, NDArray[np.float64]],
    fraction: float,
    *,
    generator: np.random.Generator,
    connected: bool,
) -> set[Block]:
    """Draw blocks that contain about a fraction of every class.

    Blocks are added greedily: each time the one that brings the fractions of the classes closest
    to `fraction`. At least half of every class is left.

    Args:
        weights: Labelled pixels per class (K) of each block.
        fraction: Target fraction, 0..1.
        generator: Shuffles the blocks.
        connected: Grow connected areas, so that the rest is not cut into small pieces.

    Returns:
        The blocks; none if every block has more than half of a class.
    """
    labelled = [block for block in sorted(weights) if weights[block].sum() > 0]
    if not labelled:
        return set()
    counts = np.stack([weights[block] for block in labelled])
    present = counts.sum(0) > 0
    fractions = counts[:, present] / counts[:, present].sum(0)
    size = counts.sum(1) / counts.sum()
    remaining = [int(index) for index in generator.permutation(len(labelled))]
    drawn: list[int] = []
    total = np.zeros(fractions.shape[1])
    while remaining and size[drawn].sum() < fraction * 0.95:
        adjacent = [
            i
            for i in remaining
            if connected and any(_adjacent(labelled[i], labelled[d]) for d in drawn)
        ]
        candidates = (adjacent or remaining)[:64]
        fits = [
            i
            for i in candidates
            if (total + fractions[i] <= 0.5 + 1e-9).all()
            and (not drawn or size[drawn].sum() + size[i] <= fraction * 1.5)
        ]
        if fits:
            best = min(fits, key=lambda i: float(np.abs(total + fractions[i] - fraction).sum()))
            drawn.append(best)
            total = total + fractions[best]
            candidates = [best]
        remaining = [i for i in remaining if i not in candidates]
    return {labelled[i] for i in drawn}


def _adjacent(block: Block, other: Block) -> bool:
    distance = abs(block[1] - other[1]) + abs(block[2] - other[2])
    return block[0] == other[0] and distance == 1


def merge(windows: Sequence[Window]) -> tuple[Window, ...]:
    """Merge disjoint windows that share a whole edge, first along rows, then along columns."""
    rows = _join([(w.y, w.height, w.x, w.width) for w in windows])
    columns = _join([(x, width, y, height) for y, height, x, width in rows])
    merged = [Window(x, y, width, height) for x, width, y, height in columns]
    return tuple(sorted(merged, key=lambda w: (w.y, w.x)))


def _join(spans: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Join spans (line, breadth, start, length) of the same line and breadth that touch."""
    joined: list[tuple[int, int, int, int]] = []
    for line, breadth, start, length in sorted(spans):
        if joined and joined[-1][:2] == (line, breadth) and sum(joined[-1][2:]) == start:
            *_, start, before = joined.pop()
            length += before
        joined.append((line, breadth, start, length))
    return joined


def subtract(windows: Sequence[Window], hole: Window) -> tuple[Window, ...]:
    """Remove the pixels of `hole` from disjoint windows."""
    remaining: list[Window] = []
    for window in windows:
        inner = window.intersect(hole)
        if inner is None:
            remaining.append(window)
            continue
        pieces = [
            Window(window.x, window.y, window.width, inner.y - window.y),
            Window(window.x, inner.bottom, window.width, window.bottom - inner.bottom),
            Window(window.x, inner.y, inner.x - window.x, inner.height),
            Window(inner.right, inner.y, window.right - inner.right, inner.height),
        ]
        remaining += [piece for piece in pieces if piece.width > 0 and piece.height > 0]
    return tuple(remaining)
