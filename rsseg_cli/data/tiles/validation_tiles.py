"""The tiles that cover the ground a model is validated on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from rsseg_cli.classes import IGNORE
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Opener, Pair, SourcePairs
from rsseg_cli.data.tiles.tile_stream import Batch, Samples, ThreadHandles, check_compatible, stack
from rsseg_cli.raster.decode import Labels
from rsseg_cli.raster.grid import Window


class CoveringTiles(Dataset[Batch]):
    """Every pixel of the usable ground in exactly one tile, for validation.

    A tile is shifted back into its scene at the border, for the sake of context; what it shares
    with another tile, and what is not usable ground, is `IGNORE` in its label.

    Args:
        parts: What to cover.
        bands: The channels; missing samples get the mean of theirs.
        tile: Side in pixels.
        batch: Tiles per item, the last one may have fewer.
        rank: Number of this process, which gets every `world`-th item.
        world: Number of processes.
    """

    def __init__(
        self,
        parts: Sequence[SourcePairs],
        bands: Bands,
        *,
        tile: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_compatible(parts)
        self._fill, self._tile = bands.mean, tile
        cells = [
            (opener, pair, cell)
            for opener, pairs in parts
            for pair in pairs
            for cell in _cells(pair, tile)
        ]
        groups = [cells[start : start + batch] for start in range(0, len(cells), batch)]
        self._items = groups[rank::world]
        self._files = ThreadHandles()

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._items)

    def __getitem__(self, number: int) -> Batch:
        """Read a batch."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        tiles = [self._read(*item) for item in self._items[number]]
        images, labels, pairs = zip(*tiles, strict=True)
        return stack(images, labels, pairs)

    def _read(self, opener: Opener, pair: Pair, cell: Window) -> tuple[Samples, Labels, Pair]:
        x = min(cell.x, max(pair.info.width - self._tile, 0))
        y = min(cell.y, max(pair.info.height - self._tile, 0))
        window = Window(x, y, self._tile, self._tile)
        handles = self._files.handles
        image, label, _ = handles.read(opener, pair, window, fill=self._fill)
        own = np.full(label.shape, IGNORE, np.uint8)
        part = cell.shift(-x, -y)
        here = (slice(part.y, part.bottom), slice(part.x, part.right))
        own[here] = label[here]
        return image, own, pair


def _cells(pair: Pair, tile: int) -> list[Window]:
    return [
        Window(x, y, min(tile, region.right - x), min(tile, region.bottom - y))
        for region in pair.windows
        for y in range(region.y, region.bottom, tile)
        for x in range(region.x, region.right, tile)
    ]
