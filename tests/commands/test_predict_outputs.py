"""Outputs of `predict` beside the class map, and the metadata of its files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate
from runs import ground, rsseg, seen
from scenes import write_raster

from rsseg_cli.raster.creation_options import check_creation_options
from rsseg_cli.training.checkpoint import load_model, save_model


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Return a scene like those of the training, alone in its folder."""
    return write_raster(tmp_path / "in" / "scene.tif", seen(ground(90, 110, seed=5)))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()


def read(path: Path, band: int = 1) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(band)


def test_all_products_come_in_one_pass(scene: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", out, "--probabilities", "--confidence",
        "margin", "--polygons", out, "--device", "cpu",
    )  # fmt: skip
    assert call.code == 0, call.err
    assert call.out.split() == [str(out / "scene.seg.tif")]
    maps = {"scene.seg.tif", "scene.prob.tif", "scene.conf.tif", "scene.gpkg"}
    beside = {"scene.seg.tif.aux.xml", "scene.seg.qml", "scene.seg.json"}
    found = {path.name for path in out.iterdir()}
    assert maps | beside <= found
    assert not [name for name in found if name.startswith(".")]
    with rasterio.open(out / "scene.prob.tif") as file:
        shares = file.read().astype(float) * np.array(file.scales)[:, None, None]
        assert file.descriptions == ("water", "forest", "town")
    np.testing.assert_allclose(shares.sum(0), 1, atol=3 / 254)
    ids = np.array([1, 2, 5])
    first, second = np.sort(shares, 0)[[-1, -2]]
    clear = first - second > 2 / 254
    np.testing.assert_array_equal(read(out / "scene.seg.tif")[clear], ids[shares.argmax(0)][clear])
    sure = read(out / "scene.conf.tif") / 254
    np.testing.assert_allclose(sure, first - second, atol=2 / 254)
    table = geopandas.read_file(out / "scene.gpkg")
    values, counts = np.unique(read(out / "scene.seg.tif"), return_counts=True)
    drawn = table.groupby("class_id").pixels.sum()
    assert drawn.to_dict() == dict(zip(values, counts, strict=True))
    weighted = (table.mean_conf * table.pixels).sum() / table.pixels.sum()
    assert weighted == pytest.approx(sure.mean(), abs=1e-6)


def test_files_say_how_they_were_made(scene: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    assert rsseg("predict", scene, "--model", fitted, "-o", out, "--device", "cpu").code == 0
    with rasterio.open(out) as file:
        tags = file.tags()
    expected = {
        "rsseg_model": str(fitted), "rsseg_method": "full", "rsseg_backbone": "vit_tiny",
        "rsseg_tile": "32", "rsseg_overlap": "0.25", "rsseg_input": str(scene),
        "rsseg_precision": "float32",
    }  # fmt: skip
    assert expected.items() <= tags.items()
    assert len(tags["rsseg_model_sha256"]) == 64
    item = json.loads(out.with_suffix(".json").read_text())
    assert item["properties"]["rsseg:model_sha256"] == tags["rsseg_model_sha256"]
    assert item["properties"]["processing:software"]["rsseg"]


def test_formats_and_creation_options(scene: Path, fitted: Path, tmp_path: Path) -> None:
    for form in ("COG", "GTiff"):
        out = tmp_path / f"{form}.tif"
        call = rsseg(
            "predict", scene, "--model", fitted, "-o", out, "--format", form, "--co",
            "compress=LZW", "--co", "BLOCKSIZE=128" if form == "COG" else "BLOCKXSIZE=256",
            "--device", "cpu",
        )  # fmt: skip
        assert call.code == 0, call.err
        with rasterio.open(out) as file:
            assert file.compression.value == "LZW"
            assert file.block_shapes[0][1] == (128 if form == "COG" else 256)
    assert cog_validate(str(tmp_path / "COG.tif"))[0]
    np.testing.assert_array_equal(read(tmp_path / "COG.tif"), read(tmp_path / "GTiff.tif"))


@pytest.mark.parametrize("driver", ["COG", "GTiff"])
@pytest.mark.parametrize(
    "options",
    [{"COMPRESS": "LERC"}, {"COMPRESS": "DEFLATE", "PREDICTOR": "2"}, {"NBITS": "8"}],
    ids=lambda options: " ".join(options.values()),
)
def test_lossless_creation_options_are_accepted(driver: str, options: dict[str, str]) -> None:
    check_creation_options(driver, options)


@pytest.mark.parametrize("slash", ["/", "//"])
def test_a_name_with_a_slash_is_a_folder(
    scene: Path, fitted: Path, tmp_path: Path, slash: str
) -> None:
    maps, polygons = tmp_path / "v1.0", tmp_path / "v1.0.gpkg"
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", f"{maps}{slash}", "--polygons",
        f"{polygons}{slash}", "--device", "cpu",
    )  # fmt: skip
    assert call.code == 0, call.err
    assert call.out.split() == [str(maps / "scene.seg.tif")]
    assert (maps / "scene.seg.tif").is_file()
    assert (polygons / "scene.gpkg").is_file()


NAMES = {"water": "Gewässer ü", "forest": "森林"}


@pytest.fixture
def renamed(fitted: Path, tmp_path: Path) -> Path:
    """Return a model file whose classes have names beyond ASCII."""
    tensors, metadata = load_model(fitted / "model.safetensors")
    for cls in metadata["classes"]:
        cls["name"] = NAMES.get(cls["name"], cls["name"])
    path = tmp_path / "renamed.safetensors"
    save_model(path, tensors, metadata)
    return path


