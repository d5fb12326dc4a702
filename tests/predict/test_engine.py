"""From a scene to a map: exact, on the same grid, and nothing half-written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from rio_cogeo.cogeo import cog_validate
from scenes import NORTH_UP, ROTATED, SOUTH_UP, WriteScene, random_samples
from torch import Tensor

from rsseg_cli.classes import Class, default_color
from rsseg_cli.errors import OutputExistsError, RssegError, RssegWarning, UnreadableError
from rsseg_cli.memory import peak_rss_mb
from rsseg_cli.predict import pipeline
from rsseg_cli.predict.engine import predict_scene
from rsseg_cli.predict.outputs import Outputs, SceneResult
from rsseg_cli.predict.pipeline import SceneTask
from rsseg_cli.predict.plan import Plan, Tiling, plan_scene
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene

CLASSES = [Class(k, f"class {k}", default_color(k)) for k in range(8)]
SMALL = Tiling(tile=32, overlap=0.25, batch=4)
SIZES = [(1, 1), (1, 97), (97, 1), (7, 5), (32, 32), (53, 101), (101, 53), (131, 600)]


def null_model(tiles: Tensor) -> Tensor:
    """One-hot of band 1 modulo 8."""
    wanted = torch.arange(8).view(1, 8, 1, 1)
    return (tiles[:, :1].long() % 8 == wanted).float()


def predict(
    path: Path,
    infer: Callable[[Tensor], Tensor] = null_model,
    *,
    tiling: Tiling = SMALL,
    dependencies: dict[str, str] | None = None,
    resume: bool = False,
    **options: Any,
) -> SceneResult:
    """Predict `out.tif` beside a scene."""
    settings = {"map": path.parent / "out.tif", "classes": CLASSES} | options
    outputs = Outputs(**settings, dependencies=dependencies, resume=resume)
    with Scene.open(path) as scene:
        return predict_scene(SceneTask(scene, infer, outputs, tiling))


def read(result: SceneResult | Path) -> Any:
    """Read band 1 of a map."""
    with rasterio.open(result if isinstance(result, Path) else result.output) as file:
        return file.read(1)


def assert_nothing_left(folder: Path, *kept: str) -> None:
    """No map, no temporary, no thread."""
    assert {path.name for path in folder.iterdir()} == set(kept)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rsseg")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_null_map_is_exact(write_scene: WriteScene, size: tuple[int, int], overlap: float) -> None:
    samples = random_samples(2, *size, "uint16")
    result = predict(write_scene(samples), tiling=Tiling(32, overlap, batch=4))
    np.testing.assert_array_equal(read(result), samples[0] % 8)
    assert (result.width, result.height) == size[::-1]
    assert result.status == "done"
    assert result.mpx_per_s > 0
    assert result.peak_rss_mb > 0


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32"])
def test_model_gets_the_stored_type_in_batches_of_one_shape(
    write_scene: WriteScene, dtype: str
) -> None:
    seen = set()

    def model(tiles: Tensor) -> Tensor:
        seen.add((tuple(tiles.shape), str(tiles.dtype)))
        return null_model(tiles)

    samples = random_samples(3, 70, 90, dtype)
    np.testing.assert_array_equal(read(predict(write_scene(samples), model)), samples[0] % 8)
    assert seen == {((4, 3, 32, 32), f"torch.{dtype}")}


def test_constant_model_gives_a_constant_map(write_scene: WriteScene) -> None:
    shares = torch.tensor([0.2, 0.3, 0.5])[None, :, None, None]

    def model(tiles: Tensor) -> Tensor:
        return shares.repeat(len(tiles), 1, *tiles.shape[-2:])

    path = write_scene(random_samples(1, 101, 89))
    shown = path.parent / "shares.tif"
    result = predict(path, model, classes=CLASSES[:3], probabilities=shown)
    assert (read(result) == 2).all()
    with rasterio.open(shown) as file:
        assert [set(band.flatten()) for band in file.read()] == [{51}, {76}, {127}]
        assert file.scales == (1 / 254,) * 3
        assert file.nodata == 255
        assert file.descriptions == ("class 0", "class 1", "class 2")


def test_blended_tiles_equal_the_untiled_scene(write_scene: WriteScene) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(5, 2, 5, 5)

    def model(tiles: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(tiles.float() / 99, kernel, padding="same").softmax(1)

    rng = np.random.default_rng(0)
    samples = rng.integers(1, 99, (2, 224, 320), "uint8")  # tiles fit: nothing hangs over
    tiling = Tiling(128, 0.25, batch=2)
    result = predict(write_scene(samples), model, tiling=tiling, classes=CLASSES[:5])
    whole = model(torch.from_numpy(samples)[None])[0]
    first, second = whole.topk(2, 0).values
    clear = (first - second).numpy() > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(read(result)[clear], whole.argmax(0).numpy()[clear])


def test_each_part_of_the_scene_is_inferred_and_each_pixel_finished_once(
    write_scene: WriteScene,
) -> None:
    tiles, finished = 0, 0

    def model(batch: Tensor) -> Tensor:
        nonlocal tiles
        tiles += len(batch)
        return null_model(batch)

    def progress(done: int, total: int, wait: object) -> None:
        nonlocal finished
        assert finished < done <= total == 131 * 90
        finished = done

    path = write_scene(random_samples(1, 131, 90))
    with Scene.open(path) as scene:
        outputs = Outputs(map=path.parent / "out.tif", classes=CLASSES)
        predict_scene(SceneTask(scene, model, outputs, SMALL), progress=progress)
        plan = plan_scene(scene, SMALL, classes=8)
    assert finished == 131 * 90
    assert plan.tiles == plan.across.count * plan.down.count == 4 * 6
    assert tiles == plan.tiles


def test_nodata_islands_stay_and_empty_tiles_are_skipped(write_scene: WriteScene) -> None:
    samples = random_samples(1, 150, 160)
    samples[:, 20:130, 30:120] = 0
    samples[:, 60:70, 60:75] = 9  # ground amid nodata
    samples[:, 3, 5] = 0
    seen = 0

    def model(tiles: Tensor) -> Tensor:
        nonlocal seen
        seen += len(tiles)
        return null_model(tiles)

    result = predict(write_scene(samples, nodata=0), model, tiling=Tiling(16, 0.25, batch=1))
    expected = np.where(samples[0] == 0, 255, samples[0] % 8)
    np.testing.assert_array_equal(read(result), expected)
    with rasterio.open(str(result.output)) as file:
        assert file.nodata == 255
    assert 0 < seen < 13 * 14 - 40


def test_scene_of_nothing_but_nodata_needs_no_model(write_scene: WriteScene) -> None:
    def model(tiles: Tensor) -> Tensor:
        raise AssertionError("called for nothing")

    result = predict(write_scene(np.zeros((2, 80, 70), "uint8"), nodata=0), model)
    assert (read(result) == 255).all()


def test_not_a_number_never_reaches_the_model(write_scene: WriteScene) -> None:
    samples = random_samples(2, 60, 60, "float32")
    samples[:, 10:20] = np.nan
    samples[1, 40, 40] = np.inf

    def model(tiles: Tensor) -> Tensor:
        assert tiles.isfinite().all()
        return null_model(tiles)

    made = read(predict(write_scene(samples), model))
    assert (made[10:20] == 255).all()
    assert (made != 255).sum() == 50 * 60


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, SOUTH_UP], ids=["north", "turn", "south"])
@pytest.mark.parametrize("driver", ["GTiff", "VRT", "COG"])
@pytest.mark.parametrize("output", ["COG", "GTiff"])
def test_grid_is_the_scene_s_bit_for_bit(
    write_scene: WriteScene, transform: rasterio.Affine, driver: str, output: str
) -> None:
    path = write_scene(random_samples(1, 71, 53), transform=transform, nodata=7)
    if driver != "GTiff":
        copy = path.with_suffix(f".{driver}")
        rasterio.shutil.copy(path, copy, driver=driver)
        path = copy
    result = predict(path, driver=output)
    with rasterio.open(path) as scene, rasterio.open(str(result.output)) as made:
        assert made.transform == scene.transform == transform
        assert made.crs == scene.crs
        assert made.shape == scene.shape
        np.testing.assert_array_equal(
            made.read(1), np.where(scene.read(1) == 7, 255, scene.read(1) % 8)
        )


def test_scene_without_crs_is_mapped_in_pixel_order(write_scene: WriteScene) -> None:
    samples = random_samples(1, 40, 50)
    path = write_scene(samples, crs=None, transform=None)
    with pytest.warns(RssegWarning, match="no coordinate reference system"):
        result = predict(path)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        np.testing.assert_array_equal(read(result), samples[0] % 8)


def test_map_is_a_valid_cog(write_scene: WriteScene) -> None:
    result = predict(write_scene(random_samples(1, 700, 1100)), tiling=Tiling(256, batch=2))
    valid, errors, warnings = cog_validate(str(result.output))
    assert valid
    assert not errors
    assert not warnings
    with rasterio.open(str(result.output)) as file:
        assert file.overviews(1) == [2, 4]
        half = file.read(1, out_shape=(350, 550))
    assert set(np.unique(half)) <= set(range(8))


def test_swaths_and_readers_change_nothing(
    write_scene: WriteScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = random_samples(2, 300, 1700)
    path = write_scene(samples, blockysize=16, blockxsize=32, nodata=4)
    one = read(predict(path, tiling=Tiling(64, batch=3, readers=1)))
    narrow = [Window(x, y, min(512, 1700 - x), min(128, 300 - y)) for x in range(0, 1700, 512)
              for y in range(0, 300, 128)]  # fmt: skip

    def in_swaths(*args: Any, **settings: Any) -> Plan:
        whole = plan_scene(*args, **settings)
        return Plan(whole.across, whole.down, tuple(narrow), 99, 1.0, 32)

    monkeypatch.setattr(pipeline, "plan_scene", in_swaths)
    tiling = Tiling(64, batch=3, readers=3)
    many = read(predict(path, tiling=tiling, map=path.parent / "swaths.tif"))
    np.testing.assert_array_equal(one, many)


def test_confidence_and_reject_come_in_the_same_pass(write_scene: WriteScene) -> None:
    def model(tiles: Tensor) -> Tensor:
        sure = tiles[:, :1].float() / 100
        return torch.cat([sure, 1 - sure], 1)

    samples = random_samples(1, 60, 70)
    path = write_scene(samples)
    shown = path.parent / "sure.tif"
    result = predict(
        path, model, classes=CLASSES[1:3], reject=0.7, confidence=shown, measure="margin"
    )
    sure = samples[0] / np.float32(100)
    highest = np.maximum(sure, 1 - sure)
    expected = np.where(highest < 0.7, 255, np.where(sure >= 0.5, 1, 2))
    firm = abs(highest - 0.7) > 1e-3
    np.testing.assert_array_equal(read(result)[firm], expected[firm])
    assert abs(read(shown) / 254 - (2 * highest - 1)).max() < 0.5 / 254 + 1e-3


# --- what goes wrong ------------------------------------------------------------------------------


def test_existing_output_is_refused_before_the_model_is_asked(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(1, 40, 40))
    (path.parent / "out.tif").write_text("mine")

    def model(tiles: Tensor) -> Tensor:
        raise AssertionError("too late")

    with pytest.raises(OutputExistsError, match="already exists"):
        predict(path, model)
    assert (path.parent / "out.tif").read_text() == "mine"
    assert_nothing_left(path.parent, "scene.tif", "out.tif")
    predict(path, overwrite=True)
    assert read(path.parent / "out.tif").shape == (40, 40)


def test_folder_that_cannot_be_written_is_found_before_the_model_is_asked(
    write_scene: WriteScene,
) -> None:
    path = write_scene(random_samples(1, 40, 40))

    def model(tiles: Tensor) -> Tensor:
        raise AssertionError("too late")

    (path.parent / "file").touch()
    with pytest.raises(RssegError, match="cannot be written"):
        predict(path, model, map=path.parent / "file" / "out.tif")


@pytest.mark.parametrize("failing", [0, 3])
def test_error_of_the_model_is_the_caller_s(write_scene: WriteScene, failing: int) -> None:
    calls = 0

    def model(tiles: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise ZeroDivisionError("in the model")
        return null_model(tiles)

    path = write_scene(random_samples(1, 200, 200))
    with pytest.raises(ZeroDivisionError, match="in the model"):
        predict(path, model)
    assert_nothing_left(path.parent, "scene.tif")


def test_truncated_scene_leaves_no_map(write_scene: WriteScene) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (1, 640, 640), "uint8")
    path = write_scene(samples)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableError, match="cannot be read") as caught:
        predict(path)
    assert caught.value.where == str(path)
    assert_nothing_left(path.parent, "scene.tif")


@pytest.mark.parametrize("method", ["_flush", "assemble"])
def test_full_disk_leaves_no_map(
    write_scene: WriteScene, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(*args: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    path = write_scene(random_samples(1, 700, 100))
    target = "rasterio.shutil.copy" if method == "assemble" else (
        "rsseg_cli.raster.part_writer.PartWriter._flush"
    )  # fmt: skip
    monkeypatch.setattr(target, full)
    with pytest.raises(RssegError, match="the disk is full"):
        predict(path)
    assert_nothing_left(path.parent, "scene.tif")


def test_interrupt_leaves_no_map_and_no_thread(write_scene: WriteScene) -> None:
    def model(tiles: Tensor) -> Tensor:
        raise KeyboardInterrupt

    path = write_scene(random_samples(1, 200, 200))
    with pytest.raises(KeyboardInterrupt):
        predict(path, model)
    assert_nothing_left(path.parent, "scene.tif")


def test_nan_from_the_model_is_refused(write_scene: WriteScene) -> None:
    path = write_scene(random_samples(1, 60, 60))
    with pytest.raises(RssegError, match="the model returns NaN"):
        predict(path, lambda tiles: null_model(tiles) * float("nan"))
    assert_nothing_left(path.parent, "scene.tif")


def test_out_of_memory_halves_the_batch_and_loses_nothing(write_scene: WriteScene) -> None:
    sizes = []

    def model(tiles: Tensor) -> Tensor:
        sizes.append(len(tiles))
        if len(tiles) > 2:
            raise torch.OutOfMemoryError("too much")
        return null_model(tiles)

    samples = random_samples(1, 90, 110)
    result = predict(write_scene(samples), model)
    np.testing.assert_array_equal(read(result), samples[0] % 8)
    assert sizes[:2] == [4, 2]
    assert set(sizes[1:]) == {2}


def test_tile_that_does_not_fit_says_so(write_scene: WriteScene) -> None:
    def model(tiles: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(RssegError, match="not even one tile"):
        predict(write_scene(random_samples(1, 90, 110)), model)


# --- resume ---------------------------------------------------------------------------------------


def stop_after(calls: int) -> Callable[[Tensor], Tensor]:
    """Return a null model that is interrupted after some batches."""
    left = calls

    def model(tiles: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return null_model(tiles)

    return model


def test_resume_continues_and_gives_the_same_bytes(
    write_scene: WriteScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsseg_cli.predict.plan.PART_PIXELS", 512 * 100)
    path = write_scene(random_samples(1, 1500, 90))
    whole = path.parent / "whole.tif"
    predict(path, map=whole)
    dependencies = {"model": "a", "input": "b"}
    with pytest.raises(KeyboardInterrupt):
        predict(path, stop_after(50), dependencies=dependencies)
    assert not (path.parent / "out.tif").exists()
    counted = 0

    def model(tiles: Tensor) -> Tensor:
        nonlocal counted
        counted += 1
        return null_model(tiles)

    predict(path, model, dependencies=dependencies, resume=True)
    assert 0 < counted < 40  # of 63 batches
    assert (path.parent / "out.tif").read_bytes() == whole.read_bytes()
    assert not list(path.parent.glob(".*"))


def test_resume_refuses_another_model(
    write_scene: WriteScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rsseg_cli.predict.plan.PART_PIXELS", 512 * 100)
    path = write_scene(random_samples(1, 1500, 90))
    with pytest.raises(KeyboardInterrupt):
        predict(path, stop_after(50), dependencies={"model": "a"})
    with pytest.raises(RssegError, match="cannot resume: model was a, now it is b"):
        predict(path, dependencies={"model": "b"}, resume=True)
    predict(
        path, dependencies={"model": "a"}, resume=True
    )  # refusing has not thrown the parts away


# --- plan -----------------------------------------------------------------------------------------


def test_memory_bound_cuts_swaths(write_scene: WriteScene) -> None:
    path = write_scene(np.zeros((1, 20, 60_000), "uint8"))
    with Scene.open(path) as scene:
        free = plan_scene(scene, Tiling(64, batch=1), classes=8)
        least = int(peak_rss_mb())
        bound = Tiling(64, batch=1, memory_mb=least + 170)
        tight = plan_scene(scene, bound, classes=8)
        with pytest.raises(RssegError, match="not even in narrow swaths") as caught:
            plan_scene(scene, Tiling(64, batch=1, memory_mb=least), classes=8)
    assert len(free.parts) == 1
    assert len(tight.parts) > 1
    assert {part.x % 512 for part in tight.parts} == {0}
    assert sum(part.width * part.height for part in tight.parts) == 60_000 * 20
    assert tight.memory_mb <= 170
    assert "--memory-mb" in caught.value.fix


def test_regions_join_what_is_left(write_scene: WriteScene) -> None:
    parts = (Window(0, 0, 9, 5), Window(0, 5, 9, 5), Window(0, 10, 9, 2), Window(9, 0, 4, 12))
    axis = SMALL.axis(13)
    plan = Plan(axis, axis, parts, 1, 1.0, 256)
    assert list(plan.regions(set())) == [Window(0, 0, 9, 12), Window(9, 0, 4, 12)]
    assert list(plan.regions({0})) == [Window(0, 5, 9, 7), Window(9, 0, 4, 12)]
    assert list(plan.regions({1, 3})) == [Window(0, 0, 9, 5), Window(0, 10, 9, 2)]
    assert list(plan.regions({0, 1, 2, 3})) == []
