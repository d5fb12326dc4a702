"""Reads polygons as labels, rasterised window by window."""

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


@dataclass
class LabelPolygons:
    """Polygons in the CRS of the scene, in the order of their file."""

    shapes: list[BaseGeometry]
    indices: NDArray[np.uint8]
    tree: STRtree
    outside: int

    def read(self, window: Window, transform: rasterio.Affine) -> Labels:
        """Burn class indices (h, w) of a window of a scene with `transform`."""
        place = transform @ rasterio.Affine.translation(window.x, window.y)
        shape = (window.height, window.width)
        corners = [place @ corner for corner in ((0, 0), (shape[1], 0), (0, shape[0]), shape[::-1])]
        xs, ys = zip(*corners, strict=True)
        hits = np.sort(self.tree.query(box(min(xs), min(ys), max(xs), max(ys))))
        if not hits.size:
            return np.full(shape, self.outside, np.uint8)
        burned: Labels = rasterize(
            [(self.shapes[hit], int(self.indices[hit])) for hit in hits],
            out_shape=shape,
            transform=place,
            fill=self.outside,
            dtype="uint8",
        )
        return burned

    def close(self) -> None:
        """Nothing is open: the polygons are shared by all scenes on their ground."""


@lru_cache(maxsize=32)
def load_polygons(name: str, modified: int, code: LabelCode, wkt: str | None) -> LabelPolygons:
    """Load polygons once per file and CRS.

    Args:
        name: The vector file.
        modified: When it was last changed (ns); a changed file is loaded again.
        code: How its attributes encode classes.
        wkt: CRS of the scene, None when it has none.

    Raises:
        UnreadableError: The file is not a vector file, or has no polygons.
        RssegError: Unknown attribute or values, or the scene has no CRS.
    """
    table = read_vector(name)
    indices = _class_of_rows(table, code, name)
    if wkt is None and table.crs is not None:
        raise RssegError(
            "the labels have a CRS but their image has none",
            where=name,
            fix="`reader: {crs: EPSG:...}` in dataset.yaml gives the CRS of the images",
        )
    if table.crs is None and wkt is not None:
        warnings.warn(f"{name} has no CRS: that of its image is taken", RssegWarning, stacklevel=2)
    geometry = table.geometry if table.crs is None else table.geometry.to_crs(wkt)
    kept = (~geometry.is_empty & geometry.notna()).to_numpy()
    shapes = [shape for shape, keep in zip(geometry, kept, strict=True) if keep]
    outside = IGNORE if code.background is None else code.background
    return LabelPolygons(shapes, indices[kept], STRtree(shapes), outside)


def read_vector(path: str | PathLike[str]) -> Any:
    """Read the polygons of a vector file as a GeoDataFrame.

    Raises:
        UnreadableError: The file is not a vector file, or has no polygons.
    """
    import geopandas  # a second of import that raster labels do not need

    name = fspath(path)
    try:
        layers = geopandas.list_layers(name)["name"] if Path(name).suffix != ".parquet" else [None]
        if len(layers) > 1:
            warnings.warn(
                f"{name} has {len(layers)} layers: only {layers[0]} is read",
                RssegWarning,
                stacklevel=2,
            )
        table = (
            geopandas.read_file(name, layer=layers[0])
            if layers[0] is not None
            else geopandas.read_parquet(name)
        )
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
    """Find the class index of every polygon; one whose attribute is empty has no class."""
    if code.field is None:
        only = [index for index in range(len(code.classes)) if index != code.background]
        if len(only) != 1:
            raise RssegError(
                f"{len(only)} classes are possible, and no attribute is given",
                where=name,
                fix=f"`field: ...` in dataset.yaml, one of: {_attributes(table)}",
            )
        return np.full(len(table), only[0], np.uint8)
    if code.field not in table.columns:
        raise RssegError(
            f"the polygons have no attribute {code.field}",
            where=name,
            fix=f"`field: ...` in dataset.yaml, one of: {_attributes(table)}",
        )
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


def _attributes(table: Any) -> str:
    return ", ".join(column for column in table.columns if column != table.geometry.name)
