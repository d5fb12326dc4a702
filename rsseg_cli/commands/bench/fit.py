"""`rsseg bench fit`: overhead of the training loop, and cost of a step of each method.

A step is forward, backward and update on tensors on the device. Estimates and selections of a
method between its steps are not included. Seconds are wall time on a GPU; on a CPU they are CPU
seconds divided by the number of threads, which hardly depend on other load.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import rasterio
import torch
from rich.console import Console

from rsseg_cli import presets
from rsseg_cli.commands.bench.options import BenchFitOptions
from rsseg_cli.commands.bench.predict import BANDS, CLASSES, write_scene
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.options import FitOptions
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.commands.model import build, pick_device
from rsseg_cli.commands.predict.progress import ProgressLine
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.errors import RssegError
from rsseg_cli.memory import peak_memory_mb
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training import optimizer
from rsseg_cli.training.loop import train
from rsseg_cli.training.micro_batch import explaining_out_of_memory
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress

SCENE_PX = 1536
"""Side of the synthetic scenes in pixels."""
LEVELS = 256 // CLASSES
"""Grey levels per class in the synthetic scenes."""
REFERENCES = ("frozen", "full")
"""Methods that the others are compared with, and whose loops are measured."""


@dataclass(frozen=True)
class StepSize:
    """Backbone, side of a tile in pixels, and tiles per batch of a step."""

    backbone: str
    tile: int
    batch: int

    @classmethod
    def of(cls, options: BenchFitOptions, device: torch.device) -> StepSize:
        """Return the size in the options; by default ViT-L on a GPU, ViT-S on a CPU."""
        large = device.type == "cuda"
        return cls(
            options.backbone or ("dinov3_large" if large else "dinov3_small"),
            options.tile or (512 if large else 256),
            options.batch or (8 if large else 2),
        )


def bench_fit(options: BenchFitOptions) -> dict[str, Any]:
    """Measure the training loop and the steps of methods.

    Returns:
        `device`, `threads`, `versions`, `size`, `sources`, `loop` (for `frozen` and `full`, with
        `ratio`: bare loop over training loop), and `methods` (a row each).
    """
    device, progress = pick_device(options.device), ProgressLine(quiet=options.silent)
    size, rows, loops = StepSize.of(options, device), [], {}
    with tempfile.TemporaryDirectory(prefix="rsseg-bench-") as name:
        src = list(options.src) or [str(_write_dataset(Path(name) / "synthetic"))]
        for method in REFERENCES:
            progress.print(f"loop of {method}")
            loops[method] = _measure_loop(method, src, Path(name), size, options)
    if not options.no_methods:
        methods = options.method or presets.names("methods")
        for method in dict.fromkeys((*REFERENCES, *methods)):
            progress.print(f"step of {method}")
            steps = max(3, options.steps // 2)
            rows.append(measure_in_process(method, size, steps, options.device))
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "size": asdict(size),
        "sources": list(options.src) or "synthetic",
        "loop": loops,
        "methods": with_ratios(rows),
    }


def _measure_loop(
    method: str, src: list[str], folder: Path, size: StepSize, options: BenchFitOptions
) -> dict[str, float]:
    """Measure images per second of the training loop and of a bare loop, in turns."""
    steps = options.steps
    changes = [
        f"training.steps={2 * steps}", f"training.log_every={steps}",
        f"training.save_every={2 * steps}", "data.val_fraction=0",
    ]  # fmt: skip
    config = _config(method, size, src, changes)
    run = FitOptions(output=folder / method, device=options.device, quiet=True)
    prepared = prepare_fit(config, run)
    prepared.folder.begin(config.text())
    job = replace(prepared.loop, validate=None)
    seconds = []
    for _ in range(options.rounds):
        step = make_step(job.model, config, size, prepared.precision)
        step()
        bare_s = _seconds(step, job.device, steps)
        clock = _LogClock(2 * steps, job.device)
        train(job, clock)
        # The first half of the steps warms up.
        seconds.append(((clock.times[-1] - clock.times[-2]) / steps, bare_s))
    whole_s, bare_s = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "images_per_s": size.batch / whole_s,
        "bare_images_per_s": size.batch / bare_s,
        "ratio": statistics.median(bare / whole for whole, bare in seconds),
        "wait": float(str(prepared.folder.records()[-1]["wait"])),
    }


class _LogClock(Progress):
    """Reads the clock whenever the loop logs, which it does after a device synchronisation."""

    def __init__(self, steps: int, device: torch.device) -> None:
        super().__init__(steps, quiet=True)
        self.device, self.times = device, list[float]()

    def log(self, record: dict[str, Json]) -> None:
        """Read the clock."""
        self.times.append(_clock(self.device))


def measure_in_process(method: str, size: StepSize, steps: int, device: str) -> dict[str, Any]:
    """Measure a method in its own process; an error of the method becomes `refused`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, method, size, steps, device).result()
        except RssegError as error:
            if method in REFERENCES:
                raise
            return {"method": method, "refused": error.what}


