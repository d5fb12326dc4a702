"""`rsseg bench fit`: overhead of the training loop, and cost of a step of each method.

All ratios are of measurements taken in turns in one run.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rasterio
import torch
from rich.console import Console

from rsseg_cli import presets
from rsseg_cli.commands.bench.method_steps import (
    BANDS,
    BASES,
    CLASSES,
    StepSize,
    beside,
    clocks,
    make_step,
    measure_apart,
    seconds_of,
)
from rsseg_cli.commands.bench.predict import write_scene
from rsseg_cli.commands.fit.fit import prepare_fit
from rsseg_cli.commands.fit.job import RunOptions
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.commands.model import pick_device
from rsseg_cli.config import resolve
from rsseg_cli.settings import Json
from rsseg_cli.training import optimizer
from rsseg_cli.training.loop import Job, train
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress

SCENE_PX = 1536
"""Side of the synthetic scenes in pixels."""
LEVELS = 256 // CLASSES + 1
"""Grey levels per class in the synthetic scenes."""
EVERY_METHOD = "all"


def bench_fit(
    sources: Sequence[str] = (),
    *,
    methods: Sequence[str] = (EVERY_METHOD,),
    size: Mapping[str, Any] | None = None,
    steps: int = 8,
    rounds: int = 3,
    device: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the training loop and the steps of methods.

    Args:
        sources: Labelled data for the loop; synthetic scenes when empty.
        methods: Presets; `all` for every preset; without any, there is no table of methods.
        size: Changes of `StepSize.usual`; None keeps a value.
        steps: Steps per measurement.
        rounds: Measurements of the loop and of the bare loop, in turns.
        device: auto, cpu, cuda or cuda:N.
        say: Called with a text before each measurement.

    Returns:
        `device`, `versions`, `size`, `loop` (per method, with `ratio`), `methods` (a row each).
    """
    where = pick_device(device)
    changes = {key: value for key, value in (size or {}).items() if value is not None}
    step_size = replace(StepSize.usual(where), **changes)
    named = presets.names("methods") if EVERY_METHOD in methods else list(methods)
    loops = {}
    with tempfile.TemporaryDirectory(prefix="rsseg-bench-") as name:
        src = list(sources) or [str(_write_scenes(Path(name) / "synthetic"))]
        for method in BASES:
            say(f"loop of {method}")
            loops[method] = _loop(method, src, Path(name), step_size, steps, rounds, device)
    rows = []
    for method in ["frozen", "full", *(n for n in named if n not in BASES)] if named else ():
        say(f"step of {method}")
        rows.append(measure_apart(method, step_size, max(3, steps // 2), device))
    return {
        "device": str(where),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "size": asdict(step_size),
        "sources": list(sources) or "synthetic",
        "loop": loops,
        "methods": beside(rows),
    }


def _loop(
    method: str, src: list[str], folder: Path, size: StepSize, steps: int, rounds: int, device: str
) -> dict[str, Any]:
    """Measure images per second of the training loop and of a bare loop, in turns."""
    changes = [
        f"data.tile={size.tile}", f"training.batch={size.batch}", f"training.steps={2 * steps}",
        f"training.log_every={steps}", f"training.save_every={2 * steps}", "data.val_fraction=0",
    ]  # fmt: skip
    config = resolve(
        method=method, file=None, sources=src, backbone=size.backbone, head="linear",
        pretrained=False, changes=changes,
    )  # fmt: skip
    prepared = prepare_fit(config, RunOptions(folder=folder / method, device=device, quiet=True))
    prepared.folder.begin(config.text())
    job = replace(prepared.loop, validate=None)
    rows = []
    for _ in range(rounds):
        bare, clock = _bare(job, size, steps), _LogClock(2 * steps)
        train(job, clock)
        whole = clock.last() / steps  # the first half warms up
        rows.append((whole[0], bare[0], bare[0] / whole[0], bare[1] / whole[1]))
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    return {
        "images_per_s": size.batch / middle[0],
        "bare_images_per_s": size.batch / middle[1],
        "ratio": middle[2],
        "ratios": [row[2] for row in rows],
        "cpu_ratio": middle[3],
        "wait": float(str(prepared.folder.records()[-1]["wait"])),
    }


class _LogClock(Progress):
    """Reads wall and CPU seconds whenever the loop logs, after a device synchronisation."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps, quiet=True)
        self.read: list[Any] = []

    def log(self, record: dict[str, Json]) -> None:
        """Read the clocks."""
        self.read.append(clocks())

    def last(self) -> Any:
        """Return the seconds (wall, CPU) between the last two log lines."""
        return self.read[-1] - self.read[-2]


def _bare(job: Job, size: StepSize, steps: int) -> Any:
    """Return the seconds (wall, CPU) per step of the same model on tensors on the device."""
    precision = Precision.choose(job.settings.precision, job.device)
    adam = optimizer.build(job.optimization, job.model.train())
    shape = (size.batch, size.tile, size.tile)
    image = torch.randn(size.batch, len(job.model.bands), *shape[1:], device=job.device)
    # Labels that can be learnt would lead to denormal gradients, which are slow on a CPU.
    label = torch.randint(0, job.model.head.classes, shape, device=job.device)
    step = make_step(job.model, adam, image, label, precision)
    step()
    return seconds_of(lambda: [step() for _ in range(steps)], job.device) / steps


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    console, size = Console(highlight=False, soft_wrap=True), result["size"]
    console.print(
        f"{size['backbone']}, batch {size['batch']}, {size['tile']} px on {result['device']}"
    )
    for method, row in result["loop"].items():
        console.print(
            f"loop of {method}: {row['images_per_s']:.2f} images/s, bare "
            f"{row['bare_images_per_s']:.2f}: ratio {row['ratio']:.2f} (of CPU time "
            f"{row['cpu_ratio']:.2f}), wait {row['wait']:.0%}"
        )
    if not result["methods"]:
        return
    console.print(
        f"{'method':<16} {'trained':>9} {'step s':>8} {'/frozen':>8} {'/full':>6} {'MB':>7} "
        f"{'/frozen':>8} {'/full':>6} {'TFLOP':>7} {'used':>5}"
    )
    for row in result["methods"]:
        if "refused" in row:
            console.print(f"{row['method']:<16} {row['refused']}", markup=False)
            continue
        console.print(
            f"{row['method']:<16} {row['trained'] / 1e6:>8.2f}M {row['step_s']:>8.3f} "
            f"{row['step_of_frozen']:>8.2f} {row['step_of_full']:>6.2f} "
            f"{row['peak_memory_mb']:>7.0f} {row['memory_of_frozen']:>8.2f} "
            f"{row['memory_of_full']:>6.2f} {row['tflop']:>7.3f} {row['utilisation']:>5.0%}"
        )


def _write_scenes(root: Path) -> Path:
    """Write two labelled scenes, compressed in blocks."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        path = root / "images" / f"{name}.tif"
        write_scene(path, SCENE_PX, BANDS.mean, BANDS.std, BANDS.dtype)
        with rasterio.open(path) as image:
            labels, profile = image.read(1) // LEVELS, image.profile | {"count": 1}
        with rasterio.open(root / "labels" / f"{name}.tif", "w", **profile) as file:
            file.write(labels, 1)
    described = {
        "name": "synthetic",
        "bands": [
            {"name": band, "wavelength_nm": wavelength}
            for band, wavelength in zip(BANDS.names, BANDS.wavelengths_nm, strict=True)
        ],
        "classes": [{"id": k, "name": f"class {k}", "color": [k, 0, 0]} for k in range(CLASSES)],
    }
    (root / "dataset.yaml").write_text(presets.to_yaml(described))
    return root
