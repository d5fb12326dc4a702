"""`predict` with `--dry-run`, `--resume` and `--memory-mb`, and with a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from paths import ENVIRONMENT
from runs import ground, rsseg, seen
from scenes import write_raster
from torch import Tensor

from rsseg_cli.commands.predict import scene_predictor as mapper
from rsseg_cli.commands.predict.dry_run import find_problems
from rsseg_cli.commands.predict.options import PredictOptions
from rsseg_cli.commands.predict.progress import ProgressLine
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegWarning
from rsseg_cli.predict import batch
from rsseg_cli.raster.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Return a scene like those of the training, in a folder of its own."""
    (tmp_path / "in").mkdir()
    return write_raster(tmp_path / "in" / "scene.tif", seen(ground(600, 110, seed=5)))


def predict(scene: Path, model: Path, *args: str | Path) -> Any:
    return rsseg("predict", scene, "--model", model, "--device", "cpu", *args)


# --- dry run --------------------------------------------------------------------------------------


def test_dry_run_says_what_it_would_take_and_writes_nothing(
    scene: Path, fitted: Path, tmp_path: Path
) -> None:
    call = predict(scene, fitted, "-o", tmp_path / "new" / "map.tif", "--dry-run", "--json")
    assert call.code == 0, call.err
    (said,) = call.document["scenes"]
    assert (said["width"], said["height"], said["tile"]) == (110, 600, 32)
    assert said["tiles"] == 5 * 25
    assert said["swaths"] == 1
    assert said["vram_mb"] is None
    assert said["ram_mb"] > 100
    assert 0 < said["disk_mb"] < 1 < said["free_mb"]
    assert said["seconds"] > 0
    assert said["warnings"] == []
    shown = predict(scene, fitted, "-o", tmp_path / "map.tif", "--dry-run")
    assert shown.code == 0
    assert "125 of 32 px" in shown.out
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_dry_run_of_a_part_takes_less(scene: Path, fitted: Path, tmp_path: Path) -> None:
    box = "500000,5299900,500300,5300000"
    call = predict(scene, fitted, "--bbox", box, "--dry-run", "--json", "-o", tmp_path / "a.tif")
    assert call.code == 0, call.err
    assert call.document["scenes"][0]["tiles"] < 125


