"""`predict --dry-run`: cost estimates, and checks of a scene against the model."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.number_format import counted
from rsseg_cli.predict.batch import even_batch
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask, no_room
from rsseg_cli.predict.plan import MIB, Plan, plan_scene
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene

GSD_FACTOR = 1.5
"""A ground sampling distance that differs from the training's by more than this is reported."""
FAR = 4.0
"""A band mean further from the training's than so many standard deviations is reported."""
SCALE = 10.0
"""Values this many times larger or smaller are reported: reflectance 0..1 and 0..10,000, say."""
STRIPED_ROWS = 64
"""Most rows per block of a file that is stored in strips."""
SAMPLES = 5
"""Windows along the diagonal of a scene whose values are read."""
SAMPLE_PX = 256
"""Side of such a window."""
PART_BYTES, MAP_BYTES, QUANTITY_BYTES = 0.15, 0.2, 0.9
"""Bytes per pixel and band: classes in parts, in a map with overviews, and quantities."""


@dataclass
class Survey:
    """Estimates and warnings for one scene; the keys of `predict --dry-run --json`."""

    input: str
    output: str
    width: int
    height: int
    tile: int
    overlap: float
    batch: int
    tiles: int
    swaths: int
    ram_mb: float
    vram_mb: float | None
    disk_mb: float
    free_mb: float
    seconds: float
    mpx_per_s: float
    compile: bool | None = None
    """Whether the model will be compiled; None without `--compile`."""
    more: list[str] = field(default_factory=list)
    """Further maps that will be made."""
    warnings: list[str] = field(default_factory=list)

    def then(self, other: Survey) -> Survey:
        """Add a map that is made in a later pass."""
        seconds = self.seconds + other.seconds
        vram = [each.vram_mb for each in (self, other) if each.vram_mb is not None]
        return replace(
            self,
            ram_mb=max(self.ram_mb, other.ram_mb),
            vram_mb=max(vram, default=None),
            disk_mb=self.disk_mb + other.disk_mb,
            seconds=seconds,
            mpx_per_s=self.mpx_per_s * self.seconds / seconds,
            more=[*self.more, other.output, *other.more],
        )

    def to_json(self) -> dict[str, Any]:
        """Return the values for `--json`."""
        return asdict(self)

    def show(self) -> None:
        """Print the estimates and warnings."""
        console = Console(highlight=False, soft_wrap=True)
        vram = "" if self.vram_mb is None else f", {self.vram_mb:,.0f} MB on the GPU"
        console.print(f"scene     {self.input} {self.width:,} x {self.height:,}", markup=False)
        for path in (self.output, *self.more):
            console.print(f"map       {path}", markup=False)
        console.print(
            f"tiles     {self.tiles:,} of {self.tile} px, overlap {self.overlap:.0%}, "
            f"{self.batch} at a time, {counted(self.swaths, 'swath')}"
        )
        console.print(f"memory    {self.ram_mb:,.0f} MB{vram}")
        console.print(f"disk      {self.disk_mb:,.0f} MB of {self.free_mb:,.0f} MB free")
        console.print(f"time      {_duration(self.seconds)} ({self.mpx_per_s:.2f} Mpx/s)")
        if self.compile is not None:
            answer = "yes; the time is without it" if self.compile else "no: too few tiles to pay"
            console.print(f"compile   {answer}")
        for text in self.warnings:
            console.print(f"warning   {text}", markup=False)


def survey(task: SceneTask, fitted: LoadedModel) -> Survey:
    """Plan the mapping of a scene, and time a batch of its tiles.

    Raises:
        RssegError: The scene does not fit into the memory allowed, or a tile into the device's.
    """
    scene, outputs = task.scene, task.outputs
    doubts = find_doubts(scene, fitted)
    plan = _plan(task)
    batch = even_batch(plan.tiles, task.tiling.batch, task.tiling.most)
    batch, seconds, vram = _probe_fitting_batch(task, plan, batch)
    tiling = task.tiling
    pixels = sum(part.width * part.height for part in plan.parts)
    return Survey(
        input=scene.path,
        output=str(outputs.map),
        width=scene.width,
        height=scene.height,
        tile=tiling.tile,
        overlap=tiling.overlap,
        batch=batch,
        tiles=plan.tiles,
        swaths=len({part.x for part in plan.parts}),
        ram_mb=peak_rss_mb() + plan.memory_mb,
        vram_mb=vram,
        disk_mb=disk_mb(outputs, pixels),
        free_mb=_free_mb(outputs),
        seconds=seconds,
        mpx_per_s=pixels / 1e6 / seconds,
        more=[str(m.path) for m in outputs.layers() if m.published and m.path != outputs.map],
        warnings=doubts,
    )


def _plan(task: SceneTask) -> Plan:
    return plan_scene(
        task.scene,
        task.tiling,
        classes=len(task.outputs.classes),
        bands=task.outputs.bands,
        box=None if task.area is None else task.area.box,
    )


