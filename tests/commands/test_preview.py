"""A preview reads a scene as the engine does, and warns of what looks wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import SMALL, rsseg, write_city
from scenes import WriteScene, random_samples

from rsseg_cli.commands.preview.preview import subsample
from rsseg_cli.raster.scene import Scene


def test_numbers_are_those_of_the_scene(tmp_path: Path, write_scene: WriteScene) -> None:
    samples = random_samples(5, 70, 90, "uint16")
    samples[:, :7] = 0
    scene = write_scene(samples, "scene.tif", nodata=0)
    picture = tmp_path / "look" / "p.png"
    found = rsseg("preview", scene, "-o", picture, "--tile", "32", "--json").document
    assert found["missing"] == pytest.approx(0.1)
    there = samples[:, 7:].reshape(5, -1)
    assert [one["mean"] for one in found["bands"]] == pytest.approx(there.mean(1).tolist())
    assert [one["std"] for one in found["bands"]] == pytest.approx(there.std(1).tolist())
    assert [one["high"] for one in found["bands"]] == there.max(1).tolist()
    assert found["tiles"] == 3 * 4  # 32 px, a quarter of overlap
    assert found["remarks"] == []
    with Image.open(picture) as image:
        assert image.width > 900
    again = rsseg("preview", scene, "-o", picture)
    assert again.code == 1
    assert "already exists" in again.err
    assert rsseg("preview", scene, "-o", picture, "--overwrite").out.strip() == str(picture)


def test_a_large_scene_is_sampled_evenly(write_scene: WriteScene) -> None:
    ramp = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint16)[None]
    with Scene.open(write_scene(ramp, "ramp.tif")) as scene:
        samples, valid, step = subsample(scene, 100)
    assert (samples.shape, step) == ((1, 67, 100), 3)
    assert valid.all()
    np.testing.assert_array_equal(samples[0], ramp[0, 1::3, 1::3])


def test_a_scene_unlike_the_training_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_scene: WriteScene
) -> None:
    monkeypatch.chdir(tmp_path)
    city = write_city(tmp_path / "city", scenes=1)
    done = rsseg(
        "fit", "--method", "frozen", "--src", city, *SMALL, "--steps", "1", "--no-pretrained",
        "--output", "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    own = rsseg("preview", city / "images" / "a.tif", "--model", "run", "--json").document
    assert own["remarks"] == []
    assert [one["name"] for one in own["bands"]] == ["blue", "green", "nir"]
    assert own["tile"] == 32
    bright = random_samples(3, 64, 64, "uint16") + np.uint16(20_000)
    bright[0] = 20_000
    said = rsseg("preview", write_scene(bright, "bright.tif"), "--model", "run").err
    assert "band blue is constant" in said
    assert "band green has mean 2.005e+04, in training it was" in said
    assert "another scale, sensor or order?" in said
    four = rsseg("preview", write_scene(random_samples(4, 64, 64, "uint16")), "--model", "run")
    assert four.code == 1
    assert "has 4 bands, the model reads 3 (blue green nir)" in four.err


def test_a_scene_without_pixels(tmp_path: Path, write_scene: WriteScene) -> None:
    empty = write_scene(np.zeros((1, 20, 20), np.uint8), "empty.tif", nodata=0)
    found = rsseg("preview", empty, "-o", tmp_path / "p.png", "--json").document
    assert found["missing"] == 1
    assert "nodata" in found["remarks"][0]
    assert rsseg("preview", tmp_path / "none.tif").code == 1


def test_a_picture_that_cannot_be_written(tmp_path: Path, write_scene: WriteScene) -> None:
    path = write_scene(np.ones((3, 20, 20), np.uint8))
    (tmp_path / "file").write_text("")
    call = rsseg("preview", path, "-o", tmp_path / "file" / "a.png")
    assert call.code == 1
    assert "the picture cannot be written" in call.err
    before = path.read_bytes()
    call = rsseg("preview", path, "-o", path, "--overwrite")
    assert call.code == 1
    assert "would replace the scene" in call.err
    assert path.read_bytes() == before
