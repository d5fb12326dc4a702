"""Reads the labels of a scene by window, from rasters on its grid or vectors in any CRS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import LabelPolygons, load_polygons

VECTOR_SUFFIXES = frozenset({".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet"})


class Placed(Protocol):
    """Anything with the grid of a raster, such as a `Scene`."""

    @property
    def path(self) -> str:
        """Its name in errors."""

    @property
    def width(self) -> int:
        """Number of columns."""

    @property
    def height(self) -> int:
        """Number of rows."""

    @property
    def crs(self) -> rasterio.CRS | None:
        """Coordinate reference system."""

    @property
    def transform(self) -> rasterio.Affine:
        """Affine from pixel corners to the CRS."""


class LabelSource(Protocol):
    """The file behind a `LabelReader`, read only inside the scene."""

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w), `IGNORE` where there is none."""

    def close(self) -> None:
        """Close the file."""


def is_vector(path: str | PathLike[str]) -> bool:
    """Return whether a label file holds polygons, by its suffix."""
    return Path(path).suffix.lower() in VECTOR_SUFFIXES


class LabelReader:
    """The labels of one scene, most often from `LabelReader.open`; one reader is for one thread.

    Args:
        source: Reads classes on the grid of the scene.
        on: The scene.
        table: Per class of `source` the index to return instead.
    """

    def __init__(self, source: LabelSource, on: Placed, table: Sequence[int] | None = None) -> None:
        self._source = source
        self._table = None
        if table is not None:
            self._table = np.full(256, IGNORE, np.uint8)
            self._table[: len(table)] = table
        self._extent = Window(0, 0, on.width, on.height)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        code: LabelCode,
        on: Placed,
        *,
        box: tuple[int, int, int, int] | None = None,
        table: Sequence[int] | None = None,
    ) -> LabelReader:
        """Open the labels of a scene.

        Args:
            path: A raster of the scene's size, or a vector file.
            code: How the file encodes classes.
            on: The scene.
            box: Part of the image's file that is used; a label of the whole file is cut alike.
            table: Per class of `code` the index to return instead.

        Raises:
            UnreadableError: No such file, or neither a raster nor a vector.
            RssegError: Size or position differ from the scene; unknown attribute or values.
        """
        name = fspath(path)
        if not is_vector(name):
            raster = RasterLabels.open(name, code, box=box, size=(on.width, on.height))
            try:
                _check_grid(raster.place, on)
            except BaseException:
                raster.close()
                raise
            return cls(raster, on, table)
        modified = Path(name).stat().st_mtime_ns if Path(name).exists() else 0
        crs = on.crs.to_wkt() if on.crs else None
        polygons = load_polygons(name, modified, code, crs)
        return cls(_Burned(polygons, on.transform), on, table)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w) of a window; `IGNORE` where there is none.

        The window may hang over the border of the scene. Where polygons overlap, the later one
        in the file wins; a pixel belongs to a polygon that covers its centre.
        """
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.intersect(self._extent)
        if inside is not None:
            rows = slice(inside.y - window.y, inside.bottom - window.y)
            columns = slice(inside.x - window.x, inside.right - window.x)
            labels[rows, columns] = self._source.read(inside)
        return labels if self._table is None else self._table[labels]

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> LabelReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def inexact_colors(code: LabelCode) -> dict[tuple[int, int, int], float]:
    """List the label colours read so far that only nearly fit a class, with their distance."""
    return dict(color_table(code).inexact) if code.encoding in ("rgb", "palette") else {}


@dataclass
class RasterLabels:
    """A raster of ids or colours, read as class indices.

    Attributes:
        place: The open raster.
        code: How its values encode classes.
        palette: Its colour table (256, 3), where that encodes the classes.
    """

    place: Scene
    code: LabelCode
    palette: NDArray[np.uint8] | None

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        code: LabelCode,
        *,
        box: tuple[int, int, int, int] | None = None,
        size: tuple[int, int] | None = None,
    ) -> RasterLabels:
        """Open a raster.

        Args:
            path: The file.
            code: How its values encode classes.
            box: Part of the file to read, unless the file has the size of the scene.
            size: Width and height of the scene.

        Raises:
            UnreadableError: The file is not a raster.
        """
        bands = code.onehot_bands() if code.encoding == "onehot" else None
        palette = read_palette(path) if code.encoding == "palette" else None
        scene = Scene.open(path, bands=bands, warn=False)
        cut = box if (scene.width, scene.height) != size else None
        # A nodata value that is the id of a class means that class.
        is_class = scene.nodata is not None and _is_class(code, scene.nodata, palette)
        if cut or is_class:
            scene.close()
            nodata = float("nan") if is_class else None
            scene = Scene.open(path, bands=bands, box=cut, nodata=nodata, warn=False)
        return cls(scene, code, palette)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w); `IGNORE` outside the raster and where it is nodata."""
        values, valid = self.place.read(window)
        if self.palette is not None:
            values = np.moveaxis(self.palette[values[0]], -1, 0)
        return decode(values, valid, self.code, where=self.place.path)

    def close(self) -> None:
        """Close the file."""
        self.place.close()


@dataclass
class _Burned:
    """Polygons rasterised to the grid of the scene."""

    polygons: LabelPolygons
    transform: rasterio.Affine

    def read(self, window: Window) -> Labels:
        return self.polygons.read(window, self.transform)

    def close(self) -> None:
        self.polygons.close()


def color_entries(path: str | PathLike[str]) -> dict[int, Color]:
    """Read the colour table of a raster: value to red, green, blue; empty where it has none.

    Raises:
        UnreadableError: The file is not a raster.
    """
    with readable(fspath(path)), rasterio.open(path) as file:
        try:
            return {value: color[:3] for value, color in file.colormap(1).items()}
        except ValueError:
            return {}


def read_palette(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read the colour table of a raster: (256, 3) red, green, blue.

    Raises:
        RssegError: It has none.
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
    """Return whether the class list has a value of a raster label."""
    if code.encoding == "onehot":
        return True
    if code.encoding == "threshold":
        return False
    if code.encoding in ("rgb", "palette"):
        row = (value, value, value) if palette is None else palette[int(value)]
        color = (int(row[0]), int(row[1]), int(row[2]))
        return code.colors().get(color, IGNORE) != IGNORE
    return code.ids().get(int(value), IGNORE) != IGNORE


def _check_grid(label: Scene, on: Placed) -> None:
    """Check that a label has the grid of its scene."""
    if (label.width, label.height) != (on.width, on.height):
        raise RssegError(
            f"the label has {label.width} x {label.height} pixels, its image "
            f"{on.width} x {on.height}",
            where=f"{label.path}, image {on.path}",
            fix="a label on the grid of its image, or polygons, or `align: true` in dataset.yaml",
        )
    if label.crs is None or on.crs is None:
        return
    there = ~on.transform @ label.transform
    corners = [(0.0, 0.0), (float(label.width), float(label.height))]
    apart = max(abs(a - b) for c in corners for a, b in zip(there @ c, c, strict=True))
    if label.crs == on.crs and apart > 0.5:
        raise RssegError(
            f"the label lies {apart:.1f} pixels away from its image",
            where=f"{label.path}, image {on.path}",
            fix="`align: true` in dataset.yaml reads it where its coordinates say",
        )
