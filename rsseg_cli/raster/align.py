"""Comparison of the grids of rasters, and labels resampled to another grid."""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as FileWindow

from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.raster.decode import LabelCode, Labels, decode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import Placed, read_palette

_TOLERANCE_PX = 0.05
"""How far the corners of grids that count as one may be apart."""


def same_grid(one: Placed, other: Placed) -> bool:
    """Return whether two rasters have the same pixels; a missing CRS matches every CRS."""
    if (one.width, one.height) != (other.width, other.height):
        return False
    if one.crs is None or other.crs is None:
        # Without a CRS the transform is often gone too: sizes are all there is to compare.
        return one.crs != other.crs or _apart_px(one, other) < _TOLERANCE_PX
    return one.crs == other.crs and _apart_px(one, other) < _TOLERANCE_PX


def describe_grid(place: Placed) -> str:
    """Return a grid as one line of text: size, CRS, pixel size and upper left corner."""
    a, b, c, d, e, f = place.transform[:6]
    crs = place.crs.to_string() if place.crs is not None else "no CRS"
    crs = crs if len(crs) < 40 else f"{crs[:36]}..."
    pixel = f"{a:.9g} x {e:.9g}" if b == d == 0 else f"({a:.9g}, {d:.9g}) x ({b:.9g}, {e:.9g})"
    return f"{place.width} x {place.height}, {crs}, pixel {pixel}, corner {c:.10g} {f:.10g}"


def _apart_px(one: Placed, other: Placed) -> float:
    there = ~one.transform @ other.transform
    corners = [(x, y) for x in (0.0, float(one.width)) for y in (0.0, float(one.height))]
    apart: float = max(abs(a - b) for c in corners for a, b in zip(there @ c, c, strict=True))
    return apart


class AlignedLabels:
    """Labels of a raster on the grid of another one: nearest neighbour, window by window."""

    def __init__(
        self, path: str, code: LabelCode, file: rasterio.DatasetReader, on: Placed
    ) -> None:
        self.path, self.code, self._file = path, code, file
        self._extent = Window(0, 0, on.width, on.height)
        self._palette = read_palette(path) if code.encoding == "palette" else None
        self._bands = {"rgb": [1, 2, 3], "onehot": code.onehot_bands()}.get(code.encoding, [1])
        # A nodata value that is the id of a class means that class.
        ids = code.ids()
        named = file.nodata is not None and ids.get(int(file.nodata), IGNORE) != IGNORE
        self._warped = WarpedVRT(
            file,
            crs=on.crs,
            transform=on.transform,
            width=on.width,
            height=on.height,
            resampling=Resampling.nearest,
            src_nodata=None if named else file.nodata,
            add_alpha=True,
        )

    @classmethod
    def open(cls, path: str | PathLike[str], code: LabelCode, on: Placed) -> AlignedLabels:
        """Open a label raster.

        Raises:
            UnreadableError: The file is not a raster.
            RssegError: One of the two rasters has no CRS.
        """
        name = fspath(path)
        try:
            file = rasterio.open(path)
        except RasterioError as error:
            raise UnreadableError(f"the label cannot be read: {error}", where=name) from error
        homeless = name if file.crs is None else on.path if on.crs is None else None
        if homeless is not None:
            file.close()
            raise RssegError(
                "a raster without a CRS cannot be aligned",
                where=homeless,
                fix="write its CRS into the file: rio edit-info --crs EPSG:... FILE",
            )
        return cls(name, code, file, on)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w) of a window of the other grid; `IGNORE` where there is none."""
        labels = np.full((window.height, window.width), IGNORE, np.uint8)
        inside = window.intersect(self._extent)
        if inside is not None:
            place = FileWindow(inside.x, inside.y, inside.width, inside.height)
            *values, there = self._warped.read([*self._bands, self._warped.count], window=place)
            colors = None if self._palette is None else self._palette[values[0]]
            samples = np.stack(values) if colors is None else np.moveaxis(colors, -1, 0)
            rows = slice(inside.y - window.y, inside.bottom - window.y)
            columns = slice(inside.x - window.x, inside.right - window.x)
            labels[rows, columns] = decode(samples, there != 0, self.code, where=self.path)
        return labels

    def close(self) -> None:
        """Close the file."""
        self._warped.close()
        self._file.close()
