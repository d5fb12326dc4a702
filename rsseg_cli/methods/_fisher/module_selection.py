"""Scores of CrossEarth-Gate's modules, their selection and its figure.

Tables are (T, L): a row per module type, a column per block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Normalise = Literal["type", "layer", "none"]


def squared_gradients(modules: Sequence[Sequence[Sequence[Parameter]]]) -> Tensor:
    """Sum the squared gradients of each module (T, L), float32; a missing gradient is 0."""
    zero = modules[0][0][0].new_zeros((), dtype=torch.float32)
    sums = [
        sum((p.grad.float().square().sum() for p in parameters if p.grad is not None), zero)
        for row in modules
        for parameters in row
    ]
    return torch.stack(sums).view(len(modules), -1)


def normalise(fisher: Tensor, how: Normalise) -> Tensor:
    """Divide Fisher information (T, L) by its sum over blocks (`type`) or over types (`layer`).

    If the sum is 0, so are the scores.
    """
    if how == "none":
        return fisher
    total = fisher.sum(1 if how == "type" else 0, keepdim=True)
    return torch.where(total > 0, fisher / total, torch.zeros_like(fisher))


def top(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` highest scores (T, L); the lower block, then type, wins among equals."""
    order = scores.T.flatten().argsort(descending=True, stable=True)
    selected = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    selected[order[:count]] = True
    return selected.view(scores.T.shape).T.contiguous()


def draw_pathways(selections: Sequence[dict[str, Any]]) -> Figure:
    """Draw the active blocks of each type after each selection, coloured by score."""
    from matplotlib.ticker import MaxNLocator

    from rsseg_cli.report.charts import new_figure

    names = list(selections[0]["scores"])
    steps = [int(selection["step"]) for selection in selections]
    scores = torch.tensor([[s["scores"][name] for name in names] for s in selections])  # (S, T, L)
    active = torch.zeros_like(scores, dtype=torch.bool)
    for column, selection in enumerate(selections):
        for row, name in enumerate(names):
            active[column, row, selection["active"][name]] = True
    active_scores = scores.masked_fill(~active, torch.nan)
    highest = float(scores[active].max())

    figure, axes = new_figure(len(names), size=(8.0, 1.0 + 2.2 * len(names)), sharex=True)
    for row, (name, axis) in enumerate(zip(names, axes, strict=True)):
        axis.set_facecolor("0.93")
        image = axis.imshow(
            active_scores[:, row].T.numpy(), origin="lower", aspect="auto", interpolation="nearest",
            cmap="viridis", vmin=0, vmax=highest or 1,
        )  # fmt: skip
        axis.set_ylabel(f"{name}\nblock")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    ticks = range(0, len(steps), 1 + len(steps) // 9)
    axes[-1].set_xticks(ticks, [f"{steps[tick]:,}" for tick in ticks])
    axes[-1].set_xlabel("step of the selection")
    figure.colorbar(image, ax=axes, label="score of the active modules")
    return figure
