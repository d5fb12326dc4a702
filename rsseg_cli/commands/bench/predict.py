"""`rsseg bench predict`: speed of a prediction beside bare forward passes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window as FileWindow
from rich.console import Console
from torch import Tensor

from rsseg_cli.classes import Class, default_color
from rsseg_cli.commands.bench.options import BenchPredictOptions
from rsseg_cli.commands.fit.run_report import versions
from rsseg_cli.commands.model import LoadedModel, build, open_model, pick_device
from rsseg_cli.commands.predict.scene_predictor import ModelInfer, tiling_for
from rsseg_cli.config import resolve
from rsseg_cli.contract import Bands
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, SceneResult
from rsseg_cli.predict.pipeline import Infer, SceneTask
from rsseg_cli.predict.plan import Tiling, plan_scene
from rsseg_cli.raster.creation_options import BLOCK
from rsseg_cli.raster.scene import Scene

CLASSES = 8
"""Classes of the benchmark's models."""
BANDS = Bands(
    names=("red", "green", "blue"), wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(110.0,) * 3, std=(50.0,) * 3, dtype="uint8",
)  # fmt: skip
"""Bands of the benchmark's models."""
TILED = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}


class NullModel:
    """One-hot of band 1 modulo 8, a model without computation."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return probabilities (B, K, T, T) for tiles (B, C, T, T)."""
        classes = torch.arange(CLASSES, dtype=torch.uint8, device=tiles.device).view(1, -1, 1, 1)
        return (tiles[:, :1].to(torch.uint8) % CLASSES == classes).float()


def bench_predict(options: BenchPredictOptions) -> dict[str, Any]:
    """Measure a whole prediction beside bare forward passes, and a null model beside a copy.

    Without a model, a random vit_tiny with a linear head is measured.

    Returns:
        `device`, `versions`, `model`, `scene`, `tiling`; `bare`, `end_to_end` and their `ratio`
        (speed end to end over bare); `null`, `copy` and their `null_ratio` (speed of the null
        model over that of a copy with GDAL).
    """
    size, rounds, device = options.size, options.rounds, pick_device(options.device)
    fitted = _random_model() if options.model is None else open_model(options.model)
    tiling = tiling_for(
        fitted, device, tile=options.tile, overlap=options.overlap, batch=options.batch
    )
    infer = ModelInfer(fitted, device)
    with tempfile.TemporaryDirectory(prefix="rsseg-bench-") as name:
        folder = Path(name)
        bands = fitted.model.bands
        path = write_scene(folder / "scene.tif", size, bands.mean, bands.std, bands.dtype)
        with Scene.open(path) as scene:
            plan = plan_scene(scene, tiling, classes=len(fitted.classes))
            bare = _bare(scene, infer, tiling, plan.tiles, device, rounds)
            whole = _map(scene, infer, fitted.classes, tiling, device, folder, rounds)
        single = write_scene(folder / "single.tif", size, (120.0,), (60.0,), "uint8")
        copied = _fastest(
            lambda: rasterio.shutil.copy(
                single, folder / "copy.tif", driver="GTiff", compress="zstd", **TILED
            ),
            rounds,
        )
        classes = _classes()
        with Scene.open(single) as scene:
            null = _map(scene, NullModel(), classes, tiling, device, folder, rounds)
    mpx = size * size / 1e6
    seconds = {"bare": bare, "copy": copied}
    return {
        "device": str(device),
        "versions": versions(),
        "model": fitted.describe() if options.model is not None else "random vit_tiny + linear",
        "scene": {"width": size, "height": size, "bands": len(bands), "dtype": bands.dtype},
        "tiling": {**asdict(tiling), "tiles": plan.tiles},
        **{key: {"seconds": s, "mpx_per_s": mpx / s} for key, s in seconds.items()},
        "end_to_end": _document(whole),
        "ratio": bare / whole.seconds,
        "null": _document(null),
        "null_ratio": copied / null.seconds,
    }


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{result['model']} on {result['device']}", markup=False)
    for key in ("bare", "end_to_end", "copy", "null"):
        row = result[key]
        console.print(f"{key:<12} {row['seconds']:8.2f} s  {row['mpx_per_s']:8.2f} Mpx/s")
    console.print(f"end to end runs at {result['ratio']:.2f} of bare forward passes")
    console.print(f"a null model runs at {result['null_ratio']:.2f} of a copy with GDAL")


def write_scene(
    path: Path, size: int, mean: Sequence[float], std: Sequence[float], dtype: str
) -> Path:
    """Write a synthetic scene: smooth, with sensor noise, in strips of blocks."""
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=len(mean), dtype=dtype,
        compress="deflate", crs="EPSG:32633", photometric="minisblack", alpha="no",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000), **TILED,
    ) as file:  # fmt: skip
        for y in range(0, size, BLOCK):
            rows = min(BLOCK, size - y)
            coarse = rng.normal(size=(len(mean), -(-rows // 16), -(-size // 16)))
            smooth = coarse.repeat(16, 1).repeat(16, 2)[:, :rows, :size]
            noisy = smooth + rng.normal(scale=0.05, size=smooth.shape)
            samples = noisy * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
            if limits is not None:
                samples = samples.clip(limits.min, limits.max)
            file.write(samples.astype(dtype), window=FileWindow(0, y, size, rows))
    return path


def _random_model() -> LoadedModel:
    """Build a small untrained transformer."""
    config = resolve(
        method="frozen", file=None, backbone="vit_tiny", head="linear", pretrained=False,
        changes=["data.tile=256"],
    )  # fmt: skip
    return LoadedModel(Path("random"), build(config, BANDS, CLASSES).eval(), config, _classes(), {})


def _classes() -> list[Class]:
    return [Class(k, f"class {k}", default_color(k)) for k in range(CLASSES)]


def _bare(
    scene: Scene, infer: Infer, tiling: Tiling, tiles: int, device: torch.device, rounds: int
) -> float:
    """Measure the seconds of forward passes over a number of tiles."""
    shape = (tiling.batch, scene.count, tiling.tile, tiling.tile)
    full = torch.from_numpy(np.zeros(shape, scene.dtype)).to(device)
    full_batches, rest = divmod(tiles, tiling.batch)
    batches = [full] * full_batches + [full[:rest]] * bool(rest)

    def forward() -> None:
        for batch in batches:
            probabilities = infer(batch)
        probabilities[0, 0, 0, 0].item()  # waits for the device

    infer(full)
    return _fastest(forward, rounds)


def _map(
    scene: Scene, infer: Infer, classes: Sequence[Class], tiling: Tiling, device: torch.device,
    folder: Path, rounds: int,
) -> SceneResult:  # fmt: skip
    """Map a scene a few times and return the fastest result."""
    outputs = Outputs(map=folder / "map.tif", classes=classes, overwrite=True)
    task = SceneTask(scene, infer, outputs, tiling, device)
    results = [predict_scene(task) for _ in range(rounds)]
    return min(results, key=lambda result: result.seconds)


def _document(result: SceneResult) -> dict[str, Any]:
    keys = ("seconds", "mpx_per_s", "peak_rss_mb", "wait")
    return {key: value for key, value in asdict(result).items() if key in keys}


def _fastest(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
