"""What mapping a scene would take, and what about the scene looks wrong for the model."""

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
from rsseg_cli.predict.pipeline import Infer, no_room
from rsseg_cli.predict.plan import MIB, Plan, Tiling, plan_scene
from rsseg_cli.raster.aoi import Area
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.pixel_size import pixel_size_m
from rsseg_cli.raster.scene import Scene

GSD_FACTOR = 1.5
"""Pixels larger or smaller than those of the training by more than this are worth a word."""
FAR = 4.0
"""Values further from the training's mean than so many standard deviations are, too."""
SCALE = 10.0
"""And values that are so many times as large or small: reflectances of 0..1 and 0..10,000, say."""
STRIPED_ROWS = 64
"""Files that store so few rows of the whole width per block are striped."""
SAMPLES = 5
"""Windows along the diagonal of a scene in which values are looked at."""
SAMPLE_PX = 256
"""Side of such a window."""
PARTS_SHARE, MAP_SHARE, SHARES_SHARE = 0.15, 0.2, 0.9
"""Bytes per pixel and band: class numbers in parts, in a map with overviews; and quantities."""


@dataclass
class Survey:
    """What `predict --dry-run` says of a scene."""

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
    """Whether the model will be compiled; None: nobody asked for it."""
    more: list[str] = field(default_factory=list)
    """What other maps will be made."""
    warnings: list[str] = field(default_factory=list)

    def then(self, other: Survey) -> Survey:
        """Count in a map that is made in a pass of its own afterwards."""
        seconds = self.seconds + other.seconds
        vram = [one.vram_mb for one in (self, other) if one.vram_mb is not None]
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
        """Give the machine-readable form."""
        return asdict(self)

    def show(self) -> None:
        """Print what a person wants to know before a long run."""
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
        console.print(f"time      {_spoken(self.seconds)} ({self.mpx_per_s:.2f} Mpx/s)")
        if self.compile is not None:
            answer = "yes; the time is without it" if self.compile else "no: too few tiles to pay"
            console.print(f"compile   {answer}")
        for text in self.warnings:
            console.print(f"warning   {text}", markup=False)


def survey(
    scene: Scene,
    fitted: LoadedModel,
    infer: Infer,
    outputs: Outputs,
    tiling: Tiling,
    device: torch.device,
    area: Area | None,
) -> Survey:
    """Plan the mapping of a scene, and time a batch of its tiles.

    Raises:
        RssegError: It does not fit into the memory allowed, or not a tile into the device's.
    """
    doubts = find_doubts(scene, fitted)
    plan = _plan(scene, outputs, tiling, area)
    tiling = replace(tiling, batch=even_batch(plan.tiles, tiling.batch, tiling.most))
    tiling, seconds, vram = _probe_what_fits(scene, infer, plan, tiling, device)
    pixels = sum(part.width * part.height for part in plan.parts)
    return Survey(
        input=scene.path,
        output=str(outputs.map),
        width=scene.width,
        height=scene.height,
        tile=tiling.tile,
        overlap=tiling.overlap,
        batch=tiling.batch,
        tiles=plan.tiles,
        swaths=len({part.x for part in plan.parts}),
        ram_mb=peak_rss_mb() + plan.memory_mb,
        vram_mb=vram,
        disk_mb=disk_mb(outputs, pixels),
        free_mb=_free_mb(outputs),
        seconds=seconds,
        mpx_per_s=pixels / 1e6 / seconds,
        more=[str(one.path) for one in outputs.made() if one.shown and one.path != outputs.map],
        warnings=doubts,
    )


def _plan(scene: Scene, outputs: Outputs, tiling: Tiling, area: Area | None) -> Plan:
    return plan_scene(
        scene, tiling, classes=len(outputs.classes), bands=outputs.bands,
        box=None if area is None else area.box,
    )  # fmt: skip


