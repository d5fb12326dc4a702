"""Maps one scene with `predict` and with other tools' own tiled inference, side by side.

    python tests/benchmarks/bench_peers.py [--packages FOLDER] [--out FILE.json]

The same weights (a small ViT of timm with a linear head), scene, tile, overlap and batch for all:
rsseg; `terratorch`'s tiled inference of a scene in memory; `torchgeo`'s grid sampler with the loop
that its tutorials show. A tool that is not installed is left out, and that is said. Each round of
a tool is a process of its own; the best of a few rounds counts, tools take turns. Throughput is
from opening the scene to the closed class map, without the start of Python.

`--packages` is a folder in which the other tools are installed, beside what this Python has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import timm
import torch
from bench_predict import CLASSES, NullModel
from numpy.typing import NDArray
from rasterio.enums import Resampling
from torch import Tensor, nn

from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.scene import Scene

TILE, OVERLAP, BATCH, ROUNDS = 256, 64, 8, 3
SIZE, SMALL = (2051, 1999), (1027, 515)
NODATA = 0
MODELS = ("null", "vit")
Shares = NDArray[np.float32]
"""Class probabilities (K, H, W) of a whole scene."""


class SmallTransformer(nn.Module):
    """Four blocks of width 192 on patches of 16, and a linear head, with random weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = timm.create_model(
            "vit_tiny_patch16_224", img_size=TILE, num_classes=0, depth=4, class_token=False,
            global_pool="",
        )  # fmt: skip
        self.head = nn.Conv2d(192, len(CLASSES), 1)

    def forward(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, 3, T, T) of bytes: probabilities (B, K, T, T)."""
        tokens = self.body.forward_features(tiles.float() / 255)
        side = TILE // 16
        scores = self.head(tokens.mT.unflatten(2, (side, side)))
        return nn.functional.interpolate(scores, scale_factor=16, mode="bilinear").softmax(1)


def make_scene(path: Path, source: Path, size: tuple[int, int]) -> None:
    """Resample real imagery to a size, and cut a hole of missing pixels into it."""
    width, height = size
    with rasterio.open(source) as file:
        samples = file.read([1, 2, 3], out_shape=(3, height, width), resampling=Resampling.bilinear)
    samples = samples.clip(1)
    samples[:, 200:330, 300:520] = NODATA
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8",
        nodata=NODATA, tiled=True, blockxsize=512, blockysize=512, compress="deflate",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_300_000),
    ) as file:  # fmt: skip
        file.write(samples)


def by_rsseg(scene: Path, model: Any, out: Path, shares: Path | None) -> None:
    """Map with this project's engine."""
    outputs = Outputs(out, CLASSES, driver="GTiff", probabilities=shares, overwrite=True)
    with Scene.open(scene) as opened:
        predict_scene(SceneTask(opened, model, outputs, Tiling(TILE, OVERLAP / TILE, BATCH)))


def write_map(out: Path, scene: Path, classes: NDArray[np.uint8]) -> None:
    """Write a class map as those who have it in memory do."""
    with rasterio.open(scene) as file:
        profile = file.profile
    profile |= {"count": 1, "nodata": 255, "compress": "zstd"}
    with rasterio.open(out, "w", **profile) as file:
        file.write(classes, 1)


def keep(shares: Path | None, found: Tensor) -> None:
    """Write probabilities for the look at seams."""
    if shares is not None:
        np.save(shares, found.numpy())


def by_terratorch(scene: Path, model: Any, out: Path, shares: Path | None) -> None:
    """Map with terratorch's tiled inference, blended."""
    from terratorch.tasks.tiled_inference import tiled_inference

    with rasterio.open(scene) as file:
        image = torch.from_numpy(file.read())[None]
    with torch.inference_mode():
        found = tiled_inference(
            model, image.float(), crop=TILE, stride=TILE - OVERLAP, batch_size=BATCH
        )[0]  # fmt: skip
    keep(shares, found)
    write_map(out, scene, found.argmax(0).to(torch.uint8).numpy())


def by_torchgeo(scene: Path, model: Any, out: Path, shares: Path | None) -> None:
    """Map with torchgeo's grid sampler: each tile overwrites what was there."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    dataset = RasterDataset([str(scene)])
    sampler = GridGeoSampler(dataset, size=TILE, stride=TILE - OVERLAP)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples)
    with rasterio.open(scene) as file:
        width, height, grid = file.width, file.height, ~file.transform
    classes = np.full((height, width), 255, np.uint8)
    whole = torch.zeros(len(CLASSES), height, width) if shares else None
    with torch.inference_mode():
        for batch in loader:
            scores = model(batch["image"])
            for one, bounds in zip(scores, batch["bounds"], strict=True):
                column, row = grid * (bounds[0].start, bounds[1].stop)
                x, y = round(column), round(row)  # the last tiles hang over the scene
                there = one[:, max(0, -y) : height - y, max(0, -x) : width - x]
                place = (slice(max(0, y), y + TILE), slice(max(0, x), x + TILE))
                classes[place] = there.argmax(0).numpy()
                if whole is not None:
                    whole[(slice(None), *place)] = there
    if whole is not None:
        keep(shares, whole)
    write_map(out, scene, classes)


TOOLS: dict[str, Callable[[Path, Any, Path, Path | None], None]] = {
    "rsseg": by_rsseg, "terratorch": by_terratorch, "torchgeo": by_torchgeo,
}  # fmt: skip


class NullOfAny(NullModel):
    """The null model, whatever type a tool makes of bytes."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Score tiles (B, C, T, T)."""
        return super().__call__(tiles[:, :1].to(torch.uint8)).clone()


