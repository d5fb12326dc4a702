"""Measures `predict`: what the engine costs beside the model, and beside a plain copy.

    python tests/benchmarks/bench_predict.py [--null] [--vit] [--striped] [--seams] [--memory]
                                             [--json]

`--null` compares a model without compute with copying the same raster by GDAL; `--vit` compares a
small transformer with its bare forward passes on the same tiles; `--striped` compares a scene in
strips with one in tiles; `--seams` compares jumps of the probabilities where tiles meet with those
elsewhere; `--memory` compares the peak RSS on scenes of different height. Ratios are taken in one
run, the best of a few rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window as FileWindow
from torch import Tensor, nn

from rsseg_cli.classes import Class, default_color
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.plan import Tiling, peak_rss_mb
from rsseg_cli.raster.grid import windows
from rsseg_cli.raster.scene import Scene

CLASSES = [Class(k, f"class {k}", default_color(k)) for k in range(8)]
TILING = Tiling(tile=256, overlap=0.25, batch=8)
TILED = {"tiled": True, "blockxsize": 512, "blockysize": 512}
ROUNDS = 3


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


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def predict(
    path: Path, out: Path, infer: Any, driver: str = "COG", tiling: Tiling = TILING, **products: Any
) -> Any:
    """Map a scene."""
    outputs = Outputs(map=out, classes=CLASSES, driver=driver, overwrite=True, **products)
    with Scene.open(path) as scene:
        return predict_scene(scene, infer, outputs, tiling=tiling)


def bench_null(folder: Path) -> dict[str, float]:
    """Compare with GDAL's copy of the raster, DEFLATE in and ZSTD out."""
    path = write_scene(folder / "null.tif", 4096, 4096)
    infer = NullModel()
    copy = {"driver": "GTiff", "compress": "zstd", **TILED}
    seconds = {
        "copy_s": best(lambda: rasterio.shutil.copy(path, folder / "copy.tif", **copy)),
        "gtiff_s": best(lambda: predict(path, folder / "out.tif", infer, "GTiff")),
        "cog_s": best(lambda: predict(path, folder / "out.tif", infer)),
    }
    with rasterio.open(path) as file, rasterio.open(folder / "out.tif") as made:
        exact = np.array_equal(file.read(1) % 8, made.read(1))
    return {
        **seconds,
        "ratio_gtiff": seconds["copy_s"] / seconds["gtiff_s"],
        "ratio_cog": seconds["copy_s"] / seconds["cog_s"],
        "exact": float(exact),
    }


@torch.inference_mode()
def bench_vit(folder: Path) -> dict[str, float]:
    """Compare with the bare forward passes of the same tiles."""
    path = write_scene(folder / "vit.tif", 2051, 1999, bands=3)
    torch.manual_seed(0)
    model = TinyTransformer(3).eval()
    count = len(list(windows(2051, 1999, 256, 64)))
    tiles = torch.randint(0, 255, (8, 3, 256, 256), dtype=torch.uint8)
    calls = [tiles] * (count // 8) + [tiles[: count % 8]] * bool(count % 8)
    bare = best(lambda: [model(batch) for batch in calls])
    whole = best(lambda: predict(path, folder / "out.tif", model))
    return {"bare_s": bare, "end_to_end_s": whole, "ratio": bare / whole}


def bench_striped(folder: Path) -> dict[str, float]:
    """Compare a scene that is stored in strips with the same in tiles."""
    infer = NullModel()
    seconds = {}
    for name, layout in (("tiled", TILED), ("striped", {"tiled": False, "blockysize": 1})):
        path = write_scene(folder / f"{name}.tif", 4096, 4096, bands=4, **layout)
        seconds[f"{name}_s"] = best(lambda path=path: predict(path, folder / "out.tif", infer))
    return {**seconds, "ratio": seconds["striped_s"] / seconds["tiled_s"]}


@torch.inference_mode()
def bench_seams(folder: Path) -> dict[str, float]:
    """Compare jumps between columns where tiles meet with jumps elsewhere, at the same phase.

    `excess` is over all columns on which two tiles have a say, `worst_excess` over the columns
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


def main() -> None:
    """Run what was asked for, all when nothing was."""
    parser = argparse.ArgumentParser()
    for name in ("null", "vit", "striped", "seams", "memory", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak_of:
        predict(asked.peak_of, asked.peak_of.with_suffix(".out.tif"), NullModel())
        print(peak_rss_mb())
        return
    benches = {
        "null": bench_null, "vit": bench_vit, "striped": bench_striped, "seams": bench_seams,
        "memory": bench_memory,
    }  # fmt: skip
    chosen = [name for name in benches if getattr(asked, name)] or list(benches)
    results = {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = benches[name](Path(folder))
        if not asked.json:
            print(name, {key: round(value, 3) for key, value in results[name].items()})
    if asked.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
