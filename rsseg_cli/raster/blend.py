"""Blends overlapping tiles into finished rows of a map; scores of a whole scene are never held.

Each pixel has at most two tiles along either axis (see `grid`). The weights of the two add up to
one, so nothing needs to be divided at the end, and only what the next tile still needs is kept:
the ramp beside the last tile, and one ramp below the last row of tiles. A pixel that no other tile
covers goes straight from the model to the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsseg_cli.classes import IGNORE
from rsseg_cli.raster.grid import Axis, Window

Rows = tuple[Tensor, ...]
"""Finished rows of each product: uint8 (bands, rows, columns)."""


@dataclass(frozen=True)
class Product:
    """A map layer computed from finished class probabilities, pixel by pixel.

    Attributes:
        bands: Number of bands that it has.
        write: Computes the layer of probabilities (K, h, w) into a uint8 view (bands, h, w).
    """

    bands: int
    write: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class _Cut:
    """The part of a tile along one axis that matters for a region.

    Attributes:
        use: The pixels that the tile contributes to, in pixels of the tile.
        place: Where its finished pixels go, in pixels of the region.
        lead: How many of its first pixels blend with the tile before.
        done: How many pixels are finished once this tile is in; the rest wait for the next.
        fade_in: (lead,) weights of this tile over the lead.
        fade_out: Weights of this tile over what waits for the next.
    """

    use: slice
    place: slice
    lead: int
    done: int
    fade_in: Tensor
    fade_out: Tensor


class RowBlender:
    """Blends the tiles of a region in reading order and yields finished rows of its products.

    Args:
        across: Tiles along the columns of the scene.
        down: Tiles along its rows.
        region: The part of the scene that is made; tiles beside it are not needed.
        products: What is made of the probabilities.
        device: Where scores arrive and rows are made.
    """

    def __init__(
        self,
        across: Axis,
        down: Axis,
        region: Window,
        products: Sequence[Product],
        device: torch.device,
    ) -> None:
        self.products, self.device = tuple(products), device
        self.columns = across.touching(region.x, region.right)
        self.rows = down.touching(region.y, region.bottom)
        self._width, self._y, self._ramp = region.width, region.y, down.ramp
        self._across = {i: self._cut(across, i, region.x, region.right) for i in self.columns}
        self._down = {i: self._cut(down, i, region.y, region.bottom) for i in self.rows}
        self._order = ((row, column) for row in self.rows for column in self.columns)
        self._beside: Tensor | None = None
        self._below: Tensor | None = None
        self._finished: Rows = ()

    def _cut(self, axis: Axis, index: int, start: int, stop: int) -> _Cut:
        begin, end = max(axis.begin(index), start), min(axis.end(index), stop)
        done = min(max(axis.begin(index + 1), start), stop)
        lead = max(0, min(axis.end(index - 1), stop) - begin) if index > 0 else 0
        fade = torch.arange(axis.ramp, device=self.device, dtype=torch.float32).add_(0.5)
        fade = fade.mul_(math.pi / 2 / max(1, axis.ramp)).sin_().square_()
        skipped = begin - axis.begin(index)
        tile = axis.start(index)
        waiting = done - axis.begin(index + 1)
        return _Cut(
            use=slice(begin - tile, end - tile),
            place=slice(begin - start, done - start),
            lead=lead,
            done=done - begin,
            fade_in=fade[skipped : skipped + lead],
            fade_out=1 - fade[waiting : waiting + end - done],
        )

    def feed(self, row: int, column: int, scores: Tensor | None) -> Iterator[tuple[int, Rows]]:
        """Blend the next tile; yield the rows that are finished when a row of tiles is complete.

        Args:
            row: Row of the tile, counted over the scene.
            column: Column of the tile.
            scores: Class probabilities (K, T, T), which may be written into; None for a tile in
                which no pixel is valid.

        Yields:
            (y, rows): the row of the scene where they start, and the rows of each product.
        """
        expected = next(self._order)
        if (row, column) != expected:
            raise ValueError(f"tile {(row, column)} came where {expected} was due")
        down, across = self._down[row], self._across[column]
        if column == self.columns[0]:
            self._finished, self._beside = self._blank(down.done), None
        if scores is None:
            self._pass(down, across)
        else:
            self._add(scores, down, across)
        if column == self.columns[-1] and down.done:
            yield self._y + down.place.start, self._finished

    def finish(self) -> None:
        """Check that every tile was fed."""
        missing = next(self._order, None)
        if missing is not None:
            raise ValueError(f"tile {missing} never came")

    def _blank(self, rows: int) -> Rows:
        return tuple(
            torch.empty((product.bands, rows, self._width), dtype=torch.uint8, device=self.device)
            for product in self.products
        )

    def _pass(self, down: _Cut, across: _Cut) -> None:
        """Skip a tile without valid pixels."""
        self._beside = None
        if self._below is not None:
            self._below[:, :, across.place] = 0
        for rows in self._finished:
            rows[:, :, across.place] = IGNORE

    def _add(self, scores: Tensor, down: _Cut, across: _Cut) -> None:
        used = scores[:, down.use, across.use]
        if across.lead and self._beside is not None:
            used[:, :, : across.lead].mul_(across.fade_in).add_(self._beside)
        self._beside = None
        if across.fade_out.numel():
            self._beside = used[:, :, across.done :] * across.fade_out
        used = used[:, :, : across.done]
        if down.lead and self._below is not None:
            above = self._below[:, : down.lead, across.place]
            used[:, : down.lead].mul_(down.fade_in[:, None]).add_(above)
        waiting = down.fade_out.numel()
        if waiting:
            below = self._room_below(scores, waiting)[:, :, across.place]
            torch.mul(used[:, down.done :], down.fade_out[:, None], out=below)
        finished = used[:, : down.done]
        if not finished.numel():
            return
        for product, rows in zip(self.products, self._finished, strict=True):
            product.write(finished, rows[:, :, across.place])

    def _room_below(self, scores: Tensor, rows: int) -> Tensor:
        if self._below is None:
            shape = (scores.shape[0], self._ramp, self._width)
            self._below = scores.new_zeros(shape)
        return self._below[:, :rows]
