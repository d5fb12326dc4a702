"""The current shard of a training batch, and reductions over all shards.

Under several processes each holds an equal shard of every batch. A method or head passes every
batch statistic and every denominator of a loss through `mean`, and counts of images through
`global_count`. With one process these functions return their argument.

Each micro-batch of a process has its own statistics and denominators; their losses are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from rsseg_cli import distributed

# Not a context variable: recomputed blocks run in the threads of backward.
_sharded = False


def sharded() -> AbstractContextManager[None]:
    """Treat the images in this block as the shard of a batch that this process holds."""
    return _set(distributed.world_size() > 1)


def independent() -> AbstractContextManager[None]:
    """Disable averaging over processes in this block: its images are a batch of their own."""
    return _set(False)


@contextmanager
def _set(value: bool) -> Iterator[None]:
    global _sharded
    before, _sharded = _sharded, value
    try:
        yield
    finally:
        _sharded = before


def is_sharded() -> bool:
    """Return whether other processes hold other images of the same batch."""
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
    """Mean over processes. Its gradient is averaged too, as the loss is the mean of all losses."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.reduce_mean(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.reduce_mean(gradients[0].clone(memory_format=torch.contiguous_format))
