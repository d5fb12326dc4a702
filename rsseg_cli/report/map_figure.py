"""Draws a map beside its image, its truth and its errors."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, TypeAlias

import numpy as np
import rasterio
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.errors import UnreadableError
from rsseg_cli.raster.align import AlignedLabels
from rsseg_cli.raster.decode import LabelCode, Labels, decode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import LabelReader, is_vector
from rsseg_cli.raster.open_raster import RAW
from rsseg_cli.report.class_id_labels import Mark, marks

Pixels: TypeAlias = NDArray[np.uint8]
"""(h, w, 3) red, green, blue."""
Source: TypeAlias = "str | PathLike[str]"

INK, EDGE = "#16202a", "#9aa5ae"
PLATE = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
EMPTY, RIGHT, WRONG = (255, 255, 255), (214, 219, 221), (178, 24, 43)
"""Errors differ from hits in lightness as well, for eyes that do not tell red from green."""


@dataclass(frozen=True)
class Panel:
    """One picture of a row.

    Attributes:
        title: What it shows.
        pixels: (h, w, 3) uint8.
        key: What its colours mean, besides those of the classes.
        marks: Ids of classes, each on a patch of its class.
    """

    title: str
    pixels: Pixels
    key: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    marks: tuple[Mark, ...] = ()


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
    """Draw image, truth, map and errors side by side; what is not given is left out.

    Files are read at the size they are shown, from overviews where there are some.

    Args:
        prediction: The map of class ids.
        classes: What the ids mean.
        image: The scene that was mapped.
        truth: Labels of the scene: a raster, or polygons in any CRS.
        code: How the truth writes classes; ids when None.
        rgb: Bands of the image (from 1) shown as red, green, blue, or one shown as grey; the
            first three when None.
        side: Longest side of a picture in pixels.
        title: Heading of the figure.

    Raises:
        UnreadableError: A file is missing or broken.
        RssegError: The truth holds values that are no class.
    """
    made = _Shrunk.open(prediction, side)
    code = code or LabelCode(tuple(classes), ignore=(IGNORE,))
    labels = _map_indices(made, classes)
    panels = []
    if image is not None:
        panels.append(Panel("image", stretch(*_Shrunk.open(image, side).read_image(rgb))))
    if truth is not None:
        true = _truth_on(made, truth, code)
        panels.append(Panel("truth", paint(true, classes), marks=marks(true, classes)))
    panels.append(Panel("map", paint(labels, classes), marks=marks(labels, classes)))
    shown = [labels]
    if truth is not None:
        panels.append(errors(labels, true))
        shown.append(true)
    return draw(panels, in_use(classes, shown), title=title)


def draw(
    panels: Sequence[Panel],
    classes: Sequence[Class] = (),
    *,
    title: str = "",
    columns: int | None = None,
) -> Figure:
    """Lay panels of one size out in rows, with a legend of classes below.

    Panels stand side by side, or in two rows where they are wider than high. Patches and legend
    carry the ids of the classes, so that the picture can be read without telling colours apart.
    """
    height, width = panels[0].pixels.shape[:2]
    if columns is None:
        columns = len(panels) if width < 1.6 * height else min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    entries = [(f"{one.id} {one.name}", one.color) for one in classes]
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
        for x, y, text in panel.marks:
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
            Patch(facecolor="#{:02x}{:02x}{:02x}".format(*color), edgecolor=EDGE, label=name)
            for name, color in entries
        ]
        figure.legend(
            handles=patches, loc="lower center", ncols=across, frameon=False, fontsize=9,
            labelcolor=INK, handlelength=1.2, handleheight=1.0, columnspacing=1.4,
        )  # fmt: skip
    return figure


def to_png(figure: Figure) -> bytes:
    """Draw a figure, without a display or fonts of the system.

    Names are shown as they are, a dollar sign too. Characters that matplotlib's own font lacks
    become boxes; the ids beside the names still tell classes apart.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(out, format="png", metadata={"Software": "rsseg"})
    return out.getvalue()


def stretch(samples: NDArray[Any], valid: NDArray[np.bool_]) -> Pixels:
    """Turn samples (C, h, w), one band or three, into colours: 2nd to 98th percentile per band.

    Pixels that are not valid (h, w) take no part in the percentiles and become white.
    """
    planes = [_stretched(plane, valid & np.isfinite(plane)) for plane in samples]
    pixels = np.stack([planes[index if len(planes) == 3 else 0] for index in range(3)], axis=-1)
    pixels[~valid] = EMPTY
    return pixels


