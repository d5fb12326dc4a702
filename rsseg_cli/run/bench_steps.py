"""What a step of each method costs, measured in processes of their own.

A step is forward, backward and update on tensors that are on the device already; estimates and
selections around steps are not in it. A peak of memory is that of the whole process. Where the
processor is the device, seconds of a step are processor seconds over the number of threads.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsseg_cli.bands import Bands
from rsseg_cli.config import RunConfig, resolve
from rsseg_cli.errors import RssegError
from rsseg_cli.run.model import build, pick_device
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training import optimizer
from rsseg_cli.training.memory import peak_memory_mb
from rsseg_cli.training.precision import Precision
from rsseg_cli.training.room import explained

CLASSES = 6
"""Classes of what is made for the bench."""
BANDS = Bands(
    names=("red", "green", "blue"), wavelengths_nm=(660.0, 560.0, 485.0),
    mean=(110.0,) * 3, std=(50.0,) * 3, dtype="uint8",
)  # fmt: skip
BASES = ("frozen", "full")
"""Methods that the others stand beside."""


@dataclass(frozen=True)
class Size:
    """How large a step is."""

    backbone: str
    tile: int
    batch: int

    @classmethod
    def usual(cls, device: torch.device) -> Size:
        """ViT-L at 512 px on an accelerator; a CPU would take too long, it gets ViT-S."""
        if device.type == "cuda":
            return cls("dinov3_large", 512, 8)
        return cls("dinov3_small", 256, 2)


def measure_apart(method: str, size: Size, steps: int, device: str) -> dict[str, Any]:
    """Measure a method in a process of its own; say why where it refuses or memory runs out."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            found = pool.submit(measure, method, size, steps, device).result()
        except RssegError as error:
            if method in BASES:  # nothing to stand beside
                raise
            return {"method": method, "refused": error.what}
    return {"method": method} | found


@explained()
def measure(method: str, size: Size, steps: int, device: str) -> dict[str, Any]:
    """Measure steps of one method in this process: time, memory, work."""
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
    step()  # makes the moments, behind the peak of its activations
    step()
    memory = _peak_mb(where)
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


def _config(method: str, size: Size) -> RunConfig:
    """Return a preset's settings with a linear head and without files of weights."""
    config = resolve(
        method=method, file=None, backbone=size.backbone, head="linear", pretrained=False,
        changes=[f"data.tile={size.tile}"],
    )  # fmt: skip
    return replace(
        config, method=replace(config.method, config=config.method.config.without_files())
    )


def _peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product: the most that this device gives."""
    side = 8192 if device.type == "cuda" else 1024
    one = torch.randn(side, side, device=device, dtype=dtype)
    torch.mm(one, one)
    return 2 * float(side) ** 3 / _fastest(lambda: torch.mm(one, one), device, 8)


def _peak_mb(device: torch.device) -> float:
    """Peak memory; of this very process, which `getrusage` mixes up with the one that made it."""
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.is_file():
        return peak_memory_mb(device)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 2**10


def beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add step time and memory relative to those of `frozen` and `full`."""
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
    """Make a function that takes a step on one batch, again and again."""
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
    """Seconds (wall, processor) that some work takes."""
    _wait(device)
    started = clocks()
    work()
    _wait(device)
    return clocks() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _fastest(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Least seconds: of the device, or of the processor where that is the device."""
    column = 0 if device.type == "cuda" else 1
    return min(float(seconds_of(work, device)[column]) for _ in range(times)) / (
        1 if device.type == "cuda" else torch.get_num_threads()
    )


def clocks() -> Any:
    """Give wall and processor seconds; the latter hardly mind what else the machine does."""
    return np.array([time.perf_counter(), time.process_time()])
