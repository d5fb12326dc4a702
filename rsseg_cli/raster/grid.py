"""Windows of a scene, and its tiling along one axis with overlapping, blended tiles.

The fewest tiles of one size at a constant stride cover an axis. Their excess is split between both
ends of the axis, so that border pixels lie further inside their tile at no cost. Where neighbours
overlap, the outer `trim` pixels of each tile are unused, and the pixels between are blended:

    tile i    |-trim-|..ramp..|== alone ==|..ramp..|-trim-|
    tile i+1                       |-trim-|..ramp..|== alone ==|..ramp..|-trim-|
                     ^ begin(i)           ^ begin(i + 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rsseg_cli.errors import RssegError


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels from column `x` and row `y`; it may extend beyond the scene."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Column after the last."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """Row after the last."""
        return self.y + self.height

    def intersect(self, other: Window) -> Window | None:
        """Return the intersection of two windows; None if it is empty."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Window(x, y, width, height) if width > 0 and height > 0 else None

    def shift(self, x: int, y: int) -> Window:
        """Return the window moved by whole pixels."""
        return Window(self.x + x, self.y + y, self.width, self.height)

    def slices_in(self, outer: Window) -> tuple[slice, slice]:
        """Return the rows and columns of this window in an array (h, w) of `outer`."""
        rows = slice(self.y - outer.y, self.bottom - outer.y)
        return rows, slice(self.x - outer.x, self.right - outer.x)


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a scene.

    Attributes:
        length: Pixels of the scene along the axis.
        tile: Side of a tile.
        overlap: Pixels in both of two neighbours, at most half a tile.
        trim: Unused pixels at the end of a tile inside an overlap.
    """

    length: int
    tile: int
    overlap: int = 0
    trim: int = 0

    def __post_init__(self) -> None:
        if self.length < 1 or self.tile < 1:
            raise ValueError(f"tiles of {self.tile} cannot cover {self.length} pixels")
        if not 0 <= 2 * self.overlap <= self.tile:
            raise RssegError(
                f"tiles of {self.tile} pixels cannot overlap by {self.overlap}",
                fix=f"an overlap of 0 to {self.tile // 2} pixels (half a tile)",
            )
        if not 0 <= 2 * self.trim <= self.overlap:
            raise ValueError(f"{self.trim} trimmed pixels exceed half the overlap ({self.overlap})")

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return self.tile - self.overlap

    @property
    def ramp(self) -> int:
        """Pixels over which neighbours blend."""
        return self.overlap - 2 * self.trim

    @property
    def count(self) -> int:
        """Number of tiles: the fewest that cover the axis."""
        return max(1, -(-(self.length - self.overlap) // self.stride))

    def start(self, index: int) -> int:
        """Return the first pixel of a tile, which is negative for a tile that starts outside."""
        excess = (self.count - 1) * self.stride + self.tile - self.length
        return index * self.stride - excess // 2

    def begin(self, index: int) -> int:
        """Return the first pixel that a tile contributes to; `begin(count)` is the length."""
        if index <= 0:
            return 0
        return self.length if index >= self.count else self.start(index) + self.trim

    def end(self, index: int) -> int:
        """Return the pixel after the last one that a tile contributes to."""
        last = index >= self.count - 1
        return self.length if last else self.start(index) + self.tile - self.trim

    def touching(self, start: int, stop: int) -> range:
        """Return the tiles that contribute to any of the pixels start..stop-1."""
        tiles = [i for i in range(self.count) if self.begin(i) < stop and self.end(i) > start]
        return range(tiles[0], tiles[-1] + 1)


def blocks(width: int, height: int, block: tuple[int, int]) -> Iterator[Window]:
    """Yield windows of size `block` (height, width) that cover a scene, row by row."""
    for y in range(0, height, block[0]):
        for x in range(0, width, block[1]):
            yield Window(x, y, min(block[1], width - x), min(block[0], height - y))
