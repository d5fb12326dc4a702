"""Comparison of raster grids, and labels resampled to another grid."""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as FileWindow

from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.raster.decode import LabelCode, Labels, decode
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.labels import RasterGrid, corner_offset_px, read_palette

_TOLERANCE_PX = 0.05
"""Largest offset of the corners of equal grids."""


def same_grid(grid: RasterGrid, other: RasterGrid) -> bool:
    """Return whether two rasters have the same pixels; a missing CRS matches every CRS."""
    if (grid.width, grid.height) != (other.width, other.height):
        return False
    if (grid.crs is None) != (other.crs is None):
        # A file without a CRS often lacks the transform too: only the sizes are compared.
        return True
    return grid.crs == other.crs and corner_offset_px(grid, other) < _TOLERANCE_PX


def describe_grid(grid: RasterGrid) -> str:
    """Return a grid as one line of text: size, CRS, pixel size and upper left corner."""
    a, b, c, d, e, f = grid.transform[:6]
    crs = grid.crs.to_string() if grid.crs is not None else "no CRS"
    crs = crs if len(crs) < 40 else f"{crs[:36]}..."
    pixel = f"{a:.9g} x {e:.9g}" if b == d == 0 else f"({a:.9g}, {d:.9g}) x ({b:.9g}, {e:.9g})"
    return f"{grid.width} x {grid.height}, {crs}, pixel {pixel}, corner {c:.10g} {f:.10g}"


class AlignedLabels:
    """Labels of a raster resampled to another grid by nearest neighbour, window by window."""

    def __init__(
        self, path: str, code: LabelCode, file: rasterio.DatasetReader, grid: RasterGrid
    ) -> None:
        self.path, self.code, self._file = path, code, file
        self._palette = read_palette(path) if code.encoding == "palette" else None
        self._bands = {"rgb": [1, 2, 3], "onehot": code.onehot_bands()}.get(code.encoding, [1])
        # A nodata value that is the id of a class means that class.
        self._warped = WarpedVRT(
            file,
            crs=grid.crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            src_nodata=None if file.nodata in code.class_ids() else file.nodata,
            add_alpha=True,
        )

    @classmethod
    def open(cls, path: str | PathLike[str], code: LabelCode, grid: RasterGrid) -> AlignedLabels:
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
        without_crs = name if file.crs is None else grid.path if grid.crs is None else None
        if without_crs is not None:
            file.close()
            raise RssegError(
                "a raster without a CRS cannot be aligned",
                where=without_crs,
                fix="write its CRS into the file: rio edit-info --crs EPSG:... FILE",
            )
        return cls(name, code, file, grid)

    def read(self, window: Window) -> Labels:
        """Read class indices (h, w) of a window inside the other grid, `IGNORE` without a class."""
        box = FileWindow(window.x, window.y, window.width, window.height)
        *values, alpha = self._warped.read([*self._bands, self._warped.count], window=box)
        samples = np.stack(values)
        if self._palette is not None:
            samples = np.moveaxis(self._palette[values[0]], -1, 0)
        return decode(samples, alpha != 0, self.code, where=self.path)

    def close(self) -> None:
        """Close the file."""
        self._warped.close()
        self._file.close()
