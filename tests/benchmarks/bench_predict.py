"""Measures `predict`: what the engine costs beside the model, and beside a plain copy.

    python tests/benchmarks/bench_predict.py [--null] [--vit] [--striped] [--seams] [--memory]
                                             [--overlap] [--json] [--out FILE]

`--null` compares a model without compute with copying the same raster by GDAL; `--vit` compares a
small transformer with its bare forward passes on the same tiles; `--striped` compares a scene in
strips with one in tiles; `--seams` compares jumps of the probabilities where tiles meet with those
elsewhere; `--memory` compares the peak RSS on scenes of different height; `--overlap` compares maps
of a fitted model at two overlaps. Ratios are taken in one run; what is compared takes turns, and
the best of a few rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window as FileWindow
from torch import Tensor, nn

from rsseg_cli.classes import Class, default_color
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict.batch import even_batch
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.grid import Axis
from rsseg_cli.raster.scene import Scene

SENTINEL2 = """name: sentinel2
root: {root}
scale: 1.0
bands:
- {{name: blue, wavelength_nm: 490}}
- {{name: green, wavelength_nm: 560}}
- {{name: red, wavelength_nm: 665}}
- {{name: nir, wavelength_nm: 842}}
- {{name: swir16, wavelength_nm: 1610}}
- {{name: swir22, wavelength_nm: 2190}}
classes:
- {{id: 0, name: shadow, color: [40, 40, 60]}}
- {{id: 1, name: water, color: [40, 110, 190]}}
- {{id: 2, name: snow, color: [150, 230, 240]}}
- {{id: 3, name: land, color: [120, 170, 80]}}
- {{id: 4, name: cloud, color: [245, 245, 245]}}
"""
"""Bands of the shared images, which have no description of them."""
CLASSES = [Class(k, f"class {k}", default_color(k)) for k in range(8)]
TILING = Tiling(tile=256, overlap=0.25, batch=8)
VIT_TILING = Tiling(tile=256, overlap=0.25, batch=8, most=16)
"""As `predict` cuts a scene for a model of such tiles by itself."""
TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512}
ROUNDS = 4


class NullModel:
    """One-hot of band 1 modulo 8: as good as no compute."""

    def __init__(self) -> None:
        self._wanted = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1)
        self._made: Tensor | None = None

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T) into a buffer that is used again."""
        batch, _, side, _ = tiles.shape
        if self._made is None or len(self._made) != batch:
            self._made = torch.empty(batch, 8, side, side)
        np.equal(tiles[:, :1].numpy() & 7, self._wanted, out=self._made.numpy())
        return self._made


class TinyTransformer(nn.Module):
    """A plain transformer of patch 16, width 192, depth 4, and a 1x1 head."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(bands, 192, 16, 16)
        block = nn.TransformerEncoderLayer(
            192, 3, 768, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
        )
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Conv2d(192, 8, 1)

    def forward(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T)."""
        tokens = self.embed(tiles.float().div(255))
        batch, dim, high, wide = tokens.shape
        walked = self.blocks(tokens.flatten(2).mT).mT.reshape(batch, dim, high, wide)
        scores = nn.functional.interpolate(self.head(walked), scale_factor=16, mode="bilinear")
        return scores.softmax(1)


