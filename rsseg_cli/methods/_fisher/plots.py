"""Tables and figures of a sparse selection: a row per role, a column per block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rsseg_cli.methods._fisher.candidates import CandidateSlice
from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def table(rows: Iterable[tuple[CandidateSlice, int, float]]) -> dict[str, Json]:
    """List a value per block for each role, to four digits.

    Args:
        rows: Slices in the order of blocks, each with its size and value. Several matrices of a
            role in a block (gated MLPs) are averaged over their elements.
    """
    sums: dict[str, dict[int, tuple[float, int]]] = {}
    for piece, size, value in rows:
        blocks = sums.setdefault(piece.role, {})
        total, count = blocks.get(piece.block, (0.0, 0))
        blocks[piece.block] = (total + value * size, count + size)
    return {
        role: [float(f"{total / count:.4g}") for total, count in blocks.values()]
        for role, blocks in sums.items()
    }


def draw(records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
    """Draw the last selection, and the tuned fraction at the end and over time."""
    entries: list[Any] = [(record.get("step"), record.get("method")) for record in records]
    entries = [(s, e) for s, e in entries if isinstance(e, dict) and "tuned_share" in e]
    latest: dict[str, Any] = {}
    for _, entry in entries:
        latest |= entry
    if "sensitivity" in latest and "tuned_by_part" in latest:
        steps, tuned = zip(*((step, 100 * e["tuned_share"]) for step, e in entries), strict=True)
        yield "sensitivity", _figure(latest["sensitivity"], latest["tuned_by_part"], steps, tuned)


def _figure(
    sensitivity: dict[str, list[float]],
    by_role: dict[str, list[float]],
    steps: Sequence[int],
    percent: Sequence[float],
) -> Figure:
    from rsseg_cli.report.charts import new_figure

    figure, axes = new_figure(3, size=(8.0, 8.0), height_ratios=(1.0, 1.0, 0.8))
    _heatmap(axes[0], sensitivity, "mean score, over the mean of all")
    tuned = {role: [100 * fraction for fraction in row] for role, row in by_role.items()}
    _heatmap(axes[1], tuned, "tuned, percent of the elements")
    axes[2].step(steps, percent, where="post")
    axes[2].set(xlabel="step", ylabel="tuned, percent\nof the backbone", ylim=(0, None))
    return figure


def _heatmap(axis: Axes, values: dict[str, list[float]], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = np.array(list(values.values()))
    image = axis.imshow(numbers, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axis.set_yticks(range(len(values)), [role.upper() for role in values])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("block")
    axis.figure.colorbar(image, ax=axis, label=label)
