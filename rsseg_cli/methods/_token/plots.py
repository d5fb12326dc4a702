"""Figure of the experts' use over a run; a collapsed gate appears as a bright line."""

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
    """Draw a figure per modality from lines of `metrics.jsonl`.

    Left: the experts of every block (rows) over the steps. Right: the fraction of tokens at the
    busiest expert of each block, between 1/E (even) and 1 (collapsed).
    """
    entries: list[Any] = [(record.get("step"), record.get("method")) for record in records]
    for modality in modalities:
        rows = [(s, e[modality]) for s, e in entries if isinstance(e, dict) and modality in e]
        if rows:
            steps, fractions = zip(*rows, strict=True)
            yield f"experts_{modality}", _figure(steps, np.array(fractions, dtype=float), modality)


def _figure(
    steps: Sequence[int], fractions: np.ndarray[Any, np.dtype[np.float64]], modality: str
) -> Figure:
    """Draw fractions (T, L, E)."""
    from rsseg_cli.report.charts import new_figure

    _, blocks, experts = fractions.shape
    figure, (left, right) = new_figure(columns=2, size=(10, max(3.0, 0.18 * blocks + 1.5)))
    extent = (-0.5, len(steps) - 0.5, blocks - 0.5, -0.5)
    image = left.imshow(
        fractions.reshape(len(steps), -1).T, extent=extent,
        aspect="auto", interpolation="nearest", vmin=0, vmax=1,
    )  # fmt: skip
    ticks = np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))
    left.set_xticks(ticks, [f"{steps[tick]:,}" for tick in ticks])
    left.set_yticks(range(0, blocks, 1 + blocks // 13))
    for block in range(1, blocks):
        left.axhline(block - 0.5, color="white", linewidth=0.5)
    left.set(title=f"fraction of tokens per expert, {modality}", xlabel="step", ylabel="block")
    figure.colorbar(image, ax=left)
    busiest = fractions.max(2)
    for block in range(blocks):
        shade = (0.1, 0.3, 0.2 + 0.7 * block / max(1, blocks - 1))
        right.plot(steps, busiest[:, block], color=shade, linestyle="-", linewidth=1)
    right.axhline(1 / experts, color="grey", linestyle="--", linewidth=1)
    right.set(
        title="fraction at the busiest expert, a line per block", xlabel="step", ylim=(0, 1.02)
    )
    return figure
