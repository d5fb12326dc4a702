"""`rsseg predict`: scenes in, maps out, and nothing half-written when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from numpy.typing import NDArray
from runs import CLASSES, ground, rsseg, seen, write_city
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scenes import NORTH_UP, ROTATED, random_samples, write_raster

from rsseg_cli.raster.class_names import read_classes

LABELS = ground(70, 83, seed=5)


def scene(path: Path, labels: NDArray[np.uint8] = LABELS, **profile: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_raster(path, seen(labels, seed=5), **profile)


def read(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as file:
        found: NDArray[np.uint8] = file.read(1)
    return found


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED], ids=["north", "rotated"])
def test_a_map_lies_on_the_grid_of_its_scene(
    here: Path, fitted: Path, transform: rasterio.Affine
) -> None:
    scene(here / "in" / "a.tif", transform=transform)
    call = rsseg("predict", "in/a.tif", "--model", fitted)
    assert (call.code, call.out) == (0, "a.seg.tif\n")
    assert ", 10 per pixel" in call.err
    with rasterio.open("in/a.tif") as before, rasterio.open("a.seg.tif") as after:
        assert (after.width, after.height) == (before.width, before.height)
        assert after.transform == before.transform
        assert after.crs == before.crs
        assert (after.count, after.dtypes[0], after.nodata) == (1, "uint8", 255)
        assert after.colormap(1)[5][:3] == (200, 99, 7)
    named = read_classes(here / "a.seg.tif")
    assert {one.id: one.name for one in named} == CLASSES
    assert (read(here / "a.seg.tif") == LABELS).mean() > 0.7


def test_the_answer_for_machines(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    call = rsseg("predict", "a.tif", "--model", fitted, "-o", "maps/out.tif", "--json")
    assert (call.code, call.err) == (0, "")
    [one] = call.document["scenes"]
    assert {
        "input", "output", "width", "height", "seconds", "mpx_per_s", "peak_rss_mb", "wait",
        "status", "error",
    } <= set(one)  # fmt: skip
    assert set(one["wait"]) >= {"disk", "device", "writer"}
    assert (one["input"], one["output"]) == ("a.tif", "maps/out.tif")
    assert (one["width"], one["height"], one["status"], one["error"]) == (83, 70, "done", None)
    assert Path("maps/out.tif").is_file()


def test_the_newest_finished_run_is_taken(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    call = rsseg("predict", "a.tif")
    assert call.code == 1
    assert "there is no finished run" in call.err
    for age, name in enumerate(["newest", "older", "unfinished"]):
        run = Path(shutil.copytree(fitted, here / "runs" / name))
        moment = time.time() - 100 * age
        os.utime(run / "model.safetensors", (moment, moment))
    os.utime(here / "runs" / "unfinished" / "model.safetensors")
    (here / "runs" / "unfinished" / "resume.pt").write_bytes(b"")
    call = rsseg("predict", "a.tif")
    assert call.code == 0
    assert f"model    {Path('runs') / 'newest'} (mIoU" in call.err


def test_a_broken_scene_among_others(here: Path, fitted: Path) -> None:
    for name in "abc":
        scene(here / "in" / f"{name}.tif")
    (here / "in" / "b.tif").write_bytes(b"no raster")
    call = rsseg("predict", "in", "--model", fitted, "-o", "out")
    assert call.code == 3
    assert call.out.split() == ["out/a.seg.tif", "out/c.seg.tif"]
    assert "1 of 3 scenes failed" in call.err
    assert "in/b.tif" in call.err
    assert not any("b.seg" in name for name in files(here / "out"))
    again = rsseg("predict", "in", "--model", fitted, "-o", "out", "--json", "--overwrite")
    assert again.code == 3
    states = [(one["status"], bool(one["error"])) for one in again.document["scenes"]]
    assert states == [("done", False), ("failed", True), ("done", False)]


def test_folders_patterns_and_lists(here: Path, fitted: Path) -> None:
    for name in ("a", "b", "other"):
        scene(here / "in" / f"{name}.tif")
    (here / "in" / "notes.txt").write_text("no scene")
    options = ["--model", fitted, "-q", "--overwrite"]
    assert rsseg("predict", "in", *options, "-o", "in").code == 0
    # Maps that lie among the scenes are not scenes.
    folder = rsseg("predict", "in", *options, "-o", "out")
    assert len(folder.out.split()) == 3
    pattern = rsseg("predict", "in/?.tif", *options, "-o", "out")
    assert pattern.out.split() == ["out/a.seg.tif", "out/b.seg.tif"]
    # A file that is named is meant, whatever is listed beside it.
    scene(here / "mine" / "x.seg.tif")
    named = rsseg("predict", "mine/x.seg.tif", "in/?.tif", *options, "-o", "out")
    assert named.out.split() == ["out/x.seg.seg.tif", "out/a.seg.tif", "out/b.seg.tif"]
    listed = rsseg("predict", "-", *options, "-o", "out", stdin="in/b.tif\n\nin/other.tif\n")
    assert listed.out.split() == ["out/b.seg.tif", "out/other.seg.tif"]
    for nothing in (["none/*.tif"], ["-"]):
        call = rsseg("predict", *nothing, *options)
        assert call.code == 1
        assert "there is no scene" in call.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.tif", "-o", "a.tif"],
        ["a.tif", "-o", "../{here}/a.tif", "--dry-run"],
        ["a.tif", "a.conf.tif", "-o", ".", "--confidence", "max"],
        ["a.tif", "b.seg.tif", "b.tif"],
    ],
)
def test_no_map_takes_the_place_of_a_scene(here: Path, fitted: Path, arguments: list[str]) -> None:
    for name in ("a.tif", "b.tif", "a.conf.tif", "b.seg.tif"):
        scene(here / name)
    before = {path: path.read_bytes() for path in here.iterdir()}
    named = [text.format(here=here.name) for text in arguments]
    for allowed in ("--overwrite", "--resume"):
        call = rsseg("predict", *named, "--model", fitted, allowed)
        assert call.code == 1
        assert "an output would replace an input" in call.err
        assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["v.vrt", "-o", "a.tif"],
        ["nested.vrt", "-o", "a.tif"],
        ["v.vrt", "-o", "link.tif"],
        ["v.vrt", "-o", "a.tif.ovr"],
        ["v.vrt", "-o", "a.tif.msk"],
        ["a.tif", "-o", "a.tif.aux.xml"],
        ["a.tif", "-o", "model.safetensors"],
        ["a.tif", "-o", "area.tif", "--aoi", "area.json"],
    ],
)
def test_no_output_replaces_an_input(here: Path, fitted: Path, arguments: list[str]) -> None:
    scene(here / "a.tif")
    rasterio.shutil.copy("a.tif", "v.vrt", driver="VRT")
    rasterio.shutil.copy("v.vrt", "nested.vrt", driver="VRT")
    (here / "link.tif").symlink_to("a.tif")
    for name in ("a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "area.json"):
        (here / name).write_text("mine")
    shutil.copy(fitted / "model.safetensors", here)
    before = {path: path.read_bytes() for path in here.iterdir()}
    call = rsseg("predict", *arguments, "--model", "model.safetensors", "--overwrite")
    assert call.code == 1
    assert "an output would replace an input" in call.err
    assert {path: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("name", ["a.seg.qml", "a.seg.json", "a.seg.png", "a.seg.tif.aux.xml"])
def test_sidecars_are_outputs(here: Path, fitted: Path, name: str) -> None:
    scene(here / "a.tif")
    (here / name).write_text("mine")
    for options in ([], ["--resume"]):
        call = rsseg("predict", "a.tif", "--model", fitted, *options)
        assert call.code == 1
        assert f"in: {name}" in call.err
        assert files(here) == {"a.tif", name}
        assert (here / name).read_text() == "mine"


def test_own_sidecars_do_not_stop_a_resumed_run(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    assert rsseg("predict", "a.tif", "--model", fitted).code == 0
    again = rsseg("predict", "a.tif", "--model", fitted, "--resume")
    assert again.code == 0, again.err


def test_texts_of_another_file_are_not_replaced(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    for name in ("city.json", "city.qml"):
        (here / name).write_text("mine")
        call = rsseg("predict", "a.tif", "--model", fitted, "-o", "city.tif")
        assert call.code == 1
        assert f"in: {name}" in call.err
        assert files(here) == {"a.tif", name}
        assert (here / name).read_text() == "mine"
        (here / name).unlink()


def test_two_scenes_of_one_name_are_refused(here: Path, fitted: Path) -> None:
    scene(here / "x" / "a.tif")
    scene(here / "y" / "a.tif")
    call = rsseg("predict", "x/a.tif", "y/a.tif", "--model", fitted, "-o", "out")
    assert call.code == 1
    assert "a.seg.tif" in call.err
    assert not (here / "out").exists()


def test_a_map_is_not_replaced_unasked(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    (here / "a.seg.tif").write_text("mine")
    call = rsseg("predict", "a.tif", "--model", fitted)
    assert call.code == 1
    assert "already exists" in call.err
    assert "--overwrite" in call.err
    assert (here / "a.seg.tif").read_text() == "mine"
    assert rsseg("predict", "a.tif", "--model", fitted, "--overwrite").code == 0
    assert (read(here / "a.seg.tif") == LABELS).mean() > 0.7


def test_other_bands_than_the_model_wants(here: Path, fitted: Path) -> None:
    write_raster(here / "four.tif", random_samples(4, 64, 64, "uint16"))
    with rasterio.open("four.tif", "r+") as file:
        file.descriptions = ("nir", "red", "green", "blue")
    call = rsseg("predict", "four.tif", "--model", fitted)
    assert call.code == 1
    assert call.err.startswith(f"model    {fitted}")
    error = call.err[call.err.index("error:") :].splitlines()
    assert error == [
        "error: four.tif has 4 bands (nir red green blue), the model needs 3 (blue green nir)",
        f"   in: four.tif, model {fitted}",
        "  try: a 3-band scene, or --bands if the order is known, or a model fitted on these bands",
    ]
    assert files(here) == {"four.tif"}


def test_bands_in_another_order(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    samples = seen(LABELS, seed=5)
    write_raster(here / "b.tif", np.stack([samples[2], samples[0] * 0, samples[1], samples[0]]))
    assert rsseg("predict", "a.tif", "--model", fitted).code == 0
    assert rsseg("predict", "b.tif", "--model", fitted, "--bands", "4,3,1").code == 0
    assert np.array_equal(read(here / "a.seg.tif"), read(here / "b.seg.tif"))


@pytest.mark.parametrize("bands", ["1,2", "1,2,9", "0,1,2", "red,green,blue", "", "1,2,3,1"])
def test_bands_that_cannot_be(here: Path, fitted: Path, bands: str) -> None:
    scene(here / "a.tif")
    call = rsseg("predict", "a.tif", "--model", fitted, "--bands", bands)
    assert call.code == 1
    assert "error: " in call.err
    assert files(here) == {"a.tif"}


@pytest.mark.parametrize("tile", ["50", "8", "96"])
def test_any_tile_is_rounded_to_whole_patches(here: Path, fitted: Path, tile: str) -> None:
    scene(here / "a.tif")
    call = rsseg("predict", "a.tif", "--model", fitted, "--tile", tile)
    assert call.code == 0, call.err
    assert (read(here / "a.seg.tif") == LABELS).mean() > 0.5


def test_a_scene_that_breaks_off_leaves_nothing(here: Path, fitted: Path) -> None:
    path = scene(here / "in" / "a.tif", ground(400, 400))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    call = rsseg("predict", "in/a.tif", "--model", fitted, "-o", "out")
    assert call.code == 1
    assert "a.tif" in call.err
    assert not (here / "out").exists() or not files(here / "out")


@pytest.mark.parametrize("height", [1, 7, 31, 97])
def test_small_and_prime_sizes(here: Path, fitted: Path, height: int) -> None:
    scene(here / "a.tif", ground(height, 13), tiled=None, blockxsize=None, blockysize=None)
    call = rsseg("predict", "a.tif", "--model", fitted)
    assert call.code == 0, call.err
    assert read(here / "a.seg.tif").shape == (height, 13)
    assert set(np.unique(read(here / "a.seg.tif"))) <= set(CLASSES)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_scene_without_crs_works_and_warns(here: Path, fitted: Path) -> None:
    scene(here / "a.tif", crs=None, transform=None)
    call = rsseg("predict", "a.tif", "--model", fitted)
    assert call.code == 0
    assert call.err.count("no coordinate reference system") == 1
    assert "no CRS" in call.err


def test_missing_pixels_stay_missing(here: Path, fitted: Path) -> None:
    samples = seen(LABELS, "float32", seed=5)
    samples[:, :20, :30] = np.nan
    samples[1, 40:44, 40:44] = np.inf  # one band alone: the pixel has its other bands
    write_raster(here / "a.tif", samples)
    assert rsseg("predict", "a.tif", "--model", fitted).code == 0
    found = read(here / "a.seg.tif")
    assert (found[:20, :30] == 255).all()
    assert (found == 255).sum() == 600
    void = np.zeros((3, 64, 64), np.uint16)
    write_raster(here / "void.tif", void, nodata=0)
    assert rsseg("predict", "void.tif", "--model", fitted).code == 0
    assert (read(here / "void.seg.tif") == 255).all()


def test_a_nodata_value_may_be_given(here: Path, fitted: Path) -> None:
    samples = seen(LABELS, seed=5)
    samples[:, :20, :30] = 7
    write_raster(here / "a.tif", samples)
    assert rsseg("predict", "a.tif", "--model", fitted, "--nodata", "7").code == 0
    assert (read(here / "a.seg.tif") == 255).sum() == 600


def test_models_that_cannot_be_opened(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    run = Path(shutil.copytree(fitted, here / "run"))
    tensors = load_file(run / "model.safetensors")

    def said(model: str) -> str:
        call = rsseg("predict", "a.tif", "--model", model)
        assert call.code == 1
        assert not (here / "a.seg.tif").exists()
        return call.err

    assert "none does not exist" in said("none")
    newer = {"rsseg": json.dumps({"format": 99})}
    save_file(tensors, run / "newer.safetensors", metadata=newer)
    assert "format 99" in said("run/newer.safetensors")
    save_file(tensors, run / "foreign.safetensors")
    assert "was not written by rsseg" in said("run/foreign.safetensors")
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is not a model file" in said("run")
    assert "is not a model file" in said("a.tif")


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the raw metadata of a model file."""
    with safe_open(path, framework="pt") as stream:
        return load_file(path), stream.metadata()