def run_once(tool: str, folder: Path) -> None:
    """Map both scenes in this process and print what it took."""
    modules = {"terratorch": "terratorch.tasks.tiled_inference", "torchgeo": "torchgeo.samplers"}
    importlib.import_module(modules.get(tool, "rsseg_cli"))
    found = {}
    for name, model in (("null", NullOfAny()), ("vit", SmallTransformer().eval())):
        with torch.inference_mode():
            model(torch.zeros(1, 3, TILE, TILE, dtype=torch.uint8))
        before, started = peak_rss_mb(), time.perf_counter()
        TOOLS[tool](folder / "scene.tif", model, folder / f"{tool}.{name}.tif", None)
        found[f"{name}_s"] = time.perf_counter() - started
        found[f"{name}_peak_mb"] = peak_rss_mb() - (before if name == "null" else found["start"])
        found.setdefault("start", before)
    TOOLS[tool](folder / "small.tif", model, folder / f"{tool}.small.tif", _shares(folder, tool))
    print(json.dumps(found))


def _shares(folder: Path, tool: str) -> Path:
    return folder / f"{tool}{'.prob.tif' if tool == 'rsseg' else '.npy'}"


def seam_excess(shares: Shares) -> float:
    """Compare the columns with the largest jumps to the next one with others of the same phase.

    Tools lay their tiles differently, so that seams are looked for in all columns: the twentieth
    that jumps most, against the median.
    """
    jumps = np.abs(np.diff(shares, axis=2)).mean((0, 1))
    phases = [np.sort(jumps[phase::16]) for phase in range(16)]
    most = np.mean([one[-max(1, len(one) // 20) :].mean() for one in phases])
    return float(most / np.mean([np.median(one) for one in phases]) - 1)


def read_shares(path: Path) -> Shares:
    """Read probabilities however a tool wrote them."""
    if path.suffix == ".npy":
        loaded: Shares = np.load(path)
        return loaded
    with rasterio.open(path) as file:
        quantised: Shares = file.read().astype(np.float32) / 254
    return quantised


def judge(tool: str, folder: Path) -> dict[str, Any]:
    """Describe a tool's maps: exact, with the missing pixels kept, without seams."""
    scene, out = folder / "scene.tif", folder / f"{tool}.null.tif"
    with rasterio.open(scene) as file, rasterio.open(out) as made:
        first, found = file.read(1), made.read(1)
    there = first != NODATA
    return {
        "exact": bool((first % 8 == found)[there].all()),
        "nodata_kept": float((found[~there] == 255).mean()),
        "seam_excess": seam_excess(read_shares(_shares(folder, tool))[:, 340:]),
    }


def compare(folder: Path, source: Path, packages: Path | None) -> dict[str, dict[str, Any]]:
    """Run all tools that are there."""
    make_scene(folder / "scene.tif", source, SIZE)
    make_scene(folder / "small.tif", source, SMALL)
    paths = [str(packages)] * bool(packages) + [os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    tools = [tool for tool in TOOLS if tool == "rsseg" or _installed(tool, packages)]
    runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for tool in tools * ROUNDS:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--once", tool, str(folder)],
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs[tool].append(json.loads(done.stdout.splitlines()[-1]))
    mpx = SIZE[0] * SIZE[1] / 1e6
    return {
        tool: {
            **{f"{m}_mpx_per_s": mpx / min(one[f"{m}_s"] for one in runs[tool]) for m in MODELS},
            **{f"{m}_peak_mb": min(one[f"{m}_peak_mb"] for one in runs[tool]) for m in MODELS},
            **judge(tool, folder),
        }
        for tool in tools
    }


def _installed(tool: str, packages: Path | None) -> bool:
    there = (packages is not None and (packages / tool).is_dir()) or (
        importlib.util.find_spec(tool) is not None
    )
    if not there:
        print(f"{tool} is NOT INSTALLED and left out", file=sys.stderr)
    return there


def table(found: dict[str, dict[str, Any]]) -> str:
    """Write the table for people."""
    lines = [
        "| tool | null, Mpx/s | ViT, Mpx/s | peak MB over set-up, null / ViT | null map exact "
        "| nodata kept | worst jumps over the usual |",
        "|---|---|---|---|---|---|---|",
    ]
    for tool, one in found.items():
        lines.append(
            f"| {tool} | {one['null_mpx_per_s']:.1f} | {one['vit_mpx_per_s']:.2f} "
            f"| {one['null_peak_mb']:.0f} / {one['vit_peak_mb']:.0f} "
            f"| {'yes' if one['exact'] else 'no'} | {one['nodata_kept']:.0%} "
            f"| {one['seam_excess']:+.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compare, print the table, keep the numbers."""
    root = Path(os.environ.get("RSSEG_SHARED", Path(__file__).parents[3] / "shared")) / "data"
    parser = argparse.ArgumentParser()
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--scene", type=Path, help="imagery of three bytes a pixel")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        run_once(asked.once[0], Path(asked.once[1]))
        return
    source = asked.scene or next((root / "buildings" / "banepa" / "images").glob("*.tif"))
    with tempfile.TemporaryDirectory() as folder:
        found = compare(Path(folder), source, asked.packages)
    print(table(found))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
        asked.out.with_suffix(".md").write_text(table(found) + "\n")


if __name__ == "__main__":
    main()