@explaining_out_of_memory()
def measure(method: str, size: StepSize, steps: int, device_name: str) -> dict[str, Any]:
    """Measure the step of a method and the peak memory of this process."""
    device = pick_device(device_name)
    config = _config(method, size)
    model = build(config, BANDS, CLASSES).to(device)
    precision = Precision.choose(config.training.precision, device)
    step = make_step(model, config, size, precision)
    step()  # allocates the moments, after the peak of its activations
    step()
    memory = peak_memory_mb(device)
    seconds = min(_seconds(step, device) for _ in range(steps))
    return {
        "method": method,
        "trained": sum(p.numel() for _, p in model.trainable_parameters()),
        "step_s": seconds,
        "images_per_s": size.batch / seconds,
        "peak_memory_mb": memory,
    }


def _config(
    method: str, size: StepSize, sources: Sequence[str] = (), changes: Sequence[str] = ()
) -> RunConfig:
    """Return a preset's settings with a linear head and without weights from files."""
    config = resolve(
        method=method, file=None, sources=sources, backbone=size.backbone, head="linear",
        pretrained=False,
        changes=[f"data.tile={size.tile}", f"training.batch={size.batch}", *changes],
    )  # fmt: skip
    return replace(
        config, method=replace(config.method, config=config.method.config.without_files())
    )


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with step time and memory relative to `frozen` and `full`."""
    by_method = {row["method"]: row for row in rows}
    return [
        row
        | {
            f"{name}_of_{reference}": row[key] / by_method[reference][key]
            for name, key in (("step", "step_s"), ("memory", "peak_memory_mb"))
            for reference in REFERENCES
            if key in row
        }
        for row in rows
    ]


def make_step(
    model: Segmenter, config: RunConfig, size: StepSize, precision: Precision
) -> Callable[[], None]:
    """Return a function that takes a training step, always on the same random batch."""
    device = precision.device
    adam = optimizer.build(config.optimizer, model.train())
    shape = (size.batch, size.tile, size.tile)
    image = torch.randn(size.batch, len(model.bands), *shape[1:], device=device)
    # Labels that can be learnt would lead to denormal gradients, which are slow on a CPU.
    label = torch.randint(0, model.head.classes, shape, device=device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)

    def step() -> None:
        with precision.autocast():
            loss = torch.stack(list(model(image, label).values())).sum()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(adam)
        scaler.update()
        adam.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], device: torch.device, steps: int = 1) -> float:
    """Measure the seconds per step."""
    started = _clock(device)
    for _ in range(steps):
        step()
    return (_clock(device) - started) / steps


def _clock(device: torch.device) -> float:
    """Return wall seconds of a GPU after a synchronisation, else CPU seconds per thread."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    console, size = Console(highlight=False, soft_wrap=True), result["size"]
    console.print(
        f"{size['backbone']}, batch {size['batch']}, {size['tile']} px on {result['device']}"
    )
    for method, row in result["loop"].items():
        console.print(
            f"loop of {method}: {row['images_per_s']:.2f} images/s, bare "
            f"{row['bare_images_per_s']:.2f}: ratio {row['ratio']:.2f}, wait {row['wait']:.0%}"
        )
    if not result["methods"]:
        return
    console.print(
        f"{'method':<16} {'trained':>9} {'step s':>8} {'/frozen':>8} {'/full':>6} {'MB':>7} "
        f"{'/frozen':>8} {'/full':>6}"
    )
    for row in result["methods"]:
        if "refused" in row:
            console.print(f"{row['method']:<16} {row['refused']}", markup=False)
            continue
        console.print(
            f"{row['method']:<16} {row['trained'] / 1e6:>8.2f}M {row['step_s']:>8.3f} "
            f"{row['step_of_frozen']:>8.2f} {row['step_of_full']:>6.2f} "
            f"{row['peak_memory_mb']:>7.0f} {row['memory_of_frozen']:>8.2f} "
            f"{row['memory_of_full']:>6.2f}"
        )


def _write_dataset(root: Path) -> Path:
    """Write a dataset of two labelled scenes."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in ("a.tif", "b.tif"):
        path = write_scene(root / "images" / name, SCENE_PX, BANDS.mean, BANDS.std, BANDS.dtype)
        with rasterio.open(path) as image:
            labels, profile = image.read(1) // LEVELS, image.profile | {"count": 1}
        with rasterio.open(root / "labels" / name, "w", **profile) as file:
            file.write(labels, 1)
    spec = {
        "name": "synthetic",
        "bands": [
            {"name": band, "wavelength_nm": wavelength}
            for band, wavelength in zip(BANDS.names, BANDS.wavelengths_nm, strict=True)
        ],
        "classes": [{"id": k, "name": f"class {k}", "color": [k, 0, 0]} for k in range(CLASSES)],
    }
    (root / "dataset.yaml").write_text(presets.to_yaml(spec), encoding="utf-8")
    return root
