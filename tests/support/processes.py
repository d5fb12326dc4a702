"""Works as several processes that it forks: FOLDER KIND=NAME ..., or FOLDER commands.

See `act`, which trains every method a little, and `command`, which calls the command line.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fakes import build, sample
from runs import rsseg
from test_contract import BANDS
from torch import Tensor
from training_jobs import SMALL, job, run

from rsseg_cli import distributed
from rsseg_cli.classes import IGNORE
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import Interrupted
from rsseg_cli.find import names
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods._weft import spatial_enhancement as _see
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.objectives import Supervised
from rsseg_cli.training.optimizer import Optimization
from rsseg_cli.training.self_training import SelfTraining

BATCH, STEPS = 4, 3
MASKS = Mask2Former.Config(
    width=32, queries=8, layers=2, encoder_layers=1, ffn=64, encoder_ffn=64, points=128
)
STRONG = Augment.Config(noise=0.3, blur=0.5)


@dataclass
class Uneven:
    """Micro-batches of this process; the first tiles have fewer labels than the last."""

    count: int

    def __getitem__(self, index: int) -> Batch:
        first = (index * distributed.world_size() + distributed.rank()) * self.count
        numbers = tuple(range(first, first + self.count))
        image, label = (torch.cat(parts) for parts in zip(*map(_tile, numbers), strict=True))
        return Batch(image, label.to(torch.uint8), seeds=numbers)


def _tile(number: int) -> tuple[Tensor, Tensor]:
    image, label = sample(number)
    label[:, : 24 - 8 * (number % BATCH)] = IGNORE
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (BANDS.mean, BANDS.std))
    return image * std + mean, label


@dataclass
class Domains:
    """Labelled tiles and as many of the target."""

    count: int
    sources: bool = True

    def __getitem__(self, index: int) -> DomainBatch:
        tiles = Uneven(self.count // 2)
        target = tiles[2 * index + 1]
        target.label.zero_()
        if not self.sources:
            return DomainBatch(target.image, target.label, seeds=target.seeds)
        source = tiles[2 * index]
        return DomainBatch(
            torch.cat((source.image, target.image)),
            torch.cat((source.label, target.label)),
            seeds=source.seeds + target.seeds,
            sources=source.size,
        )


@dataclass
class Case:
    """A method with its settings, head, loop and kind of adaptation."""

    method: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    head: str = "linear"
    loop: dict[str, Any] = field(default_factory=dict)
    adapt: dict[str, Any] | None = None
    lr: float = 3e-3

    def model(self) -> Segmenter:
        settings = SMALL.get(self.method, {}) | self.settings
        model = build(self.method, **settings)
        if self.head == "mask2former":
            head = Mask2Former(MASKS, dim=model.backbone.dim, maps=4, classes=3)
            model = Segmenter(model.backbone, model.method, head, BANDS)
        model.head.class_weights.copy_(torch.tensor([1.0, 2.0, 0.5]))
        return model


STARTED: dict[str, Any] = {"warmup_fraction": 0.0, "threshold": 0.4}
RELEASED = {
    "trained_experts": "all", "shares": "softmax", "statistics": "batch", "similarity": "token",
    "drop_path": 0.4,
}  # fmt: skip
FEW = {"channels": 8, "kernels": [1, 3], "active": 1}
"""WEFT with few batch norms: each of them is an all-reduce, forward and backward."""
CASES = {name: Case(name) for name in names("methods")} | {
    "weft": Case("weft", FEW),
    # Without LoRA, whose first gradients through this head Adam would raise out of float noise.
    "mask head": Case("frozen", head="mask2former", lr=1e-4),
    "weft released": Case("weft", FEW | RELEASED),
    "gates of two": Case("spectralmoe", {"k": 2, "depth": "random"}),
    "fishertune without a posterior": Case("fishertune", {"posterior": "none"}),
    "micro-batches": Case("lora", loop={"grad_accumulation": 2}),
    "self-training": Case(adapt=STARTED),
    "target weighed alike": Case(adapt=STARTED | {"weight": "pixel"}),
    "source-free": Case(adapt={"warmup_fraction": 0.0, "source": False}),
}
CUT = ("crossearth_gate", "self-training")
"""Cases that are stopped and resumed."""


class Stopped:
    """An objective that signals one process during the second step."""

    def __init__(self, objective: Any) -> None:
        self.objective, self.calls = objective, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, model: Segmenter, batch: Batch) -> dict[str, Tensor]:
        self.calls += "probe" not in batch.names
        if self.calls == 2 and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.objective(model, batch)  # type: ignore[no-any-return]


@contextmanager
def model_without_random_numbers() -> Iterator[None]:
    """Switch off a model's own random numbers, or draw the same for all images."""
    rand = torch.rand

    def same_for_all_images(*size: int, **how: Any) -> Tensor:
        if "generator" in how:  # of a tile or a selection
            return rand(*size, **how)
        return rand(*size[1:], generator=torch.Generator().manual_seed(0)).expand(size)

    with (
        patch.object(torch, "rand", same_for_all_images),
        patch.object(torch, "randn_like", torch.zeros_like),
        patch.object(_see, "drop_path", lambda kept, *how, **more: kept),
        patch("torch.nn.functional.dropout", lambda x, *how, **more: x),
    ):
        yield


