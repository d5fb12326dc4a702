"""Figures of a map beside its image, its reference and its errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE, Class, hex_color
from rsseg_cli.raster.align import AlignedLabels
from rsseg_cli.raster.decode import LabelCode, Labels, decode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import LabelReader, is_vector
from rsseg_cli.raster.predicted_map import PredictedMap
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.class_id_labels import IdLabel, class_id_labels
from rsseg_cli.report.palette import EDGE, INK

Pixels: TypeAlias = NDArray[np.uint8]
"""(h, w, 3) red, green, blue."""
Source: TypeAlias = "str | PathLike[str]"

PLATE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
EMPTY, RIGHT, WRONG = (255, 255, 255), (214, 219, 221), (178, 24, 43)
"""Errors also differ from hits in lightness, for readers who cannot distinguish red from green."""


@dataclass(frozen=True)
class Panel:
    """One picture of a figure, with class ids on it."""

    title: str
    pixels: Pixels
    key: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    """Names of its colours, besides those of the classes."""
    labels: tuple[IdLabel, ...] = ()


def quicklook(
    prediction: Source,
    classes: Sequence[Class],
    *,
    image: Source | None = None,
    truth: Source | None = None,
    code: LabelCode | None = None,
    rgb: tuple[int, ...] | None = None,
    side: int = 900,
    title: str = "",
) -> Figure:
    """Draw image, reference, map and errors side by side, as far as there are files for them.

    Files are read at the size they are shown, from overviews where there are some.

    Args:
        prediction: The map of class ids.
        classes: The classes of the ids.
        image: The scene that was mapped.
        truth: Labels of the scene: a raster, or polygons in any CRS.
        code: Encoding of the labels; ids when None.
        rgb: Bands of the image (from 1) shown as red, green, blue, or one shown as grey; the
            first three when None.
        side: Longest side of a picture in pixels.
        title: Heading of the figure.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: The map or the labels hold values of no class.
    """
    panels = [] if image is None else [_image(image, rgb, side)]
    with PredictedMap.open(prediction, classes, side=side) as mapped:
        labels = mapped.read()
        reference = None
        if truth is not None:
            code = code or LabelCode(tuple(classes), ignore=(IGNORE,))
            reference = _reference(mapped.scene, truth, code)
    shown = [labels] if reference is None else [reference, labels]
    for title_of, drawn in zip(("truth", "map")[-len(shown) :], shown, strict=True):
        panels.append(class_panel(title_of, drawn, classes))
    if reference is not None:
        panels.append(errors(labels, reference))
    return draw(panels, in_use(classes, shown), title=title)


def class_panel(title: str, labels: Labels, classes: Sequence[Class]) -> Panel:
    """Return class indices (h, w) as a picture with the ids of the classes on it."""
    return Panel(title, paint(labels, classes), labels=class_id_labels(labels, classes))


def draw(
    panels: Sequence[Panel],
    classes: Sequence[Class] = (),
    *,
    title: str = "",
    columns: int | None = None,
) -> Figure:
    """Draw panels of one size in rows, with a legend of classes below.

    Panels are side by side, or in two rows where they are wider than high. Legend and panels
    show the ids of the classes, so that the figure can be read without its colours.

    With `columns` there are as many panels in a row.
    """
    height, width = panels[0].pixels.shape[:2]
    if columns is None:
        columns = len(panels) if width < 1.6 * height else min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    entries = [(f"{cls.id} {cls.name}", cls.color) for cls in classes]
    entries += dict.fromkeys(entry for panel in panels for entry in panel.key)
    across = max(1, min(len(entries), round(2.2 * columns)))
    legend = 0.26 * math.ceil(len(entries) / across) + 0.15 if entries else 0.0
    cell = 3.6 if columns > 1 else 5.4
    top = 0.34 if title else 0.06
    down = rows * (cell * height / width + 0.32)
    figure = Figure(figsize=(columns * cell, down + legend + top), dpi=130, facecolor="white")
    whole = down + legend + top
    grid = figure.add_gridspec(
        rows, columns, left=0.01, right=0.99, top=1 - (top + 0.24) / whole,
        bottom=(legend + 0.04) / whole, wspace=0.03, hspace=0.32 / (cell * height / width),
    )  # fmt: skip
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        axes.imshow(panel.pixels, interpolation="nearest", aspect="equal")
        axes.set_title(panel.title, fontsize=10, color=INK, pad=4)
        for x, y, text in panel.labels:
            axes.text(x, y, text, fontsize=6.5, color=INK, ha="center", va="center", bbox=PLATE)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(EDGE)
            spine.set_linewidth(0.6)
    if title:
        figure.suptitle(title, fontsize=12, color=INK, y=1 - 0.08 / whole, va="top")
    if entries:
        patches = [
            Patch(facecolor=hex_color(color), edgecolor=EDGE, label=name) for name, color in entries
        ]
        figure.legend(
            handles=patches, loc="lower center", ncols=across, frameon=False, fontsize=9,
            labelcolor=INK, handlelength=1.2, handleheight=1.0, columnspacing=1.4,
        )  # fmt: skip
    return figure


def stretch(samples: NDArray[Any], valid: NDArray[np.bool_]) -> Pixels:
    """Convert samples to 8-bit colours between the 2nd and the 98th percentile of each band.

    `samples` (C, h, w) are one band or three; pixels that are not `valid` (h, w) become white.
    """
    planes = [_stretch_band(plane, valid & np.isfinite(plane)) for plane in samples]
    pixels = np.stack([planes[index if len(planes) == 3 else 0] for index in range(3)], axis=-1)
    pixels[~valid] = EMPTY
    return pixels


def _stretch_band(plane: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    if not valid.any():
        return np.zeros(plane.shape, np.uint8)
    low, high = np.percentile(plane[valid].astype(np.float64), (2, 98))
    scaled = (np.where(valid, plane, low).astype(np.float64) - low) / ((high - low) or 1.0)
    stretched: NDArray[np.uint8] = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return stretched


def paint(labels: Labels, classes: Sequence[Class]) -> Pixels:
    """Return the colours (h, w, 3) of class indices (h, w); white for `IGNORE`."""
    table = np.full((256, 3), EMPTY, np.uint8)
    table[: len(classes)] = [cls.color for cls in classes]
    return table[labels]


def errors(labels: Labels, truth: Labels) -> Panel:
    """Return a picture of the wrong pixels; labelled pixels without a prediction are wrong."""
    pixels = np.full((*truth.shape, 3), EMPTY, np.uint8)
    known = truth != IGNORE
    wrong = known & (labels != truth)
    pixels[known] = RIGHT
    pixels[wrong] = WRONG
    key = (("right", RIGHT), ("wrong", WRONG), ("no truth", EMPTY))
    return Panel("errors", pixels, key if not known.all() else key[:2])


def _reference(grid: Scene, truth: Source, code: LabelCode) -> Labels:
    """Read the class indices of a reference at the size at which the map is shown."""
    extent = Window(0, 0, grid.width, grid.height)
    if is_vector(truth):
        with LabelReader.open(truth, code, grid) as reader:
            return reader.read(extent)
    bands = (1, 2, 3) if code.encoding == "rgb" else (1,)
    with Scene.open(truth, bands=bands, warn=False) as scene:
        small = scene.downsampled(max(grid.width, grid.height))
        if grid.crs is None or small.crs is None:
            values, valid = small.read(Window(0, 0, small.width, small.height))
            return decode(values, valid, code, where=small.path)
    aligned = AlignedLabels.open(truth, code, grid)
    try:
        return aligned.read(extent)
    finally:
        aligned.close()


def _image(path: Source, rgb: tuple[int, ...] | None, side: int) -> Panel:
    """Read the bands to show: the first three by default, or the first where there are fewer."""
    with Scene.open(path, warn=False) as scene:
        bands = rgb or (scene.bands[:3] if scene.count >= 3 else scene.bands[:1])
    with Scene.open(path, bands=bands, warn=False) as scene:
        small = scene.downsampled(side)
        return Panel("image", stretch(*small.read(Window(0, 0, small.width, small.height))))


def in_use(classes: Sequence[Class], shown: Sequence[Labels]) -> list[Class]:
    """Return the classes that occur in any of the labels."""
    used = set().union(*(np.unique(labels).tolist() for labels in shown))
    return [cls for index, cls in enumerate(classes) if index in used]
