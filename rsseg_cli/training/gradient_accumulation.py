"""Gradient accumulation over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from rsseg_cli.data.tiles.tile_stream import Batch
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.training.objectives import Objective


def accumulate_gradients(
    model: Segmenter,
    objective: Objective,
    batches: Iterator[Batch],
    *,
    seeds: Sequence[int],
    autocast: Callable[[], AbstractContextManager[None]],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> dict[str, Tensor]:
    """Add the gradients of the mean loss over several micro-batches to `.grad`.

    Args:
        model: On its device.
        objective: Computes the loss terms.
        batches: Micro-batches of one size, on the device.
        seeds: Seeds of torch's random numbers, one per micro-batch.
        autocast: Opens the autocast context of the forward pass.
        scale: Multiplies the loss before backward.

    Returns:
        The mean of each term, on the device.
    """
    means: dict[str, Tensor] = {}
    for seed in seeds:
        batch = next(batches)
        torch.manual_seed(seed)
        with autocast():
            terms = objective(model, batch)
        loss = torch.stack(list(terms.values())).sum() / len(seeds)
        torch.autograd.backward(scale(loss))
        for name, term in terms.items():
            value = term.detach().float() / len(seeds)
            means[name] = means[name] + value if name in means else value
    return means
