"""Spatial splits: the pairs, and the windows of them, that each split may use."""

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
"""Blocks that the whole ground is cut into when it is small."""
SIDE_PX = 2048
"""Largest side of a block."""
SCAN_PX = 2**26
"""Label pixels that are read at once or, of each dataset, in all before sampling starts."""


@dataclass(frozen=True)
class SplitPlan:
    """Blocks of each split.

    Attributes:
        patches: Patches of each scene, by its image's path.
        owned: Blocks of each split with a fraction.
    """

    patches: Mapping[str, Sequence[BlockWindow]]
    owned: Mapping[str, frozenset[Block]]

    def within(self, split: str, pair: Pair) -> tuple[Window, ...]:
        """Ground of a pair that lies wholly in blocks of a split."""
        owned = self.owned[split]
        return merge([p.window for p in self.patches[pair.info.path] if p.blocks <= owned])

    def outside(self, splits: Iterable[str], pair: Pair) -> tuple[Window, ...]:
        """Ground of a pair that touches no block of some splits."""
        taken = frozenset().union(*(self.owned[split] for split in splits))
        return merge([p.window for p in self.patches[pair.info.path] if not p.blocks & taken])


def plan_blocks(
    opener: Opener,
    pairs: Sequence[Pair],
    counted: Sequence[bool],
    fractions: Mapping[str, float],
) -> SplitPlan:
    """Assign blocks to splits so that every class stays in training and no pixel is shared.

    The same files give the same blocks.

    Args:
        opener: How labels are read.
        pairs: Everything that shows some of the ground.
        counted: Which pairs' labels count.
        fractions: Share of the labelled ground that each split wants.

    Raises:
        RssegError: There is too little labelled ground to hold any back.
    """
    side_px = _side(pairs)
    while True:
        patches = cut([pair.info for pair in pairs], side_px)
        weights = _weigh(opener, pairs, [patch for patch in patches if counted[patch.scene]])
        owned = _deal(weights, fractions, together=len(weights) <= 4 * BLOCKS)
        if owned is not None:
            break
        if side_px <= 2:
            raise RssegError(
                "there is too little labelled ground to hold some back for validation",
                where=", ".join(pair.name for pair in pairs[:3]),
                fix="label more, or give `splits` with a `val` in dataset.yaml",
            )
        side_px = max(2, round(side_px / sqrt(2)))
    by_scene: dict[str, list[BlockWindow]] = {pair.info.path: [] for pair in pairs}
    for patch in patches:
        by_scene[pairs[patch.scene].info.path].append(patch)
    return SplitPlan(by_scene, owned)


def _side(pairs: Sequence[Pair]) -> int:
    ground = sum(pair.info.width * pair.info.height for pair in pairs)
    return int(min(SIDE_PX, max(2, round(sqrt(ground / BLOCKS)))))


def _deal(
    weights: dict[Block, NDArray[np.float64]],
    fractions: Mapping[str, float],
    *,
    together: bool,
) -> dict[str, frozenset[Block]] | None:
    """Draw the blocks of each split in turn; None when one misses its fraction by far."""
    generator = np.random.default_rng(0)
    total = sum(weight.sum() for weight in weights.values())
    left = dict(weights)
    owned = {}
    for split, fraction in fractions.items():
        rest = sum(weight.sum() for weight in left.values())
        wanted = min(0.5, fraction * total / rest) if rest else 0.0
        drawn = draw(left, wanted, generator=generator, together=together)
        share = sum(weights[block].sum() for block in drawn) / max(total, 1.0)
        if not fraction / 2 <= share <= fraction * 1.6:
            return None
        owned[split] = frozenset(drawn)
        left = {block: weight for block, weight in left.items() if block not in drawn}
    return owned


def _weigh(
    opener: Opener, pairs: Sequence[Pair], patches: Sequence[BlockWindow]
) -> dict[Block, NDArray[np.float64]]:
    """Count labelled pixels per block and class; without labels, pixels."""
    classes = len(opener.classes)
    weights: dict[Block, NDArray[np.float64]] = defaultdict(lambda: np.zeros(classes + 1))
    ground = sum(pair.info.width * pair.info.height for pair in pairs)
    share = min(1.0, sqrt(SCAN_PX / ground))
    by_scene: dict[int, list[BlockWindow]] = defaultdict(list)
    for patch in patches:
        by_scene[patch.scene].append(patch)
    for scene, own in by_scene.items():
        reader = opener.labels(pairs[scene])
        for patch in own:
            if len(patch.blocks) > 1:
                continue
            (block,) = patch.blocks
            window = _centre(patch.window, share)
            if reader is not None:
                counted = np.bincount(reader.read(window).ravel(), minlength=256)
                weights[block][:classes] += counted[:classes]
            weights[block][classes] += patch.window.width * patch.window.height
        if reader is not None:
            reader.close()
    labelled = any(weight[:classes].any() for weight in weights.values())
    keep = slice(0, classes) if labelled else slice(classes, None)
    return {block: weight[keep] for block, weight in weights.items()}


def _centre(window: Window, share: float) -> Window:
    width, height = max(1, int(window.width * share)), max(1, int(window.height * share))
    return Window(
        window.x + (window.width - width) // 2,
        window.y + (window.height - height) // 2,
        width,
        height,
    )


def fraction_box(box: tuple[float, float, float, float], info: SceneInfo) -> Window:
    """Return a box in pixels from fractions; boxes that share an edge have no pixel in common."""
    x0, y0, x1, y1 = box
    left, top = round(x0 * info.width), round(y0 * info.height)
    return Window(left, top, round(x1 * info.width) - left, round(y1 * info.height) - top)


def restrict(
    pair: Pair, split: Split, name: str, others: Mapping[str, Split], plan: SplitPlan | None
) -> Pair | None:
    """Restrict a pair to the windows of a split, None when nothing is left.

    Args:
        pair: The whole pair.
        split: Settings of the split.
        name: The split's name.
        others: The splits it excludes, those that take ground rather than whole images.
        plan: Blocks of each split.
    """
    regions = pair.windows if split.box is None else (fraction_box(split.box, pair.info),)
    for other in others.values():
        # One with blocks too owns only these of its box; they are taken out below.
        if other.box is not None and other.blocks is None:
            regions = subtract(regions, fraction_box(other.box, pair.info))
    if plan is not None:
        if split.blocks is not None:
            regions = overlap(regions, plan.within(name, pair))
        dealt = [other for other, each in others.items() if each.blocks is not None]
        if dealt:
            regions = overlap(regions, plan.outside(dealt, pair))
    regions = tuple(region for region in regions if region.width > 0 and region.height > 0)
    if regions == pair.windows:
        return pair
    return replace(pair, regions=regions) if regions else None


def cut_out(pair: Pair, held: Sequence[Window]) -> Pair | None:
    """Remove windows from a pair, None when nothing is left."""
    regions = pair.windows
    for window in held:
        regions = subtract(regions, window)
    if regions == pair.windows:
        return pair
    return replace(pair, regions=regions) if regions else None


def overlap(some: Sequence[Window], others: Sequence[Window]) -> tuple[Window, ...]:
    """Intersect two sets of disjoint windows."""
    crossed = (one.intersect(other) for one in some for other in others)
    return tuple(window for window in crossed if window is not None)
