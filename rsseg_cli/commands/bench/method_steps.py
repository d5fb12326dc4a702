"""Cost of a training step of each method, measured in separate processes.

A step is forward, backward and update on tensors on the device; estimates and selections of a
method around its steps are not included. Peak memory is that of the whole process. On a CPU, the
seconds of a step are CPU seconds over the number of threads.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsseg_cli.commands.model import build, pick_device
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.contract import Bands
from rsseg_cli.errors import RssegError
from rsseg_cli.memory import peak_memory_mb
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.micro_batch import explaining_out_of_memory
from rsseg_cli.training.precision import Precision

CLASSES = 6
"""Classes of the benchmark's models."""
BANDS = Bands(
    names=("red", "green", "blue"), wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(110.0,) * 3, std=(50.0,) * 3, dtype="uint8",
)  # fmt: skip
BASES = ("frozen", "full")
"""Methods that the others are compared with."""


@dataclass(frozen=True)
class StepSize:
    """Backbone, tile and batch of a step."""

    backbone: str
    tile: int
    batch: int

    @classmethod
    def usual(cls, device: torch.device) -> StepSize:
        """Return ViT-L at 512 px on an accelerator, ViT-S at 256 px on a CPU."""
        if device.type == "cuda":
            return cls("dinov3_large", 512, 8)
        return cls("dinov3_small", 256, 2)


def measure_apart(method: str, size: StepSize, steps: int, device: str) -> dict[str, Any]:
    """Measure a method in its own process; an error of the method becomes `refused`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            row = pool.submit(measure, method, size, steps, device).result()
        except RssegError as error:
            if method in BASES:  # the others are compared with it
                raise
            return {"method": method, "refused": error.what}
    return {"method": method} | row


@explaining_out_of_memory()
def measure(method: str, size: StepSize, steps: int, device: str) -> dict[str, Any]:
    """Measure steps of one method in this process: time, memory, operations."""
    where = pick_device(device)
    config = _config(method, size)
    precision = Precision.choose(config.training.precision, where)
    model = build(config, BANDS, CLASSES).to(where).train()
    adam = optimizer.build(config.optimizer, model)
    generator = torch.Generator().manual_seed(0)
    shape = (size.batch, size.tile, size.tile)
    image = torch.randn(size.batch, len(BANDS), *shape[1:], generator=generator).to(where)
    label = torch.randint(0, CLASSES, shape, generator=generator).to(where)
    step = make_step(model, adam, image, label, precision)
    step()  # allocates the moments, after the peak of its activations
    step()
    memory = peak_memory_mb(where)
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = _fastest(step, where, steps)
    flops = float(counter.get_total_flops())
    return {
        "trained": sum(p.numel() for _, p in model.trainable_parameters()),
        "step_s": seconds,
        "images_per_s": size.batch / seconds,
        "peak_memory_mb": memory,
        "tflop": flops / 1e12,
        "utilisation": flops / seconds / _peak_flops(where, precision.dtype),
    }


def _config(method: str, size: StepSize) -> RunConfig:
    """Return a preset's settings with a linear head and without files of weights."""
    config = resolve(
        method=method, file=None, backbone=size.backbone, head="linear", pretrained=False,
        changes=[f"data.tile={size.tile}"],
    )  # fmt: skip
    return replace(
        config, method=replace(config.method, config=config.method.config.without_files())
    )


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of a large matrix product: the peak of this device."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    torch.mm(matrix, matrix)
    return 2 * float(side) ** 3 / _fastest(lambda: torch.mm(matrix, matrix), device, 8)


def beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with step time and memory relative to `frozen` and `full`."""
    known = {row["method"]: row for row in rows}
    return [
        row
        | {
            f"{short}_of_{base}": row[key] / known[base][key]
            for short, key in (("step", "step_s"), ("memory", "peak_memory_mb"))
            for base in BASES
            if key in row
        }
        for row in rows
    ]


def make_step(
    model: Segmenter,
    adam: torch.optim.Optimizer,
    image: Tensor,
    label: Tensor,
    precision: Precision,
) -> Callable[[], None]:
    """Return a function that takes a step, always on the same batch."""
    scaler = torch.amp.GradScaler(image.device.type, enabled=precision.scaled)

    def step() -> None:
        with precision.autocast():
            loss = torch.stack(list(model(image, label).values())).sum()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(adam)
        scaler.update()
        adam.zero_grad(set_to_none=True)

    return step


def seconds_of(work: Callable[[], object], device: torch.device) -> Any:
    """Measure the seconds (wall, CPU) of some work."""
    _wait(device)
    started = clocks()
    work()
    _wait(device)
    return clocks() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Measure the least seconds: wall time of a GPU, else CPU time per thread."""
    column = 0 if device.type == "cuda" else 1
    return min(float(seconds_of(work, device)[column]) for _ in range(times)) / (
        1 if device.type == "cuda" else torch.get_num_threads()
    )


def clocks() -> Any:
    """Return wall and CPU seconds; the latter hardly depend on other load."""
    return np.array([time.perf_counter(), time.process_time()])
