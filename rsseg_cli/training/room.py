"""How many images pass the model at once: fewer, once memory has run out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from rsseg_cli.data.tiles import Batch
from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.number_format import counted

T = TypeVar("T")

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""How CUDA, its libraries and the CPU's allocator say that memory is short."""
SMALL = 2**16
"""Elements of the largest buffer that a forward pass may change."""


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory, of the device or the host, is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


class Room:
    """Cuts batches into equal pieces that fit into memory, and finds out once what fits.

    Args:
        images: Most images of a piece; None as long as every batch has fitted.
        retry: False where nothing may be done twice: other processes wait for this one.
    """

    def __init__(self, images: int | None = None, *, retry: bool = True) -> None:
        self.images, self.retry = images, retry

    def cut(self, batch: Batch) -> list[Batch]:
        """Cut a batch into the fewest equal pieces that fit, each with its share of every group."""
        counts = _divisors(batch.common)
        fitting = (n for n in counts if self.images is None or batch.size <= n * self.images)
        return batch.cut(next(fitting, counts[-1]))

    def run(self, work: Callable[[], T], undo: Callable[[], None], batch: Callable[[], Batch]) -> T:
        """Do some work; where memory runs out for the first time, undo it and do it in pieces.

        Args:
            work: Passes images through the model as `cut` gives them.
            undo: Puts back what half of the work has changed.
            batch: Gives the batch that is to be cut smaller.

        Raises:
            RssegError: Memory ran out again, or the batch cannot be cut.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._shrink(batch(), error)
            # Not inside the clause: there the error still holds all tensors of the failed work.
            undo()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _shrink(self, batch: Batch, error: BaseException) -> None:
        """Halve the pieces, or cut into thirds and so on where halves are not equal."""
        now = self.cut(batch)[0]
        smaller = _divisors(now.common)[1:]
        if not self.retry or self.images is not None or not smaller:
            raise too_small(error, retried=self.images is not None) from error
        self.images = now.size // smaller[0]
        warnings.warn(
            f"memory ran out: from now on {counted(self.images, 'image')} at a time, not "
            f"{now.size}; an update still learns from as many",
            RssegWarning,
            stacklevel=2,
        )


@contextmanager
def explained() -> Iterator[None]:
    """Say what to try where memory runs out and no retry can help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise too_small(error) from error
        raise


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def too_small(error: BaseException, *, retried: bool = False) -> RssegError:
    """Build the error for a model that does not fit."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return RssegError(
        "memory ran out" + (", with smaller passes, too: " if retried else ": ") + said,
        where="training.batch, data.tile",
        fix="a larger training.accumulate, a smaller --batch or --tile, "
        "--set training.recompute=true, --precision bf16, or a smaller backbone; "
        "--resume goes on from the last state, if its settings stay",
    )


class Buffers:
    """Copies of the buffers that forward passes change: statistics, counts of what was used.

    Large buffers are choices, which only the hooks around a step change.
    """

    def __init__(self, *parts: nn.Module) -> None:
        self._parts = parts
        self._kept: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        self.keep()

    def keep(self) -> None:
        """Take copies anew; versions of tensors do not tell, batch norm leaves them alone."""
        self._kept = [
            (owner, name, buffer, buffer.clone())
            for part in self._parts
            for owner in part.modules()
            for name, buffer in owner.named_buffers(recurse=False)
            if buffer.numel() <= SMALL
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the copies back."""
        for owner, name, buffer, copy in self._kept:
            setattr(owner, name, buffer.copy_(copy))
