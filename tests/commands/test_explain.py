"""Maps of a method's own work, and the quicklooks beside maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from runs import SMALL, describe, ground, rsseg, seen, write_city
from scenes import windows, write_raster

from rsseg_cli.commands.model import LoadedModel, open_model
from rsseg_cli.commands.predict.dry_run import DryRun
from rsseg_cli.raster.class_names import read_classes

LABELS = ground(70, 83, seed=5)
EXPERTS = ["expert 1", "expert 2", "expert 3"]


TINY = [
    "--steps", "2", "--no-pretrained", "--set", "method.experts=3", "--set", "method.rank=4",
    "--set", "method.tokens=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled scenes in blue, green and red."""
    root = write_city(tmp_path_factory.mktemp("data") / "colored", scenes=1)
    describe(root, bands={"blue": 490.0, "green": 560.0, "red": 665.0})
    return root


@pytest.fixture(scope="module")
def routed(colored: Path) -> Path:
    """A run whose method sends tokens to three experts, and looks at a depth of its own."""
    run = colored.parent / "routed"
    call = rsseg(
        "fit", "-m", "spectralmoe", "--src", colored, "--output", run, *SMALL, *TINY,
        "--set", "method.depth=random",
    )  # fmt: skip
    assert call.code == 0, call.err
    return run


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    return write_raster(tmp_path / "in" / "scene.tif", seen(LABELS, seed=5))


