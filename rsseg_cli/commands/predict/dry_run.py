"""`predict --dry-run`: cost estimates, and checks of a scene against the model."""

from __future__ import annotations

import shutil
import time
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from rich.console import Console

from rsseg_cli.commands.model import LoadedModel
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.number_format import counted
from rsseg_cli.predict.batch import even_batch
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask, tile_too_large
from rsseg_cli.predict.plan import MIB, Plan
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.pixel_size import pixel_size_m
from rsseg_cli.raster.scene import Scene

MAX_GSD_RATIO = 1.5
"""Largest ratio of pixel sizes in scene and training, either way, without a warning."""
MAX_DEVIATION = 4.0
"""Largest difference of a band's means in scene and training, in standard deviations."""
MAX_VALUE_RATIO = 10.0
"""Largest ratio of values in scene and training: reflectance may be 0..1 or 0..10,000."""
MAX_STRIP_ROWS = 64
"""Largest number of rows per block of a file that is stored in strips."""
SAMPLES, SAMPLE_PX = 5, 256
"""Number of windows along the diagonal of a scene whose values are read, and their side."""
PART_BYTES, MAP_BYTES, QUANTITY_BYTES = 0.15, 0.2, 0.9
"""Bytes per pixel and band: classes in parts, classes in a map with overviews, probabilities."""


@dataclass
class DryRun:
    """Cost estimates and warnings for one scene; the keys of `predict --dry-run --json`."""

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
    """Paths of the maps beside the class map."""
    warnings: list[str] = field(default_factory=list)

    def then(self, other: DryRun) -> DryRun:
        """Add the costs of a map that is made in a later pass."""
        seconds = self.seconds + other.seconds
        vram = [run.vram_mb for run in (self, other) if run.vram_mb is not None]
        return replace(
            self,
            ram_mb=max(self.ram_mb, other.ram_mb),
            vram_mb=max(vram, default=None),
            disk_mb=self.disk_mb + other.disk_mb,
            seconds=seconds,
            mpx_per_s=self.mpx_per_s * self.seconds / seconds,
            more=[*self.more, other.output, *other.more],
        )

    def print(self) -> None:
        """Print the estimates and warnings."""
        vram = "" if self.vram_mb is None else f", {self.vram_mb:,.0f} MB on the GPU"
        lines = [
            f"scene     {self.input} {self.width:,} x {self.height:,}",
            *(f"map       {path}" for path in (self.output, *self.more)),
            f"tiles     {self.tiles:,} of {self.tile} px, overlap {self.overlap:.0%}, "
            f"batch {self.batch}, {counted(self.swaths, 'swath')}",
            f"memory    {self.ram_mb:,.0f} MB{vram}",
            f"disk      {self.disk_mb:,.0f} MB of {self.free_mb:,.0f} MB free",
            f"time      {_duration(self.seconds)} ({self.mpx_per_s:.2f} Mpx/s)",
        ]
        if self.compile is not None:
            answer = "yes (not in the estimated time)" if self.compile else "no: too few tiles"
            lines.append(f"compile   {answer}")
        lines += [f"warning   {text}" for text in self.warnings]
        console = Console(highlight=False, soft_wrap=True)
        for line in lines:
            console.print(line, markup=False)


def estimate(task: SceneTask, fitted: LoadedModel) -> DryRun:
    """Estimate the costs of mapping a scene; this maps two batches.

    Raises:
        RssegError: The scene does not fit into the memory allowed, or a tile into the device's.
    """
    scene, outputs, tiling = task.scene, task.outputs, task.tiling
    problems = find_problems(scene, fitted)
    plan = task.plan()
    batch = even_batch(plan.tiles, tiling.batch, tiling.largest_batch)
    batch, seconds, vram = _probe_fitting_batch(task, plan, batch)
    return DryRun(
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
        disk_mb=estimate_disk_mb(outputs, plan.pixels),
        free_mb=_free_mb(outputs),
        seconds=seconds,
        mpx_per_s=plan.pixels / 1e6 / seconds,
        more=[str(path) for path in outputs.published() if path != outputs.map],
        warnings=problems,
    )


