"""A small picture of a map beside it, for a look without a GIS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rasterio

from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.raster.parts import anywhere
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.charts import to_png
from rsseg_cli.report.map_figure import quicklook
from rsseg_cli.report.report import replace_file, writing
from rsseg_cli.run.review import shown_bands

READ_WHOLE = 2**26
"""Pixels of a scene without overviews up to which it is read again to be shown beside its map."""


def quicklook_beside(
    made: Path, target: Path, classes: Sequence[Class], scene: Scene, bands: Bands
) -> Path:
    """Draw a map, and its scene where that is cheap.

    Args:
        made: The map.
        target: The PNG; it is replaced.
        classes: Classes of the map.
        scene: The scene that was mapped.
        bands: What the bands of the scene are.

    Returns:
        The PNG.
    """
    rgb = tuple(scene.bands[index] for index in shown_bands(bands))
    figure = quicklook(
        made, classes, image=scene.path if _cheap(scene) else None, rgb=rgb, title=made.name
    )
    with writing("the quicklook", target):
        replace_file(target, to_png(figure))
    return target


def _cheap(scene: Scene) -> bool:
    """Tell whether a small version of a scene can be had without reading all of a large one."""
    with anywhere(), rasterio.open(scene.path) as file:
        return bool(file.overviews(1)) or file.width * file.height <= READ_WHOLE
