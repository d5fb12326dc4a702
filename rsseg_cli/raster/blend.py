"""Blending of overlapping tiles into finished rows of a map, without the scores of a whole scene.

Each pixel is covered by at most two tiles along either axis (see `grid`), whose weights add up to
one, so that nothing is divided at the end. Only the scores that the next tiles need are stored: the
ramp to the right of the last tile, and the ramp below the last row of tiles.
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
    """A map layer computed from class probabilities, pixel by pixel.

    Attributes:
        bands: Number of bands.
        write: Writes the layer of probabilities (K, h, w) into a uint8 view (bands, h, w).
    """

    bands: int
    write: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class _Span:
    """The pixels of a tile along one axis that contribute to a region.

    Attributes:
        source: These pixels, in pixels of the tile.
        target: The finished ones among them, in pixels of the region.
        lead: Number of first pixels that are blended with the previous tile.
        done: Number of pixels that this tile finishes; the others are blended with the next tile.
        fade_in: (lead,) weights of this tile over the lead.
        fade_out: Weights of this tile over its unfinished pixels.
    """

    source: slice
    target: slice
    lead: int
    done: int
    fade_in: Tensor
    fade_out: Tensor


class RowBlender:
    """Blends the tiles of a region in reading order and yields finished rows of its products.

    Args:
        across: Tiles along the columns of the scene.
        down: Tiles along its rows.
        region: The part of the scene to compute; tiles outside it are not needed.
        products: Map layers to compute from the probabilities.
        device: Device of the scores and of the rows.
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
        self._across = {i: self._span(across, i, region.x, region.right) for i in self.columns}
        self._down = {i: self._span(down, i, region.y, region.bottom) for i in self.rows}
        self._order = ((row, column) for row in self.rows for column in self.columns)
        self._right_ramp: Tensor | None = None
        self._bottom_ramp: Tensor | None = None
        self._finished: Rows = ()

    def _span(self, axis: Axis, index: int, start: int, stop: int) -> _Span:
        begin, end = max(axis.begin(index), start), min(axis.end(index), stop)
        done = min(max(axis.begin(index + 1), start), stop)
        lead = max(0, min(axis.end(index - 1), stop) - begin) if index > 0 else 0
        fade = torch.arange(axis.ramp, device=self.device, dtype=torch.float32).add_(0.5)
        fade = fade.mul_(math.pi / 2 / max(1, axis.ramp)).sin_().square_()
        skipped, skipped_of_next = begin - axis.begin(index), done - axis.begin(index + 1)
        tile = axis.start(index)
        return _Span(
            source=slice(begin - tile, end - tile),
            target=slice(begin - start, done - start),
            lead=lead,
            done=done - begin,
            fade_in=fade[skipped : skipped + lead],
            fade_out=1 - fade[skipped_of_next : skipped_of_next + end - done],
        )

    def feed(self, row: int, column: int, scores: Tensor | None) -> Iterator[tuple[int, Rows]]:
        """Blend the next tile; yield the finished rows after the last tile of a row.

        Args:
            row: Row of the tile in the tiling of the scene.
            column: Column of the tile.
            scores: Class probabilities (K, T, T), which are modified; None for a tile without
                valid pixels.

        Yields:
            (y, rows): the first row in the scene, and the rows of each product.
        """
        expected = next(self._order)
        if (row, column) != expected:
            raise ValueError(f"expected tile {expected}, not {(row, column)}")
        down, across = self._down[row], self._across[column]
        if column == self.columns[0]:
            self._finished, self._right_ramp = self._empty_rows(down.done), None
        if scores is None:
            self._skip(across)
        else:
            self._add(scores, down, across)
        if column == self.columns[-1] and down.done:
            yield self._y + down.target.start, self._finished

    def finish(self) -> None:
        """Check that every tile was fed."""
        missing = next(self._order, None)
        if missing is not None:
            raise ValueError(f"tile {missing} is missing")

    def _empty_rows(self, rows: int) -> Rows:
        return tuple(
            torch.empty((product.bands, rows, self._width), dtype=torch.uint8, device=self.device)
            for product in self.products
        )

    def _skip(self, across: _Span) -> None:
        """Skip a tile without valid pixels."""
        self._right_ramp = None
        if self._bottom_ramp is not None:
            self._bottom_ramp[:, :, across.target] = 0
        for rows in self._finished:
            rows[:, :, across.target] = IGNORE

    def _add(self, scores: Tensor, down: _Span, across: _Span) -> None:
        used = scores[:, down.source, across.source]
        if across.lead and self._right_ramp is not None:
            used[:, :, : across.lead].mul_(across.fade_in).add_(self._right_ramp)
        self._right_ramp = None
        if across.fade_out.numel():
            self._right_ramp = used[:, :, across.done :] * across.fade_out
        used = used[:, :, : across.done]
        if down.lead and self._bottom_ramp is not None:
            above = self._bottom_ramp[:, : down.lead, across.target]
            used[:, : down.lead].mul_(down.fade_in[:, None]).add_(above)
        unfinished = down.fade_out.numel()
        if unfinished:
            if self._bottom_ramp is None:
                self._bottom_ramp = scores.new_zeros((scores.shape[0], self._ramp, self._width))
            bottom = self._bottom_ramp[:, :unfinished, across.target]
            torch.mul(used[:, down.done :], down.fade_out[:, None], out=bottom)
        finished = used[:, : down.done]
        if finished.numel():
            for product, rows in zip(self.products, self._finished, strict=True):
                product.write(finished, rows[:, :, across.target])