def _probe_fitting_batch(
    task: SceneTask, plan: Plan, batch: int
) -> tuple[int, float, float | None]:
    """Run `_probe`, with half the batch after an out-of-memory error; return the batch, too."""
    while True:
        try:
            return batch, *_probe(task, plan, batch)
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise tile_too_large(task.scene, task.tiling.tile) from error
        torch.cuda.empty_cache()
        batch = -(-batch // 2)


def _probe(task: SceneTask, plan: Plan, batch: int) -> tuple[float, float | None]:
    """Estimate the seconds, and the GPU memory in MiB, from two batches."""
    scene, device, window = task.scene, task.device, plan.middle_tile
    started = time.perf_counter()
    samples, _ = scene.read(window)
    reading = (time.perf_counter() - started) * _block_ratio(scene, plan, window)
    reading /= task.tiling.readers
    batch = min(batch, plan.tiles)
    tiles = torch.from_numpy(samples)[None].to(device).repeat(batch, 1, 1, 1)
    task.infer(tiles.clone())  # the first call is slower
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    task.infer(tiles)[0, 0, 0, 0].item()  # waits for the device
    computing = (time.perf_counter() - started) * plan.tiles / batch
    vram = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return max(computing, reading), vram


def _block_ratio(scene: Scene, plan: Plan, window: Window) -> float:
    """Return the number of pixels to map, divided by those of the blocks under a window."""
    height, width = scene.block
    across = window.right // width - window.x // width + 1
    down = window.bottom // height - window.y // height + 1
    return plan.pixels / (across * down * height * width)


def estimate_disk_mb(outputs: Outputs, pixels: int) -> float:
    """Estimate the disk space in MiB that maps and their parts need during the run.

    Class maps are usually compressed to a tenth or less; the estimate is for noisy ones.
    """
    quantities = outputs.bands - 1
    return pixels * (PART_BYTES + MAP_BYTES + quantities * 2 * QUANTITY_BYTES) / MIB


def _free_mb(outputs: Outputs) -> float:
    folder = next(folder for folder in outputs.map.absolute().parents if folder.exists())
    return shutil.disk_usage(folder).free / MIB


def require_disk(task: SceneTask) -> None:
    """Raise an RssegError if the disk has too little free space for the maps."""
    scene, outputs, area = task.scene, task.outputs, task.area
    pixels = scene.width * scene.height if area is None else area.box.width * area.box.height
    needed, free = estimate_disk_mb(outputs, pixels), _free_mb(outputs)
    if needed > free:
        raise RssegError(
            f"the maps may need {needed:,.0f} MB of disk space, {free:,.0f} MB are free",
            where=str(outputs.map.parent),
            fix="free some space, or -o on another disk",
        )


def warn_about_problems(scene: Scene, fitted: LoadedModel) -> None:
    """Warn about the problems of a scene; see `find_problems`."""
    for problem in find_problems(scene, fitted):
        warnings.warn(f"{scene.path}: {problem}", RssegWarning, stacklevel=2)


def find_problems(scene: Scene, fitted: LoadedModel) -> list[str]:
    """List what makes a scene slow to read, and differences from the training data."""
    bands = fitted.model.bands
    problems = [_check_layout(scene), _check_gsd(scene, bands), _check_band_order(scene, bands)]
    if scene.dtype != bands.dtype:
        problems.append(f"its samples are {scene.dtype}, those of the training were {bands.dtype}")
    problems += _check_values(scene, bands)
    return [problem for problem in problems if problem is not None]


def _check_layout(scene: Scene) -> str | None:
    height, width = scene.block
    if width < scene.width or height > MAX_STRIP_ROWS or scene.width <= 1024:
        return None
    return "it is stored in strips, which read more slowly than tiles (gdal_translate -of COG)"


def _check_gsd(scene: Scene, bands: Bands) -> str | None:
    trained = bands.gsd_m
    size = pixel_size_m(scene)
    if trained is None or size is None or 1 / MAX_GSD_RATIO <= size / trained <= MAX_GSD_RATIO:
        return None
    return f"its pixels are {size:.3g} m wide, those of the training were {trained:.3g} m"


def _check_band_order(scene: Scene, bands: Bands) -> str | None:
    """Compare the order of the bands, if the file names the same bands as the model."""
    actual = [(name or "").lower() for name in scene.descriptions]
    expected = [name.lower() for name in bands.names]
    if actual == expected or set(actual) != set(expected):
        return None
    return f"its bands are {' '.join(actual)}, the model needs {' '.join(expected)} (--bands)"


def _check_values(scene: Scene, bands: Bands) -> list[str]:
    """Compare the values in some windows with those of the training."""
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
        f"band {name} has values around {mean:.4g}, those of the training were {m:.4g} ± {s:.3g}"
        for name, mean, std, m, s in zip(
            bands.names, values.mean(1), values.std(1), bands.mean, bands.std, strict=True
        )
        if abs(mean - m) > MAX_DEVIATION * s
        or not 1 / MAX_VALUE_RATIO <= max(abs(mean), std) / max(abs(m), s, 1e-12) <= MAX_VALUE_RATIO
    ]


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.1f} s"