def _stretched(plane: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    if not valid.any():
        return np.zeros(plane.shape, np.uint8)
    low, high = np.percentile(plane[valid].astype(np.float64), (2, 98))
    share = (np.where(valid, plane, low).astype(np.float64) - low) / ((high - low) or 1.0)
    stretched: NDArray[np.uint8] = (share.clip(0, 1) * 255).round().astype(np.uint8)
    return stretched


def paint(labels: Labels, classes: Sequence[Class]) -> Pixels:
    """Give class indices (h, w) the colours of the classes; white where there is none."""
    table = np.full((256, 3), EMPTY, np.uint8)
    table[: len(classes)] = [one.color for one in classes]
    return table[labels]


def errors(labels: Labels, truth: Labels) -> Panel:
    """Show where a map is wrong: everywhere with truth, also where the map is empty."""
    pixels = np.full((*truth.shape, 3), EMPTY, np.uint8)
    known = truth != IGNORE
    wrong = known & (labels != truth)
    pixels[known] = RIGHT
    pixels[wrong] = WRONG
    key = (("right", RIGHT), ("wrong", WRONG), ("no truth", EMPTY))
    return Panel("errors", pixels, key if not known.all() else key[:2])


@dataclass(frozen=True)
class _Shrunk:
    """A raster as if it had the size it is shown at; `LabelReader` takes it for a scene."""

    path: str
    width: int
    height: int
    crs: rasterio.CRS | None
    transform: rasterio.Affine

    @classmethod
    def open(cls, path: Source, side: int) -> _Shrunk:
        name = fspath(path)
        try:
            with rasterio.open(name) as file:
                raw = file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK"
                factor = max(1.0, max(file.width, file.height) / side)
                width, height = (max(1, round(n / factor)) for n in (file.width, file.height))
                scale = rasterio.Affine.scale(file.width / width, file.height / height)
                place = RAW + name if raw else name
                return cls(place, width, height, file.crs, file.transform @ scale)
        except RasterioError as error:
            raise UnreadableError(f"the raster cannot be read: {error}", where=name) from error

    def read(self, bands: Sequence[int] | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read bands (C, h, w), the first when None, and which pixels are valid (h, w)."""
        with rasterio.open(self.path) as file:
            shape = (self.height, self.width)
            values = file.read(
                list(bands or (1,)), out_shape=(len(bands or (1,)), *shape),
                resampling=Resampling.nearest,
            )  # fmt: skip
            return values, file.dataset_mask(out_shape=shape) != 0

    def read_image(self, rgb: tuple[int, ...] | None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the bands to show, the first three, or the first where there are fewer."""
        with rasterio.open(self.path) as file:
            bands = rgb or ((1, 2, 3) if file.count >= 3 else (1,))
        return self.read(bands)

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, self.width, self.height)


def _map_indices(made: _Shrunk, classes: Sequence[Class]) -> Labels:
    values, _ = made.read()
    table = np.full(256, IGNORE, np.uint8)
    for index, one in enumerate(classes):
        table[one.id] = index
    return table[np.where((values[0] >= 0) & (values[0] < 256), values[0], IGNORE).astype(np.uint8)]


def _truth_on(made: _Shrunk, truth: Source, code: LabelCode) -> Labels:
    """Read a truth at the size the map is shown at."""
    if is_vector(truth):
        with LabelReader.open(truth, code, made) as reader:
            return reader.read(made.window)
    small = _Shrunk.open(truth, max(made.width, made.height))
    if made.crs is not None and small.crs is not None:
        aligned = AlignedLabels.open(truth, code, made)
        try:
            return aligned.read(made.window)
        finally:
            aligned.close()
    bands = (1, 2, 3) if code.encoding == "rgb" else (1,)
    return decode(*small.read(bands), code, where=fspath(truth))


def in_use(classes: Sequence[Class], shown: Sequence[Labels]) -> list[Class]:
    """List the classes that occur in some labels."""
    used = set().union(*(np.unique(labels).tolist() for labels in shown))
    return [one for index, one in enumerate(classes) if index in used]
