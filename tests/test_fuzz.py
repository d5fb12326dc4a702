"""Damaged files give a map or a clean error: no other exception, no hang, nothing left behind."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from scenes import random_samples, write_raster
from test_engine import CLASSES, null_model

from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.scene import Scene

SEEDS: list[dict[str, Any]] = [
    {"compress": "deflate"},
    {"compress": "lzw", "tiled": None, "blockxsize": None, "blockysize": 16, "nodata": 7},
    {"compress": None, "interleave": "pixel"},
    {"driver": "COG", "tiled": None, "blockxsize": None, "blockysize": None, "photometric": None,
     "alpha": None, "blocksize": 64},
]  # fmt: skip
PER_SEED = 150
LARGEST = 4096
"""Damage to the header can make a scene of a petabyte, which is valid: such are left out."""


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Truncate, flip, overwrite, zero, repeat or cut out; mostly near the header and directory."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        made = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            kind = rng.integers(6)
            end = len(made) if rng.random() < 0.4 else min(len(made), 600)
            at = int(rng.integers(0, max(1, end)))
            size = int(rng.integers(1, 24))
            if kind == 0:
                del made[int(rng.integers(0, max(1, len(made)))) :]
            elif kind == 1 and made:
                made[at % len(made)] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                made[at : at + size] = rng.bytes(size)
            elif kind == 3:
                made[at : at + size] = bytes(size)
            elif kind == 4:
                made[at:at] = made[at : at + size]
            else:
                del made[at : at + size]
        yield bytes(made)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_damaged_tiffs(tmp_path: Path, number: int) -> None:
    whole = write_raster(
        tmp_path / "whole.tif", random_samples(2, 90, 100, "uint16", seed=number), **SEEDS[number]
    )
    data = whole.read_bytes()
    whole.unlink()
    outcomes = {"map": 0, "error": 0, "large": 0}
    for mutated in mutations(data, PER_SEED, number):
        outcomes[try_to_map(mutated, tmp_path)] += 1
    assert outcomes["map"] > 5
    assert outcomes["error"] > 20
    assert not [one for one in threading.enumerate() if one.name.startswith("rsseg")]


def try_to_map(data: bytes, folder: Path) -> str:
    path, target = folder / "scene.tif", folder / "map.tif"
    path.write_bytes(data)
    outputs = Outputs(map=target, classes=CLASSES, driver="GTiff", dependencies={"input": "a"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Scene.open(path) as scene:
                if max(scene.width, scene.height) > LARGEST or scene.count > 16:
                    return "large"
                predict_scene(SceneTask(scene, null_model, outputs, Tiling(32, batch=8)))
        except RssegError:
            assert {one.name for one in folder.iterdir()} <= {"scene.tif", "scene.tif.aux.xml"}
            return "error"
        with rasterio.open(target) as made:
            assert made.count == 1
    for left in folder.iterdir():
        assert not left.name.startswith(".")
        left.unlink()
    return "map"


@pytest.mark.parametrize("driver", ["COG", "GTiff"])
def test_scene_with_control_points_only_keeps_them(tmp_path: Path, driver: str) -> None:
    samples = random_samples(1, 60, 80)
    path = write_raster(tmp_path / "scene.tif", samples, crs=None, transform=None)
    points = [
        GroundControlPoint(row, col, 11 + col / 1000, 48 - row / 1000, 5.0, id=str(n))
        for n, (row, col) in enumerate([(0, 0), (0, 80), (60, 80), (60, 0)])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = rasterio.open(path, "r+")
    with file:
        file.gcps = (points, rasterio.CRS.from_epsg(4326))
    with pytest.warns(RssegWarning, match="ground control points only"):
        scene = Scene.open(path)
    with scene:
        outputs = Outputs(map=tmp_path / "map.tif", classes=CLASSES, driver=driver)
        predict_scene(SceneTask(scene, null_model, outputs, Tiling(32, batch=4)))
    with rasterio.open(tmp_path / "map.tif") as made:
        found, crs = made.gcps
        assert made.crs is None
        np.testing.assert_array_equal(made.read(1), samples[0] % 8)
    assert crs == rasterio.CRS.from_epsg(4326)
    known = [(p.row, p.col, p.x, p.y, p.z) for p in points]
    assert [(p.row, p.col, p.x, p.y, p.z) for p in found] == known
