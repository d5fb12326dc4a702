"""A small picture of a map beside it, for a look without a GIS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import rasterio

from rsseg_cli.atomic_write import write_bytes, write_errors
from rsseg_cli.classes import Class
from rsseg_cli.commands.fit.final_evaluation import shown_bands
from rsseg_cli.contract import Bands
from rsseg_cli.raster.scene import Scene
from rsseg_cli.report.charts import to_png
from rsseg_cli.report.map_figure import quicklook

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
    with write_errors("the quicklook", target):
        write_bytes(target, to_png(figure))
    return target


def _cheap(scene: Scene) -> bool:
    """Tell whether a small version of a scene can be had without reading all of a large one."""
    with rasterio.open(scene.path) as file:
        return bool(file.overviews(1)) or file.width * file.height <= READ_WHOLE
