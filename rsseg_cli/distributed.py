"""Several processes under `torchrun`, or just this one: the same calls."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def active() -> bool:
    """Say whether a process group is up."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Give this process' number."""
    return distributed.get_rank() if active() else 0


def world() -> int:
    """Give the number of processes."""
    return distributed.get_world_size() if active() else 1


def average(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, in place."""
    if active():
        distributed.all_reduce(tensor)
        tensor /= world()
    return tensor


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if active():
        distributed.all_reduce(tensor)
    return tensor


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Average the gradients of tuned tensors over all processes, in one flat message."""
    if not active():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, torch.split(flat, sizes), strict=True):
        gradient.copy_(part.view_as(gradient))