def _probe_what_fits(
    scene: Scene, infer: Infer, plan: Plan, tiling: Tiling, device: torch.device
) -> tuple[Tiling, float, float | None]:
    """Probe with fewer tiles once the device's memory runs out, as they will be mapped then."""
    while True:
        try:
            return tiling, *_probe(scene, infer, plan, tiling, device)
        except torch.OutOfMemoryError as error:
            if tiling.batch == 1:
                raise no_room(scene, tiling.tile) from error
        torch.cuda.empty_cache()
        tiling = replace(tiling, batch=-(-tiling.batch // 2))


def _probe(
    scene: Scene, infer: Infer, plan: Plan, tiling: Tiling, device: torch.device
) -> tuple[float, float | None]:
    """Estimate seconds, and memory of the device in MiB, from two batches of the middle."""
    part = plan.parts[len(plan.parts) // 2]
    window = Window(part.x + part.width // 2, part.y + part.height // 2, tiling.tile, tiling.tile)
    started = time.perf_counter()
    samples, _ = scene.read(window)
    reading = (time.perf_counter() - started) * _decoded(scene, plan, window) / tiling.readers
    batch = min(tiling.batch, plan.tiles)
    tiles = torch.from_numpy(samples)[None].to(device).repeat(batch, 1, 1, 1)
    infer(tiles.clone())  # the first one sets things up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    _wait_for(infer(tiles))
    computing = (time.perf_counter() - started) * plan.tiles / batch
    vram = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return max(computing, reading), vram


def _decoded(scene: Scene, plan: Plan, window: Window) -> float:
    """Count how often the blocks under a window go into those that must be read."""
    high, wide = scene.block
    across = window.right // wide - window.x // wide + 1
    down = window.bottom // high - window.y // high + 1
    pixels = sum(part.width * part.height for part in plan.parts)
    return pixels / (across * down * high * wide)


def _wait_for(scores: Tensor) -> None:
    scores[0, 0, 0, 0].item()


def disk_mb(outputs: Outputs, pixels: int) -> float:
    """Estimate the MiB that maps take at most while they are made, parts and all.

    Class maps shrink to a tenth or less on disk; noisy ones, for which this is meant, to a third.
    """
    quantities = outputs.bands - 1
    return pixels * (PARTS_SHARE + MAP_SHARE + quantities * 2 * SHARES_SHARE) / MIB


def _free_mb(outputs: Outputs) -> float:
    there = next(folder for folder in outputs.map.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free / MIB


def require_disk(scene: Scene, outputs: Outputs, area: Area | None) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        RssegError: Too little is free.
    """
    pixels = scene.width * scene.height if area is None else area.box.width * area.box.height
    needed, free = disk_mb(outputs, pixels), _free_mb(outputs)
    if needed > free:
        raise RssegError(
            f"the maps may need {needed:,.0f} MB while they are made, {free:,.0f} MB are free",
            where=str(outputs.map.parent),
            fix="free space, or -o on another disk",
        )


def warn_of_doubts(scene: Scene, fitted: LoadedModel) -> None:
    """Warn of what looks wrong about a scene."""
    for doubt in find_doubts(scene, fitted):
        warnings.warn(f"{scene.path}: {doubt}", RssegWarning, stacklevel=2)


def find_doubts(scene: Scene, fitted: LoadedModel) -> list[str]:
    """Say what about a scene may make it slow, or unlike what the model was trained on."""
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
    size = pixel_size_m(scene.crs, scene.transform)
    if trained is None or size is None:
        return None
    if 1 / GSD_FACTOR <= size / trained <= GSD_FACTOR:
        return None
    return f"its pixels are {size:.3g} m wide, those of the training were {trained:.3g} m"


def _order(scene: Scene, names: Sequence[str]) -> str | None:
    """Compare the names of the bands, where the file has them and they are the same set."""
    found = [(name or "").lower() for name in scene.descriptions]
    wanted = [name.lower() for name in names]
    if found == wanted or set(found) != set(wanted):
        return None
    return f"its bands are {' '.join(found)}, the model wants {' '.join(wanted)} (--bands)"


def _values(
    scene: Scene, names: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """Compare values of some windows with those of the training."""
    seen = []
    for share in np.linspace(0.1, 0.9, SAMPLES):
        x, y = int(share * scene.width), int(share * scene.height)
        window = Window(
            max(0, x - SAMPLE_PX // 2), max(0, y - SAMPLE_PX // 2), SAMPLE_PX, SAMPLE_PX
        )
        samples, valid = scene.read(window)
        seen.append(samples[:, valid].astype(np.float64))
    values = np.concatenate(seen, 1)
    if not values.size:
        return []
    return [
        f"band {name} has values around {found:.4g}, those of the training were {m:.4g} ± {s:.3g}"
        for name, found, spread, m, s in zip(
            names, values.mean(1), values.std(1), mean, std, strict=True
        )
        if abs(found - m) > FAR * s
        or not 1 / SCALE <= max(abs(found), spread) / max(abs(m), s, 1e-12) <= SCALE
    ]


def _spoken(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.1f} {unit}"
    return f"about {seconds:.1f} s"
