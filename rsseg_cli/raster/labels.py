"""Labels of a scene, read by window from a raster on its grid or from polygons in any CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray

from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError
from rsseg_cli.raster.decode import Color, LabelCode, Labels, color_table, decode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.open_raster import readable
from rsseg_cli.raster.pixel_size import GroundGrid
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import load_polygons

VECTOR_SUFFIXES = frozenset({".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet"})


class RasterGrid(GroundGrid, Protocol):
    """Grid of a raster with a name, such as a `Scene`."""

    @property
    def path(self) -> str:
        """Name in errors."""


class LabelSource(Protocol):
    """File behind a `LabelReader`."""

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w) of a window inside the scene, `IGNORE` without a class."""

    def close(self) -> None:
        """Close the file."""


def is_vector(path: str | PathLike[str]) -> bool:
    """Return whether a label file holds polygons, by its suffix."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


class LabelReader:
    """Labels of one scene, for use in one thread. Most readers come from `LabelReader.open`.

    Args:
        source: Labels on the grid of the scene.
        grid: The grid of the scene.
        table: Index to return for each class of `source`; by default its own.
    """

    def __init__(
        self, source: LabelSource, grid: RasterGrid, table: Sequence[int] | None = None
    ) -> None:
        self._source = source
        self._table = None
        if table is not None:
            self._table = np.full(256, IGNORE, np.uint8)
            self._table[: len(table)] = table
        self._extent = Window(0, 0, grid.width, grid.height)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        code: LabelCode,
        grid: RasterGrid,
        *,
        box: tuple[int, int, int, int] | None = None,
        table: Sequence[int] | None = None,
    ) -> LabelReader:
        """Open the labels of a scene.

        Args:
            path: A raster of the scene's size, or a vector file.
            code: Encoding of the classes.
            grid: The grid of the scene.
            box: (x0, y0, x1, y1) of the scene in its file; a label as large as that file is cropped
                to it.
            table: Index to return for each class of `code`; by default its own.

        Raises:
            UnreadableError: The file is missing, or neither a raster nor a vector file.
            RssegError: Size or position differ from the scene, or an attribute or a value is
                unknown.
        """
        name = fspath(path)
        if is_vector(name):
            modified = Path(name).stat().st_mtime_ns if Path(name).exists() else 0
            crs = grid.crs.to_wkt() if grid.crs else None
            polygons = load_polygons(name, modified, code, crs)
            return cls(replace(polygons, transform=grid.transform), grid, table)
        raster = RasterLabels.open(name, code, box=box, size=(grid.width, grid.height))
        try:
            _check_grid(raster.scene, grid)
        except BaseException:
            raster.close()
            raise
        return cls(raster, grid, table)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w) of a window; `IGNORE` without a class or outside the scene.

        A pixel belongs to a polygon that covers its centre. Where polygons overlap, the later one
        in the file wins.
        """
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.intersect(self._extent)
        if inside is not None:
            labels[inside.slices_in(window)] = self._source.read(inside)
        return labels if self._table is None else self._table[labels]

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> LabelReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def inexact_colors(code: LabelCode) -> dict[Color, float]:
    """Return the label colours read so far that match a class inexactly, with their distance."""
    return dict(color_table(code).inexact) if code.encoding in ("rgb", "palette") else {}


@dataclass
class RasterLabels:
    """A label raster.

    Attributes:
        scene: The open file.
        code: Encoding of the classes.
        palette: (256, 3) colours of its values; None where these are not decoded.
    """

    scene: Scene
    code: LabelCode
    palette: NDArray[np.uint8] | None

    @classmethod
    def open(
        cls,
        path: str,
        code: LabelCode,
        *,
        box: tuple[int, int, int, int] | None,
        size: tuple[int, int],
    ) -> RasterLabels:
        """Open a raster, cropped to `box` unless it has the size (width, height) of the scene.

        Raises:
            UnreadableError: The file is not a raster.
        """
        bands = code.onehot_bands() if code.encoding == "onehot" else None
        palette = read_palette(path) if code.encoding == "palette" else None
        scene = Scene.open(path, bands=bands, warn=False)
        crop = box if (scene.width, scene.height) != size else None
        # A nodata value that is the id of a class means that class.
        is_class = scene.nodata is not None and _is_class(code, scene.nodata, palette)
        if crop or is_class:
            scene.close()
            nodata = float("nan") if is_class else None
            scene = Scene.open(path, bands=bands, box=crop, nodata=nodata, warn=False)
        return cls(scene, code, palette)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w), `IGNORE` for nodata."""
        values, valid = self.scene.read(window)
        if self.palette is not None:
            values = np.moveaxis(self.palette[values[0]], -1, 0)
        return decode(values, valid, self.code, where=self.scene.path)

    def close(self) -> None:
        """Close the file."""
        self.scene.close()


def color_entries(path: str | PathLike[str]) -> dict[int, Color]:
    """Read the colour table of a raster, empty without one: (red, green, blue) by value.

    Raises:
        UnreadableError: The file is not a raster.
    """
    with readable(fspath(path)), rasterio.open(path) as file:
        try:
            return {value: color[:3] for value, color in file.colormap(1).items()}
        except ValueError:
            return {}


def read_palette(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read the colour table (256, 3) of a raster: red, green and blue by value.

    Raises:
        RssegError: The raster has no colour table.
    """
    entries = color_entries(path)
    if not entries:
        raise RssegError(
            "the label has no colour table",
            where=fspath(path),
            fix="`encoding: index` or `encoding: rgb` in dataset.yaml",
        )
    table = np.zeros((256, 3), np.uint8)
    for value, color in entries.items():
        table[value] = color
    return table


def _is_class(code: LabelCode, value: float, palette: NDArray[np.uint8] | None) -> bool:
    """Return whether a value of a label raster encodes a class."""
    if code.encoding == "onehot":
        return True
    if code.encoding == "threshold":
        return False
    if code.encoding in ("rgb", "palette"):
        row = (value, value, value) if palette is None else palette[int(value)]
        color = (int(row[0]), int(row[1]), int(row[2]))
        return code.colors().get(color, IGNORE) != IGNORE
    return value in code.class_ids()


def _check_grid(label: Scene, grid: RasterGrid) -> None:
    """Check that a label has the grid of its scene."""
    if (label.width, label.height) != (grid.width, grid.height):
        raise RssegError(
            f"the label has {label.width} x {label.height} pixels, its image "
            f"{grid.width} x {grid.height}",
            where=f"{label.path}, image {grid.path}",
            fix="a label on the grid of its image, or polygons, or `align: true` in dataset.yaml",
        )
    offset = corner_offset_px(grid, label)
    if label.crs is not None and label.crs == grid.crs and offset > 0.5:
        raise RssegError(
            f"the label is shifted by {offset:.1f} pixels from its image",
            where=f"{label.path}, image {grid.path}",
            fix="`align: true` in dataset.yaml resamples it to the grid of the image",
        )


def corner_offset_px(grid: RasterGrid, other: RasterGrid) -> float:
    """Return the largest distance, along an axis of `grid`, between corners of two rasters."""
    to_pixels = ~grid.transform @ other.transform
    corners = [(x, y) for x in (0.0, float(grid.width)) for y in (0.0, float(grid.height))]
    pairs = (pair for c in corners for pair in zip(to_pixels @ c, c, strict=True))
    return float(max(abs(a - b) for a, b in pairs))
