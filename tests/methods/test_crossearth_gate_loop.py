"""CrossEarth-Gate inside the real training loop, and its preset with those of its parts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import sample
from test_contract import BANDS
from test_crossearth_gate import gated
from torch import Tensor

from rsseg_cli import presets
from rsseg_cli.config import resolve
from rsseg_cli.contract import Method
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import RssegError
from rsseg_cli.find import find
from rsseg_cli.methods.crossearth_gate import CrossEarthGate
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import checkpoint
from rsseg_cli.training.loop import Job, Training, train
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder

STEPS = 8


class Tiles:
    """Item i is the same every time; remembers which were asked for."""

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name, self.first, self.count = name, first, count
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Batch:
        self.asked.append(index)
        image, label = sample(self.first + index, self.count)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (BANDS.mean, BANDS.std))
        seeds = tuple(range(self.count))
        return Batch(image * std + mean, label.to(torch.uint8), names=(self.name,), seeds=seeds)


class Watched(Supervised):
    """Remembers what a training pass begins with: its tiles and the random numbers' state."""

    def __init__(self, stop_at: int | None) -> None:
        super().__init__(Augment(Augment.Config(), tile=32))
        self.stop_at = stop_at
        self.passes: list[tuple[Tensor, Tensor]] = []

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        if batch.names == ("train",):
            if len(self.passes) == self.stop_at:
                raise ConnectionError("the machine went away")
            self.passes.append((batch.image, torch.get_rng_state()))
        return super().__call__(model, batch)


def fit(
    folder: Path, *, stop_at: int | None = None, resume: bool = False, **settings: Any
) -> tuple[Watched, Tiles, Tiles, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    model, _ = gated(every=4, **settings)
    run, objective = RunFolder(folder), Watched(stop_at)
    tiles, probes = Tiles("train", 0, 2), Tiles("probe", 5000, 1)
    job = Job(
        model=model,
        objective=objective,
        open_batches=lambda size: tiles,
        open_probes=lambda samples: probes,
        validate=None,
        folder=run,
        settings=Training(steps=STEPS, batch=2, log_every=3, save_every=2, num_workers=0),
        optimization=Optimization(lr=1e-2, weight_decay=0.3),
        device=torch.device("cpu"),
    )
    state = checkpoint.load_resume(run.resume) if resume else None
    train(job, Progress(STEPS, quiet=True), state)
    return objective, tiles, probes, run.records()


def test_probing_leaves_the_training_stream_alone(tmp_path: Path) -> None:
    probing, tiles, probes, _ = fit(tmp_path / "fisher")
    plain, others, unused, _ = fit(tmp_path / "all", selection="all")
    assert tiles.asked == others.asked == list(range(STEPS))
    assert probes.asked == [0, 1, 2, 12, 13, 14]  # three samples each, at steps 0 and 4
    assert unused.asked == []
    for (image, state), (same_image, same_state) in zip(probing.passes, plain.passes, strict=True):
        assert torch.equal(image, same_image)
        assert torch.equal(state, same_state)


@pytest.mark.parametrize(
    "settings", [{}, {"unselected": "bypass"}, {"selection": "random"}], ids=str
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    _, _, _, whole = fit(tmp_path / "whole", **settings)
    with pytest.raises(ConnectionError):
        fit(tmp_path / "parts", stop_at=7, **settings)
    _, tiles, probes, parts = fit(tmp_path / "parts", resume=True, **settings)
    assert tiles.asked == [6, 7]
    assert probes.asked == []  # no selection between step 6 and the end
    once, _ = checkpoint.load_model(tmp_path / "whole" / "last.safetensors")
    twice, _ = checkpoint.load_model(tmp_path / "parts" / "last.safetensors")
    assert once.keys() == twice.keys()
    for name, tensor in once.items():
        assert torch.equal(tensor, twice[name]), name
    for key in ("trainable", "trainable_mean", "trainable_ever"):
        assert whole[-1]["method"][key] == parts[-1]["method"][key]
    chosen = [
        {one["step"]: one["active"] for line in lines for one in line["method"]["selections"]}
        for lines in (whole, parts)
    ]
    assert chosen[0] == chosen[1]
    assert list(chosen[0]) == [0, 4]


def test_the_ablation_is_eight_lines_of_the_preset() -> None:
    text = presets.find("methods", "crossearth_gate").read_text()
    changes = [shlex.split(line)[1::2] for line in re.findall(r"--set .*", text) if "--set" in line]
    assert all(changes)
    for change in changes:
        resolve(method="crossearth_gate", file=None, changes=change)
    rows = text.partition("one per line:\n")[2].partition("# Other")[0].splitlines()
    configs = set()
    for row in rows:
        [change] = shlex.split(row)[2::2]
        config = resolve(method="crossearth_gate", file=None, changes=[change]).method.config
        assert isinstance(config, CrossEarthGate.Config)
        configs.add((config.pathways, config.selection))
    assert len(rows) == len(configs) == 8


@pytest.mark.parametrize("name", ["adaptformer", "earth_adapter", "crossearth_gate"])
def test_presets_say_everything_that_can_be_set(name: str) -> None:
    document = presets.read(presets.find("methods", name)).values
    kind = find("methods", name, Method)
    assert set(document["method"]) == {"name", *kind.Config.model_fields}
    config = resolve(method=name, file=None)
    written = config.to_json()
    for section in ("head", "augment", "optimizer", "training"):
        assert set(document[section]) == set(written[section]), section


@pytest.mark.parametrize("key", ["every", "samples"])
def test_errors_name_the_setting_and_the_range(key: str) -> None:
    with pytest.raises(RssegError, match=rf"method\.{key}: .* greater than or equal to 1, not 0"):
        resolve(method="crossearth_gate", file=None, changes=[f"method.{key}=0"])
