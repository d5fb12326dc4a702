"""Sparse methods inside the real training loop: probes, restarts, files, presets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import build, sample
from selections import weights
from test_contract import BANDS

from rsseg_cli import presets
from rsseg_cli.config import resolve
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.methods.fishertune import FisherTune
from rsseg_cli.training import checkpoint
from rsseg_cli.training.loop import Job, Training, train
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.training_step import TrainingStep

STEPS, CPU = 12, torch.device("cpu")
SHORT = {"statistics": 2, "gauge": 2, "estimation": 3, "warmup": 3}


class Tiles:
    """Item i is the same every time."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __getitem__(self, index: int) -> Batch:
        image, label = sample(self.first + index, self.count)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (BANDS.mean, BANDS.std))
        seeds = tuple(range(self.count))
        return Batch(image * std + mean, label.to(torch.uint8), seeds=seeds)


class Stopped(Exception):
    """The power went out."""


class Fragile(RunFolder):
    """Goes down right after a state to resume from was written."""

    def save_resume(self, state: dict[str, Any]) -> None:
        super().save_resume(state)
        raise Stopped


def job(
    folder: RunFolder, method: str, settings: dict[str, Any], *, save_every: int, seed: int = 0
) -> Job:
    folder.path.mkdir(exist_ok=True)
    return Job(
        model=build(method, seed=seed, **settings),
        objective=Supervised(Augment(Augment.Config(), tile=32)),
        open_batches=lambda size: Tiles(0, size),
        open_probes=lambda count: Tiles(10**6, count),
        validate=None,
        folder=folder,
        settings=Training(steps=STEPS, batch=2, log_every=4, save_every=save_every, num_workers=0),
        optimization=Optimization(lr=1e-3, clip_grad_norm=1.0),
        device=CPU,
    )


@pytest.mark.parametrize(
    ("method", "settings"),
    [("fishertune", SHORT), ("fishertune", SHORT | {"schedule": "constant", "clip": 0.1}),
     ("childtune", {"samples": 8, "warmup": 3}), ("childtune", {"form": "F"}),
     ("fish", {"samples": 5, "warmup": 3})],
)  # fmt: skip
def test_a_run_cut_short_ends_as_if_it_had_not(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = job(RunFolder(tmp_path / "whole"), method, settings, save_every=100)
    train(whole, Progress(STEPS, quiet=True))
    expected, _ = checkpoint.load_model(whole.folder.model)
    for stop in (2, 7):  # in the warm-up, in the tuning
        folder = tmp_path / f"stopped_{stop}"
        first = job(Fragile(folder), method, settings, save_every=stop)
        with pytest.raises(Stopped):
            train(first, Progress(STEPS, quiet=True))
        again = job(RunFolder(folder), method, settings, save_every=100, seed=5)
        state = checkpoint.load_resume(again.folder.resume)
        train(again, Progress(STEPS, quiet=True), state)
        found, _ = checkpoint.load_model(again.folder.model)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num()), (stop, name)
    fresh = build(method, seed=8, **settings)
    fresh.load_adapter_state(expected)
    for a, b in zip(fresh.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_without_a_shift_real_probes_see_no_change(head: str) -> None:
    """Augmentation, matching points and posterior noise are the same in both passes."""
    model = build("fishertune", head=head, **(SHORT | {"amplitude": (0.0, 0.0)}))
    method = model.train().method
    assert isinstance(method, FisherTune)
    step = TrainingStep(
        index=3,
        total=STEPS,
        model=model,
        objective=Supervised(Augment(Augment.Config(), tile=32)),
        precision=Precision.choose("fp32", CPU),
        device=CPU,
        seed=1,
        open_probes=lambda count: Tiles(10**6, count),
    )
    scores = method.score(step, weights(model))
    assert scores.domain is not None
    assert not any(bool(change.any()) for change in scores.domain)
    assert any(bool(values.any()) for values in scores.values)


@pytest.mark.parametrize("name", ["fishertune", "childtune", "fish"])
def test_the_preset_and_its_switches(name: str) -> None:
    path = presets.find("methods", name)
    text = path.read_text()
    plain = resolve(method=name, file=None)
    assert plain.method.config == type(plain.method.config)()
    lines = re.findall(r"^#.*?((?:--set .*?)+)(?:  +[#(].*)?$", text, re.MULTILINE)
    for line in lines:
        changes = [word for word in shlex.split(line) if word != "--set"]
        assert resolve(method=name, file=None, changes=changes).method != plain.method
    assert len(lines) == {"fishertune": 7, "childtune": 1, "fish": 0}[name]
