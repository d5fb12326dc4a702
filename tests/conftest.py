"""Tiny rasters of every kind, written on the spot."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import settings
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning

from rsseg_cli.raster.grid import Axis, Window

# Workers of pytest-xdist share the cores: torch, imported after this, takes one thread in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Same examples in every run, and no deadline: machines that run the suite are shared.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

NORTH_UP = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_300_000.0)
ROTATED = rasterio.Affine(8.66, -5.0, 500_000.0, -5.0, -8.66, 5_300_000.0)
SOUTH_UP = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, 10.0, 5_300_000.0)

WriteScene = Callable[..., Path]


def windows(width: int, height: int, tile: int, overlap: int = 0) -> Iterator[Window]:
    """Cover a scene with square windows, row by row; outer ones extend beyond its border."""
    across, down = Axis(width, tile, overlap), Axis(height, tile, overlap)
    for row in range(down.count):
        for column in range(across.count):
            yield Window(across.start(column), down.start(row), tile, tile)


def random_samples(
    count: int, height: int, width: int, dtype: str = "uint8", seed: int = 0
) -> NDArray[Any]:
    """Samples (C, H, W) from 1 to 99, smooth enough to compress and never a usual nodata value."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 100, (count, -(-height // 4), -(-width // 4)))
    return coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(dtype)


def write_raster(path: Path, samples: NDArray[Any], **profile: Any) -> Path:
    """Write (C, H, W) as a GeoTIFF in EPSG:32633, tiled in blocks of 64 unless told otherwise."""
    count, height, width = samples.shape
    settings: dict[str, Any] = {
        "driver": "GTiff", "crs": "EPSG:32633", "transform": NORTH_UP, "tiled": True,
        "blockxsize": 64, "blockysize": 64, "compress": "deflate", "photometric": "minisblack",
        "alpha": "no",
    }  # fmt: skip
    settings |= profile
    settings = {key: value for key, value in settings.items() if value is not None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(
            path, "w", width=width, height=height, count=count, dtype=samples.dtype, **settings
        )
    with file:
        file.write(samples)
    return path


@pytest.fixture
def write_scene(tmp_path: Path) -> WriteScene:
    """Give a function that writes samples (C, H, W) as `<tmp_path>/<name>`."""

    def write(samples: NDArray[Any], name: str = "scene.tif", **profile: Any) -> Path:
        return write_raster(tmp_path / name, samples, **profile)

    return write


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of two labelled scenes that no test may change."""
    from runs import write_city

    return write_city(tmp_path_factory.mktemp("data") / "city")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, city: Path) -> Path:
    """Give a finished run on `city` that has learnt its classes; no test may change it."""
    from runs import SMALL, rsseg

    run = tmp_path_factory.mktemp("runs") / "full-city"
    call = rsseg(
        "fit", "-m", "full", "--src", city, "--output", run, *SMALL, "--steps", "30",
        "--set", "optimizer.lr=3e-3", "--set", "optimizer.backbone_lr=null",
        "--set", "training.log_every=10", "--set", "training.validate_every=15",
    )  # fmt: skip
    assert call.code == 0, call.err
    return run
