"""Choice of the largest micro-batch that fits into memory.

Its size is chosen once, before the first step, by updates on real tiles that are reverted. The
gradients of several micro-batches are accumulated for one update (see `gradient_accumulation`).
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rsseg_cli import distributed
from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.errors import RssegError
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.objectives import Objective
from rsseg_cli.training.precision import Precision

MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""Messages of out-of-memory errors of CUDA, its libraries and the CPU's allocator."""
RESERVE = 0.02
"""Fraction of a GPU's memory that the probe leaves free for larger windows and fragmentation."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of the device or the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


def memory_is_limited(device: torch.device) -> bool:
    """Return True if an allocation on the device can fail with an error.

    On a CPU this requires a limit of the address space (`ulimit -v`). Without one the system swaps
    or kills the process, and a probe would only cost a step.
    """
    if device.type != "cpu":
        return True
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def divisor(number: int, largest: int, multiple: int = 1) -> int | None:
    """Return the largest divisor of a number up to `largest` that is a multiple of `multiple`."""
    sizes = range(min(largest, number), 0, -1)
    return next((n for n in sizes if number % n == 0 and n % multiple == 0), None)


def find_micro_batch(largest: int, multiple: int, probe: Callable[[int], None]) -> int:
    """Return the largest micro-batch that fits on every process; each try at least halves it.

    Args:
        largest: Configured micro-batch per process; results divide it.
        multiple: Results below `largest` are multiples of it.
        probe: Runs and reverts an update with a number of tiles, without communication.

    Raises:
        RssegError: Not even the smallest micro-batch fits.
    """
    size = largest
    while True:
        failure = _failure(probe, size)
        if not distributed.any_rank(failure is not None):
            return size
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        torch.compiler.reset()  # else the next size would be compiled with dynamic shapes
        smaller = divisor(largest, size // 2, multiple)
        if smaller is None:
            raise out_of_memory(failure or "on another process")
        size = smaller


def _failure(probe: Callable[[int], None], size: int) -> str | None:
    """Return the message of an out-of-memory error, None if the size fits.

    The error itself would keep all tensors of the probe alive.
    """
    try:
        probe(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _first_line(error)
    return None


def probe_update(
    model: Segmenter,
    objective: Objective,
    batch: Batch,
    optimizer: Optimizer,
    precision: Precision,
) -> None:
    """Run one update with the highest demand of memory, and revert it.

    All trainable parameters get a gradient and moments, even if the method trains only some of
    them at a time. Gradients and learning rates of 0 keep the parameters unchanged. Buffers, random
    numbers and the optimizer's state are restored.

    Args:
        model: On its device.
        objective: Its `worst_case` is run.
        batch: On the device.
        optimizer: Without state; its learning rates are set to 0.
        precision: Number format of the forward pass.
    """
    device = precision.device
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []), _restoring_buffers(model):
        try:
            reserve = _reserve(device)
            with precision.autocast():
                terms = objective.worst_case(model.train(), batch)
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            for group in optimizer.param_groups:
                group["lr"] = 0.0
                gradients = [p.grad for p in group["params"] if p.grad is not None]
                for gradient in gradients:
                    gradient.zero_()
            optimizer.step()
            del reserve
        finally:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)


def _reserve(device: torch.device) -> Tensor | None:
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.empty(int(RESERVE * total), dtype=torch.uint8, device=device)


@contextmanager
def _restoring_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers that forward passes change: running statistics and counters."""
    before = [
        (module, name, buffer, buffer.to("cpu", copy=True))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, copy in before:
                setattr(module, name, buffer.copy_(copy))


@contextmanager
def explaining_out_of_memory() -> Iterator[None]:
    """Raise an RssegError that names the settings for an out-of-memory error in this block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(_first_line(error)) from error
        raise


def out_of_memory(reason: str) -> RssegError:
    """Build the error for a step that does not fit into memory."""
    return RssegError(
        f"out of memory: {reason}",
        where="training.batch, data.tile",
        fix="a larger training.grad_accumulation (also with --resume), a smaller --batch or "
        "--tile, --set training.activation_checkpointing=true, --precision bf16, a smaller "
        "backbone, or a smaller method.samples or method.batch if the method has one",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
