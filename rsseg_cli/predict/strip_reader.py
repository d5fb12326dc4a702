"""Reads a scene strip by strip; a strip holds the pixels of one row of tiles."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli.predict.plan import AHEAD, Plan
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.threads import Prefetcher

Pixels = tuple[NDArray[Any], NDArray[np.bool_]]
"""Samples (C, h, w) in stored type, and which pixels are valid (h, w)."""


@dataclass(frozen=True)
class Strip:
    """The pixels of one row of tiles.

    Attributes:
        row: Row of the tiles.
        samples: (C, T, w) in stored type, mirrored where tiles reach beyond the scene.
        valid: (T, w), False for missing pixels and beyond the scene.
        x: First column in the scene; negative where tiles reach beyond it.
        y: First row in the scene.
    """

    row: int
    samples: Tensor
    valid: NDArray[np.bool_]
    x: int
    y: int


@contextmanager
def read_strips(
    scene: Scene, plan: Plan, region: Window, *, readers: int, pin: bool, area: Area | None = None
) -> Iterator[Iterator[Strip]]:
    """Prefetch the strips of a region, from top to bottom; each file row is decoded once.

    Args:
        scene: The scene; each reader opens a handle of its own.
        plan: Tiles of the scene.
        region: The window that is mapped.
        readers: Number of threads that read.
        pin: Put samples into pinned memory.
        area: Pixels outside of it are not valid; their samples still serve as context.
    """
    columns = plan.across.touching(region.x, region.right)
    rows = plan.down.touching(region.y, region.bottom)
    tile = plan.across.tile
    x, width = plan.across.start(columns[0]), (len(columns) - 1) * plan.across.stride + tile
    y, height = plan.down.start(rows[0]), (len(rows) - 1) * plan.down.stride + tile
    inside = Window(x, y, width, height).intersect(Window(0, 0, scene.width, scene.height))
    assert inside is not None
    with ExitStack() as stack:
        handles: SimpleQueue[Scene] = SimpleQueue()
        for _ in range(readers):
            handles.put(stack.enter_context(scene.reopen()))
        slabs = _Slabs(handles, plan.read_rows, scene.file_offset[1] % scene.block[0], inside, area)
        numbers = range(slabs.number(inside.y), slabs.number(inside.bottom - 1) + 1)
        reading = Prefetcher(slabs, numbers, threads=readers, ahead=readers)
        windows = map(slabs.window, numbers)
        pixels = zip(windows, stack.enter_context(closing(iter(reading))), strict=True)
        strips = _Strips(scene, plan, Window(x, y, width, height), inside, pixels, pin)
        # A single thread assembles strips while the caller works on the previous ones.
        yield stack.enter_context(closing(iter(Prefetcher(strips, rows, threads=1, ahead=AHEAD))))


@dataclass(frozen=True)
class _Slabs:
    """Slabs: whole rows of blocks that are read by one call.

    Attributes:
        handles: Open scenes that no thread uses at the moment.
        rows: Rows of a slab.
        shift: Rows of the file's first block that lie above the scene.
        inside: The window that is read.
    """

    handles: SimpleQueue[Scene]
    rows: int
    shift: int
    inside: Window
    area: Area | None

    def number(self, y: int) -> int:
        """Return the number of the slab that contains row y."""
        return (y + self.shift) // self.rows

    def window(self, number: int) -> Window:
        """Return the window of a slab."""
        top = max(0, number * self.rows - self.shift)
        bottom = min(self.inside.bottom, (number + 1) * self.rows - self.shift)
        return Window(self.inside.x, top, self.inside.width, bottom - top)

    def __getitem__(self, number: int) -> Pixels:
        scene, window = self.handles.get(), self.window(number)
        try:
            samples, valid = scene.read(window)
        finally:
            self.handles.put(scene)
        if self.area is not None:
            valid &= self.area.mask(window)
        return samples, valid


@dataclass(frozen=True)
class _Strips:
    """Strips by row, assembled from slabs; one thread takes them in order.

    Attributes:
        frame: Window of all strips, which may reach beyond the scene.
        inside: The window that is read.
        slabs: Window and pixels of each slab, from top to bottom.
        current: Slabs that the last strip overlaps.
    """

    scene: Scene
    plan: Plan
    frame: Window
    inside: Window
    slabs: Iterator[tuple[Window, Pixels]]
    pin: bool
    current: deque[tuple[Window, Pixels]] = field(default_factory=deque)

    def __getitem__(self, row: int) -> Strip:
        tile, y = self.plan.down.tile, self.plan.down.start(row)
        samples = torch.empty(
            (self.scene.count, tile, self.frame.width),
            dtype=torch.from_numpy(np.empty(0, self.scene.dtype)).dtype,
            pin_memory=self.pin,
        )
        valid = np.zeros((tile, self.frame.width), np.bool_)
        self._fill(samples.numpy(), valid, Window(self.frame.x, y, self.frame.width, tile))
        return Strip(row, samples, valid, self.frame.x, y)

    def _fill(self, samples: NDArray[Any], valid: NDArray[np.bool_], strip: Window) -> None:
        """Fill samples (C, T, w) and valid (T, w) of a strip; mirror samples beyond the scene."""
        inside = strip.intersect(self.inside)
        assert inside is not None
        columns = slice(inside.x - strip.x, inside.right - strip.x)
        for window, (slab_samples, slab_valid) in self._overlapping(inside):
            both = window.intersect(inside)
            assert both is not None
            source = slice(both.y - window.y, both.bottom - window.y)
            target = slice(both.y - strip.y, both.bottom - strip.y)
            samples[:, target, columns] = slab_samples[:, source]
            valid[target, columns] = slab_valid[source]
        _mirror(samples, 2, columns)
        _mirror(samples, 1, slice(inside.y - strip.y, inside.bottom - strip.y))

    def _overlapping(self, strip: Window) -> deque[tuple[Window, Pixels]]:
        """Return the slabs that overlap a strip; drop those above."""
        current = self.current
        while current and current[0][0].bottom <= strip.y:
            current.popleft()
        while not current or current[-1][0].bottom < strip.bottom:
            current.append(next(self.slabs))
        return current


def _mirror(samples: NDArray[Any], axis: int, filled: slice) -> None:
    """Fill the rest of an axis with repeated mirror images of its filled range."""
    size, count = samples.shape[axis], filled.stop - filled.start
    if count == size:
        return
    period = max(1, 2 * (count - 1))
    steps = np.abs((np.arange(size) - filled.start + count - 1) % period - (count - 1))
    source = filled.start + (steps if count > 1 else np.zeros(size, np.intp))
    for rest in (slice(0, filled.start), slice(filled.stop, size)):
        if axis == 2:
            samples[:, :, rest] = samples[:, :, source[rest]]
        else:
            samples[:, rest] = samples[:, source[rest]]