def read(path: str | Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as file:
        found: NDArray[np.uint8] = file.read(1)
    return found


def by_the_nearest_tile(
    fitted: LoadedModel, samples: NDArray[np.uint16], name: str, block: int
) -> NDArray[np.int64]:
    """Each pixel's expert in the tile whose centre is nearest; one tile at a time."""
    _, height, width = samples.shape
    tile, patch = 32, fitted.model.backbone.patch
    best = np.full((height, width), np.inf)
    found = np.zeros((height, width), np.int64)
    ys, xs = np.mgrid[:height, :width] + 0.5
    for window in windows(width, height, tile, tile // 4):
        rows = reflect(np.arange(window.y, window.bottom), height)
        columns = reflect(np.arange(window.x, window.right), width)
        raw = torch.from_numpy(samples[:, rows][:, :, columns].astype(np.float32))[None]
        with torch.inference_mode():
            image = fitted.model.standardise(raw)
            method = fitted.model.method
            _, state = fitted.model.backbone.walk(image, method, stop=block)
            shares = method.explain(name, state)
        chosen = shares[0].argmax(0).numpy().repeat(patch, 0).repeat(patch, 1)
        distance = np.maximum(
            np.abs(ys - (window.y + tile / 2)), np.abs(xs - (window.x + tile / 2))
        )
        for y in range(max(0, window.y), min(height, window.bottom)):
            for x in range(max(0, window.x), min(width, window.right)):
                if distance[y, x] < best[y, x]:
                    best[y, x] = distance[y, x]
                    found[y, x] = chosen[y - window.y, x - window.x]
    return found


def reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)


@pytest.mark.parametrize(("name", "block"), [("routing", 1), ("routing-depth", None)])
def test_the_map_shows_the_expert_of_the_nearest_tile(
    scene: Path, routed: Path, name: str, block: int | None
) -> None:
    chosen = [] if block is None else ["--block", str(block)]
    call = rsseg("predict", scene, "--model", routed, "--explain", name, *chosen, "--json")
    assert call.code == 0, call.err
    (one,) = call.document["scenes"]
    assert {"scene.seg.png", f"scene.{name}.tif", f"scene.{name}.png"} == set(one["more"])
    with rasterio.open(scene) as before, rasterio.open(f"scene.{name}.tif") as after:
        assert (after.transform, after.crs) == (before.transform, before.crs)
        assert (after.dtypes, after.nodata) == (("uint8",), 255)
        samples = before.read()
        fitted = open_model(routed)
        depth = fitted.model.backbone.depth
        at = depth - 1 if block is None else block
        assert after.tags()["rsseg_explains"] == name
        assert after.tags()["rsseg_block"] == str(at)
    made = read(f"scene.{name}.tif")
    assert [each.name for each in read_classes(f"scene.{name}.tif")] == EXPERTS
    assert block is None or len(np.unique(made)) > 1
    np.testing.assert_array_equal(made, 1 + by_the_nearest_tile(fitted, samples, name, at))
    again = rsseg("predict", scene, "--model", routed, "--explain", name, *chosen, "--overwrite")
    assert again.code == 0
    np.testing.assert_array_equal(made, read(f"scene.{name}.tif"))


def test_one_call_makes_several_and_they_are_no_scenes(scene: Path, routed: Path) -> None:
    both = ("--explain", "routing", "--explain", "routing-depth")
    assert rsseg("predict", scene, "--model", routed, "-o", "in", *both).code == 0
    made = {path.name for path in Path("in").glob("scene.*.[tp]*")}
    kinds = ("seg", "routing", "routing-depth")
    assert made >= {f"scene.{kind}.{end}" for kind in kinds for end in ("tif", "png")}
    call = rsseg("predict", "in", "--model", routed, "-o", "out", "--json", "--no-quicklook")
    assert [one["input"] for one in call.document["scenes"]] == ["in/scene.tif"]
    assert not list(Path("out").glob("*.png"))
    resumed = rsseg("predict", "in", "--model", routed, "-o", "in", *both, "--resume", "--json")
    assert [one["status"] for one in resumed.document["scenes"]] == ["exists"]


def test_a_dry_run_counts_them(scene: Path, routed: Path) -> None:
    def said(*names: str) -> dict[str, Any]:
        asked = [word for name in names for word in ("--explain", name)]
        call = rsseg("predict", scene, "--model", routed, "--dry-run", "--json", *asked)
        assert call.code == 0, call.err
        (found,) = call.document["scenes"]
        return dict(found)

    none, one, two = said(), said("routing"), said("routing", "routing-depth")
    assert [none["more"], one["more"]] == [[], ["scene.routing.tif"]]
    assert two["more"] == ["scene.routing.tif", "scene.routing-depth.tif"]
    for count, found in enumerate((one, two), start=2):
        assert found["disk_mb"] == pytest.approx(count * none["disk_mb"])
        assert found["mpx_per_s"] == pytest.approx(LABELS.size / 1e6 / found["seconds"])
    call = rsseg("predict", scene, "--model", routed, "--dry-run", "--explain", "routing")
    assert "scene.routing.tif" in call.out
    assert not list(Path().glob("scene*"))


def test_seconds_and_memory_of_passes_are_joined() -> None:
    made = DryRun("a", "a.seg.tif", 10, 10, 5, 0.0, 1, 4, 1, 100.0, 50.0, 2.0, 9.0, 4.0, 2.0)
    both = made.then(replace(made, output="a.why.tif", ram_mb=90.0, vram_mb=70.0, seconds=12.0))
    assert (both.ram_mb, both.vram_mb, both.disk_mb, both.seconds) == (100.0, 70.0, 4.0, 16.0)
    assert both.mpx_per_s == 0.5
    assert (both.output, both.more) == ("a.seg.tif", ["a.why.tif"])


def test_what_cannot_be_explained(scene: Path, routed: Path, fitted: Path) -> None:
    call = rsseg("predict", scene, "--model", routed, "--explain", "ruoting")
    assert call.code == 1
    assert "spectralmoe offers no map named ruoting" in call.err
    assert "--explain routing (offered: routing, routing-depth)" in call.err
    call = rsseg("predict", scene, "--model", routed, "--explain", "routing", "--block", "99")
    assert call.code == 1
    assert "there is no block 99" in call.err
    assert "0 to " in call.err
    call = rsseg("predict", scene, "--model", fitted, "--explain", "routing")
    assert call.code == 1
    assert "full, as configured, offers no maps" in call.err
    assert not list(scene.parent.parent.glob("*.tif"))
    Path("scene.routing.tif").write_text("mine")
    call = rsseg("predict", scene, "--model", routed, "--explain", "routing")
    assert call.code == 1
    assert "already exists" in call.err
    assert not Path("scene.seg.tif").exists()


def test_without_depth_there_is_one_routing(scene: Path, city: Path, tmp_path: Path) -> None:
    call = rsseg(
        "fit", "-m", "spectralmoe", "--src", city, "--output", tmp_path / "run", *SMALL, *TINY,
        "--set", "method.depth=off",
    )  # fmt: skip
    assert call.code == 0, call.err
    asked = ("predict", scene, "--model", tmp_path / "run", "--explain")
    assert rsseg(*asked, "routing").code == 0
    assert set(np.unique(read("scene.routing.tif"))) <= {1, 2, 3}
    call = rsseg(*asked, "routing-depth", "--overwrite")
    assert (call.code, "(offered: routing)" in call.err) == (1, True)


def test_quicklook_shows_scene_and_map(scene: Path, fitted: Path) -> None:
    assert rsseg("predict", scene, "--model", fitted, "-o", "map.tif").code == 0
    assert not Path("map.png").exists()  # a scene may be called so
    with Image.open("map.seg.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for one in read_classes("map.tif"):
        assert (pixels == one.color).all(1).any() == (read("map.tif") == one.id).any()
