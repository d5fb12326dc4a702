"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from numpy.typing import NDArray
from scenes import WriteScene, write_raster

# Workers of pytest-xdist share the cores: torch, imported after this, takes one thread in each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Same examples in every run, and no deadline: machines that run the suite are shared.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture
def write_scene(tmp_path: Path) -> WriteScene:
    """Return a function that writes samples (C, H, W) as `<tmp_path>/<name>`."""

    def write(samples: NDArray[Any], name: str = "scene.tif", **profile: Any) -> Path:
        return write_raster(tmp_path / name, samples, **profile)

    return write


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two labelled scenes that no test may change."""
    from runs import write_city

    return write_city(tmp_path_factory.mktemp("data") / "city")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, city: Path) -> Path:
    """Return a finished run on `city` that has learnt its classes; no test may change it."""
    from runs import SMALL, rsseg

    run = tmp_path_factory.mktemp("runs") / "full-city"
    call = rsseg(
        "fit", "-m", "full", "--src", city, "--output", run, *SMALL, "--steps", "30",
        "--set", "optimizer.lr=3e-3", "--set", "optimizer.backbone_lr=null",
        "--set", "training.log_every=10", "--set", "training.validate_every=15",
    )  # fmt: skip
    assert call.code == 0, call.err
    return run
