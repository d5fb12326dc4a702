"""`rsseg fit`: a folder in, a run out; and mistakes that are found before anything is computed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from runs import SMALL, describe, ground, rsseg, seen, write_city, write_pair
from safetensors.torch import save_file
from scenes import random_samples, write_raster
from training_jobs import same, weights

from rsseg_cli.presets import read
from rsseg_cli.training import checkpoint

FIT = ["fit", "-m", "full", *SMALL, "--steps", "2"]


def copy_of(city: Path, to: Path) -> Path:
    return Path(shutil.copytree(city, to / "city"))


def test_the_folder_of_a_run(fitted: Path) -> None:
    assert {path.name for path in fitted.iterdir()} == {
        "config.yaml", "model.safetensors", "last.safetensors", "metrics.jsonl", "report",
    }  # fmt: skip
    assert {"report.json", "report.csv", "report.md", "report.html"} <= {
        path.name for path in (fitted / "report").iterdir()
    }
    _, about = checkpoint.load_model(fitted / "model.safetensors")
    assert [one["name"] for one in about["classes"]] == ["water", "forest", "town"]
    assert about["bands"]["names"] == ["blue", "green", "nir"]
    assert about["config"] == read(fitted / "config.yaml").values
    assert about["sources"][0]["fingerprint"]
    report = json.loads((fitted / "report" / "report.json").read_text())
    assert report["miou"] == about["score"]["miou"] > 0.5


def test_the_answer_for_machines(city: Path, tmp_path: Path) -> None:
    call = rsseg(*FIT, "--src", city, "--output", tmp_path / "run", "--json")
    assert (call.code, call.err) == (0, "")
    answer = call.document
    assert set(answer) == {
        "run", "model", "steps", "seconds", "images_per_s", "peak_memory_mb", "best", "last",
    }  # fmt: skip
    assert (answer["run"], answer["steps"]) == (str(tmp_path / "run"), 2)
    assert {"miou", "macc", "accuracy", "f1", "classes", "confusion"} <= set(answer["last"])
    assert Path(answer["model"]).is_file()


def test_the_path_of_the_model_is_all_on_stdout(city: Path, tmp_path: Path) -> None:
    call = rsseg(*FIT, "--src", city, "--output", tmp_path / "run")
    assert call.out == f"{tmp_path / 'run' / 'model.safetensors'}\n"
    assert call.err.startswith("source   city")
    silent = rsseg(*FIT, "--src", city, "--output", tmp_path / "run", "--overwrite", "-q")
    assert (silent.out, silent.err) == (call.out, "")


def test_a_run_repeats_itself_from_its_own_settings(city: Path, tmp_path: Path) -> None:
    rsseg(*FIT, "--src", city, "--output", tmp_path / "a", "-q")
    call = rsseg(
        "fit", "--config", tmp_path / "a" / "config.yaml", "--output", tmp_path / "b", "-q"
    )
    assert call.code == 0
    assert same(*(weights(tmp_path / run / "last.safetensors") for run in "ab"))
    other = rsseg(*FIT, "--src", city, "--output", tmp_path / "c", "-q", "--seed", "7")
    assert other.code == 0
    assert not same(*(weights(tmp_path / run / "last.safetensors") for run in "ac"))


def test_the_plan(city: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call = rsseg(*FIT, "--src", city, "--output", run, "--dry-run", "--json")
    plan = call.document
    assert {"pairs", "classes", "parameters", "memory_mb", "warnings"} <= set(plan)
    assert plan["pairs"]["train"] == 2
    assert [(one["id"], one["name"]) for one in plan["classes"]] == [
        (1, "water"), (2, "forest"), (5, "town"),
    ]  # fmt: skip
    assert sum(one["share"] for one in plan["classes"]) == pytest.approx(1)
    counts = plan["parameters"]
    assert counts["tuned"] == counts["trainable_now"] == counts["backbone"] + counts["head"]
    assert plan["memory_mb"] > 0
    assert not run.exists()
    text = rsseg(*FIT, "--src", city, "--output", run, "--dry-run").out
    for part in ("source", "model", "training", "class   5", "town", "vit_tiny + full + linear"):
        assert part in text


def test_a_run_is_not_replaced_unasked(city: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert rsseg(*FIT, "--src", city, "--output", run, "-q").code == 0
    (run / "notes.txt").write_text("mine")
    before = (run / "model.safetensors").read_bytes()
    call = rsseg(*FIT, "--src", city, "--output", run)
    assert call.code == 1
    assert "already exists" in call.err
    assert "--overwrite" in call.err
    assert (run / "model.safetensors").read_bytes() == before
    again = rsseg(*FIT, "--src", city, "--output", run, "--overwrite", "-q", "--seed", "3")
    assert again.code == 0
    assert (run / "model.safetensors").read_bytes() != before
    assert (run / "notes.txt").read_text() == "mine"


def test_a_folder_that_is_no_run_is_never_replaced(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    call = rsseg(*FIT, "--src", mine, "--output", mine, "--overwrite")
    assert call.code == 1
    assert "is not empty and not a run folder" in call.err
    assert sorted(path.name for path in mine.iterdir()) == ["dataset.yaml", "images", "labels"]


@pytest.mark.parametrize("below", ["file", "file/run", "/proc/run"])
def test_folders_that_cannot_be_made(city: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    call = rsseg(*FIT, "--src", city, "--output", tmp_path / below)
    assert call.code == 1
    assert "error:" in call.err
    assert str(tmp_path / below) in call.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_leave_a_run_to_resume(
    city: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run, over = tmp_path / "run", threading.Event()

    def send() -> None:
        while not (run / "metrics.jsonl").exists() and not over.wait(0.05):
            pass
        if not over.is_set():  # the loop listens: without it the signal would end the suite
            os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    options = ["--src", city, "--output", run]
    long = rsseg(*FIT[:-1], "100000", *options, "--set", "training.log_every=1")
    over.set()
    sender.join()
    assert long.code == 130
    assert "the same command with --resume" in long.err
    assert checkpoint.load_resume(run / "resume.pt")["step"] >= 1
    unfinished = rsseg(*FIT, *options)
    assert "unfinished" in unfinished.err
    assert "--resume to continue it" in unfinished.err
    changed = rsseg(*FIT, *options, "--resume")
    assert changed.code == 1
    assert "training.steps 2 was 100000" in changed.err


def interrupted(city: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run after the second of four steps."""
    from rsseg_cli.training import loop

    class Stop(loop.StopSignal):
        def __enter__(self) -> Stop:
            self.looked = 0
            return self

        @property
        def received(self) -> bool:
            self.looked += 1
            return self.looked > 2

        @received.setter
        def received(self, value: bool) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopSignal", Stop)
        call = rsseg(*FIT[:-1], "4", "--src", city, "--output", run)
    assert call.code == 130, call.err


