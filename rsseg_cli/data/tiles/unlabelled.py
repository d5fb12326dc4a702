"""Tiles without labels, and their holdout for validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.pair import Opener, Pair, SourcePairs
from rsseg_cli.data.splits.spatial_split import cut_out
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import LabelReader

MOST_TILES = 256
"""Largest number of tiles held out: enough to measure class fractions."""


class ImageMask(LabelReader):
    """Placeholder for labels: 0 at every pixel of the scene, `IGNORE` outside.

    `Handles.read` sets invalid pixels to `IGNORE`, so that 0 marks the pixels to pseudo-label.
    """

    def __init__(self, extent: Window) -> None:
        self._extent = extent

    def read(self, window: Window) -> Labels:
        """Read a window (h, w)."""
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.intersect(self._extent)
        if inside is not None:
            inside = inside.shift(-window.x, -window.y)
            labels[inside.y : inside.bottom, inside.x : inside.right] = 0
        return labels

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass(frozen=True)
class UnlabelledOpener(Opener):
    """Opens images only."""

    def labels(self, pair: Pair) -> LabelReader:
        """Return a mask of the scene, whether or not the pair has a label."""
        return ImageMask(pair.info.window)


def without_labels(opener: Opener, pairs: Sequence[Pair]) -> SourcePairs:
    """Remove the labels of pairs."""
    unlabelled = UnlabelledOpener(opener.bands, opener.reader, opener.code)
    return unlabelled, [replace(pair, label=None) for pair in pairs]


def has_image(opener: Opener, pair: Pair, side: int = 512) -> bool:
    """Return whether any usable pixel is valid, reading tiles in random order."""
    windows = list(pair.tiles(side))
    order = np.random.default_rng(0).permutation(len(windows))
    with opener.scene(pair.image) as scene:
        return any(bool(scene.read(windows[index])[1].any()) for index in order)


def hold_out(
    sources: Sequence[SourcePairs], fraction: float, tile: int
) -> tuple[list[SourcePairs], list[SourcePairs]]:
    """Hold out some tiles for validation, the same ones in every run.

    Args:
        sources: The scenes to divide.
        fraction: Fraction of the tiles to hold out, 0..1.
        tile: Side of a tile in pixels.

    Returns:
        The remaining windows, and those held out. Both are all of `sources` if `fraction` is 0 or
        there are fewer than four tiles.
    """
    tiles = [
        (source, index, window)
        for source, (_, pairs) in enumerate(sources)
        for index, pair in enumerate(pairs)
        for window in pair.tiles(tile)
        if min(window.width, window.height) >= tile // 2
    ]
    count = min(MOST_TILES, max(2, round(fraction * len(tiles)))) if fraction else 0
    if not count or len(tiles) < 4:
        return list(sources), list(sources)
    order = np.random.default_rng(0).permutation(len(tiles))[:count]
    windows: dict[tuple[int, int], list[Window]] = defaultdict(list)
    for source, index, window in (tiles[i] for i in sorted(order)):
        windows[source, index].append(window)
    remaining: list[SourcePairs] = []
    holdout: list[SourcePairs] = []
    for source, (opener, pairs) in enumerate(sources):
        rest = [cut_out(pair, windows[source, index]) for index, pair in enumerate(pairs)]
        kept = [pair for pair in rest if pair is not None]
        held_out = [
            replace(pair, regions=tuple(windows[source, index]))
            for index, pair in enumerate(pairs)
            if windows[source, index]
        ]
        remaining += [(opener, kept)] if kept else []
        holdout += [(opener, held_out)] if held_out else []
    return remaining, holdout
