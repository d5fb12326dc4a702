"""Costs of CrossEarth-Gate: ratios within one run.

    python tests/benchmarks/bench_gate.py [--backbone vit_small] [--tile 256] [--device cuda]

Every model takes plain updates (forward, backward, AdamW) on the same tiles. The models take turns
and their fastest rounds are compared; on a CPU its own seconds count, not the wall's, so that a
busy machine disturbs little. A selection is timed with one sample and counted as 16 of those. Small
tiles make single samples dear: the share of a selection falls as tiles grow.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor

from rsseg_cli.config import family
from rsseg_cli.contract import Backbone, Bands, Head, Method
from rsseg_cli.find import find
from rsseg_cli.methods.crossearth_gate import CrossEarthGate
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.precision import Precision

EVERY, SAMPLES, CLASSES = 100, 16, 6
BANDS = Bands(
    names=("red", "green", "blue"),
    wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    dtype="float32",
)


@dataclass
class Trainer:
    """One model under test."""

    model: Segmenter
    precision: Precision
    image: Tensor
    label: Tensor

    def __post_init__(self) -> None:
        self.adam = optimizer.build(optimizer.Optimization(), self.model)
        self.model.train()

    def backward(self, count: int) -> None:
        """Differentiate the loss of the first `count` tiles."""
        with self.precision.autocast():
            terms = self.model(self.image[:count], self.label[:count])
        torch.autograd.backward(torch.stack(list(terms.values())).sum())

    def step(self) -> None:
        """Run one update."""
        self.backward(len(self.image))
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def kept_mb(self) -> float:
        """Measure what a forward pass keeps for backward besides the weights.

        On CUDA this is the peak of a whole update.
        """
        if self.image.is_cuda:
            self.step()
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated() / 2**20
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = self.model(self.image, self.label)
            del terms
        return sum(kept.values()) / 2**20


class Opened:
    """The step of a selection: probes on single tiles."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.index, self.total = trainer, 0, 1

    def backward(self) -> float:
        """Leave the gradients of one tile."""
        self.trainer.model.zero_grad(set_to_none=True)
        self.trainer.backward(1)
        return 0.0

    def probes(self, count: int, *, samples: int = 1) -> Iterator[Opened]:
        """Draw the same probe again and again."""
        for _ in range(count):
            yield self
        self.trainer.model.zero_grad(set_to_none=True)

    def average(self, tensor: Tensor) -> Tensor:
        """Average over this one process."""
        return tensor


def build(args: argparse.Namespace, method: str, **settings: Any) -> Trainer:
    """Make a model with a method."""
    torch.manual_seed(0)
    kind = find("backbones", family(args.backbone), Backbone)
    backbone = kind(kind.Config(name=args.backbone, pretrained=False), BANDS)  # type: ignore[call-arg]
    part = find("methods", method, Method)
    made = part(part.Config.model_validate(settings), backbone)
    scorer = find("heads", args.head, Head)
    head = scorer(
        scorer.Config(), dim=backbone.dim, maps=made.num_feature_maps(backbone), classes=CLASSES
    )
    model = Segmenter(backbone, made, head, BANDS).to(args.device)
    image = torch.randn(args.batch, 3, args.tile, args.tile)
    label = (image.mean(1) * 20).long().remainder(CLASSES)
    precision = Precision.choose("auto", torch.device(args.device))
    return Trainer(model, precision, image.to(args.device), label.to(args.device))


@contextmanager
def timed(into: list[float], device: str) -> Iterator[None]:
    """Append the seconds that the block takes."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
    into.append(clock() - started)


def gate_of(trainer: Trainer) -> CrossEarthGate:
    """Return the trainer's method."""
    method = trainer.model.method
    assert isinstance(method, CrossEarthGate)
    return method


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--head", default="linear")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    trainers = {
        "lora": build(args, "lora"),
        "all on": build(args, "crossearth_gate", selection="all"),
        "gate": build(args, "crossearth_gate", samples=1),
        "gate, upper half": build(args, "crossearth_gate", selection="static"),
    }
    upper = gate_of(trainers["gate, upper half"])
    depth = upper.active.shape[1]
    upper.active[:, : depth // 2] = False
    for name, trainer in trainers.items():
        if name == "gate":
            trainer.model.method.before_step(Opened(trainer))
        elif name != "lora":
            gate_of(trainer)._settle()
        trainer.step()
    gate = gate_of(trainers["gate"])
    lowest = int(gate.active.any(0).nonzero()[0])

    seconds: dict[str, list[float]] = {name: [] for name in (*trainers, "selection")}
    for _ in range(args.rounds):
        for name, trainer in trainers.items():
            with timed(seconds[name], args.device):
                trainer.step()
        with timed(seconds["selection"], args.device):
            gate._select(Opened(trainers["gate"]))
        gate._settle()
    step = {name: min(values) for name, values in seconds.items()}
    memory = {name: trainer.kept_mb() for name, trainer in trainers.items()}

    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    active, modules = int(gate.active.sum()), gate.active.numel()
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"{name}, {torch.get_num_threads()} threads, {versions}")
    print(f"{args.backbone}, {args.head} head, {args.batch} tiles of {args.tile} px")
    print(f"{active} of {modules} modules active, the lowest in block {lowest}")
    for model in trainers:
        print(f"  {model:18} {1000 * step[model]:8.1f} ms/step {memory[model]:9.1f} MB")
    selection = SAMPLES * step["selection"]
    share = selection / (EVERY * step["gate"] + selection)
    print(
        f"selection, {SAMPLES} samples every {EVERY} steps: {share:.1%} of the time (at most 5 %)"
    )
    print(f"step: gate / all on          {step['gate'] / step['all on']:.2f} (at most 1)")
    print(f"step: upper half / all on    {step['gate, upper half'] / step['all on']:.2f}")
    print(f"step: gate / lora            {step['gate'] / step['lora']:.2f} (at most 1.35)")
    print(f"memory: gate / all on        {memory['gate'] / memory['all on']:.2f} (below 1)")
    print(f"memory: upper half / all on  {memory['gate, upper half'] / memory['all on']:.2f}")


if __name__ == "__main__":
    main()
