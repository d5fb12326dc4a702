"""Several processes under `torchrun`, or just this one: the same calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from rsseg_cli.errors import Interrupted, RssegError

T = TypeVar("T")

PATIENCE = timedelta(hours=4)
"""How long a process waits for the others: the first one writes and reviews on its own."""
BUCKET = 2**24
"""Numbers that one message of gradients holds, or a single larger tensor."""


def active() -> bool:
    """Say whether a process group is up."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Give this process' number."""
    return distributed.get_rank() if active() else 0


def world_size() -> int:
    """Give the number of processes."""
    return distributed.get_world_size() if active() else 1


def is_main() -> bool:
    """Say whether this is the one process that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Give this process' number on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if active() else 0


@contextmanager
def group(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Join the processes that `torchrun` has started, or work alone.

    Each gets a GPU of its own; what lies on the CPU is exchanged by gloo. Inside a group this
    does nothing.

    Args:
        device: auto, cpu, cuda or cuda:N.
        environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises:
        RssegError: There are fewer GPUs than processes, or the others cannot be reached or
            have gone.
    """
    if active() or int(environment.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if gpu:
        _take_gpu(device, environment)
    if not distributed.is_available():
        raise RssegError("this PyTorch cannot work with several processes", fix="another build")
    with _reaching_others("the other processes cannot be reached"):
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        with _reaching_others("another process has gone"):
            yield
            barrier()
    except Interrupted as stop:  # all were: one says so
        if is_main():
            raise
        raise SystemExit(stop.exit_code) from stop
    finally:
        distributed.destroy_process_group()


def _take_gpu(device: str, environment: Mapping[str, str]) -> None:
    """Make this process' GPU the current one."""
    there, number = torch.cuda.device_count(), int(environment.get("LOCAL_RANK", "0"))
    if ":" in device:
        raise RssegError(
            f"{device} cannot be the device of all processes",
            where="--device",
            fix="--device cuda, and CUDA_VISIBLE_DEVICES to choose GPUs",
        )
    if number >= there:
        asked = environment.get("LOCAL_WORLD_SIZE", str(number + 1))
        raise RssegError(
            f"{asked} processes want a GPU each, there are {there}",
            where="--device",
            fix=f"torchrun --nproc-per-node {there}, or --device cpu" if there else "--device cpu",
        )
    torch.cuda.set_device(number)


@contextmanager
def _reaching_others(what: str) -> Iterator[None]:
    """Turn what the backends say of lost processes into an error for users."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        if active() and not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise RssegError(
            f"{what} ({said})",
            where=f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}",
            fix="the first error above tells why; --resume goes on from the last state",
        ) from error


def numbers() -> Iterator[int]:
    """Number what falls to this process of things that are dealt in turn."""
    return count(rank(), world_size())


def average(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, in place."""
    if active():
        distributed.all_reduce(tensor)
        tensor /= world_size()
    return tensor


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if active():
        distributed.all_reduce(tensor)
    return tensor


def reduce_min(tensor: Tensor) -> Tensor:
    """Take the smallest of all processes, element by element, in place."""
    if active():
        distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
    return tensor


def any_rank(wish: bool) -> bool:
    """Say whether any process has this wish; no GPU is waited for."""
    if not active():
        return wish
    return not bool(reduce_min(torch.tensor(int(not wish))))


def barrier() -> None:
    """Wait until all processes have come here; no GPU is waited for."""
    any_rank(False)


def gather(found: T) -> list[T]:
    """Collect what every process has found, in all of them, in the order of their numbers."""
    if not active():
        return [found]
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, found)
    return parts


def all_gather_cat(tensor: Tensor) -> Tensor:
    """Put tensors of one shape from all processes one after the other, along the first axis."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average the gradients of tuned tensors over all processes, in a few flat messages.

    A tensor has a gradient in all processes or in none.
    """
    if not active():
        return
    for gradients in _buckets(p.grad for p in parameters if p.grad is not None):
        flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors in order, as many as one message holds."""
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        if bucket and held + tensor.numel() > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append(tensor)
        held += tensor.numel()
    if bucket:
        yield bucket
