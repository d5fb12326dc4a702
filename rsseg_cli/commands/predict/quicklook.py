"""Quicklook: a PNG beside a map, for viewing without a GIS."""

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

MAX_PIXELS = 2**26
"""Largest scene without overviews that is read again for its quicklook."""


def write_quicklook(
    path: Path, png: Path, classes: Sequence[Class], scene: Scene, bands: Bands
) -> Path:
    """Draw the map at `path` beside its scene, if that is not too large; return the PNG's path."""
    rgb = tuple(scene.bands[index] for index in shown_bands(bands))
    with rasterio.open(scene.path) as file:
        fast = bool(file.overviews(1)) or file.width * file.height <= MAX_PIXELS
    figure = quicklook(path, classes, image=scene.path if fast else None, rgb=rgb, title=path.name)
    with write_errors("the quicklook", png):
        write_bytes(png, to_png(figure))
    return png