def _probe_fitting_batch(
    task: SceneTask, plan: Plan, batch: int
) -> tuple[int, float, float | None]:
    """Halve the batch after out-of-memory errors, as mapping does; return it and its estimates."""
    while True:
        try:
            return batch, *_probe(task, plan, batch)
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise no_room(task.scene, task.tiling.tile) from error
        torch.cuda.empty_cache()
        batch = -(-batch // 2)


def _probe(task: SceneTask, plan: Plan, batch: int) -> tuple[float, float | None]:
    """Estimate seconds, and memory of the device in MiB, from two batches of the middle."""
    scene, tiling, device = task.scene, task.tiling, task.device
    part = plan.parts[len(plan.parts) // 2]
    window = Window(part.x + part.width // 2, part.y + part.height // 2, tiling.tile, tiling.tile)
    started = time.perf_counter()
    samples, _ = scene.read(window)
    reading = (time.perf_counter() - started) * _decoded(scene, plan, window) / tiling.readers
    batch = min(batch, plan.tiles)
    tiles = torch.from_numpy(samples)[None].to(device).repeat(batch, 1, 1, 1)
    task.infer(tiles.clone())  # the first call is slower
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    _wait_for(task.infer(tiles))
    computing = (time.perf_counter() - started) * plan.tiles / batch
    vram = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return max(computing, reading), vram


def _decoded(scene: Scene, plan: Plan, window: Window) -> float:
    """Return how many times as many blocks must be read as lie under a window."""
    high, wide = scene.block
    across = window.right // wide - window.x // wide + 1
    down = window.bottom // high - window.y // high + 1
    pixels = sum(part.width * part.height for part in plan.parts)
    return pixels / (across * down * high * wide)


def _wait_for(scores: Tensor) -> None:
    scores[0, 0, 0, 0].item()


def disk_mb(outputs: Outputs, pixels: int) -> float:
    """Estimate the disk space in MiB that maps need while they are made, with their parts.

    Class maps are compressed to a tenth or less; noisy ones, which this assumes, to a third.
    """
    quantities = outputs.bands - 1
    return pixels * (PART_BYTES + MAP_BYTES + quantities * 2 * QUANTITY_BYTES) / MIB


def _free_mb(outputs: Outputs) -> float:
    folder = next(folder for folder in outputs.map.absolute().parents if folder.exists())
    return shutil.disk_usage(folder).free / MIB


def require_disk(task: SceneTask) -> None:
    """Check that the disk has space for the maps.

    Raises:
        RssegError: It has too little.
    """
    scene, outputs, area = task.scene, task.outputs, task.area
    pixels = scene.width * scene.height if area is None else area.box.width * area.box.height
    needed, free = disk_mb(outputs, pixels), _free_mb(outputs)
    if needed > free:
        raise RssegError(
            f"the maps may need {needed:,.0f} MB while they are made, {free:,.0f} MB are free",
            where=str(outputs.map.parent),
            fix="free space, or -o on another disk",
        )


def warn_of_doubts(scene: Scene, fitted: LoadedModel) -> None:
    """Warn about everything that looks wrong in a scene."""
    for doubt in find_doubts(scene, fitted):
        warnings.warn(f"{scene.path}: {doubt}", RssegWarning, stacklevel=2)


def find_doubts(scene: Scene, fitted: LoadedModel) -> list[str]:
    """List what may make a scene slow to read, or differs from the training data."""
    bands = fitted.model.bands
    doubts = [_striped(scene), _size_of_pixels(scene, bands.gsd_m), _order(scene, bands.names)]
    if scene.dtype != bands.dtype:
        doubts.append(f"its samples are {scene.dtype}, those of the training were {bands.dtype}")
    doubts += _values(scene, bands.names, bands.mean, bands.std)
    return [doubt for doubt in doubts if doubt is not None]


def _striped(scene: Scene) -> str | None:
    high, wide = scene.block
    if wide < scene.width or high > STRIPED_ROWS or scene.width <= 1024:
        return None
    return "it is stored in strips, which read more slowly than tiles (gdal_translate -of COG)"


def _size_of_pixels(scene: Scene, trained: float | None) -> str | None:
    if trained is None or scene.crs is None or scene.crs.is_geographic:
        return None
    a, b, _, d, e, _ = scene.transform[:6]
    size = abs(a * e - b * d) ** 0.5 * scene.crs.linear_units_factor[1]
    if 1 / GSD_FACTOR <= size / trained <= GSD_FACTOR:
        return None
    return f"its pixels are {size:.3g} m wide, those of the training were {trained:.3g} m"


def _order(scene: Scene, names: Sequence[str]) -> str | None:
    """Compare the order of the bands, if the file names the same bands as the model."""
    actual = [(name or "").lower() for name in scene.descriptions]
    expected = [name.lower() for name in names]
    if actual == expected or set(actual) != set(expected):
        return None
    return f"its bands are {' '.join(actual)}, the model needs {' '.join(expected)} (--bands)"


def _values(
    scene: Scene, names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """Compare the values of some windows with the training's."""
    sampled = []
    for position in np.linspace(0.1, 0.9, SAMPLES):
        x, y = int(position * scene.width), int(position * scene.height)
        window = Window(
            max(0, x - SAMPLE_PX // 2), max(0, y - SAMPLE_PX // 2), SAMPLE_PX, SAMPLE_PX
        )
        samples, valid = scene.read(window)
        sampled.append(samples[:, valid].astype(np.float64))
    values = np.concatenate(sampled, 1)
    if not values.size:
        return []
    return [
        f"band {name} has values around {center:.4g}, those of the training were {m:.4g} ± {s:.3g}"
        for name, center, spread, m, s in zip(
            names, values.mean(1), values.std(1), mean, std, strict=True
        )
        if abs(center - m) > FAR * s
        or not 1 / SCALE <= max(abs(center), spread) / max(abs(m), s, 1e-12) <= SCALE
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.1f} s"
