"""Tables and pictures of what sparse methods found: a row per role, a column per block."""

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
        rows: Parts in the order of blocks, each with its size and value; where a role has
            several matrices in a block (gated MLPs), the mean over their elements counts.
    """
    sums: dict[str, dict[int, tuple[float, int]]] = {}
    for part, size, value in rows:
        blocks = sums.setdefault(part.role, {})
        total, count = blocks.get(part.block, (0.0, 0))
        blocks[part.block] = (total + value * size, count + size)
    return {
        role: [float(f"{total / count:.4g}") for total, count in blocks.values()]
        for role, blocks in sums.items()
    }


def draw(records: Sequence[dict[str, Json]]) -> Iterator[tuple[str, Figure]]:
    """Draw the last selection, and what was tuned at the end and over time."""
    steps: list[Any] = []
    shares: list[float] = []
    sensitivity: Any = None
    by_part: Any = None
    for record in records:
        line: Any = record.get("method")
        if not isinstance(line, dict) or "tuned_share" not in line:
            continue
        steps.append(record["step"])
        shares.append(line["tuned_share"])
        sensitivity = line.get("sensitivity", sensitivity)
        by_part = line.get("tuned_by_part", by_part)
    if sensitivity is not None and by_part is not None:
        yield "sensitivity", _picture(sensitivity, by_part, steps, shares)


def _picture(
    sensitivity: dict[str, list[float]],
    by_part: dict[str, list[float]],
    steps: Sequence[int],
    shares: Sequence[float],
) -> Figure:
    from rsseg_cli.report.charts import new_figure

    figure, axes = new_figure(3, size=(8.0, 8.0), height_ratios=(1.0, 1.0, 0.8))
    _heat(axes[0], sensitivity, "mean score, over the mean of all")
    percent = {role: [100 * share for share in row] for role, row in by_part.items()}
    _heat(axes[1], percent, "tuned, percent of the elements")
    axes[2].step(steps, [100 * share for share in shares], where="post")
    axes[2].set(xlabel="step", ylabel="tuned, percent\nof the backbone", ylim=(0, None))
    return figure


def _heat(axis: Axes, values: dict[str, list[float]], label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = np.array(list(values.values()))
    image = axis.imshow(numbers, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axis.set_yticks(range(len(values)), [role.upper() for role in values])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("block")
    axis.figure.colorbar(image, ax=axis, label=label)
