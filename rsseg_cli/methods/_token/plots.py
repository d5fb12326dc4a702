"""Draws which experts were used over a run: a gate that collapsed shows as one bright line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rsseg_cli.settings import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    records: Sequence[dict[str, Json]], modalities: Sequence[str]
) -> Iterator[tuple[str, Figure]]:
    """Draw a picture per modality from lines of `metrics.jsonl`.

    Left every block's experts (rows) over the steps; right the share of the busiest expert of each
    block, which lies between 1/E (even) and 1 (collapsed).
    """
    for modality in modalities:
        steps, shares = _history(records, modality)
        if steps:
            yield f"experts_{modality}", _picture(steps, shares, modality)


def _history(
    records: Sequence[dict[str, Json]], modality: str
) -> tuple[list[Any], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return steps and shares (T, L, E) from the records that have them."""
    steps: list[Any] = []
    shares: list[Any] = []
    for record in records:
        method = record.get("method")
        if isinstance(method, dict) and modality in method:
            steps.append(record["step"])
            shares.append(method[modality])
    return steps, np.array(shares, dtype=float)


def _picture(
    steps: list[Any], shares: np.ndarray[Any, np.dtype[np.float64]], modality: str
) -> Figure:
    from rsseg_cli.report.charts import new_figure

    _, blocks, experts = shares.shape
    figure, (left, right) = new_figure(columns=2, size=(10, max(3.0, 0.18 * blocks + 1.5)))
    image = left.imshow(
        shares.reshape(len(steps), -1).T,
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=1,
        extent=(-0.5, len(steps) - 0.5, blocks - 0.5, -0.5),
    )
    ticks = np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))
    left.set_xticks(ticks, [f"{steps[tick]:,}" for tick in ticks])
    left.set_yticks(range(0, blocks, 1 + blocks // 13))
    for block in range(1, blocks):
        left.axhline(block - 0.5, color="white", linewidth=0.5)
    left.set(title=f"share of tokens per expert, {modality}", xlabel="step", ylabel="block")
    figure.colorbar(image, ax=left)
    busiest = shares.max(2)
    for block in range(blocks):
        shade = (0.1, 0.3, 0.2 + 0.7 * block / max(1, blocks - 1))
        right.plot(steps, busiest[:, block], color=shade, linestyle="-", linewidth=1)
    right.axhline(1 / experts, color="grey", linestyle="--", linewidth=1)
    right.set(title="share of the busiest expert, a line per block", xlabel="step", ylim=(0, 1.02))
    return figure
