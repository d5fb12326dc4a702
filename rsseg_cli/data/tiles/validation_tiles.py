"""Tiles that cover the validation pixels."""

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
    """Tiles with every usable pixel in exactly one of them, for validation.

    A tile at the border is shifted back into its scene for more context. Pixels that belong to
    another tile or are not usable are `IGNORE` in its label.

    Args:
        sources: Scenes to cover.
        bands: The channels; missing samples are replaced by their mean.
        tile: Side of a tile in pixels.
        batch: Tiles per item; the last item may have fewer.
        rank: Rank of this process, which reads every `world`-th item.
        world: Number of processes.
    """

    def __init__(
        self,
        sources: Sequence[SourcePairs],
        bands: Bands,
        *,
        tile: int,
        batch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_compatible(sources)
        self._fill, self._tile = bands.mean, tile
        cells = [
            (opener, pair, cell)
            for opener, pairs in sources
            for pair in pairs
            for cell in pair.tiles(tile)
        ]
        items = [cells[start : start + batch] for start in range(0, len(cells), batch)]
        self._items = items[rank::world]
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
        image, label, _ = self._files.handles.read(opener, pair, window, fill=self._fill)
        masked = np.full(label.shape, IGNORE, np.uint8)
        inner = cell.shift(-x, -y)
        pixels = (slice(inner.y, inner.bottom), slice(inner.x, inner.right))
        masked[pixels] = label[pixels]
        return image, masked, pair
