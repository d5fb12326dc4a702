"""Area of interest of a scene: a box or polygons, in any CRS."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import CRSError
from rasterio.features import geometry_mask
from shapely import STRtree, box
from shapely.geometry.base import BaseGeometry

from rsseg_cli.errors import RssegError, RssegWarning
from rsseg_cli.raster.grid import Window
from rsseg_cli.raster.scene import Scene
from rsseg_cli.raster.vector_labels import read_vector

SEGMENTS = 64
"""Segments of the longer side of a box that is transformed to another CRS."""


@dataclass(frozen=True)
class Area:
    """Area of interest of one scene; a pixel belongs to it if its centre is inside.

    Attributes:
        box: Smallest window that contains the area.
        shapes: Polygons in pixels of the scene.
        tree: Spatial index of the shapes.
    """

    box: Window
    shapes: tuple[BaseGeometry, ...]
    tree: STRtree

    @classmethod
    def from_file(cls, path: Path, scene: Scene) -> Area:
        """Read the area from the polygons of a vector file.

        Raises:
            RssegError: The file has no polygons, or none overlaps the scene.
        """
        table = read_vector(path)
        if table.crs is not None and scene.crs is None:
            raise RssegError(
                "the area has a CRS but the scene has none", where=f"{path}, {scene.path}",
                fix="an area in pixels without a CRS, or a scene with one",
            )  # fmt: skip
        if table.crs is None and scene.crs is not None:
            warnings.warn(f"{path} has no CRS: that of the scene is used", RssegWarning, 2)
        shapes = table.geometry
        if table.crs is not None and scene.crs is not None:
            shapes = shapes.to_crs(scene.crs.to_wkt())
        return cls._from_shapes(shapes[shapes.notna() & ~shapes.is_empty], scene, str(path))

    @classmethod
    def from_bounds(
        cls, bounds: tuple[float, float, float, float], scene: Scene, crs: str | None = None
    ) -> Area:
        """Build the area from a box.

        Args:
            bounds: Smallest x, smallest y, largest x, largest y.
            scene: The scene.
            crs: CRS of the box; None: that of the scene.

        Raises:
            RssegError: The box is empty or outside the scene, or the CRS is unknown.
        """
        where = f"--bbox {','.join(f'{number:g}' for number in bounds)}"
        x0, y0, x1, y1 = bounds
        if not (x0 < x1 and y0 < y1):
            raise RssegError("the box is empty", where=where, fix="xmin,ymin,xmax,ymax")
        shape = box(x0, y0, x1, y1)
        if crs is not None:
            if scene.crs is None:
                raise RssegError(
                    "the box has a CRS but the scene has none", where=scene.path,
                    fix="--bbox in pixels, without --bbox-crs",
                )  # fmt: skip
            shape = _to_scene_crs(shape, crs, scene.crs)
        return cls._from_shapes([shape], scene, where)

    @classmethod
    def _from_shapes(cls, shapes: Iterable[BaseGeometry], scene: Scene, where: str) -> Area:
        from shapely.affinity import affine_transform

        a, b, c, d, e, f = (~scene.transform)[:6]
        in_pixels = [affine_transform(shape, (a, b, d, e, c, f)) for shape in shapes]
        bounds = np.array([shape.bounds for shape in in_pixels if shape.area])
        if len(bounds):
            low, high = np.floor(bounds[:, :2].min(0)), np.ceil(bounds[:, 2:].max(0))
            low, high = np.maximum(low, 0), np.minimum(high, (scene.width, scene.height))
            if (low < high).all():
                (x, y), (width, height) = low.astype(int), (high - low).astype(int)
                window = Window(int(x), int(y), int(width), int(height))
                return cls(window, tuple(in_pixels), STRtree(in_pixels))
        raise RssegError(
            "the area does not overlap the scene",
            where=f"{where}, {scene.path}",
            fix="an area in the scene's CRS, or --bbox-crs EPSG:...",
        )

    def mask(self, window: Window) -> NDArray[np.bool_]:
        """Return the pixels (h, w) of a window that are in the area."""
        hits = self.tree.query(box(window.x, window.y, window.right, window.bottom))
        if not hits.size:
            return np.zeros((window.height, window.width), np.bool_)
        inside: NDArray[np.bool_] = geometry_mask(
            [self.shapes[hit] for hit in hits],
            out_shape=(window.height, window.width),
            transform=rasterio.Affine.translation(window.x, window.y),
            invert=True,
        )
        return inside


def _to_scene_crs(shape: BaseGeometry, crs: str, scene_crs: rasterio.CRS) -> BaseGeometry:
    """Transform a box to the CRS of a scene, where its sides are curves."""
    import geopandas  # takes a second to import, and few calls need it

    try:
        box_crs = rasterio.CRS.from_user_input(crs)
    except (CRSError, ValueError) as error:
        raise RssegError(
            f"{crs} is not a known CRS", where="--bbox-crs", fix="e.g. EPSG:4326"
        ) from error
    x0, y0, x1, y1 = shape.bounds
    segmented = shape.segmentize(max(x1 - x0, y1 - y0) / SEGMENTS)
    series = geopandas.GeoSeries([segmented], crs=box_crs.to_wkt())
    transformed: BaseGeometry = series.to_crs(scene_crs.to_wkt()).iloc[0]
    return transformed
