"""Maps a scene slowly, in processes that are killed: SCENE WHOLE KILLED (paths of maps)."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from rsseg_cli.classes import Class
from rsseg_cli.predict import plan
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, Polygons
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.raster.scene import Scene

CLASSES = [Class(k, f"class {k}", (k, k, k)) for k in range(8)]
PAUSE_S = 0.003
KILLS = 6


def slow_model(tiles: Tensor) -> Tensor:
    """One-hot of band 1 modulo 8, with a little of its neighbours."""
    time.sleep(PAUSE_S)
    exact = (tiles[:, :1].long() % 8 == torch.arange(8).view(1, 8, 1, 1)).float()
    return torch.nn.functional.avg_pool2d(exact, 3, 1, 1, count_include_pad=False)


def all_products(target: Path, *, resume: bool) -> Outputs:
    """List everything that can be written of a scene, beside its map."""
    return Outputs(
        map=target,
        classes=CLASSES,
        probabilities=target.with_suffix(".prob.tif"),
        confidence=target.with_suffix(".conf.tif"),
        polygons=Polygons(target.with_suffix(".gpkg")),
        resume=resume,
        dependencies={"model": "a"},
    )


def small_steps() -> plan.Tiling:
    """Return a tiling for which a scene has many parts; use one thread."""
    plan.PART_PIXELS = 512 * 200
    torch.set_num_threads(1)
    return plan.Tiling(64, 0.25, batch=4)


def map_scene(scene_path: Path, target: Path, *, resume: bool) -> None:
    """Map the scene with all products."""
    with Scene.open(scene_path) as scene:
        outputs = all_products(target, resume=resume)
        predict_scene(SceneTask(scene, slow_model, outputs, small_steps()))


def in_child(scene: Path, target: Path, *, resume: bool, seconds: float | None) -> bool:
    """Map in a process that is killed after some seconds; return whether it finished."""
    child = os.fork()
    if not child:
        code = 1
        try:
            map_scene(scene, target, resume=resume)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def main(scene: Path, whole: Path, out: Path) -> None:
    """Map once undisturbed, then killed again and again; print what was there after each kill."""
    began = time.perf_counter()
    assert in_child(scene, whole, resume=False, seconds=None)
    seconds, rng = time.perf_counter() - began, random.Random(0)
    for _ in range(KILLS):
        if in_child(scene, out, resume=True, seconds=rng.uniform(0.02, seconds / 2)):
            break
        parts = len(list(out.parent.glob(".out.tif.parts/*.tif")))
        print(parts, *sorted(one.name for one in out.parent.glob("[!.]*")))
    if not out.exists():
        assert in_child(scene, out, resume=True, seconds=None)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
