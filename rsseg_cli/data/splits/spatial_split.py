"""Spatial splits: the images, and the windows of them, that each split may use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.data.pair import Opener, Pair, SceneInfo
from rsseg_cli.data.spec.dataset_spec import Split
from rsseg_cli.data.splits.blocks import Block, BlockWindow, cut, draw, merge, subtract
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window

BLOCKS = 25
"""Number of blocks that a small dataset is cut into."""
SIDE_PX = 2048
"""Largest side of a block."""
SCAN_PX = 2**26
"""Pixels of a dataset above which only the centre of each window is counted."""


@dataclass(frozen=True)
class SplitPlan:
    """Assignment of blocks to splits."""

    windows: Mapping[str, Sequence[BlockWindow]]
    """Windows of each scene, by the path of its image."""
    blocks: Mapping[str, frozenset[Block]]
    """Blocks of each split with a fraction."""

    def within(self, split: str, pair: Pair) -> tuple[Window, ...]:
        """Return the windows of a pair that lie wholly in blocks of a split."""
        blocks = self.blocks[split]
        return merge([w.window for w in self.windows[pair.info.path] if w.blocks <= blocks])

    def outside(self, splits: Iterable[str], pair: Pair) -> tuple[Window, ...]:
        """Return the windows of a pair that overlap no block of some splits."""
        blocks = frozenset().union(*(self.blocks[split] for split in splits))
        return merge([w.window for w in self.windows[pair.info.path] if not w.blocks & blocks])


def plan_blocks(
    opener: Opener,
    pairs: Sequence[Pair],
    counted: Sequence[bool],
    fractions: Mapping[str, float],
) -> SplitPlan:
    """Assign blocks to splits so that every class stays in training and no pixel is shared.

    The same files always have the same blocks.

    Args:
        opener: Opener of the labels.
        pairs: All scenes, since they may overlap.
        counted: Whether the labels of a pair count, for each pair.
        fractions: Fraction of the labelled area for each split.

    Raises:
        RssegError: The labelled area is too small to hold any out.
    """
    area = sum(pair.info.width * pair.info.height for pair in pairs)
    side_px = min(SIDE_PX, max(2, round(sqrt(area / BLOCKS))))
    while True:
        windows = cut([pair.info for pair in pairs], side_px)
        weights = _weigh(opener, pairs, [window for window in windows if counted[window.scene]])
        blocks = _assign(weights, fractions, connected=len(weights) <= 4 * BLOCKS)
        if blocks is not None:
            break
        if side_px <= 2:
            raise RssegError(
                "the labelled area is too small to hold some of it out for validation",
                where=", ".join(pair.name for pair in pairs[:3]),
                fix="label more, or set `splits` with a `val` in dataset.yaml",
            )
        side_px = max(2, round(side_px / sqrt(2)))
    by_scene: dict[str, list[BlockWindow]] = {pair.info.path: [] for pair in pairs}
    for window in windows:
        by_scene[pairs[window.scene].info.path].append(window)
    return SplitPlan(by_scene, blocks)


def _assign(
    weights: dict[Block, NDArray[np.float64]],
    fractions: Mapping[str, float],
    *,
    connected: bool,
) -> dict[str, frozenset[Block]] | None:
    """Draw the blocks of each split in turn; None if the fraction of one is far off."""
    generator = np.random.default_rng(0)
    total = sum(weight.sum() for weight in weights.values())
    remaining = dict(weights)
    blocks = {}
    for split, fraction in fractions.items():
        rest = sum(weight.sum() for weight in remaining.values())
        target = min(0.5, fraction * total / rest) if rest else 0.0
        drawn = draw(remaining, target, generator=generator, connected=connected)
        actual = sum(weights[block].sum() for block in drawn) / max(total, 1.0)
        if not fraction / 2 <= actual <= fraction * 1.6:
            return None
        blocks[split] = frozenset(drawn)
        remaining = {block: w for block, w in remaining.items() if block not in drawn}
    return blocks


def _weigh(
    opener: Opener, pairs: Sequence[Pair], windows: Sequence[BlockWindow]
) -> dict[Block, NDArray[np.float64]]:
    """Count labelled pixels per block and class; without labels, pixels."""
    classes = len(opener.classes)
    weights: dict[Block, NDArray[np.float64]] = defaultdict(lambda: np.zeros(classes + 1))
    area = sum(pair.info.width * pair.info.height for pair in pairs)
    scale = min(1.0, sqrt(SCAN_PX / area))
    by_scene: dict[int, list[BlockWindow]] = defaultdict(list)
    for window in windows:
        by_scene[window.scene].append(window)
    for scene, scene_windows in by_scene.items():
        reader = opener.labels(pairs[scene])
        for window in scene_windows:
            if len(window.blocks) > 1:
                continue
            (block,) = window.blocks
            if reader is not None:
                labels = reader.read(_centre(window.window, scale))
                weights[block][:classes] += np.bincount(labels.ravel(), minlength=256)[:classes]
            weights[block][classes] += window.window.width * window.window.height
        if reader is not None:
            reader.close()
    labelled = any(weight[:classes].any() for weight in weights.values())
    columns = slice(0, classes) if labelled else slice(classes, None)
    return {block: weight[columns] for block, weight in weights.items()}


def _centre(window: Window, scale: float) -> Window:
    """Return the centre of a window, its sides multiplied by `scale`."""
    width, height = max(1, int(window.width * scale)), max(1, int(window.height * scale))
    return Window(
        window.x + (window.width - width) // 2,
        window.y + (window.height - height) // 2,
        width,
        height,
    )


def fraction_box(box: tuple[float, float, float, float], info: SceneInfo) -> Window:
    """Convert a box of fractions to pixels; boxes that share an edge have no common pixel."""
    x0, y0, x1, y1 = box
    left, top = round(x0 * info.width), round(y0 * info.height)
    return Window(left, top, round(x1 * info.width) - left, round(y1 * info.height) - top)


def restrict(
    pair: Pair, split: Split, name: str, others: Mapping[str, Split], plan: SplitPlan | None
) -> Pair | None:
    """Restrict a pair to the windows of a split; None if nothing is left.

    Args:
        pair: The whole pair.
        split: Settings of the split.
        name: Name of the split.
        others: Excluded splits that use windows of images rather than whole images.
        plan: Blocks of each split.
    """
    regions = pair.windows if split.box is None else (fraction_box(split.box, pair.info),)
    for other in others.values():
        # A split with a box and blocks uses the blocks in its box only: these are removed below.
        if other.box is not None and other.blocks is None:
            regions = subtract(regions, fraction_box(other.box, pair.info))
    if plan is not None:
        if split.blocks is not None:
            regions = overlap(regions, plan.within(name, pair))
        excluded = [other for other, settings in others.items() if settings.blocks is not None]
        if excluded:
            regions = overlap(regions, plan.outside(excluded, pair))
    return _with_regions(pair, tuple(r for r in regions if r.width > 0 and r.height > 0))


def cut_out(pair: Pair, holes: Sequence[Window]) -> Pair | None:
    """Remove windows from a pair; None if nothing is left."""
    regions = pair.windows
    for hole in holes:
        regions = subtract(regions, hole)
    return _with_regions(pair, regions)


def _with_regions(pair: Pair, regions: tuple[Window, ...]) -> Pair | None:
    if regions == pair.windows:
        return pair
    return replace(pair, regions=regions) if regions else None


def overlap(windows: Sequence[Window], others: Sequence[Window]) -> tuple[Window, ...]:
    """Intersect two sets of disjoint windows."""
    crossings = (window.intersect(other) for window in windows for other in others)
    return tuple(crossing for crossing in crossings if crossing is not None)
