"""Pipeline from the readers of a scene through a model to the writer, which run in parallel.

    readers          caller's thread, device                        writer
    slabs -> strips  tiles -> infer -> blend -> rows of each map    rows -> parts

A strip is one row of tiles. Only a few strips are in memory at any time, so that the memory does
not depend on the height of the scene.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError
from rsseg_cli.predict.outputs import Outputs, ProgressCallback
from rsseg_cli.predict.plan import AHEAD, Plan, Tiling, plan_scene
from rsseg_cli.predict.strip_reader import Strip, read_strips
from rsseg_cli.predict.timing import WaitTimer, cpu_threads
from rsseg_cli.predict.tta import as_signed
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.blend import RowBlender, Rows
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.part_writer import PartWriter
from rsseg_cli.raster.scene import Scene
from rsseg_cli.threads import BackgroundWriter


class Infer(Protocol):
    """A model, or any other function from tiles to class probabilities."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score a batch.

        Args:
            tiles: (B, C, T, T) in the scene's stored type, on the device. Every batch of a scene
                has the same shape.

        Returns:
            (B, K, T, T) non-negative and summing to 1 over K, on the device. The engine may
            overwrite it, and has finished with it before the next call.
        """


@dataclass(frozen=True)
class SceneTask:
    """A scene, the model that maps it, and the maps to write.

    Attributes:
        scene: The scene; the caller closes it.
        device: Device of the model.
        area: The area to map; the rest of the scene becomes nodata and costs nothing.
    """

    scene: Scene
    infer: Infer
    outputs: Outputs
    tiling: Tiling = field(default_factory=Tiling)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    area: Area | None = None

    def plan(self, resumed_parts: Sequence[Window] = ()) -> Plan:
        """Divide the scene into tiles and parts; see `plan_scene`."""
        return plan_scene(
            self.scene,
            self.tiling,
            classes=len(self.outputs.classes),
            bands=self.outputs.bands,
            box=None if self.area is None else self.area.box,
            resumed_parts=resumed_parts,
            processes=distributed.world_size(),
        )


@dataclass
class _MapRows:
    """Finished rows of each map, for the writer."""

    x: int
    y: int
    rows: list[Tensor]
    valid: NDArray[np.bool_]
    ready: torch.cuda.Event | None


@dataclass
class _Region:
    """Consecutive parts of the scene that are mapped in one pass.

    Attributes:
        blender: Blends tiles into rows.
        valid: Valid pixels (h, w) of the rows that start at y, until these rows are finished.
    """

    window: Window
    blender: RowBlender
    valid: dict[int, NDArray[np.bool_]] = field(default_factory=dict)


Tile = tuple[int, int, Tensor | None]
"""Row, column and samples (C, T, T) of a tile; no samples without a valid pixel."""


@dataclass
class Pipeline:
    """Mapping of a scene, or of one rank's parts of it.

    Attributes:
        parts: Numbers of the parts to map.
        writers: One writer for each map.
        batch: Tiles per call of the model; halved after an out-of-memory error.
        progress: Called with the number of finished pixels.
        done: Number of pixels finished so far.
    """

    task: SceneTask
    plan: Plan
    parts: Collection[int]
    writers: Sequence[PartWriter]
    batch: int
    progress: ProgressCallback | None = None
    done: int = 0

    def __post_init__(self) -> None:
        parts = [self.plan.parts[number] for number in self.parts]
        self._total = sum(part.width * part.height for part in parts)
        self.waits = WaitTimer()
        self._writer = BackgroundWriter(self._write, AHEAD)
        self._device = self.task.device
        self._in_flight: deque[torch.cuda.Event] = deque()
        self._nan = torch.zeros((), dtype=torch.bool, device=self._device)
        self._model_threads = torch.get_num_threads()

    @torch.inference_mode()
    def run(self) -> None:
        """Map all parts."""
        task, plan = self.task, self.plan
        products = [layer.product for layer in task.outputs.layers()]
        others = set(range(len(plan.parts))) - set(self.parts)
        with cpu_threads(1), self._writer:
            for window in plan.regions(others):
                blender = RowBlender(plan.across, plan.down, window, products, self._device)
                with read_strips(
                    task.scene, plan, window, readers=task.tiling.readers,
                    pin=self._device.type == "cuda", area=task.area,
                ) as strips:  # fmt: skip
                    self._map(_Region(window, blender), strips)
                blender.finish()

    def _map(self, region: _Region, strips: Iterator[Strip]) -> None:
        """Run the model on the tiles of a region, in batches that continue over strips."""
        window, down = region.window, self.plan.down
        tiles: list[Tile] = []
        limit = self.batch + 2 * len(region.blender.columns)
        for strip in self._timed(strips):
            inside = slice(window.x - strip.x, window.right - strip.x)
            top = max(down.begin(strip.row), window.y)
            bottom = min(down.begin(strip.row + 1), window.bottom)
            region.valid[top] = strip.valid[top - strip.y : bottom - strip.y, inside]
            for tile in self._tiles(strip, region.blender):
                tiles.append(tile)
                filled = sum(samples is not None for _, _, samples in tiles)
                # Empty tiles must not wait long for a full batch, or rows would accumulate.
                if filled in (0, self.batch) or len(tiles) > limit:
                    self._forward(tiles, region)
                    tiles = []
        self._forward(tiles, region)

    def _timed(self, strips: Iterator[Strip]) -> Iterator[Strip]:
        while True:
            since = time.perf_counter()
            strip = next(strips, None)
            self.waits.add("disk", since)
            if strip is None:
                return
            yield strip

    def _tiles(self, strip: Strip, blender: RowBlender) -> Iterator[Tile]:
        """Cut a strip into tiles on the device."""
        across, down = self.plan.across, self.plan.down
        samples = strip.samples.to(self._device, non_blocking=True)
        rows = slice(down.begin(strip.row) - strip.y, down.end(strip.row) - strip.y)
        for column in blender.columns:
            columns = slice(across.begin(column) - strip.x, across.end(column) - strip.x)
            x = across.start(column) - strip.x
            valid = strip.valid[rows, columns].any()
            yield strip.row, column, samples[:, :, x : x + across.tile] if valid else None

    def _forward(self, tiles: Sequence[Tile], region: _Region) -> None:
        """Score tiles and send the rows that they complete to the writer."""
        scores = self._scores([samples for _, _, samples in tiles if samples is not None])
        for row, column, samples in tiles:
            probabilities = None if samples is None else next(scores)
            for y, rows in region.blender.feed(row, column, probabilities):
                self._send(region.window.x, y, rows, region.valid.pop(y))

    def _scores(self, tiles: list[Tensor]) -> Iterator[Tensor]:
        """Score tiles in batches of one shape; halve the batch after an out-of-memory error."""
        task = self.task
        while tiles:
            batch = tiles[: self.batch]
            padding = [batch[-1]] * (self.batch - len(batch))
            since = time.perf_counter()
            stacked = _stack(batch + padding)
            try:
                with cpu_threads(self._model_threads):
                    scores = task.infer(stacked)
            except torch.OutOfMemoryError as error:
                if self.batch == 1:
                    raise tile_too_large(task.scene, self.plan.across.tile) from error
                self.batch = -(-self.batch // 2)
                torch.cuda.empty_cache()
                continue
            self._limit_queue()
            self.waits.add("device", since)
            self._detect_nan(scores[: len(batch)])
            yield from scores[: len(batch)]
            tiles = tiles[len(batch) :]

    def _limit_queue(self) -> None:
        """Wait until the device is at most two batches behind."""
        if self._device.type != "cuda":
            return
        self._in_flight.append(torch.cuda.current_stream().record_event())
        if len(self._in_flight) > 2:
            self._in_flight.popleft().synchronize()

    def _detect_nan(self, scores: Tensor) -> None:
        """Note NaN in scores (B, K, T, T); one class is enough, as each pixel sums to 1."""
        self._nan |= scores[:, 0].sum().isnan()
        if self._device.type == "cpu":
            self._refuse_nan()

    def _refuse_nan(self) -> None:
        if self._nan:
            raise RssegError(
                "the model returns NaN for some pixels",
                where=self.task.scene.path,
                fix="--precision fp32, or a model whose training did not diverge",
            )

    def _send(self, x: int, y: int, rows: Rows, valid: NDArray[np.bool_]) -> None:
        """Copy rows from the device asynchronously, and pass them to the writer."""
        ready = None
        on_host = list(rows)
        if self._device.type == "cuda":
            on_host = [torch.empty(r.shape, dtype=r.dtype, pin_memory=True) for r in rows]
            for target, source in zip(on_host, rows, strict=True):
                target.copy_(source, non_blocking=True)
            ready = torch.cuda.current_stream().record_event()
        since = time.perf_counter()
        self._writer.put(_MapRows(x, y, on_host, valid, ready))
        self.waits.add("writer", since)
        self.done += valid.size
        if self.progress is not None:
            self.progress(self.done, self._total, self.waits.fractions())

    def _write(self, item: _MapRows) -> None:
        """Write rows, with nodata for missing pixels; runs in the writer's thread."""
        if item.ready is not None:
            item.ready.synchronize()
            self._refuse_nan()
        missing = ~item.valid
        any_missing = missing.any()
        for writer, rows in zip(self.writers, item.rows, strict=True):
            data = rows.numpy()
            if any_missing:
                data[:, missing] = IGNORE
            writer.write(item.x, item.y, data)


def tile_too_large(scene: Scene, tile: int) -> RssegError:
    """Build the error for a tile that does not fit into the device's memory."""
    return RssegError(
        f"out of memory: not even one tile of {tile} px fits on the device",
        where=scene.path,
        fix=f"a --tile below {tile}, or --device cpu",
    )


def _stack(tiles: list[Tensor]) -> Tensor:
    """Stack tiles as signed integers: some devices lack kernels for unsigned ones."""
    return torch.stack([as_signed(tile) for tile in tiles]).view(tiles[0].dtype)
