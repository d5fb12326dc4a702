"""Polygons as labels, rasterised window by window."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.features import rasterize
from shapely import STRtree, box
from shapely.geometry.base import BaseGeometry

from rsseg_cli.classes import IGNORE
from rsseg_cli.errors import RssegError, RssegWarning, UnreadableError
from rsseg_cli.raster.decode import LabelCode, Labels, as_text
from rsseg_cli.raster.grid import Window

_IDENTITY = rasterio.Affine.identity()


@dataclass(frozen=True)
class LabelPolygons:
    """Polygons that are rasterised to the grid of a scene.

    Attributes:
        shapes: The N polygons in the CRS of the scene, in the order of their file.
        indices: (N,) their class indices.
        tree: Spatial index of the shapes.
        outside: Class index of pixels outside all polygons.
        transform: Pixel corners of the scene to its CRS.
    """

    shapes: list[BaseGeometry]
    indices: NDArray[np.uint8]
    tree: STRtree
    outside: int
    transform: rasterio.Affine = _IDENTITY

    def read(self, window: Window) -> Labels:
        """Rasterise a window to class indices (h, w)."""
        transform = self.transform @ rasterio.Affine.translation(window.x, window.y)
        h, w = shape = (window.height, window.width)
        xs, ys = zip(
            *(transform @ corner for corner in ((0, 0), (w, 0), (0, h), (w, h))), strict=True
        )
        hits = np.sort(self.tree.query(box(min(xs), min(ys), max(xs), max(ys))))
        if not hits.size:
            return np.full(shape, self.outside, np.uint8)
        labels: Labels = rasterize(
            [(self.shapes[hit], int(self.indices[hit])) for hit in hits],
            out_shape=shape,
            transform=transform,
            fill=self.outside,
            dtype="uint8",
        )
        return labels

    def close(self) -> None:
        """Do nothing: no file is open."""


@lru_cache(maxsize=32)
def load_polygons(name: str, modified: int, code: LabelCode, wkt: str | None) -> LabelPolygons:
    """Load the polygons of a file, once per file and CRS.

    Args:
        name: The vector file.
        modified: Its modification time in ns; a changed file is loaded again.
        code: Encoding of the classes in its attributes.
        wkt: CRS of the scene, if any.

    Raises:
        UnreadableError: The file is not a vector file, or has no polygons.
        RssegError: An attribute or a value is unknown, or only the scene has no CRS.
    """
    table = read_vector(name)
    indices = _class_of_rows(table, code, name)
    if wkt is None and table.crs is not None:
        raise RssegError(
            "the labels have a CRS but their image has none",
            where=name,
            fix="`reader: {crs: EPSG:...}` in dataset.yaml with the CRS of the images",
        )
    if table.crs is None and wkt is not None:
        warnings.warn(f"{name} has no CRS: that of its image is used", RssegWarning, stacklevel=2)
    geometry = table.geometry if table.crs is None else table.geometry.to_crs(wkt)
    usable = (~geometry.is_empty & geometry.notna()).to_numpy()
    shapes = list(geometry[usable])
    outside = IGNORE if code.background is None else code.background
    return LabelPolygons(shapes, indices[usable], STRtree(shapes), outside)


def read_vector(path: str | PathLike[str]) -> Any:
    """Read the polygons of a vector file as a GeoDataFrame.

    Raises:
        UnreadableError: The file is not a vector file, or has no polygons.
    """
    import geopandas  # takes a second to import, and raster labels do not need it

    name = fspath(path)
    try:
        if Path(name).suffix == ".parquet":
            table = geopandas.read_parquet(name)
        else:
            first, *others = geopandas.list_layers(name)["name"]
            if others:
                message = f"{name} has {len(others) + 1} layers: only {first} is read"
                warnings.warn(message, RssegWarning, stacklevel=2)
            table = geopandas.read_file(name, layer=first)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableError(f"the polygons cannot be read: {error}", where=name) from error
    kinds = set(table.geom_type.dropna()) if isinstance(table, geopandas.GeoDataFrame) else set()
    if not kinds & {"Polygon", "MultiPolygon"}:
        raise UnreadableError(
            f"the label holds no polygons ({', '.join(sorted(kinds)) or 'it is empty'})",
            where=name,
            fix="buffer lines and points into polygons first",
        )
    return table


def _class_of_rows(table: Any, code: LabelCode, name: str) -> NDArray[np.uint8]:
    """Return the class index of each polygon; `IGNORE` where the attribute is empty."""
    columns = ", ".join(column for column in table.columns if column != table.geometry.name)
    fix = f"`field: ...` in dataset.yaml, one of: {columns}"
    if code.field is None:
        candidates = [index for index in range(len(code.classes)) if index != code.background]
        if len(candidates) != 1:
            what = f"{len(candidates)} classes are possible, and no attribute is set"
            raise RssegError(what, where=name, fix=fix)
        return np.full(len(table), candidates[0], np.uint8)
    if code.field not in table.columns:
        raise RssegError(f"the polygons have no attribute {code.field}", where=name, fix=fix)
    known = code.attributes()
    column = table[code.field]
    texts = [
        None if missing else as_text(value)
        for value, missing in zip(column, column.isna(), strict=True)
    ]
    unknown = sorted({text for text in texts if text is not None and text not in known})
    if unknown:
        raise RssegError(
            f"{code.field} holds values that are not classes: {', '.join(unknown[:10])}",
            where=name,
            fix=f"a class with that `value`, or `ignore` it (known: {', '.join(known)})",
        )
    return np.array([IGNORE if text is None else known[text] for text in texts], np.uint8)
