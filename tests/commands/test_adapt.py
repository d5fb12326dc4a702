"""`rsseg adapt`: from a model or from the start, with unreadable labels."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from runs import SMALL, Call, describe, ground, rsseg, seen, write_pair
from scenes import write_raster
from training_jobs import same, weights

from rsseg_cli.classes import IGNORE
from rsseg_cli.commands.adapt.options import AdaptOptions
from rsseg_cli.commands.adapt.resample import resampled
from rsseg_cli.commands.adapt.settings import resolve
from rsseg_cli.commands.adapt.target_validation import COLLAPSED, TargetValidation
from rsseg_cli.commands.fit.job import RunJob
from rsseg_cli.config import RunConfig
from rsseg_cli.data.pair import Handles, Opener
from rsseg_cli.data.source import Source
from rsseg_cli.data.tiles.unlabelled import hold_out, without_labels
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.grid import Window
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import checkpoint
from rsseg_cli.training.adaptation import Adaptation
from rsseg_cli.training.model_selection import TargetStatistics
from rsseg_cli.training.self_training import SelfTraining

QUICK = ["--steps", "4", "--set", "training.num_workers=0", "--device", "cpu"]


@pytest.fixture(scope="session")
def suburb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A described target whose labels cannot be read."""
    root = tmp_path_factory.mktemp("target") / "suburb"
    for index, name in enumerate("ab"):
        write_pair(root, name, seed=40 + index)
        (root / "labels" / f"{name}.tif").write_bytes(b"no raster at all")
    describe(root)
    return root


def adapt(*args: str | Path) -> Call:
    return rsseg("adapt", *args, "--json")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_from_a_model_without_opening_a_label(fitted: Path, suburb: Path, tmp_path: Path) -> None:
    call = adapt("--model", fitted, "--tgt", suburb, "--output", tmp_path / "run", *QUICK)
    assert call.code == 0, call.err
    found = call.document
    assert found["steps"] == 4
    assert found["stopped"] is None
    assert 0 <= found["last"]["target"]["information"] <= 1
    told = lines(tmp_path / "run")
    assert told[0]["step"] == 0  # the start may be the best
    assert any("teacher" in line for line in told)
    for name in ("before", "after"):
        with rasterio.open(tmp_path / f"run/report/maps/{name}.tif") as file:
            assert file.crs.to_epsg() == 32633
    pictures = {path.stem for path in (tmp_path / "run/report/pictures").iterdir()}
    assert pictures >= {"before-and-after", "class-shares-on-the-target", "pseudo-labels"}
    mapped = rsseg(
        "predict", suburb / "images/a.tif", "--model", tmp_path / "run", "-o", tmp_path / "m.tif",
        "--device", "cpu",
    )  # fmt: skip
    assert mapped.code == 0, mapped.err


def test_from_the_start(city: Path, suburb: Path, tmp_path: Path) -> None:
    call = adapt(
        "--method", "lora", "--src", city, "--tgt", suburb / "images", "--output", tmp_path / "run",
        *SMALL, *QUICK, "--set", "method.rank=2", "--set", "adapt.warmup_fraction=0.5",
        "--set", "adapt.rare_class_temperature=0.1",
    )  # fmt: skip
    assert call.code == 0, call.err
    assert "merit" in call.document["best"]


def test_without_a_source(fitted: Path, suburb: Path, tmp_path: Path) -> None:
    call = adapt(
        "--model", fitted, "--source-free", "--tgt", suburb / "images/*.tif",
        "--output", tmp_path / "run", *QUICK,
    )  # fmt: skip
    assert call.code == 0, call.err
    assert "miou" not in call.document["best"]