@pytest.mark.parametrize("room", [4, 0])
def test_dry_run_where_memory_runs_out(
    scene: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    model = mapper.ModelInfer.__call__

    def call(self: mapper.ModelInfer, tiles: Tensor) -> Tensor:
        if len(tiles) > room:
            raise torch.OutOfMemoryError("too much")
        return model(self, tiles)

    monkeypatch.setattr(mapper.ModelInfer, "__call__", call)
    args = ["-o", tmp_path / "map.tif", "--dry-run", "--json", "--batch", "14"]
    said = predict(scene, fitted, *args)
    if room:
        assert said.document["scenes"][0]["batch"] == room
    else:
        assert said.code == 1
        assert "not even one tile" in said.err


# --- compiling ------------------------------------------------------------------------------------


def test_compiled_only_where_it_pays(
    scene: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    compile_ = torch.compile

    def quickly(function: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        compiled = compile_(function, backend="eager", **options)

        def call(tiles: Tensor) -> Tensor:
            shapes.append(tuple(tiles.shape))
            return compiled(tiles)

        return call

    monkeypatch.setattr(torch, "compile", quickly)
    monkeypatch.setattr(batch, "PROBE_FRACTION", 100.0)  # as if there were much to do
    out = ["--overwrite", "-o", tmp_path / "map.tif"]
    assert "compile  " not in predict(scene, fitted, *out).err
    plain = rasterio.open(tmp_path / "map.tif").read()
    assert "compile  no: below" in predict(scene, fitted, *out, "--compile").err
    monkeypatch.setattr(mapper, "COMPILE_TILES", 100)
    box = "500000,5299900,500300,5300000"
    assert "compile  no: below" in predict(scene, fitted, *out, "--compile", "--bbox", box).err
    assert not shapes
    assert "the first batch takes a while" in predict(scene, fitted, *out, "--compile").err
    assert len(set(shapes)) == 1, "a graph for each batch that is tried"
    assert (rasterio.open(tmp_path / "map.tif").read() == plain).mean() > 0.999
    shapes.clear()
    small = write_raster(scene.with_name("small.tif"), seen(ground(40, 40)))
    both = ["--compile", "--overwrite", "-o", tmp_path / "maps"]
    assert rsseg("predict", scene, small, "--model", fitted, "--device", "cpu", *both).code == 0
    assert len(set(shapes)) == 1, "compiled for a small scene after a large one"


def test_dry_run_says_whether_the_model_is_compiled(
    scene: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*args: str) -> tuple[Any, str]:
        given = ["-o", tmp_path / "map.tif", "--dry-run", *args]
        (found,) = predict(scene, fitted, *given, "--json").document["scenes"]
        return found["compile"], predict(scene, fitted, *given).out

    asked, shown = said()
    assert asked is None
    assert "compile  " not in shown
    asked, shown = said("--compile")
    assert asked is False
    assert "compile   no" in shown
    monkeypatch.setattr(mapper, "COMPILE_TILES", 100)
    asked, shown = said("--compile")
    assert asked is True
    assert "compile   yes" in shown


# --- doubts ---------------------------------------------------------------------------------------


def doubts(path: Path, **changes: Any) -> str:
    """Return what looks wrong for a model of three bands."""
    known: dict[str, Any] = {
        "names": ("blue", "green", "nir"), "wavelengths_nm": (None,) * 3, "dtype": "uint16",
        "mean": (1000.0, 900.0, 1500.0), "std": (700.0, 600.0, 1100.0), "gsd_m": 10.0,
    } | changes  # fmt: skip
    model = SimpleNamespace(model=SimpleNamespace(bands=Bands(**known)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RssegWarning)
        with Scene.open(path) as scene:
            return "\n".join(find_problems(scene, model))  # type: ignore[arg-type]


def test_doubts(tmp_path: Path) -> None:
    samples = seen(ground(64, 64))
    path = write_raster(tmp_path / "a.tif", samples)
    assert doubts(path) == ""
    assert "10 m wide, those of the training were 2 m" in doubts(path, gsd_m=2.0)
    assert "samples are uint16, those of the training were uint8" in doubts(path, dtype="uint8")
    found = doubts(path, mean=(0.1, 0.1, 0.2), std=(0.05, 0.05, 0.1))
    assert "band nir has values around" in found
    for names, wrong in ((("nir", "green", "blue"), True), (("red", "green", "blue"), False)):
        with rasterio.open(path, "r+") as file:
            file.descriptions = names
        assert ("(--bands)" in doubts(path)) is wrong
    striped = {"tiled": None, "blockxsize": None, "blockysize": 8}
    wide = write_raster(tmp_path / "b.tif", seen(ground(32, 2048)), **striped)
    assert "stored in strips" in doubts(wide)
    nothing = write_raster(tmp_path / "c.tif", np.zeros((3, 40, 40), "uint16"), nodata=0)
    assert doubts(nothing) == ""


def test_doubts_are_warnings_of_a_run(scene: Path, fitted: Path, tmp_path: Path) -> None:
    path = write_raster(scene.with_name("byte.tif"), seen(ground(40, 40)) // 16)
    call = predict(path, fitted, "-o", tmp_path / "map.tif")
    assert call.code == 0
    assert "has values around" in call.err


# --- disk and memory ------------------------------------------------------------------------------


def test_full_disk_is_found_before_the_model_runs(
    scene: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(mapper.ModelInfer, "__call__", lambda *args: 1 / 0)
    call = predict(scene, fitted, "-o", tmp_path / "map.tif")
    assert call.code == 1
    assert "MB are free" in call.err


MAPPED = """
import sys, numpy as np, torch
from rsseg_cli.classes import Class
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Tiling
from rsseg_cli.raster.scene import Scene
from pathlib import Path
from paths import ENVIRONMENT
torch.set_num_threads(1)
def model(tiles):
    return (tiles[:, :1].long() % 8 == torch.arange(8).view(1, 8, 1, 1)).float()
model(torch.zeros(1, 1, 8, 8))
bound = int(peak_rss_mb()) + int(sys.argv[3])
with Scene.open(sys.argv[1]) as scene:
    classes = [Class(k, str(k), (0, 0, 0)) for k in range(8)]
    outputs = Outputs(map=Path(sys.argv[2]), classes=classes)
    predict_scene(SceneTask(scene, model, outputs, Tiling(64, batch=4, memory_mb=bound)))
print(bound, peak_rss_mb())
"""


def test_memory_stays_below_the_bound(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 99, (4, 256, 24_000), "uint8").repeat(2, 1)
    path = write_raster(tmp_path / "scene.tif", samples, blockxsize=512, blockysize=512)
    done = subprocess.run(
        [sys.executable, "-c", MAPPED, path, tmp_path / "map.tif", "190"],
        env=ENVIRONMENT,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bound, peak = map(float, done.stdout.split())
    assert peak < bound
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), samples[0] % 8)


# --- resume ---------------------------------------------------------------------------------------


@pytest.fixture
def stopped(
    scene: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Return a scene and the path of the map that an interrupted run has begun."""
    monkeypatch.setattr("rsseg_cli.predict.plan.PART_PIXELS", 1)
    out, left = tmp_path / "map.tif", 9
    calls = mapper.ModelInfer.__call__

    def interrupted(self: mapper.ModelInfer, tiles: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return calls(self, tiles)

    with monkeypatch.context() as patched:
        patched.setattr(mapper.ModelInfer, "__call__", interrupted)
        call = predict(scene, fitted, "-o", out, "--batch", "14")
    assert call.code == 130
    assert "--resume" in call.err
    assert not out.exists()
    assert len(list(tmp_path.glob(".map.tif.parts/*.tif"))) == 1
    return scene, out


def test_resume_goes_on_and_then_keeps_the_whole_map(
    stopped: tuple[Path, Path], fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, out = stopped
    whole = tmp_path / "whole.tif"
    assert predict(scene, fitted, "-o", whole, "--batch", "14").code == 0
    assert predict(scene, fitted, "-o", out, "--batch", "14", "--resume").code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".*"))
    monkeypatch.setattr(mapper.ModelInfer, "__call__", lambda *args: 1 / 0)
    again = predict(scene, fitted, "-o", out, "--batch", "14", "--resume", "--json")
    assert again.document["scenes"][0]["status"] == "exists"
    other = predict(scene, fitted, "-o", out, "--resume", "--overlap", "0.5")
    assert other.code == 1
    assert "with another model, input or options" in other.err


@pytest.mark.parametrize("left", ["", "{", '{"dependencies": {}, "parts": []}', '{"parts": 3}'])
def test_resume_from_what_cannot_be_read(
    stopped: tuple[Path, Path], fitted: Path, left: str
) -> None:
    scene, out = stopped
    (out.parent / ".map.tif.parts" / "resume.json").write_text(left)
    call = predict(scene, fitted, "-o", out, "--resume")
    assert call.code == 1
    assert "cannot be read" in call.err
    assert "omit --resume" in call.err


def test_resume_beside_a_file_that_is_no_map(scene: Path, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_text("mine")
    call = predict(scene, fitted, "-o", tmp_path / "map.tif", "--resume")
    assert call.code != 0
    assert "exists already" in call.err
    assert (tmp_path / "map.tif").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--overlap", "0.5"], "--overlap was 0.25, now it is 0.5"),
        (["--reject", "0.5"], "--reject was None, now it is 0.5"),
        (["--nodata", "0"], "--nodata"),
        ([], "the input was"),
    ],
)
def test_resume_refuses_with_the_reason(
    stopped: tuple[Path, Path], fitted: Path, change: list[str], reason: str
) -> None:
    scene, out = stopped
    if not change:
        os.utime(scene, ns=(1, 1))
    call = predict(scene, fitted, "-o", out, "--resume", *change)
    assert call.code == 1
    assert f"cannot resume: {reason}" in call.err
    assert not out.exists()
    assert list(out.parent.glob(".map.tif.parts/*.tif"))
    assert predict(scene, fitted, "-o", out, *change).code == 0  # anew


CHANGED: dict[str, Any] = {
    "tile": 64,
    "overlap": 0.5,
    "compile": True,
    "precision": "bf16",
    "tta": "flips",
    "bands": "3,2,1",
    "nodata": 7.0,
    "aoi": Path("area.gpkg"),
    "bbox": "0,0,1,1",
    "bbox_crs": "EPSG:4326",
    "probabilities": True,
    "soft": False,
    "confidence": "max",
    "reject": 0.5,
    "polygons": "a.gpkg",
    "sieve": 3,
    "simplify": 1.0,
    "format": "GTiff",
    "creation_options": ("COMPRESS=LZW",),
}
"""Another value of each option that changes a map; an option is here or in `WITHOUT_EFFECT`."""
NEEDED = {"bbox_crs": "bbox", "sieve": "polygons", "simplify": "polygons"}
"""Options that are errors without another one."""


def test_every_option_is_a_dependency_or_without_effect() -> None:
    names = {each.name for each in fields(PredictOptions)}
    assert CHANGED.keys() | mapper.WITHOUT_EFFECT == names
    assert not CHANGED.keys() & mapper.WITHOUT_EFFECT


@pytest.mark.parametrize("name", CHANGED)
def test_the_dependencies_change_with_an_option(name: str, scene: Path, fitted: Path) -> None:
    def dependencies(options: PredictOptions) -> dict[str, str]:
        predictor = mapper.ScenePredictor(options, ProgressLine(quiet=True))
        predictor.fitted.classes[2:] = []  # --soft is for models of two classes
        with Scene.open(scene) as opened:
            return predictor.dependencies(opened)

    needed = NEEDED.get(name)
    options = PredictOptions(scenes=(str(scene),), model=fitted, device="cpu")
    if needed is not None:
        options = replace(options, **{needed: CHANGED[needed]})
    before, after = dependencies(options), dependencies(replace(options, **{name: CHANGED[name]}))
    option = "--co" if name == "creation_options" else f"--{name.replace('_', '-')}"
    assert {key for key in before if before[key] != after[key]} == {option}
    unchanged = {"batch": 3, "threads": 1, "memory_mb": 9999, "quicklook": False, "resume": True}
    assert dependencies(replace(options, **unchanged)) == before