def refused_model(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Return the first line of the error of `predict` with a model file that is refused."""
    save_file(tensors, folder / "changed.safetensors", metadata=metadata)
    call = rsseg("predict", scene(folder / "a.tif"), "--model", folder / "changed.safetensors")
    assert (call.code, call.out) == (1, "")
    assert not (folder / "a.seg.tif").exists()
    what, where, _ = call.err.splitlines()
    assert where == f"   in: {folder / 'changed.safetensors'}"
    return what


def test_a_model_is_complete_or_refused(here: Path, fitted: Path) -> None:
    tensors, metadata = contents(fitted / "model.safetensors")
    backbone = [name for name in tensors if name.startswith("backbone.")]
    assert len(backbone) > 3
    cut = {name: tensor for name, tensor in tensors.items() if name not in backbone}
    what = refused_model(here, cut, metadata)
    assert f"{len(backbone)} missing (backbone." in what
    assert what.endswith(", ...)")
    assert what.count("backbone.") == 3

    cut = {name: tensor for name, tensor in tensors.items() if name != backbone[-1]}
    assert refused_model(here, cut, metadata).endswith(f": 1 missing ({backbone[-1]})")

    foreign = tensors | {"zz": torch.zeros(1)}
    assert refused_model(here, foreign, metadata).endswith(": 1 unexpected (zz)")

    bent = tensors | {backbone[0]: torch.zeros(1, 2, 3)}
    assert refused_model(here, bent, metadata).endswith(f": 1 of another shape ({backbone[0]})")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": 255}, "not an id of 0 to 254"),
        ({"id": 300}, "not an id of 0 to 254"),
        ({"id": -1}, "not an id of 0 to 254"),
        ({"id": 1.5}, "not an id of 0 to 254"),
        ({"id": True}, "not an id of 0 to 254"),
        ({"id": None}, "class ids are repeated: "),
        ({"name": 3}, "a name"),
        ({"color": [1, 2]}, "a color of three bytes"),
        ({"color": [1, 2, 256]}, "a color of three bytes"),
        ({"color": ["1", "2", "3"]}, "a color of three bytes"),
    ],
)
def test_classes_of_a_model_are_valid(
    here: Path, fitted: Path, change: dict[str, Any], problem: str
) -> None:
    tensors, metadata = contents(fitted / "model.safetensors")
    about = json.loads(metadata["rsseg"])
    if change == {"id": None}:
        change = {"id": about["classes"][1]["id"]}
    about["classes"][0] |= change
    assert problem in refused_model(here, tensors, {"rsseg": json.dumps(about)})
    del about["classes"]
    assert "list of classes is missing" in refused_model(
        here, tensors, {"rsseg": json.dumps(about)}
    )


def test_a_quicklook_that_cannot_be_written(here: Path, fitted: Path) -> None:
    scene(here / "a.tif")
    (here / "a.seg.png").mkdir()
    call = rsseg("predict", "a.tif", "--model", fitted, "--overwrite")
    assert call.code == 1
    assert "the quicklook cannot be written" in call.err
    assert ".a.seg.png.part" not in files(here)


@pytest.mark.parametrize("output", ["file/a.tif", "file/below", "/proc/a.tif"])
def test_places_that_cannot_be_written(here: Path, fitted: Path, output: str) -> None:
    scene(here / "a.tif")
    (here / "file").write_text("")
    call = rsseg("predict", "a.tif", "--model", fitted, "-o", output)
    assert call.code == 1
    assert "error: " in call.err
    assert files(here) == {"a.tif", "file"}


def test_missing_scenes(here: Path, fitted: Path) -> None:
    call = rsseg("predict", "none.tif", "--model", fitted)
    assert call.code == 1
    assert "none.tif" in call.err
    assert not files(here)


def test_a_model_is_whole_without_its_folder(here: Path, fitted: Path) -> None:
    write_city(here / "city", scenes=1)
    shutil.copy(fitted / "model.safetensors", here / "mine.safetensors")
    options = ["--model", "mine.safetensors", "-q"]
    assert rsseg("predict", "city/images/a.tif", *options).code == 0
    assert (read(here / "a.seg.tif") == read(here / "city" / "labels" / "a.tif")).mean() > 0.7
