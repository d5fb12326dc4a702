"""Jobs for the loop with tiles from memory: no file is read."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fakes import build, sample
from test_contract import BANDS, TINY
from torch import Tensor

from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training import checkpoint
from rsseg_cli.training.loop import Job, Training, train
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.progress import Progress
from rsseg_cli.training.run_folder import RunFolder
from rsseg_cli.training.step_log import TrainingResult

SMALL: dict[str, dict[str, Any]] = TINY | {
    "childtune": {"samples": 4, "batch": 2},
    "crossearth_gate": {"every": 2, "samples": 2},
    "fish": {"samples": 3},
    "fishertune": {"estimation": 2, "statistics": 2, "gauge": 1},
}
"""Settings that make a method quick and let it do all of its work within five steps."""


class Tiles:
    """Item i is the same every time: `count` images of 32 pixels with labels."""

    def __init__(self, name: str = "train", first: int = 0, count: int = 2) -> None:
        self.name, self.first, self.count = name, first, count

    def __getitem__(self, index: int) -> Batch:
        parts = [sample(self.first + index * self.count + i) for i in range(self.count)]
        image, label = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (BANDS.mean, BANDS.std))
        first = self.first + index * self.count
        seeds = tuple(range(first, first + self.count))
        names = (self.name,) * self.count
        return Batch(image * std + mean, label.to(torch.uint8), names=names, seeds=seeds)


class Scripted(Supervised):
    """The supervised objective with a change of the loss at one training pass."""

    def __init__(self, happens: Callable[[Tensor], Tensor] | None = None, at: int = -1) -> None:
        super().__init__(Augment(Augment.Config(), tile=32))
        self.happens, self.at, self.passes = happens, at, 0

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        losses = super().__call__(model, batch)
        if "train" not in batch.names:
            return losses
        if self.happens is not None and self.passes == self.at:
            losses = {name: self.happens(loss) for name, loss in losses.items()}
        self.passes += 1
        return losses


def signalled(number: signal.Signals) -> Callable[[Tensor], Tensor]:
    """Return a change of the loss that sends this process a signal."""

    def send(loss: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return loss

    return send


def job(folder: Path, method: str = "full", **changes: Any) -> Job:
    """Return a job of five steps; `changes` are its attributes or settings of the loop."""
    folder.mkdir(parents=True, exist_ok=True)
    model = changes.pop("model", None) or build(method, **SMALL.get(method, {}))
    parts: dict[str, Any] = {
        "objective": Scripted(),
        "open_batches": lambda size: Tiles(count=size),
        "open_probes": lambda samples: Tiles("probe", 90_000, samples),
        "validate": None,
        "multiple": 1,
        "optimization": Optimization(lr=3e-3, weight_decay=0.1, clip_grad_norm=1.0, warmup=2),
    }
    parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
    settings = {
        "steps": 5,
        "batch": 2,
        "log_every": 2,
        "save_every": 100,
        "num_workers": 0,
    } | changes
    return Job(
        model=model,
        folder=RunFolder(folder),
        settings=Training.model_validate(settings),
        device=torch.device("cpu"),
        **parts,
    )


def run(work: Job, *, resume: bool = False) -> TrainingResult:
    """Run a job without printing."""
    state = checkpoint.load_resume(work.folder.resume) if resume else None
    outcome = train(work, Progress(work.settings.steps, quiet=True), state)
    work.folder.finish()
    return outcome


def weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a model file."""
    return checkpoint.load_model(path)[0]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two models are equal to the bit."""
    bits = [{name: t.numpy().tobytes() for name, t in tensors.items()} for tensors in (one, other)]
    return bits[0] == bits[1]


class Scores:
    """Validation that returns the given mIoUs, one after the other."""

    def __init__(self, *values: float | None) -> None:
        self.values = list(values)

    def __call__(self, model: Segmenter) -> dict[str, Json]:
        model.eval()
        return {"miou": self.values.pop(0)}