@pytest.mark.parametrize("free", [False, True])
def test_stopped_and_resumed_is_as_never_stopped(
    free: bool, fitted: Path, suburb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(name: str, *more: str) -> Call:
        way = ["--source-free"] if free else []
        every = ["--set", "training.validate_every=1", "--set", "training.log_every=1"]
        return adapt(
            "--model", fitted, "--tgt", suburb, "--output", tmp_path / name, *QUICK, *way, *every,
            *more,
        )  # fmt: skip

    whole = call("whole")
    assert whole.code == 0, whole.err
    follow = SelfTraining.after_step

    def stopped(self: SelfTraining, model: Segmenter, step: int) -> None:
        follow(self, model, step)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(SelfTraining, "after_step", stopped)
        cut = call("parts")
    assert cut.code == 130
    assert "after step 2 of 4" in cut.err
    assert not (tmp_path / "parts" / "last.safetensors").exists()
    resumed = call("parts", "--resume")
    assert resumed.code == 0, resumed.err
    for file in ("last.safetensors", "model.safetensors"):
        assert same(*(weights(tmp_path / name / file) for name in ("whole", "parts")))
    told = [
        [line["val"] for line in lines(tmp_path / name) if "val" in line]
        for name in ("whole", "parts")
    ]
    assert told[0] == told[1]
    assert len(told[0]) == 5
    assert resumed.document["best"] == whole.document["best"]


def other(tmp_path: Path, **profile: Any) -> Path:
    (tmp_path / "scenes").mkdir(exist_ok=True)
    return write_raster(tmp_path / "scenes/one.tif", seen(ground(), seed=9), **profile)


def test_mistakes(fitted: Path, city: Path, suburb: Path, tmp_path: Path) -> None:
    run = ["--output", tmp_path / "run", *QUICK]
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "scenes").mkdir()
    two = write_raster(tmp_path / "scenes/two.tif", seen(ground())[:2])
    void = write_raster(tmp_path / "scenes/void.tif", seen(ground()) * 0, nodata=0)
    for args, said in (
        (["--model", fitted], "no target to adapt to"),
        (["--model", fitted, "--tgt", empty], "there is no scene"),
        (["--model", fitted, "--tgt", city], "the target is the source"),
        (["--model", fitted, "--tgt", two], "has 2 bands without names"),
        (["--model", fitted, "--tgt", void], "no valid pixel"),
        (["--model", fitted, "--tgt", suburb, "--bands", "1,2"], "names 2 bands"),
        (["--model", fitted, "--tgt", suburb, "--src", tmp_path / "gone"], "is missing"),
        (["--model", fitted, "--method", "lora", "--tgt", suburb], "one of --model, --method"),
        (["--method", "full", "--source-free", "--tgt", suburb], "a fitted model is needed"),
        (["--model", fitted, "--tgt", suburb, "--set", "training.batch=1"], "both domains"),
    ):
        call = rsseg("adapt", *args, *run)
        assert (call.code, said in call.err) == (1, True), call.err
    assert not (tmp_path / "run").exists()


def test_other_light_is_refused(fitted: Path, tmp_path: Path) -> None:
    path = other(tmp_path)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("swir16", "swir22", "nir")
    call = rsseg("adapt", "--model", fitted, "--tgt", path, "--output", tmp_path / "run", *QUICK)
    assert call.code == 1
    assert "no band blue" in call.err


def test_scenes_are_resampled(tmp_path: Path) -> None:
    path = other(tmp_path, nodata=7)
    source = Source.locate(str(_described(tmp_path / "data")))
    opener: Opener = source.opener
    pair = source.pairs()[0]
    coarse = resampled(opener, pair, 20.0, tmp_path / "scenes")
    assert (coarse.info.width, coarse.info.height) == (56, 48)
    with opener.scene(pair.image) as fine, opener.scene(coarse.image) as small:
        whole, _ = fine.read(Window(0, 0, 112, 96))
        half, _ = small.read(Window(0, 0, 56, 48))
    means = whole.reshape(3, 48, 2, 56, 2).astype(float).mean((2, 4))
    assert np.abs(means - half).max() <= 1
    assert path.exists()


def _described(root: Path) -> Path:
    write_pair(root, "a")
    describe(root)
    return root


def test_held_back_tiles_are_never_learnt(tmp_path: Path) -> None:
    source = Source.locate(str(_described(tmp_path)), holdout=0.0)
    part = without_labels(source.opener, source.pairs())
    train, held = hold_out([part], 0.25, 32)
    (opener, left), (_, kept) = train[0], held[0]
    area = left[0].area + kept[0].area
    assert area == 96 * 112
    assert kept[0].area / area == pytest.approx(0.25, abs=0.12)
    crossing = [a.intersect(b) for a in left[0].windows for b in kept[0].windows]
    assert not any(crossing)
    assert hold_out([part], 0.25, 32)[1] == held
    _, label, valid = Handles().read(opener, left[0], Window(-8, 0, 32, 32), fill=(0.0, 0.0, 0.0))
    assert (label[:, :8] == IGNORE).all()
    assert (label[valid] == 0).all()


class StepsOfTen:
    """Stands for an objective: `done` is ten steps more at every validation."""

    start = 0

    def __init__(self, first: int) -> None:
        self._steps = iter(range(first, 1000, 10))

    @property
    def done(self) -> int:
        return next(self._steps)


def validation_of(first: int, source_shares: list[float] | None = None) -> TargetValidation:
    return TargetValidation(
        target=None, source=None, source_shares=source_shares, objective=StepsOfTen(first),
        settings=Adaptation(), map_start=lambda model: None,
    )  # type: ignore[arg-type]  # fmt: skip


