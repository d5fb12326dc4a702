"""Trains every method a little, as one of the processes in the environment: FOLDER [CASE ...].

With names of cases only those are trained. The leading process leaves the model files and the
metrics of each case in FOLDER/CASE.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fakes import build, sample
from jobs import SMALL, job, run
from test_contract import BANDS, make
from torch import Tensor

from rsseg_cli import distributed
from rsseg_cli.contract import IGNORE
from rsseg_cli.data.augment import Augment
from rsseg_cli.data.joined import DomainBatch
from rsseg_cli.data.tiles import Batch
from rsseg_cli.find import names
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.self_training import SelfTraining

BATCH, STEPS = 4, 3
STRONG = Augment.Config(noise=0.3, blur=0.5)


@dataclass
class Uneven:
    """Tiles of this process; the first ones have much fewer labels than the last."""

    passes: int = 1

    def __getitem__(self, index: int) -> Batch:
        count = BATCH // self.passes // distributed.world()
        first = (index * distributed.world() + distributed.rank()) * count
        parts = [_tile(number) for number in range(first, first + count)]
        image, label = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Batch(image, label.to(torch.uint8))


def _tile(number: int) -> tuple[Tensor, Tensor]:
    image, label = sample(number)
    label[:, : 24 - 8 * (number % BATCH)] = IGNORE
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (BANDS.mean, BANDS.std))
    return image * std + mean, label


@dataclass
class Domains:
    """Two labelled tiles and two of the target, over all processes."""

    tiles: Uneven = field(default_factory=lambda: Uneven(passes=2))
    sources: bool = True

    def __getitem__(self, index: int) -> DomainBatch:
        target = self.tiles[2 * index + 1]
        target.label.zero_()
        if not self.sources:
            return DomainBatch(target.image, target.label)
        source = self.tiles[2 * index]
        image = torch.cat((source.image, target.image))
        return DomainBatch(image, torch.cat((source.label, target.label)), sources=source.size)


@dataclass
class Case:
    """What is trained how."""

    method: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = "linear"
    loop: dict[str, Any] = field(default_factory=dict)
    adapt: dict[str, Any] | None = None
    lr: float = 3e-3

    def model(self) -> Segmenter:
        if self.head != "linear":
            return make(self.method, self.head)
        settings = SMALL.get(self.method, {}) | self.settings
        model = build(self.method, **settings)
        model.head.class_weights.copy_(torch.tensor([1.0, 2.0, 0.5]))
        return model


RELEASED = {
    "trained_experts": "all", "shares": "softmax", "statistics": "batch", "similarity": "token",
    "drop_path": 0.4,
}  # fmt: skip
CASES = {name: Case(name) for name in names("methods")} | {
    "mask head": Case("rein", head="mask2former", lr=1e-4),
    "weft released": Case("weft", RELEASED),
    "gates of two": Case("spectralmoe", {"k": 2, "depth": "random"}),
    "fishertune without a posterior": Case("fishertune", {"posterior": "none"}),
    "passes": Case("lora", loop={"accumulate": 2}),
    "self-training": Case(adapt={"start": 0.0, "threshold": 0.4}),
    "target weighed alike": Case(adapt={"start": 0.0, "threshold": 0.4, "weight": "pixel"}),
    "source-free": Case(adapt={"start": 0.0, "source": False}),
}


def train(name: str, folder: Path) -> None:
    """Train a case; the metrics say what it learned from."""
    case = CASES[name]
    model = case.model()
    parts: dict[str, Any] = {
        "objective": Supervised(Augment(STRONG, tile=32)),
        "batches": Uneven(case.loop.get("accumulate", 1)),
    }
    if case.adapt is not None:
        settings = dict(case.adapt)
        sources = settings.pop("source", True)
        config = SelfTraining.Config(**settings)
        parts["objective"] = SelfTraining(config, model, STRONG, tile=32, steps=STEPS)
        parts["batches"] = Domains(sources=sources)
    parts["optimization"] = Optimization(lr=case.lr, weight_decay=0.1, clip=1.0)
    common = {"batch": BATCH, "steps": STEPS, "log_every": 1}
    run(job(folder / name, model=model, **common, **case.loop, **parts))


def main() -> None:
    """Join the others and train."""
    torch.set_num_threads(1)
    folder, *chosen = sys.argv[1:]
    with distributed.group("cpu"):
        for name in chosen or CASES:
            torch.manual_seed(distributed.rank())  # nothing may depend on it
            train(name, Path(folder))


if __name__ == "__main__":
    main()
