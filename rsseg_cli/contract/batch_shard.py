"""The current shard of a training batch, and reductions over all shards.

Under several processes each holds an equal shard of every batch. For the author of a method: pass
every batch statistic and every count that a loss is divided by through `mean` (plain counts of
images through `global_count`), and draw random numbers as usual (`nn.Dropout`, `torch.rand`), since
the loop seeds torch's generators by seed, step, process and micro-batch.

Micro-batches follow each other in one process: each has its own statistics and denominators, and
their losses are averaged. With one process these functions return what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rsseg_cli import distributed

_sharded = False
# Not a context variable: recomputed blocks run in the threads of backward.


@contextmanager
def sharded() -> Iterator[None]:
    """Treat the images in this block as this process' shard of a batch."""
    with _set(distributed.world_size() > 1):
        yield


@contextmanager
def independent() -> Iterator[None]:
    """Disable the averages over processes in this block: its images belong to no larger batch."""
    with _set(False):
        yield


@contextmanager
def _set(value: bool) -> Iterator[None]:
    global _sharded
    before, _sharded = _sharded, value
    try:
        yield
    finally:
        _sharded = before


def is_sharded() -> bool:
    """Return True if other processes hold other images of the same batch."""
    return _sharded


def global_count(count: int) -> int:
    """Return the sum over processes of a count that is the same in each of them."""
    return count * distributed.world_size() if _sharded else count


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes that share a batch; it is differentiable."""
    if not _sharded:
        return tensor
    averaged: Tensor = _mean(tensor)
    return averaged


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own lacks types
def _mean(tensor: Tensor) -> Tensor:
    averaged: Tensor = _Mean.apply(tensor)
    return averaged


class _Mean(torch.autograd.Function):
    """The mean over processes; so is its gradient, as the loss is the mean of their losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.average(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.average(gradients[0].clone(memory_format=torch.contiguous_format))
