"""From a scene to a map: exact, on the same grid, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import WriteScene, random_samples
from torch import Tensor

from rsseg_cli.classes import Class, default_color
from rsseg_cli.predict.engine import Outputs, SceneResult, predict_scene
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.scene import Scene

CLASSES = [Class(k, f"class {k}", default_color(k)) for k in range(8)]
SMALL = Tiling(tile=32, overlap=0.25, batch=4)


def null_model(tiles: Tensor) -> Tensor:
    """One-hot of band 1 modulo 8."""
    wanted = torch.arange(8).view(1, 8, 1, 1)
    return (tiles[:, :1].long() % 8 == wanted).float()


def predict(path: Path, infer: Any = null_model, *, tiling: Tiling = SMALL, **options: Any) -> Any:
    """Predict beside the scene; give the map's path."""
    settings = {"map": path.parent / "out.tif", "classes": CLASSES} | options
    with Scene.open(path) as scene:
        result = predict_scene(scene, infer, Outputs(**settings), tiling=tiling)
    assert isinstance(result, SceneResult)
    return settings["map"]


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 97), (7, 5), (32, 32), (53, 101), (101, 53), (131, 600)]
)
def test_null_map_is_exact(write_scene: WriteScene, size: tuple[int, int]) -> None:
    samples = random_samples(2, *size, "uint16")
    with rasterio.open(predict(write_scene(samples))) as made:
        np.testing.assert_array_equal(made.read(1), samples[0] % 8)