def train(name: str, folder: Path, *, stop: bool = False, resume: bool = False) -> None:
    """Train a case in FOLDER/NAME."""
    torch.manual_seed(distributed.rank())  # no result may depend on it
    case = CASES[name]
    model = case.model()
    objective: Any = Supervised(Augment(STRONG, tile=32))
    open_batches: Any = Uneven
    if case.adapt is not None:
        settings = dict(case.adapt)
        open_batches = partial(Domains, sources=settings.pop("source", True))
        config = SelfTraining.Config(**settings)
        objective = SelfTraining(config, model, STRONG, tile=32, steps=STEPS)
    work = job(
        folder / name,
        model=model,
        objective=Stopped(objective) if stop else objective,
        open_batches=open_batches,
        optimization=Optimization(lr=case.lr, weight_decay=0.1, clip_grad_norm=1.0),
        **{"batch": BATCH, "steps": STEPS, "log_every": 1} | case.loop,
    )
    with model_without_random_numbers():
        if not stop:
            run(work, resume=resume)
            return
        with pytest.raises(Interrupted, match="after step 2"):
            run(work)


def act(folder: Path, kinds: Sequence[str]) -> None:
    """Train all cases, and stop or resume some.

    Args:
        folder: Where the cases' folders go.
        kinds: `train=one` trains all in FOLDER/one, `stop=cut` and `resume=cut` those of `CUT`.
    """
    for kind in kinds:
        what, _, below = kind.partition("=")
        for name in CASES if what == "train" else CUT:
            train(name, folder / below, stop=what == "stop", resume=what == "resume")


def command(root: Path) -> None:
    """Fit on ROOT/city, adapt to ROOT/town and evaluate there; write stdout to ROOT/saidN.json."""
    loop = ["--device", "cpu", "--batch", "4", "--tile", "32", "--set", "training.num_workers=0"]
    loop += ["--set", "training.log_every=1", "--set", "training.validate_every=2"]
    fitted = [
        "--method",
        "lora",
        "--src",
        root / "city",
        "--output",
        root / "fitted",
        "--steps",
        "3",
    ]
    fitted += ["--backbone", "vit_tiny", "--head", "linear"]
    adapted = ["--model", root / "fitted", "--tgt", root / "town" / "images", "--steps", "3"]
    adapted += ["--output", root / "adapted"]
    scored = ["--model", root / "adapted", "--on", root / "town", "--device", "cpu"]
    for number, words in enumerate(
        (["fit", *fitted, *loop], ["adapt", *adapted, *loop], ["evaluate", *scored])
    ):
        call = rsseg(*words, "--json")
        assert call.code == 0, call.err
        assert bool(call.out) == distributed.is_main()
        if distributed.is_main():
            (root / f"said{number}.json").write_text(call.out)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(rank: int, world: int, port: int) -> None:
    """Do what the arguments name as one of the processes."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    folder, *kinds = sys.argv[1:]
    with distributed.group("cpu"):
        if kinds == ["commands"]:
            command(Path(folder))
        else:
            act(Path(folder), kinds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    world, port, context = 2, free_port(), get_context("fork")  # the imports are made once
    children = [context.Process(target=work, args=(rank, world, port)) for rank in range(world)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    sys.exit(any(child.exitcode for child in children))
