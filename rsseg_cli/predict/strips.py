"""Reads the strips of a scene: for each row of tiles the pixels of all its tiles."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli.predict.plan import Plan
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene

Read = tuple[NDArray[Any], NDArray[np.bool_]]


@dataclass(frozen=True)
class Strip:
    """The pixels of one row of tiles.

    Attributes:
        row: Row of the tiles.
        samples: (C, T, w) in stored type, mirrored where tiles hang over the scene.
        valid: (T, w) where a pixel is there; never beyond the scene.
        x: Column of the scene at which the strip starts; negative where tiles hang over.
        y: Row of the scene at which it starts.
    """

    row: int
    samples: Tensor
    valid: NDArray[np.bool_]
    x: int
    y: int


def read_strips(
    scene: Scene, plan: Plan, region: Window, *, readers: int, pin: bool, area: Area | None = None
) -> Generator[Strip, None, None]:
    """Read the strips of a region from top to bottom; each row of the file is decoded once.

    Args:
        scene: The scene; its handle is not used, each reader opens its own.
        plan: How the scene is cut.
        region: The part of the scene that is mapped.
        readers: Number of threads that read.
        pin: Put samples where a GPU can fetch them by itself.
        area: What is wanted of the scene: other pixels count as missing, though tiles see them.
    """
    columns = plan.across.touching(region.x, region.right)
    rows = plan.down.touching(region.y, region.bottom)
    tile = plan.across.tile
    x, width = plan.across.start(columns[0]), (len(columns) - 1) * plan.across.stride + tile
    y, height = plan.down.start(rows[0]), (len(rows) - 1) * plan.down.stride + tile
    inside = Window(x, y, width, height).intersect(Window(0, 0, scene.width, scene.height))
    assert inside is not None
    with _Slabs(scene, plan.read_rows, inside, readers, area) as slabs:
        for row in rows:
            y = plan.down.start(row)
            samples = torch.empty(
                (scene.count, tile, width),
                dtype=torch.from_numpy(np.empty(0, scene.dtype)).dtype,
                pin_memory=pin,
            )
            valid = np.zeros((tile, width), np.bool_)
            slabs.fill(samples.numpy(), valid, x, y)
            yield Strip(row, samples, valid, x, y)


class _Slabs:
    """Slabs of whole block rows, read by threads a few ahead of what is asked for."""

    def __init__(
        self, scene: Scene, rows: int, inside: Window, readers: int, area: Area | None
    ) -> None:
        self._scene, self._rows, self._inside, self._readers = scene, rows, inside, readers
        self._area = area
        self._shift = scene.corner[1] % scene.block[0]
        self._slabs: dict[int, Future[Read]] = {}
        self._next: int | None = None
        self._last = self._number(inside.bottom - 1)

    def __enter__(self) -> _Slabs:
        with ExitStack() as stack:
            self._handles: SimpleQueue[Scene] = SimpleQueue()
            for _ in range(self._readers):
                self._handles.put(stack.enter_context(self._scene.reopen()))
            self._pool = stack.enter_context(ThreadPoolExecutor(self._readers, "rsseg-decode"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for slab in self._slabs.values():
            slab.cancel()
        self._stack.close()

    def _number(self, y: int) -> int:
        return (y + self._shift) // self._rows

    def _window(self, number: int) -> Window:
        top = max(0, number * self._rows - self._shift)
        bottom = min(self._inside.bottom, (number + 1) * self._rows - self._shift)
        return Window(self._inside.x, top, self._inside.width, bottom - top)

    def _read(self, number: int) -> Read:
        scene = self._handles.get()
        try:
            samples, valid = scene.read(self._window(number))
        finally:
            self._handles.put(scene)
        if self._area is not None:
            valid &= self._area.mask(self._window(number))
        return samples, valid

    def _take(self, first: int, last: int) -> Iterator[tuple[Window, Read]]:
        """Give the slabs first..last, drop those before, have the next ones read."""
        for number in [number for number in self._slabs if number < first]:
            del self._slabs[number]
        upcoming = first if self._next is None else self._next
        self._next = min(last + self._readers, self._last) + 1
        for number in range(upcoming, self._next):
            self._slabs[number] = self._pool.submit(self._read, number)
        for number in range(first, last + 1):
            yield self._window(number), self._slabs[number].result()

    def fill(self, samples: NDArray[Any], valid: NDArray[np.bool_], x: int, y: int) -> None:
        """Fill a strip (C, T, w) that starts at (x, y), mirrored beyond the scene."""
        tile, width = valid.shape
        here = Window(x, y, width, tile).intersect(self._inside)
        assert here is not None
        across = slice(here.x - x, here.right - x)
        for window, (read, there) in self._take(
            self._number(here.y), self._number(here.bottom - 1)
        ):
            both = window.intersect(here)
            assert both is not None
            source = slice(both.y - window.y, both.bottom - window.y)
            target = slice(both.y - y, both.bottom - y)
            samples[:, target, across] = read[:, source]
            valid[target, across] = there[source]
        _mirror(samples, 2, across)
        _mirror(samples, 1, slice(here.y - y, here.bottom - y))


def _mirror(samples: NDArray[Any], axis: int, filled: slice) -> None:
    """Mirror what is filled along an axis into the rest of it, as often as needed."""
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
