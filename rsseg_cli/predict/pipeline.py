"""Takes the tiles of a scene from the readers through a model to the writer, all at once.

    readers          caller's thread, device                        writer
    slabs -> strips  tiles -> infer -> blend -> rows of each map    rows -> parts

A strip is one row of tiles. What is in memory at any time are a few strips, so that neither the
host nor the device ever knows how high the scene is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.clock import Clock, computing_with
from rsseg_cli.predict.outputs import Progress
from rsseg_cli.predict.plan import AHEAD, Plan
from rsseg_cli.predict.strips import Strip, read_strips
from rsseg_cli.predict.threads import Ahead, Behind
from rsseg_cli.predict.turns import as_signed
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.blend import Product, RowBlender, Rows
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.scene import Scene


class Infer(Protocol):
    """Anything that turns tiles into class probabilities."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score a batch.

        Args:
            tiles: (B, C, T, T) in the scene's stored type, on the device. Every batch of a scene
                has the same shape.

        Returns:
            (B, K, T, T) non-negative and summing to 1 over K, on the device. The engine writes
            into it and is done with it before the next call.
        """


@dataclass
class _Finished:
    """Rows on their way to the writer."""

    x: int
    y: int
    rows: list[Tensor]
    valid: NDArray[np.bool_]
    ready: torch.cuda.Event | None


@dataclass
class Pipeline:
    """One scene, or a share of it, on its way from the readers to the writer.

    Attributes:
        mine: Numbers of the parts that this process makes.
        batch: Tiles per call of the model; fewer once its memory has run out.
        readers: Threads that read.
    """

    scene: Scene
    infer: Infer
    products: Sequence[Product]
    writers: Sequence[PartWriter]
    plan: Plan
    mine: Collection[int]
    batch: int
    readers: int
    device: torch.device
    area: Area | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.done = 0
        parts = [self.plan.parts[number] for number in self.mine]
        self._total = sum(part.width * part.height for part in parts)
        self.clock = Clock()
        self._in_flight: deque[torch.cuda.Event] = deque()
        self._broken = torch.zeros((), dtype=torch.bool, device=self.device)
        self._model_threads = torch.get_num_threads()

    @torch.inference_mode()
    def run(self) -> None:
        """Map all parts that are to be made."""
        others = set(range(len(self.plan.parts))) - set(self.mine)
        cuda = self.device.type == "cuda"
        with computing_with(1), Behind(self._write, AHEAD) as writer:
            for region in self.plan.regions(others):
                blender = RowBlender(
                    self.plan.across, self.plan.down, region, self.products, self.device
                )
                source = read_strips(
                    self.scene, self.plan, region,
                    readers=self.readers, pin=cuda, area=self.area,
                )  # fmt: skip
                with Ahead(source, AHEAD) as strips:
                    self._map(region, blender, iter(strips), writer)
                blender.finish()

    def _map(
        self,
        region: Window,
        blender: RowBlender,
        strips: Iterator[Strip],
        writer: Behind[_Finished],
    ) -> None:
        """Send the tiles of a region through the model, in batches that go on over strips."""
        valid: dict[int, NDArray[np.bool_]] = {}
        waiting: list[tuple[int, int, Tensor | None]] = []
        patience = self.batch + 2 * len(blender.columns)
        for strip in self._timed(strips):
            inside = slice(region.x - strip.x, region.right - strip.x)
            top, bottom = self.plan.down.begin(strip.row), self.plan.down.begin(strip.row + 1)
            top, bottom = max(top, region.y), min(bottom, region.bottom)
            valid[top] = strip.valid[top - strip.y : bottom - strip.y, inside]
            for row, column, tile in self._tiles(strip, blender):
                waiting.append((row, column, tile))
                filled = sum(one[2] is not None for one in waiting)
                # Nothing waits for long where tiles are skipped, or rows would pile up.
                if filled in (0, self.batch) or len(waiting) > patience:
                    self._forward(waiting, region, blender, valid, writer)
                    waiting = []
        self._forward(waiting, region, blender, valid, writer)

    def _timed(self, strips: Iterator[Strip]) -> Iterator[Strip]:
        while True:
            since = time.perf_counter()
            strip = next(strips, None)
            self.clock.add("disk", since)
            if strip is None:
                return
            yield strip

    def _tiles(self, strip: Strip, blender: RowBlender) -> Iterator[tuple[int, int, Tensor | None]]:
        """Cut a strip into tiles (C, T, T) on the device; None where a tile would show nothing."""
        across, down = self.plan.across, self.plan.down
        samples = strip.samples.to(self.device, non_blocking=True)
        rows = slice(down.begin(strip.row) - strip.y, down.end(strip.row) - strip.y)
        for column in blender.columns:
            says = slice(across.begin(column) - strip.x, across.end(column) - strip.x)
            x = across.start(column) - strip.x
            seen = strip.valid[rows, says].any()
            yield strip.row, column, samples[:, :, x : x + across.tile] if seen else None

    def _forward(
        self,
        waiting: Sequence[tuple[int, int, Tensor | None]],
        region: Window,
        blender: RowBlender,
        valid: dict[int, NDArray[np.bool_]],
        writer: Behind[_Finished],
    ) -> None:
        scores = self._scores([tile for _, _, tile in waiting if tile is not None])
        for row, column, tile in waiting:
            share = None if tile is None else next(scores)
            for y, rows in blender.feed(row, column, share):
                self._send(region.x, y, rows, valid.pop(y), writer)

    def _scores(self, tiles: list[Tensor]) -> Iterator[Tensor]:
        """Score tiles in batches of one shape; with less per batch once memory runs out."""
        while tiles:
            batch = tiles[: self.batch]
            padding = [batch[-1]] * (self.batch - len(batch))
            since = time.perf_counter()
            stacked = _stack(batch + padding)
            try:
                with computing_with(self._model_threads):
                    scores = self.infer(stacked)
            except torch.OutOfMemoryError as error:
                self._shrink(error)
                continue
            self._keep_pace()
            self.clock.add("device", since)
            self._check(scores[: len(batch)])
            yield from scores[: len(batch)]
            tiles = tiles[len(batch) :]

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        if self.batch == 1:
            raise no_room(self.scene, self.plan.across.tile) from error
        self.batch = -(-self.batch // 2)
        torch.cuda.empty_cache()

    def _keep_pace(self) -> None:
        """Stay at most two batches ahead of the device."""
        if self.device.type != "cuda":
            return
        self._in_flight.append(torch.cuda.current_stream().record_event())
        if len(self._in_flight) > 2:
            self._in_flight.popleft().synchronize()

    def _check(self, scores: Tensor) -> None:
        """Look for NaN. Probabilities of a pixel sum to 1, so that one class tells for all."""
        self._broken |= scores[:, 0].sum().isnan()
        if self.device.type == "cpu":
            self._refuse_nan()

    def _refuse_nan(self) -> None:
        if self._broken:
            raise RssegError(
                "the model gives NaN for some pixels",
                where=self.scene.path,
                fix="--precision fp32, or a model whose training did not diverge",
            )

    def _send(
        self, x: int, y: int, rows: Rows, valid: NDArray[np.bool_], writer: Behind[_Finished]
    ) -> None:
        """Fetch rows from the device without waiting for them, and pass them on."""
        ready = None
        here = list(rows)
        if self.device.type == "cuda":
            here = [torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in rows]
            for target, source in zip(here, rows, strict=True):
                target.copy_(source, non_blocking=True)
            ready = torch.cuda.current_stream().record_event()
        since = time.perf_counter()
        writer.put(_Finished(x, y, here, valid, ready))
        self.clock.add("writer", since)
        self.done += valid.size
        if self.progress is not None:
            self.progress(self.done, self._total, self.clock.shares())

    def _write(self, finished: _Finished) -> None:
        """Write rows, nodata where no pixel is; runs in the writer's thread."""
        if finished.ready is not None:
            finished.ready.synchronize()
            self._refuse_nan()
        missing = ~finished.valid
        holes = missing.any()
        for writer, rows in zip(self.writers, finished.rows, strict=True):
            data = rows.numpy()
            if holes:
                data[:, missing] = IGNORE
            writer.write(finished.x, finished.y, data)


def no_room(scene: Scene, tile: int) -> RssegError:
    """Make the error for a tile of a scene that is too much for the device."""
    return RssegError(
        "one tile does not fit into the memory of the device",
        where=scene.path,
        fix=f"--tile below {tile}, or --device cpu",
    )


def _stack(tiles: list[Tensor]) -> Tensor:
    """Stack tiles; through signed integers, as unsigned ones lack kernels on some devices."""
    return torch.stack([as_signed(tile) for tile in tiles]).view(tiles[0].dtype)
