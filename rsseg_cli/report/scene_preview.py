"""Figure of a scene as a model reads it: bands, value ranges, missing pixels and tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsseg_cli.number_format import counted
from rsseg_cli.report.map_figure import stretch
from rsseg_cli.report.palette import EDGE, INK

COLUMNS = 4
"""Bands in a row."""
MISSING = "///"
"""Hatch of missing pixels."""
FAR = 3.0
"""Range of a band's picture from dark to bright, in standard deviations around the mean."""


@dataclass(frozen=True)
class BandView:
    """A sample (N,) of a band's valid stored values, and the model's normalisation."""

    name: str
    values: NDArray[Any]
    mean: float
    std: float


@dataclass(frozen=True)
class SceneView:
    """A scene in the size of its figure."""

    title: str
    samples: NDArray[Any]
    """(C, h, w) stored values."""
    valid: NDArray[np.bool_]
    rgb: tuple[int, ...]
    """Indices of the bands in colour."""
    step: int
    """Pixels of the scene per pixel of the figure."""
    columns: Sequence[int]
    rows: Sequence[int]
    """First column and first row of every tile, in pixels of the scene."""
    tile: int
    bands: Sequence[BandView]


def draw_preview(view: SceneView) -> Figure:
    """Draw the scene with its tiles above, and each band with its histogram below."""
    height, width = view.valid.shape
    down = math.ceil(len(view.bands) / COLUMNS)
    top, cell = 9.0 * min(1.2, height / width), 2.3 * min(1.2, height / width) + 1.5
    figure = Figure(figsize=(9.4, top + down * cell + 0.6), dpi=120, facecolor="white")
    figure.suptitle(view.title, fontsize=11, color=INK)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[top, down * cell])[:, 0]
    upper.subplots_adjust(left=0.02, right=0.98, top=0.91, bottom=0.02)
    lower.subplots_adjust(left=0.02, right=0.98, top=0.92, bottom=0.16, hspace=0.25, wspace=0.08)
    _scene(upper.subplots(), view)
    grid = lower.subplots(2 * down, COLUMNS, squeeze=False, height_ratios=[cell - 1.3, 0.9] * down)
    for axes in grid.ravel():
        axes.set_axis_off()
    for index, band in enumerate(view.bands):
        row, column = divmod(index, COLUMNS)
        _band(grid[2 * row, column], band, view.samples[index], view.valid)
        _histogram(grid[2 * row + 1, column], band)
    return figure


def _scene(axes: Axes, view: SceneView) -> None:
    axes.imshow(stretch(view.samples[list(view.rgb)], view.valid), interpolation="nearest")
    if not view.valid.all():
        missing = np.where(view.valid, np.nan, 1.0)
        axes.contourf(missing, levels=[0.5, 1.5], colors="none", hatches=[MISSING])
    for x in view.columns:
        axes.axvline(x / view.step - 0.5, color="white", linewidth=0.5, alpha=0.7)
    for y in view.rows:
        axes.axhline(y / view.step - 0.5, color="white", linewidth=0.5, alpha=0.7)
    missing_percent = 100 * (1 - view.valid.mean())
    names = " ".join(view.bands[index].name for index in view.rgb)
    axes.set_title(
        f"{names}; {counted(len(view.columns) * len(view.rows), 'tile')} of {view.tile} px; "
        f"hatched: missing, {missing_percent:.1f} %",
        fontsize=9, color=INK,
    )  # fmt: skip
    _bare(axes)


def _band(axes: Axes, band: BandView, samples: NDArray[Any], valid: NDArray[np.bool_]) -> None:
    normalised = (samples.astype(np.float64) - band.mean) / (band.std or 1.0)
    axes.set_axis_on()
    axes.imshow(np.where(valid, normalised, np.nan), cmap="gray", vmin=-FAR, vmax=FAR)
    axes.set_facecolor("white")
    axes.set_title(band.name, fontsize=9, color=INK)
    _bare(axes)


def _histogram(axes: Axes, band: BandView) -> None:
    axes.set_axis_on()
    if len(band.values):
        low, high = np.percentile(band.values, (0.1, 99.9))
        counts, edges = np.histogram(band.values, bins=60, range=(low, max(high, low + 1e-6)))
        axes.stairs(counts, edges, fill=True, color=EDGE)
    axes.axvline(band.mean, color=INK, linewidth=1.2)
    for side in (-1, 1):
        axes.axvline(band.mean + side * band.std, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks([])
    axes.tick_params(labelsize=7, colors=INK)
    axes.set_xlabel(f"mean {band.mean:.4g}, std {band.std:.4g}", fontsize=7, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(EDGE)
