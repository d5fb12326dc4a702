"""Division of a scene into tiles, swaths and parts, and the memory that mapping it needs."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rsseg_cli.errors import RssegError
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.raster.creation_options import BLOCK
from rsseg_cli.raster.grid import Axis, Window
from rsseg_cli.raster.scene import Scene

MIB = 2**20
PART_PIXELS = 16 * MIB
"""Approximate pixels of a part of a map, the most that a killed run loses."""
PARTS_PER_PROCESS = 4
"""Minimum number of parts per process, if the scene is high enough, to balance their work."""
DEFAULT_MEMORY_MB = 2048
"""Default limit for the strips of a scene in MiB."""
READ_ROWS = 256
"""Minimum number of rows that one reader reads at a time."""
AHEAD = 2
"""Number of strips that are prefetched, and of rows that may wait for the writer."""
CACHE_MB = 32
"""GDAL's block cache in MiB; small, because each block is read once."""


@dataclass(frozen=True)
class Tiling:
    """Settings of tiles, batches and memory.

    Attributes:
        tile: Side of a tile in pixels.
        overlap: Fraction of a tile that the next one overlaps, 0 to 0.5.
        batch: Tiles per call of the model.
        largest_batch: Largest batch that is tried for speed; None keeps `batch`.
        readers: Number of threads that read.
        memory_mb: Limit for the memory of the process in MiB; None limits the strips only.
        on_host: Whether batches use the memory of the process, not that of a GPU.
        blend: Blend overlapping tiles; else each pixel comes from its nearest tile.
    """

    tile: int = 512
    overlap: float = 0.25
    batch: int = 8
    largest_batch: int | None = None
    readers: int = 2
    memory_mb: int | None = None
    on_host: bool = True
    blend: bool = True

    def axis(self, length: int) -> Axis:
        """Compute the tiles along an axis of a scene.

        At either end of a tile a sixteenth of the overlap has no weight in the blend, because of
        the padding inside a model. A wider margin would make the blend steeper and seams visible.
        """
        overlap = round(self.tile * self.overlap)
        if not self.blend:
            return Axis(length, self.tile, overlap // 2 * 2, overlap // 2)
        return Axis(length, self.tile, overlap, overlap // 16)


@dataclass(frozen=True)
class Plan:
    """Tiles and parts of one scene.

    Attributes:
        across: Tiles along the x axis.
        down: Tiles along the y axis.
        parts: Windows that are finished one by one, swath by swath from top to bottom.
        tiles: Number of tiles; those at swath borders count in both swaths.
        memory_mb: Estimated memory of the strips in MiB, without the model and the libraries.
        read_rows: Rows that a reader reads at a time, a multiple of the file's block height.
    """

    across: Axis
    down: Axis
    parts: tuple[Window, ...]
    tiles: int
    memory_mb: float
    read_rows: int

    @property
    def pixels(self) -> int:
        """Number of pixels of all parts."""
        return sum(part.width * part.height for part in self.parts)

    @property
    def middle_tile(self) -> Window:
        """A window of the size of a tile, near the middle of the scene."""
        part, tile = self.parts[len(self.parts) // 2], self.across.tile
        return Window(part.x + part.width // 2, part.y + part.height // 2, tile, tile)

    def regions(self, finished: set[int]) -> Iterator[Window]:
        """Join consecutive unfinished parts of a swath into regions."""
        region: Window | None = None
        for number, part in enumerate(self.parts):
            follows = region is not None and (part.x, part.y) == (region.x, region.bottom)
            if region is not None and (number in finished or not follows):
                yield region
                region = None
            if number not in finished:
                height = part.height + (region.height if region else 0)
                region = Window(part.x, part.bottom - height, part.width, height)
        if region is not None:
            yield region

    def parts_of_rank(self, finished: set[int], rank: int, size: int) -> set[int]:
        """Return the unfinished parts of one rank: neighbours, with about equal pixels."""
        unfinished = [number for number in range(len(self.parts)) if number not in finished]
        pixels = np.array([self.parts[n].width * self.parts[n].height for n in unfinished])
        middles = pixels.cumsum() - pixels / 2
        owners = middles * size // max(1, pixels.sum())
        return {number for number, owner in zip(unfinished, owners, strict=True) if owner == rank}


def plan_scene(
    scene: Scene,
    tiling: Tiling,
    *,
    classes: int,
    bands: int = 1,
    box: Window | None = None,
    resumed_parts: Sequence[Window] = (),
    processes: int = 1,
) -> Plan:
    """Divide a scene into tiles and parts.

    Args:
        scene: The scene.
        tiling: Settings of tiles and memory.
        classes: Channels K of the model.
        bands: Number of bands of all maps together.
        box: The window to map; the whole scene when None.
        resumed_parts: Parts of an unfinished map, kept if they cover the box.
        processes: Number of processes that share the parts.

    Raises:
        RssegError: Not even the narrowest swath fits into `memory_mb`.
    """
    across, down = tiling.axis(scene.width), tiling.axis(scene.height)
    read_rows = -(-READ_ROWS // scene.block[0]) * scene.block[0]
    column, fixed = _bytes(scene, tiling, down, read_rows, classes, bands)
    box = _whole_blocks(box, scene)
    if sum(part.width * part.height for part in resumed_parts) == box.width * box.height:
        parts = list(resumed_parts)
    else:
        swath = _swath(scene, tiling, box, column, fixed)
        xs = range(box.x, box.right, swath)
        parts = [part for x in xs for part in _parts(x, min(swath, box.right - x), box, processes)]
    swaths = {(part.x, part.right) for part in parts}
    columns = sum(len(across.touching(*swath)) for swath in swaths)
    widest = max(right - left for left, right in swaths) + 2 * tiling.tile
    used = fixed + column * min(scene.width, widest)
    tiles = columns * len(down.touching(box.y, box.bottom))
    return Plan(across, down, tuple(parts), tiles, used / MIB, read_rows)


def _whole_blocks(box: Window | None, scene: Scene) -> Window:
    """Widen a box to whole blocks of the map."""
    if box is None:
        return Window(0, 0, scene.width, scene.height)
    x, y = box.x // BLOCK * BLOCK, box.y // BLOCK * BLOCK
    right = min(scene.width, -(-box.right // BLOCK) * BLOCK)
    return Window(x, y, right - x, min(scene.height, -(-box.bottom // BLOCK) * BLOCK) - y)


def _swath(scene: Scene, tiling: Tiling, box: Window, column: float, fixed: float) -> int:
    """Compute the width of the widest swath that fits into the memory."""
    if tiling.memory_mb is None:
        allowed = DEFAULT_MEMORY_MB * MIB - fixed
    else:
        allowed = (tiling.memory_mb - peak_rss_mb()) * MIB - fixed
    reach = min(box.width + 2 * tiling.tile, scene.width)
    widest = int(allowed / column) - 2 * tiling.tile
    if reach <= allowed / column:
        return box.width
    if widest < BLOCK:
        least = tiling.memory_mb or DEFAULT_MEMORY_MB
        needed = min(reach, BLOCK + 2 * tiling.tile)
        least += int((column * needed - allowed) / MIB) + 1
        raise RssegError(
            "the scene does not fit into the memory allowed, not even in narrow swaths",
            where=scene.path,
            fix=f"--memory-mb {least} or more, or a smaller --tile or --batch",
        )
    return widest // BLOCK * BLOCK


def _parts(x: int, width: int, box: Window, processes: int) -> Sequence[Window]:
    rows = PART_PIXELS // width
    if processes > 1:
        rows = min(rows, box.height // (PARTS_PER_PROCESS * processes))
    rows = max(BLOCK, rows // BLOCK * BLOCK)
    tops = range(box.y, box.bottom, rows)
    return [Window(x, y, width, min(rows, box.bottom - y)) for y in tops]


def _bytes(
    scene: Scene, tiling: Tiling, down: Axis, read_rows: int, classes: int, bands: int
) -> tuple[float, float]:
    """Estimate the bytes per column of a swath, and those that do not depend on its width."""
    sample = np.dtype(scene.dtype).itemsize * scene.count + 1  # 1 for the validity mask
    reading = (tiling.readers + 2 + tiling.tile // read_rows) * read_rows * sample
    strips = (AHEAD + 2) * tiling.tile * sample
    blending = 4 * classes * down.ramp
    writing = bands * ((AHEAD + 2) * down.stride + 2 * BLOCK)
    pixels = max(tiling.batch, tiling.largest_batch or 0) * tiling.tile**2 if tiling.on_host else 0
    batch = pixels * (2 * sample + 4 * scene.count + 2 * 4 * classes)
    return reading + strips + blending + writing, batch + 2 * CACHE_MB * MIB


def return_memory() -> None:
    """Return freed memory to the system.

    glibc keeps memory that a thread has freed in a pool of this thread, where other threads cannot
    use it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