def write_scene(path: Path, width: int, height: int, bands: int = 1, **layout: Any) -> Path:
    """Write smooth ground with sensor noise, in strips, so that any height can be written."""
    rng = np.random.default_rng(0)
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, dtype="uint8",
        compress="deflate", crs="EPSG:32633", photometric="minisblack", alpha="no",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000), bigtiff="IF_SAFER",
        **(layout or TILED),
    ) as file:  # fmt: skip
        for y in range(0, height, 512):
            rows = min(512, height - y)
            coarse = rng.integers(0, 250, (bands, -(-rows // 16), -(-width // 16)), "uint8")
            strip = coarse.repeat(16, 1).repeat(16, 2)[:, :rows, :width]
            strip = strip + rng.integers(0, 4, strip.shape, "uint8")
            file.write(strip, window=FileWindow(0, y, width, rows))
    return path


def best_of(works: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Return the fewest seconds of some functions: wall time and CPU time.

    They take turns, so that whatever else the machine does meets all of them.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for name, work in [*works.items()] * ROUNDS:
        wall, busy = time.perf_counter(), time.process_time()
        work()
        found[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return {
        name: {"wall_s": min(wall for wall, _ in times), "cpu_s": min(busy for _, busy in times)}
        for name, times in found.items()
    }


def predict(
    path: Path, out: Path, infer: Any, driver: str = "COG", tiling: Tiling = TILING, **products: Any
) -> Any:
    """Map a scene."""
    outputs = Outputs(map=out, classes=CLASSES, driver=driver, overwrite=True, **products)
    with Scene.open(path) as scene:
        return predict_scene(SceneTask(scene, infer, outputs, tiling))


def bench_null(folder: Path) -> dict[str, float]:
    """Compare with GDAL's copy of the raster, DEFLATE in and ZSTD out."""
    path = write_scene(folder / "null.tif", 4096, 4096)
    infer = NullModel()
    copy = {"driver": "GTiff", "compress": "zstd", **TILED}
    found = best_of(
        {
            "copy": lambda: rasterio.shutil.copy(path, folder / "copy.tif", **copy),
            "gtiff": lambda: predict(path, folder / "out.tif", infer, "GTiff"),
            "cog": lambda: predict(path, folder / "out.tif", infer),
        }
    )
    seconds = {name: one["wall_s"] for name, one in found.items()}
    with rasterio.open(path) as file, rasterio.open(folder / "out.tif") as made:
        exact = np.array_equal(file.read(1) % 8, made.read(1))
    return {
        **{f"{name}_s": one for name, one in seconds.items()},
        "ratio_gtiff": seconds["copy"] / seconds["gtiff"],
        "ratio_cog": seconds["copy"] / seconds["cog"],
        "exact": float(exact),
    }


@torch.inference_mode()
def bench_vit(folder: Path) -> dict[str, float]:
    """Compare with the bare forward passes of the same tiles, in the same batches.

    `ratio` is by the wall, `cpu_ratio` by the time of all CPUs, which a busy machine changes less.
    """
    path = write_scene(folder / "vit.tif", 2051, 1999, bands=3)
    torch.manual_seed(0)
    model = TinyTransformer(3).eval()
    count = Axis(2051, 256, 64).count * Axis(1999, 256, 64).count
    batch = even_batch(count, VIT_TILING.batch, VIT_TILING.most)
    tiles = torch.randint(0, 255, (batch, 3, 256, 256), dtype=torch.uint8)
    rest = count % batch
    calls = [tiles] * (count // batch) + [tiles[:rest]] * bool(rest)
    found = best_of(
        {
            "bare": lambda: [model(batch) for batch in calls],
            "end_to_end": lambda: predict(path, folder / "out.tif", model, tiling=VIT_TILING),
        }
    )
    bare, whole = found["bare"], found["end_to_end"]
    return {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "bare_s": bare["wall_s"],
        "end_to_end_s": whole["wall_s"],
        "ratio": bare["wall_s"] / whole["wall_s"],
        "cpu_ratio": bare["cpu_s"] / whole["cpu_s"],
    }


def bench_striped(folder: Path) -> dict[str, float]:
    """Compare a scene that is stored in strips with the same in tiles."""
    infer, works = NullModel(), {}
    for name, layout in (("tiled", TILED), ("striped", {"tiled": False, "blockysize": 1})):
        path = write_scene(folder / f"{name}.tif", 4096, 4096, bands=4, **layout)
        works[name] = partial(predict, path, folder / "out.tif", infer)
    found = best_of(works)
    tiled, striped = found["tiled"]["wall_s"], found["striped"]["wall_s"]
    return {"tiled_s": tiled, "striped_s": striped, "ratio": striped / tiled}


@torch.inference_mode()
def bench_seams(folder: Path) -> dict[str, float]:
    """Compare jumps between columns where tiles meet with jumps elsewhere, at the same phase.

    `excess` is over all columns that two tiles cover, `worst_excess` over the columns
    where the second one begins and the first one ends, `cut_excess` at borders without an overlap.
    """
    path = write_scene(folder / "seams.tif", 1027, 515, bands=3)
    torch.manual_seed(0)
    model = TinyTransformer(3).eval()
    found = {}
    for name, overlap in (("", TILING.overlap), ("cut_", 0.0)):
        tiling = Tiling(TILING.tile, overlap, TILING.batch)
        shares = folder / f"{name}shares.tif"
        predict(path, folder / "out.tif", model, tiling=tiling, probabilities=shares)
        with rasterio.open(shares) as file:
            jumps = np.abs(np.diff(file.read().astype(np.float32), axis=2)).mean((0, 1))
        axis = tiling.axis(1027)
        meet, edge = np.zeros((2, len(jumps)), bool)
        for i in range(1, axis.count):
            begin, end = axis.begin(i), axis.end(i - 1)
            meet[begin - 1 : max(end, begin)] = True
            edge[[begin - 1, max(end, begin) - 1]] = True
        phase = (np.arange(len(jumps)) - axis.start(0)) % 16
        inside = np.array([jumps[~meet & (phase == p)].mean() for p in range(16)])[phase]
        found[f"{name}excess"] = float((jumps / inside)[meet].mean() - 1)
        found[f"{name}worst_excess"] = float((jumps / inside)[edge].mean() - 1)
    return found


def bench_memory(folder: Path) -> dict[str, float]:
    """Compare the peak RSS of processes that map scenes of different height."""
    peaks = {}
    low, high = 8192, 131_072
    for height in (low, high):
        path = write_scene(folder / f"high{height}.tif", 4096, height)
        done = subprocess.run(
            [sys.executable, __file__, "--peak-of", str(path)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks[f"peak_{height}_mb"] = float(done.stdout)
        path.unlink()
    return {**peaks, "ratio": peaks[f"peak_{high}_mb"] / peaks[f"peak_{low}_mb"]}


def bench_overlap(folder: Path) -> dict[str, float]:
    """Compare maps of a fitted model on a real scene at overlaps of a quarter and of a half.

    `at_borders` counts the pixels that two tiles cover at an overlap of a quarter, `inside` the
    others. Empty where the shared data is not at hand.
    """
    root = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    if not root.is_dir():
        print(f"overlap: there is no {root}", file=sys.stderr)
        return {}
    scene, source = root / "cloud" / "sentinel2", folder / "sentinel2.yaml"
    source.write_text(SENTINEL2.format(root=scene))
    fit = [
        "fit", "-m", "full", "--src", str(source), "--output", str(folder / "run"),
        "--backbone", "galileo_nano", "--weights", str(root / "weights" / "galileo-nano"),
        "--set", "backbone.patch=8", "--head", "linear", "--tile", "128", "--batch", "4",
        "--steps", "80", "--set", "optimizer.lr=2e-3", "--set", "optimizer.backbone_lr=3e-4",
        "--set", "data.sampling=balanced", "--set", "data.val_fraction=0",
        "--set", "training.num_workers=0", "--device", "cpu", "-q",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "rsseg_cli", *fit], check=True, stdout=sys.stderr)
    [path] = scene.glob("images/*.tif")
    maps = []
    for overlap in (0.25, 0.5):
        out = folder / f"{overlap}.tif"
        call = ["predict", str(path), "--model", str(folder / "run"), "-o", str(out), "-q"]
        call += ["--overlap", str(overlap), "--no-quicklook", "--device", "cpu"]
        subprocess.run([sys.executable, "-m", "rsseg_cli", *call], check=True, stdout=sys.stderr)
        with rasterio.open(out) as file:
            maps.append(file.read(1))
    differ, valid = maps[0] != maps[1], maps[0] != 255
    tiling = Tiling(128, 0.25)
    shared = [np.zeros(length, bool) for length in differ.shape]
    for along, length in zip(shared, differ.shape, strict=True):
        axis = tiling.axis(length)
        for i in range(1, axis.count):
            along[axis.begin(i) : axis.end(i - 1)] = True
    borders = (shared[0][:, None] | shared[1]) & valid
    return {
        "agreement": float(1 - differ[valid].mean()),
        "at_borders": float(differ[borders].mean()),
        "inside": float(differ[valid & ~borders].mean()),
    }


def main() -> None:
    """Run what was asked for, all when nothing was."""
    benches = {
        "null": bench_null, "vit": bench_vit, "striped": bench_striped, "seams": bench_seams,
        "memory": bench_memory, "overlap": bench_overlap,
    }  # fmt: skip
    parser = argparse.ArgumentParser()
    for name in (*benches, "json"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON into this file")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak_of:
        predict(asked.peak_of, asked.peak_of.with_suffix(".out.tif"), NullModel())
        print(peak_rss_mb())
        return
    chosen = [name for name in benches if getattr(asked, name)] or list(benches)
    results = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = benches[name](Path(folder))
        if not asked.json:
            print(name, {key: round(value, 4) for key, value in results[name].items()}, flush=True)
    if asked.json:
        print(json.dumps(results))
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