def test_resumed_at_the_command_line_equals_uninterrupted(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = [*FIT[:-1], "4", "--src", city]
    interrupted(city, tmp_path / "a", monkeypatch)
    assert rsseg(*four, "--output", tmp_path / "a", "--resume", "-q").code == 0
    assert rsseg(*four, "--output", tmp_path / "b", "-q").code == 0
    assert same(*(weights(tmp_path / run / "last.safetensors") for run in "ab"))
    assert not (tmp_path / "a" / "resume.pt").exists()
    again = rsseg(*four, "--output", tmp_path / "a", "--resume")
    assert again.code == 1
    assert "nothing to resume" in again.err


def test_resuming_with_other_data_is_refused(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, run = copy_of(city, tmp_path), tmp_path / "run"
    interrupted(mine, run, monkeypatch)
    write_pair(mine, "z", seed=9)
    call = rsseg(*FIT[:-1], "4", "--src", mine, "--output", run, "--resume")
    assert call.code == 1
    assert "the data have changed" in call.err
    assert (run / "resume.pt").exists()


def test_a_run_may_be_resumed_from_another_place(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, run = copy_of(city, tmp_path), tmp_path / "run"
    interrupted(mine, run, monkeypatch)
    monkeypatch.chdir(tmp_path)
    call = rsseg(*FIT[:-1], "4", "--src", "city", "--output", "run", "--resume", "-q")
    assert call.code == 0, call.err


def test_a_run_on_an_undescribed_folder_may_be_resumed(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half finds the classes, the second one reads them from what that has written."""
    for name in "ab":
        mine = copy_of(city, tmp_path / name)
        (mine / "dataset.yaml").unlink()
    four = [*FIT[:-1], "4", "-q"]
    interrupted(tmp_path / "a" / "city", tmp_path / "a" / "run", monkeypatch)
    options = ["--src", tmp_path / "a" / "city", "--output", tmp_path / "a" / "run"]
    assert rsseg(*four, *options, "--resume").code == 0
    options = ["--src", tmp_path / "b" / "city", "--output", tmp_path / "b" / "run"]
    assert rsseg(*four, *options).code == 0
    assert same(*(weights(tmp_path / name / "run" / "last.safetensors") for name in "ab"))


def test_a_damaged_state_is_said(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    interrupted(city, run, monkeypatch)
    state = (run / "resume.pt").read_bytes()
    (run / "resume.pt").write_bytes(state[: len(state) // 2])
    call = rsseg(*FIT[:-1], "4", "--src", city, "--output", run, "--resume")
    assert call.code == 1
    assert "resume.pt is damaged" in call.err


def test_a_state_is_complete_or_refused(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    interrupted(city, run, monkeypatch)
    state = checkpoint.load_resume(run / "resume.pt")
    name, tensor = state["model"].popitem()
    checkpoint.save_resume(run / "resume.pt", state)
    call = rsseg(*FIT[:-1], "4", "--src", city, "--output", run, "--resume")
    assert call.code == 1
    assert f"1 missing ({name})" in call.err
    assert f"in: {run / 'resume.pt'}" in call.err
    state["model"] |= {name: tensor, "zz": tensor}
    checkpoint.save_resume(run / "resume.pt", state)
    call = rsseg(*FIT[:-1], "4", "--src", city, "--output", run, "--resume")
    assert call.code == 1
    assert "1 unexpected (zz)" in call.err


def refused(tmp_path: Path, *options: str | Path) -> str:
    """Return the error of a call of `fit` that is refused before it writes anything."""
    call = rsseg(*FIT, "--output", tmp_path / "run", *options)
    assert (call.code, call.out) == (1, "")
    assert call.err.startswith("error: ")
    assert not (tmp_path / "run").exists()
    return call.err


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    assert "there is no such folder" in refused(tmp_path, "--src", tmp_path / "none")
    (tmp_path / "bare").mkdir()
    assert "no images in images/" in refused(tmp_path, "--src", tmp_path / "bare")
    write_raster(folder(tmp_path / "half" / "images") / "a.tif", random_samples(3, 64, 64))
    assert "has images but no labels" in refused(tmp_path, "--src", tmp_path / "half")
    assert "no training data" in refused(tmp_path)
    assert "RSSEG_DATA" in refused(tmp_path, "--src", "loveda")
    assert "loveda" in refused(tmp_path, "--src", "lovda")


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_what_has_no_partner_is_named(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    (mine / "labels" / "b.tif").unlink()
    assert "no label for 1 image: b.tif" in refused(tmp_path, "--src", mine)
    shutil.copy(mine / "labels" / "a.tif", mine / "labels" / "lost.tif")
    assert "no image for 1 label: lost.tif" in refused(tmp_path, "--src", mine)


def test_ids_that_are_no_class_are_named_with_their_file(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    labels = ground(seed=1)
    labels[40:50, 40:50] = 77
    write_raster(mine / "labels" / "b.tif", labels[None])
    said = refused(tmp_path, "--src", mine)
    assert "77" in said
    assert "b.tif" in said


def test_bands_that_differ_are_counted(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    write_raster(mine / "images" / "b.tif", random_samples(5, 96, 112, "uint16"))
    said = refused(tmp_path, "--src", mine)
    assert "a.tif has 3" in said
    assert "b.tif has 5" in said


def test_a_label_on_another_grid_is_refused(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    write_raster(mine / "labels" / "b.tif", ground(96, 80)[None])
    assert "b.tif" in refused(tmp_path, "--src", mine)


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("content", [b"", b"not a raster at all"])
def test_what_is_no_raster_is_named(city: Path, tmp_path: Path, part: str, content: bytes) -> None:
    mine = copy_of(city, tmp_path)
    (mine / part / "b.tif").write_bytes(content)
    assert "b.tif" in refused(tmp_path, "--src", mine)


def test_a_truncated_scene_stops_the_run_and_is_named(city: Path, tmp_path: Path) -> None:
    mine = copy_of(city, tmp_path)
    for name in "ab":
        path = mine / "images" / f"{name}.tif"
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    call = rsseg(*FIT, "--src", mine, "--output", tmp_path / "run")
    assert call.code == 1
    assert ".tif" in call.err
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(city: Path, tmp_path: Path, device: str) -> None:
    said = refused(tmp_path, "--src", city, "--device", device)
    assert f"{device} is not available (0 GPUs found)" in said
    assert "--device cpu" in said


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", ""])
def test_devices_that_do_not_exist(city: Path, tmp_path: Path, device: str) -> None:
    assert "is not a device" in refused(tmp_path, "--src", city, "--device", device)


def test_a_wrong_weights_file(city: Path, tmp_path: Path) -> None:
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    (tmp_path / "w.pth").write_bytes(b"no weights")
    options = ["--src", city, "--weights"]
    assert "these weights are not for vit_tiny" in refused(
        tmp_path, *options, tmp_path / "w.safetensors"
    )
    assert "w.pth" in refused(tmp_path, *options, tmp_path / "w.pth")
    assert "is not there" in refused(tmp_path, *options, tmp_path / "none.pth")


def test_pretrained_weights_without_a_network(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    call = rsseg(
        "fit", "-m", "frozen", "--src", city, "--output", tmp_path / "run",
        "--backbone", "vit_small", "--head", "linear",
    )  # fmt: skip
    assert call.code == 1
    for part in ("vit_small_patch16_224", "--weights", "--no-pretrained", "huggingface.co"):
        assert part in call.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--set", "training.grad_accumulation=3"], "batch of 2 cannot be cut into 3"),
        (["--set", "backbone.out_indices=[9]"], "out_indices [9]"),
        (["--backbone", "vit_tny"], "vit_tny is not a known backbone"),
        (["--steps", "0"], "training.steps"),
        (["--set", "data.val_fraction=1.5"], "data.val_fraction"),
        (["--set", "augment.scale=[2, 1]"], "augment"),
        (["--no-pretrained", "--weights", "w.pth"], "weights"),
        (["--set", "head.upsamplings=2"], "upsamplings need a width"),
    ],
)
def test_settings_that_cannot_work(
    city: Path, tmp_path: Path, options: list[str], what: str
) -> None:
    assert what in refused(tmp_path, "--src", city, *options)


def test_several_sources_are_learnt_together(city: Path, tmp_path: Path) -> None:
    other = write_city(tmp_path / "town", scenes=1)
    call = rsseg(*FIT, "--src", city, "--src", other, "--output", tmp_path / "run")
    assert call.code == 0, call.err
    assert "city+town" in call.err
    _, about = checkpoint.load_model(tmp_path / "run" / "last.safetensors")
    assert [source["name"] for source in about["sources"]] == ["city", "town"]


def test_sources_that_do_not_fit_together(city: Path, tmp_path: Path) -> None:
    other = write_city(tmp_path / "town", scenes=1)
    describe(other, bands={"red": 660.0, "green": 560.0, "nir": 842.0})
    said = refused(tmp_path, "--src", city, "--src", other)
    assert "the sources differ in bands: blue, green, nir / red, green, nir" in said


def test_an_undescribed_folder_is_described(tmp_path: Path) -> None:
    mine = write_city(tmp_path / "mine")
    (mine / "dataset.yaml").unlink()
    call = rsseg(*FIT, "--src", mine, "--output", tmp_path / "run")
    assert call.code == 0, call.err
    assert str(mine / "dataset.yaml") in call.err
    classes = read(mine / "dataset.yaml").values["classes"]
    assert [one["id"] for one in classes] == [1, 2, 5]
    plan = rsseg(*FIT, "--src", mine, "--output", tmp_path / "other", "--dry-run", "--json")
    assert [one["id"] for one in plan.document["classes"]] == [1, 2, 5]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_odd_scenes_are_learnt_from(tmp_path: Path) -> None:
    """Mixed and prime sizes, smaller than a tile, no CRS, holes of NaN, nothing but nodata."""
    mine = tmp_path / "mine"
    for number, size in enumerate([(97, 113), (20, 24), (64, 31)]):
        write_pair(mine, f"s{number}", seed=number, size=size)
        labels = ground(*size, seed=number)
        samples = seen(labels, "float32", seed=number)
        samples[:, :9, :9] = np.nan
        samples[1, 12] = np.inf
        write_raster(mine / "images" / f"s{number}.tif", samples, nodata=-1.0)
        if number == 1:
            write_raster(mine / "images" / "s1.tif", samples, nodata=-1.0, crs=None, transform=None)
            write_raster(mine / "labels" / "s1.tif", labels[None], crs=None, transform=None)
    write_pair(mine, "void", size=(48, 48))
    write_raster(mine / "images" / "void.tif", np.full((3, 48, 48), -1, np.float32), nodata=-1.0)
    describe(mine)
    call = rsseg(*FIT[:-1], "4", "--src", mine, "--output", tmp_path / "run", "--json")
    assert call.code == 0, call.err
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in metrics]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()
    plan = rsseg(
        *FIT, "--src", mine, "--output", tmp_path / "other", "--dry-run", "--json"
    ).document
    assert any("padded" in text for text in plan["warnings"])


def test_scenes_without_a_pixel_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write_pair(mine, "void")
    write_raster(mine / "images" / "void.tif", np.zeros((3, 96, 112), np.uint16), nodata=0)
    describe(mine)
    call = rsseg(*FIT, "--src", mine, "--output", tmp_path / "run")
    assert call.code == 1
    assert "error: " in call.err


def test_balanced_weights_and_tiles(city: Path, tmp_path: Path) -> None:
    call = rsseg(
        *FIT, "--src", city, "--output", tmp_path / "run", "-q",
        "--set", "data.sampling=balanced", "--set", "data.class_weights=balanced",
    )  # fmt: skip
    assert call.code == 0, call.err


def test_all_ground_may_be_learnt_from(city: Path, tmp_path: Path) -> None:
    options = [*FIT, "--src", city, "--output", tmp_path / "run", "--set", "data.val_fraction=0"]
    call = rsseg(*options)
    assert call.code == 0, call.err
    assert "warning: no validation set" in call.err
    assert same(*(weights(tmp_path / "run" / f"{n}.safetensors") for n in ("model", "last")))