def test_files_are_utf8_in_every_locale(scene: Path, renamed: Path, tmp_path: Path) -> None:
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*words: object) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "rsseg_cli", *map(str, words), "--json"],
            env=ascii_only, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    out = tmp_path / "map.tif"
    run("predict", scene, "--model", renamed, "-o", out, "--probabilities", "--device", "cpu")
    sidecar, style = Path(f"{out}.aux.xml"), out.with_suffix(".qml")
    names = [*NAMES.values(), "town"]
    rows = ElementTree.parse(sidecar).iterfind(".//Row")
    assert [row.findtext("F[2]") for row in rows] == names
    entries = ElementTree.parse(style).iter("paletteEntry")
    assert [entry.get("label") for entry in entries] == names
    with rasterio.open(tmp_path / "map.prob.tif") as file:
        assert list(file.descriptions) == names
    report = run("evaluate", out, out)
    assert [row["name"] for row in report["classes"]] == names


def test_reject_leaves_unsure_pixels_out(scene: Path, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", out, "--reject", "0.9", "--confidence", "max",
        "--device", "cpu",
    )  # fmt: skip
    assert call.code == 0, call.err
    sure = read(tmp_path / "map.conf.tif") / 254
    firm = abs(sure - 0.9) > 1 / 254
    np.testing.assert_array_equal((read(out) == 255)[firm], (sure < 0.9)[firm])


@pytest.mark.parametrize("kind", ["flips", "d4"])
def test_turned_scene_gives_the_turned_map(
    scene: Path, fitted: Path, tmp_path: Path, kind: str
) -> None:
    samples = seen(ground(96, 96, seed=6))
    first = write_raster(tmp_path / "in" / "a.tif", samples)
    turned = samples[:, ::-1] if kind == "flips" else samples.transpose(0, 2, 1)
    second = write_raster(tmp_path / "in" / "b.tif", np.ascontiguousarray(turned))
    args = ["--model", fitted, "-o", tmp_path, "--device", "cpu", "--probabilities"]
    assert rsseg("predict", first, second, "--tta", kind, *args).code == 0
    one, other = (read(tmp_path / f"{name}.prob.tif").astype(int) for name in "ab")
    back = other[::-1] if kind == "flips" else other.T
    assert abs(one - back).max() <= 1
    assert rsseg("predict", first, "--overwrite", *args).code == 0
    assert abs(read(tmp_path / "a.prob.tif").astype(int) - one).max() > 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--co", "LZW"], 1, "is not KEY=VALUE"),
        (["--format", "PNG"], 2, "is not one of 'COG'"),
        (["--confidence", "high"], 2, "is not one of 'max'"),
        (["--polygons", "x.shp"], 1, r"end.* with .gpkg"),
        (["--bands", "1,b"], 1, "is not a list of numbers"),
        (["--reject", "1.5"], 2, "--reject"),
        (["--overlap", "0.6"], 2, "--overlap"),
        (["--bbox", "1,2,3"], 1, "is not a list of four numbers"),
        (["--bbox", "0,0,1,1", "--aoi", "x.gpkg"], 1, "exclude each other"),
        (["--bbox-crs", "EPSG:4326"], 1, "--bbox-crs does nothing without --bbox"),
        (["--block", "0"], 1, "--block does nothing without --explain"),
        (["--sieve", "9"], 1, "--sieve does nothing without --polygons"),
        (["--simplify", "9"], 1, "--simplify does nothing without --polygons"),
        (["--co", "COMPRESS=NONSENSE"], 1, "does not accept these"),
        (["--co", "COMPRESS=JPEG"], 1, r"does not accept these .*JPEG.*palette"),
        (["--co", "COMPRESS=WEBP"], 1, r"does not accept these .*bands"),
        (["--co", "TARGET_SRS=EPSG:3857"], 1, "does not accept these"),
        (["--co", "COMPRESS=LERC", "--co", "MAX_Z_ERROR=1"], 1, "change class ids"),
        (["--format", "GTiff", "--co", "NBITS=4"], 1, "change class ids"),
        (
            ["--format", "GTiff", "--co", "COMPRESS=LERC", "--co", "MAX_Z_ERROR=100"],
            1,
            "change class ids",
        ),
    ],
)
def test_wrong_wishes_are_refused(
    scene: Path, fitted: Path, tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", tmp_path / "out" / "map.tif", *args,
        "--device", "cpu",
    )  # fmt: skip
    assert call.code == code
    assert re.search(message, call.err), call.err
    assert not list(tmp_path.rglob("*.seg.tif"))
    assert not (tmp_path / "out" / "map.tif").exists()


def test_products_in_the_way_are_refused(scene: Path, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "map.conf.tif").write_text("mine")
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", tmp_path / "map.tif", "--confidence", "max",
        "--device", "cpu",
    )  # fmt: skip
    assert call.code == 1
    assert "map.conf.tif" in call.err
    assert not (tmp_path / "map.tif").exists()
    assert (tmp_path / "map.conf.tif").read_text() == "mine"


def test_resuming_replaces_nothing_of_others(scene: Path, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.gpkg").write_text("mine")
    call = rsseg(
        "predict", scene, "--model", fitted, "-o", tmp_path / "map.tif", "--resume",
        "--polygons", tmp_path / "mine.gpkg", "--device", "cpu",
    )  # fmt: skip
    assert call.code == 1
    assert "mine.gpkg" in call.err
    assert (tmp_path / "mine.gpkg").read_text() == "mine"
