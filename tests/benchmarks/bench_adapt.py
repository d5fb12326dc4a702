"""Time and memory of a step of adapt beside one of fit, of the same method and batch.

python tests/benchmarks/bench_adapt.py --method lora --backbone vit_tiny --tile 128 --batch 4

Prints both ratios with what they must not exceed: 2.3 for time, 1.5 for memory (of a GPU; on a CPU
the peak of one process measures neither). Weights and tiles are random.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rgb import BANDS

from rsseg_cli.commands.model import build
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.data.tiles.augment import Augment
from rsseg_cli.data.tiles.domain_batches import DomainBatch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.objectives import Objective, Supervised
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.self_training import SelfTraining

MOST_TIME, MOST_MEMORY = 2.3, 1.5
CLASSES = 6


def tiles(batch: int, side: int, device: torch.device) -> DomainBatch:
    """Half labelled, half not."""
    image = torch.randint(255, (batch, 3, side, side), dtype=torch.uint8)
    label = torch.randint(CLASSES, (batch, side, side), dtype=torch.uint8)
    label[batch // 2 :] = 0
    seeds = tuple(range(batch))
    return DomainBatch(image.to(device), label.to(device), seeds=seeds, sources=batch // 2)


def stepper(
    config: RunConfig, device: torch.device, batch: DomainBatch, *, adapt: bool
) -> Callable[[], None]:
    """Make a model and what takes one of its steps."""
    model: Segmenter = build(config, BANDS, CLASSES).to(device).train()
    tile, augment = config.data.tile, config.augment
    settings = config.adapt.model_copy(update={"warmup_fraction": 0.0})
    objective: Objective = Supervised(Augment(augment, tile=tile))
    if adapt:
        objective = SelfTraining(settings, model, augment, tile=tile, steps=100)
    adam = optimizer.build(config.optimizer, model)
    precision = Precision.choose(config.training.precision, device)

    def step() -> None:
        with precision.autocast():
            terms = objective(model, batch)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        adam.step()
        adam.zero_grad(set_to_none=True)
        objective.after_step(model, 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="lora")
    parser.add_argument("--backbone", default="vit_tiny")
    parser.add_argument("--head", default="linear")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = resolve(
        method=options.method,
        file=None,
        backbone=options.backbone,
        head=options.head,
        pretrained=False,
        changes=[f"data.tile={options.tile}"],
    )
    batch = tiles(options.batch, options.tile, device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    memory: dict[bool, float] = {}
    for adapt in (False, True):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = stepper(config, device, batch, adapt=adapt)
        for index in range(options.rounds + 2):
            started = time.process_time() if device.type == "cpu" else time.perf_counter()
            step()
            ended = time.process_time() if device.type == "cpu" else time.perf_counter()
            if index > 1:
                seconds[adapt].append(ended - started)
        if device.type == "cuda":
            memory[adapt] = torch.cuda.max_memory_allocated(device) / 2**20
        del step
    fit, other = (statistics.median(seconds[adapt]) for adapt in (False, True))
    print(f"fit {1000 * fit:.1f} ms, adapt {1000 * other:.1f} ms a step")
    print(f"time   {other / fit:.2f} (at most {MOST_TIME})")
    if memory:
        print(f"memory {memory[True] / memory[False]:.2f} (at most {MOST_MEMORY})")


if __name__ == "__main__":
    main()
