"""Tiles without labels: they mark where there is an image, and no label file is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rsseg_cli.classes import IGNORE
from rsseg_cli.data.pair import Opener, Pair, SourcePairs
from rsseg_cli.data.splits.blocks import subtract
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window, blocks
from rsseg_cli.raster.labels import LabelReader

MOST_TILES = 256
"""Tiles that are held back at most: enough to measure shares of classes."""


class ImageMask(LabelReader):
    """Stands where a label would: 0 at every pixel of the scene, `IGNORE` outside.

    Whoever reads tiles turns what has no image into `IGNORE`. What is left is 0 where a teacher
    may name a class.
    """

    def __init__(self, extent: Window) -> None:
        self._whole = extent

    def read(self, window: Window) -> Labels:
        """Read a window (h, w)."""
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.intersect(self._whole)
        if inside is not None:
            here = inside.shift(-window.x, -window.y)
            labels[here.y : here.bottom, here.x : here.right] = 0
        return labels

    def close(self) -> None:
        """Close nothing: no file is open."""


@dataclass(frozen=True)
class UnlabelledOpener(Opener):
    """Opens images only."""

    def labels(self, pair: Pair) -> LabelReader:
        """Return labels that mark the valid pixels; the label of the pair is not used."""
        return ImageMask(pair.info.window)


def without_labels(opener: Opener, pairs: Sequence[Pair]) -> SourcePairs:
    """Forget the labels of some pairs."""
    bare = UnlabelledOpener(opener.bands, opener.reader, opener.code)
    return bare, [replace(pair, label=None) for pair in pairs]


def has_image(opener: Opener, pair: Pair, side: int = 512) -> bool:
    """Return whether any usable pixel is valid, reading blocks in random order."""
    windows = [
        block.shift(region.x, region.y)
        for region in pair.windows
        for block in blocks(region.width, region.height, (side, side))
    ]
    order = np.random.default_rng(0).permutation(len(windows))
    with opener.scene(pair.image) as scene:
        return any(bool(scene.read(windows[index])[1].any()) for index in order)


def hold_out(
    parts: Sequence[SourcePairs], share: float, tile: int
) -> tuple[list[SourcePairs], list[SourcePairs]]:
    """Hold out some tiles for validation, the same ones in every run.

    Args:
        parts: The ground.
        share: Fraction of the tiles that is held out, 0..1; none where there are fewer than four.
        tile: Side of a tile in pixels.

    Returns:
        The ground that is left, and the tiles held back. With nothing held back both are all of
        the ground.
    """
    places = [
        (number, index, block.shift(region.x, region.y))
        for number, (_, pairs) in enumerate(parts)
        for index, pair in enumerate(pairs)
        for region in pair.windows
        for block in blocks(region.width, region.height, (tile, tile))
    ]
    whole = [place for place in places if min(place[2].width, place[2].height) >= tile // 2]
    count = min(MOST_TILES, max(2, round(share * len(whole)))) if share else 0
    if not count or len(whole) < 4:
        return list(parts), list(parts)
    order = np.random.default_rng(0).permutation(len(whole))[:count]
    taken: dict[tuple[int, int], list[Window]] = {}
    for number, index, window in (whole[i] for i in sorted(order)):
        taken.setdefault((number, index), []).append(window)
    left: list[SourcePairs] = []
    held: list[SourcePairs] = []
    for number, (opener, pairs) in enumerate(parts):
        rest = []
        for index, pair in enumerate(pairs):
            ground = pair.windows
            for window in taken.get((number, index), ()):
                ground = subtract(ground, window)
            if ground:
                rest.append(replace(pair, regions=ground) if ground != pair.windows else pair)
        chosen = [
            replace(pair, regions=tuple(taken[number, index]))
            for index, pair in enumerate(pairs)
            if (number, index) in taken
        ]
        left += [(opener, rest)] if rest else []
        held += [(opener, chosen)] if chosen else []
    return left, held