def test_a_model_that_goes_astray_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [[0.5, 0.5], [0.6, 0.4], [0.95, 0.05], [0.6, 0.4]]
    validation = validation_of(0, source_shares=[0.4, 0.6])
    monkeypatch.setattr(
        validation,
        "target_statistics",
        lambda model: TargetStatistics(*[looks.pop(0)] * 2, 0.1, 0.9),
    )
    scores = [validation(None) for _ in range(3)]  # type: ignore[arg-type]
    assert "stop" not in scores[0]
    assert "stop" not in scores[1]
    assert scores[2]["stop"] == COLLAPSED
    assert scores[2]["merit"] == -1


def test_ratings_are_averaged_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(past: list[dict[str, Any]], *informed: float) -> list[float]:
        validation = validation_of(10 * len(past))
        validation.restore(past)
        looks = [TargetStatistics([0.5, 0.5], [0.5, 0.5], 1 - one, 0.9) for one in informed]
        monkeypatch.setattr(validation, "target_statistics", lambda model: looks.pop(0))
        kept.append([validation(None) for _ in informed])  # type: ignore[arg-type]
        return [float(one["merit"]) for one in kept[-1]]  # type: ignore[arg-type]

    kept: list[Any] = []
    whole = judge([], 0.2, 0.8, 0.5, 0.3)
    assert whole == pytest.approx([0.2, 0.5, 0.5, 1.6 / 3])
    past = [{"step": 10 * index, "val": one} for index, one in enumerate(kept[0][:2])]
    assert judge(past, 0.5, 0.3) == pytest.approx(whole[2:])


def test_without_a_source_the_rates_are_small(fitted: Path) -> None:
    def rates(*changes: str) -> tuple[float, float | None]:
        optimizer = resolve(
            AdaptOptions(model=fitted, tgt=("x",), settings=tuple(changes))
        ).optimizer
        return optimizer.lr, optimizer.backbone_lr

    assert rates() == (3e-3, None)
    assert rates("adapt.source_free=True") == (pytest.approx(9e-5), None)
    assert rates("adapt.source_free=True", "optimizer.lr=1.0e-3") == (1e-3, None)


def test_rates_of_a_model_adapted_without_a_source_are_kept(fitted: Path, tmp_path: Path) -> None:
    tensors, about = checkpoint.load_model(fitted / "model.safetensors")
    about["config"]["adapt"] |= {"source_free": True, "patience": 6}
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, tensors, about)
    again = resolve(AdaptOptions(model=path, tgt=("x",)))
    assert again.adapt.source_free
    assert (again.adapt.patience, again.optimizer.lr) == (6, 3e-3)


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        (["--source-free"], "adapt.source_free=true"),
        (["--steps", "3"], "training.steps=3"),
        (["--steps", "3"], " training.steps = 3"),
    ],
)
def test_set_does_what_the_option_does(
    option: list[str], setting: str, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[RunConfig] = []

    def stop(config: RunConfig, *options: object) -> RunJob:
        configs.append(config)
        raise RssegError("not prepared")

    monkeypatch.setattr("rsseg_cli.commands.adapt.adapt.prepare_adapt", stop)
    for options in (option, ["--set", setting], []):
        adapt("--model", fitted, "--tgt", "x", "--device", "cpu", *options)
    assert configs[0] == configs[1] != configs[2]


def test_set_wins_over_defaults_of_an_adaptation(fitted: Path) -> None:
    changes = [
        "adapt.source_free=true",
        "adapt.patience=9",
        "adapt.warmup_fraction=0.5",
        "training.steps=40",
    ]
    config = resolve(AdaptOptions(model=fitted, tgt=("x",), settings=tuple(changes)))
    assert (config.adapt.patience, config.adapt.warmup_fraction) == (9, 0.5)
    assert config.training.steps == 40
    assert config.training.validate_every <= 4


@pytest.mark.parametrize("command", ["fit", "adapt"])
def test_set_wins_over_the_option(
    command: str, fitted: Path, city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[RunConfig] = []

    def stop(config: RunConfig, *options: object) -> RunJob:
        configs.append(config)
        raise RssegError("not prepared")

    monkeypatch.setattr(f"rsseg_cli.commands.{command}.{command}.prepare_{command}", stop)
    start = ["-m", "lora", "--src", city]
    start += ["--tgt", "x"] if command == "adapt" else []
    rsseg(command, *start, "--device", "cpu", "--set", "training.steps=5", "--steps", "3")
    rsseg(command, *start, "--device", "cpu", "--steps", "3")
    assert [config.training.steps for config in configs] == [5, 3]
